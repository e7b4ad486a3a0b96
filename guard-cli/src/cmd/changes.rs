//! Changes of who may decide, and alarms.

use std::process::ExitCode;

use guard_evidence::text::{defuse, visible, visible_fold};
use guard_proto::rest::{Alarm, ChangeView};

use crate::args::{Changes, Global, Output};
use crate::client::Client;
use crate::failure::Failure;
use crate::output;

pub(super) async fn changes(global: &Global, command: Changes) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    let query: Vec<(&str, String)> = [("label", command.label), ("user", command.user)]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    let items: Vec<ChangeView> = client.pages("/changes", &query, usize::from(command.limit)).await?;
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "items": items }), false)?;
    } else if items.is_empty() {
        output::note("no such change was recorded");
    } else {
        let rows: Vec<Vec<String>> = items
            .iter()
            .map(|change| {
                vec![
                    output::local(&change.at),
                    defuse(&change.what),
                    defuse(&change.by_words),
                    change
                        .why
                        .as_deref()
                        .map(|why| visible_fold(why, 200))
                        .unwrap_or_default(),
                    change.index.to_string(),
                ]
            })
            .collect();
        output::table(&["WHEN", "WHAT", "BY", "WHY", "LOG"], &rows, 1)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn alarms(global: &Global, limit: u16) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    let items: Vec<Alarm> = client.pages("/alarms", &[], usize::from(limit)).await?;
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "items": items }), false)?;
    } else if items.is_empty() {
        output::note("no alarm");
    } else {
        let rows: Vec<Vec<String>> = items
            .iter()
            .map(|alarm| {
                vec![
                    output::local(&alarm.at),
                    visible(&alarm.host),
                    visible(&alarm.kind),
                    defuse(&alarm.detail),
                ]
            })
            .collect();
        output::table(&["WHEN", "HOST", "ALARM", "WHAT"], &rows, 3)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Of a request's card: what changed lately about who may decide it.
pub(crate) fn mark(change: &ChangeView) -> String {
    format!(
        "{} {} ago {}",
        defuse(&change.what),
        output::span(&change.at, None),
        defuse(&change.by_words)
    )
}
