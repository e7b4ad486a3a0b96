//! Changes of who may decide, and alarms.

use std::process::ExitCode;

use guard_evidence::text::{defuse, visible, visible_fold};
use guard_proto::rest::{Alarm, ChangeView};

use crate::args::{Changes, Global};
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
    let heading = ["WHEN", "WHAT", "BY", "WHY", "LOG"];
    output::list(
        global.output,
        &items,
        Some("no such change was recorded"),
        &heading,
        1,
        |change| {
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
        },
    )?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn alarms(global: &Global, limit: u16) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    let items: Vec<Alarm> = client.pages("/alarms", &[], usize::from(limit)).await?;
    let heading = ["WHEN", "HOST", "ALARM", "WHAT"];
    output::list(global.output, &items, Some("no alarm"), &heading, 3, |alarm| {
        vec![
            output::local(&alarm.at),
            visible(&alarm.host),
            visible(&alarm.kind),
            defuse(&alarm.detail),
        ]
    })?;
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
