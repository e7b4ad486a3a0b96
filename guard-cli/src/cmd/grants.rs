//! Grants of the console.

use std::process::ExitCode;

use guard_evidence::text::{visible, visible_fold};
use guard_proto::rest::Grant;
use reqwest::Method;

use crate::args::{Global, Grants};
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::output;

/// Most grants that are listed.
const MANY: usize = 1_000;

pub(super) async fn grants(global: &Global, command: Grants) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    match command {
        Grants::List => {
            let grants: Vec<Grant> = client.pages("/grants", &[], MANY).await?;
            let nothing =
                "no grants; whoever approves can make one:\n  → guard requests approve ID --for 15m --times 5";
            let heading = ["ID", "STATE", "USED", "BY", "WHAT"];
            output::list(global.output, &grants, Some(nothing), &heading, 4, row)?;
        }
        Grants::Revoke { id } => {
            client
                .send_empty(Method::POST, &format!("/grants/{}/revoke", segment(&id)))
                .await?;
            output::line(&format!("the grant {} is revoked", visible_fold(&id, 40)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(grant: &Grant) -> Vec<String> {
    vec![
        visible(&grant.id),
        visible(&grant.state),
        match grant.times {
            Some(times) => format!("{} of {times}", grant.used),
            None => grant.used.to_string(),
        },
        visible(&grant.by),
        visible_fold(&grant.words, 300),
    ]
}
