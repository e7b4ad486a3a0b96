//! `guard evidence`: records, bundles, and whether they hold.

use std::process::ExitCode;

use guard_evidence::dsse;
use guard_evidence::record::Statement;
use guard_evidence::statement::{sha256_hex, summary};
use guard_evidence::text::{defuse, visible};
use guard_proto::rest::RecordView;

use crate::args::{Evidence, EvidenceFilter, EvidenceList, Global, Output};
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::output;

pub(super) async fn run(global: &Global, command: Evidence) -> Result<ExitCode, Failure> {
    match command {
        Evidence::List(args) => list(global, &args).await,
        Evidence::Show { digest, envelope } => show(global, &digest, envelope).await,
        _ => Err(Failure::usage("coming")),
    }
}

fn query(filter: &EvidenceFilter) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut query = Vec::new();
    query.extend(filter.host.as_ref().map(|host| ("host", host.clone())));
    query.extend(filter.label.as_ref().map(|label| ("label", label.clone())));
    for (name, time) in [("from", &filter.from), ("to", &filter.to)] {
        if let Some(time) = time {
            query.push((name, output::parse_time(time)?));
        }
    }
    Ok(query)
}

async fn list(global: &Global, args: &EvidenceList) -> Result<ExitCode, Failure> {
    let mut query = query(&args.filter)?;
    query.extend(args.request.as_ref().map(|id| ("request", id.clone())));
    query.extend(args.kind.as_ref().map(|kind| ("kind", kind.clone())));
    let client = Client::signed_in(&global.profile)?;
    let items: Vec<RecordView> = client.pages("/evidence", &query, usize::from(args.limit)).await?;
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "items": items }), false)?;
    } else if items.is_empty() {
        output::note("no records");
    } else {
        let rows: Vec<Vec<String>> = items
            .iter()
            .map(|r| {
                vec![
                    r.index.to_string(),
                    output::local(&r.at),
                    visible(&r.host),
                    format!("{}/{}", r.epoch, r.sequence),
                    visible(&r.kind),
                    defuse(&r.summary),
                    r.digest.chars().take(12).filter(char::is_ascii_hexdigit).collect(),
                ]
            })
            .collect();
        output::table(&["INDEX", "AT", "HOST", "SEQ", "KIND", "WHAT", "DIGEST"], &rows, 5)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(global: &Global, digest: &str, envelope: bool) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    let wanted = digest.to_ascii_lowercase();
    if wanted.len() < 6 || wanted.len() > 64 || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(
            Failure::usage(format!("`{}` is not a digest: 6 to 64 hex digits", visible(digest)))
                .next("guard evidence list"),
        );
    }
    let wanted = if wanted.len() == 64 {
        wanted
    } else {
        complete(&client, &wanted).await?
    };
    let bytes = client.bytes(&format!("/evidence/{}", segment(&wanted))).await?;
    if sha256_hex(&bytes) != wanted {
        return Err(Failure::no(format!(
            "the console sent a record that does not have the digest {wanted}"
        )));
    }
    if envelope {
        output::raw(&bytes)?;
        return Ok(ExitCode::SUCCESS);
    }
    let parsed = dsse::parse(&bytes).map_err(|e| Failure::no(format!("record {wanted}: {e}")))?;
    let statement = Statement::from_payload(parsed.unverified_payload())
        .map_err(|e| Failure::no(format!("record {wanted}: {e}")))?;
    // JSON escapes controls; what is left of the invisible is made visible below for people.
    let text = serde_json::to_string_pretty(&statement)?;
    if global.output == Output::Json {
        output::json(&statement, false)?;
    } else {
        output::line(&summary(&statement))?;
        output::line("")?;
        output::fields(&[("digest", vec![wanted]), ("key", vec![visible(parsed.key_id())])])?;
        output::line(&text.lines().map(visible).collect::<Vec<_>>().join("\n"))?;
        output::note("guard: the digest matches; signatures are checked by `guard evidence export` and `verify`");
    }
    Ok(ExitCode::SUCCESS)
}

async fn complete(client: &Client, begin: &str) -> Result<String, Failure> {
    let items: Vec<RecordView> = client.pages("/evidence", &[], 1000).await?;
    let mut found = items
        .into_iter()
        .filter(|r| r.digest.starts_with(begin))
        .map(|r| r.digest);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => {
            Err(Failure::no(format!("no record among the newest 1000 begins with {begin}")).next("guard evidence list"))
        }
        (Some(_), Some(_)) => {
            Err(Failure::usage(format!("several records begin with {begin}")).next("give more of the digest"))
        }
    }
}
