//! `guard requests`: what agents ask, and people's answers.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use guard_evidence::statement::sentence;
use guard_evidence::text::{defuse, visible};
use guard_proto::limits::REASON_BYTES;
use guard_proto::rest::{AnswerBody, GrantTerms, Request, RequestState};
use reqwest::Method;

use crate::args::{Global, Output, Requests, RequestsList, Scope, StateFilter};
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::{card, output, sse};

pub(super) async fn run(global: &Global, command: Requests) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    match command {
        Requests::List(args) => list(global, &client, &args).await,
        Requests::Show { id } => show(global, &client, &id).await,
        Requests::Watch { label, host } => watch(global, &client, label.as_deref(), host.as_deref()).await,
        Requests::Approve {
            id,
            reason,
            grant_for,
            times,
            scope: Scope::Exact,
        } => {
            let grant = grant_for.as_deref().map(|text| terms(text, times)).transpose()?;
            answer(global, &client, &id, reason, true, grant).await
        }
        Requests::Deny { id, reason } => answer(global, &client, &id, reason, false, None).await,
    }
}

async fn list(global: &Global, client: &Client, args: &RequestsList) -> Result<ExitCode, Failure> {
    let items = fetch(
        client,
        args.state,
        args.label.as_deref(),
        args.host.as_deref(),
        usize::from(args.limit),
    )
    .await?;
    if global.output == Output::Json {
        output::json(&serde_json::json!({ "items": items }), false)?;
    } else if items.is_empty() {
        output::note("no requests: nothing is held, and nothing was asked recently");
    } else {
        print_table(&items)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Waiting ones first, oldest first; then those that ended, newest first.
async fn fetch(
    client: &Client,
    state: StateFilter,
    label: Option<&str>,
    host: Option<&str>,
    limit: usize,
) -> Result<Vec<Request>, Failure> {
    let query = |state: Option<RequestState>| {
        let mut query: Vec<(&str, String)> = Vec::new();
        query.extend(state.map(|s| ("state", s.as_str().to_owned())));
        query.extend(label.map(|l| ("label", l.to_owned())));
        query.extend(host.map(|h| ("host", h.to_owned())));
        query
    };
    if let Some(state) = state.one() {
        return client.pages("/requests", &query(Some(state)), limit).await;
    }
    let mut items: Vec<Request> = client
        .pages("/requests", &query(Some(RequestState::Pending)), limit)
        .await?;
    let waiting = items.len();
    let all: Vec<Request> = client.pages("/requests", &query(None), limit).await?;
    items.extend(all.into_iter().filter(|r| r.state != RequestState::Pending));
    // One that was answered between the two questions is listed once, as it is now.
    let ended: HashMap<String, ()> = items[waiting..].iter().map(|r| (r.id.clone(), ())).collect();
    let mut seen_as_pending = 0;
    items.retain(|r| {
        seen_as_pending += 1;
        seen_as_pending > waiting || !ended.contains_key(&r.id)
    });
    let waiting = items.iter().take_while(|r| r.state == RequestState::Pending).count();
    items[..waiting].sort_by(|a, b| a.asked_at.cmp(&b.asked_at));
    items[waiting..].sort_by(|a, b| b.ended_at.cmp(&a.ended_at).then_with(|| b.id.cmp(&a.id)));
    items.truncate(limit);
    Ok(items)
}

fn print_table(items: &[Request]) -> Result<(), Failure> {
    let ids: Vec<&str> = items.iter().map(|r| r.id.as_str()).collect();
    let with_state = items.iter().any(|r| r.state != RequestState::Pending);
    let mut heading = vec!["ID", "WAITING", "LABEL", "HOST", "ACTION", "WHAT", "ASKS"];
    if with_state {
        heading.insert(1, "STATE");
    }
    let rows: Vec<Vec<String>> = items
        .iter()
        .map(|r| {
            let mut row = vec![
                short(&r.id, &ids),
                output::span(&r.asked_at, r.ended_at.as_deref()),
                visible(&r.label),
                visible(&r.host),
                visible(&r.action),
                defuse(&r.what),
                asks(r),
            ];
            if with_state {
                row.insert(1, card::state_word(r.state).to_owned());
            }
            row
        })
        .collect();
    output::table(&heading, &rows, if with_state { 6 } else { 5 })
}

fn asks(request: &Request) -> String {
    let groups = if request.approver_groups.is_empty() {
        "any approver".to_owned()
    } else {
        request
            .approver_groups
            .iter()
            .map(|g| visible(g))
            .collect::<Vec<_>>()
            .join("+")
    };
    format!("{groups} ({} of {})", request.approvals, request.quorum)
}

/// An id as short as tells it from the others listed: its beginning says when, its end which.
fn short(id: &str, all: &[&str]) -> String {
    let id_shown = visible(id);
    if id.len() != 26 || !id.is_ascii() {
        return id_shown;
    }
    let unique = |n: usize| all.iter().filter(|other| other.ends_with(&id[26 - n..])).count() <= 1;
    match (4..20).find(|n| unique(*n)) {
        Some(n) => format!("{}…{}", &id[..3], &id[26 - n..]),
        None => id_shown,
    }
}

/// The request that a person means: a whole id, or the beginning, the end or `begin…end` of one that is listed.
async fn find(client: &Client, given: &str) -> Result<Request, Failure> {
    let wanted = given.trim().to_ascii_uppercase();
    if wanted.parse::<ulid::Ulid>().is_ok() {
        return client.get(&format!("/requests/{}", segment(&wanted)), &[]).await;
    }
    let (begin, end) = wanted
        .split_once('…')
        .or_else(|| wanted.split_once("..."))
        .unwrap_or((&wanted, ""));
    if begin.len() + end.len() < 2 {
        return Err(
            Failure::usage(format!("`{}` is too short to name a request", visible(given))).next("guard requests list"),
        );
    }
    let matches = |id: &str| {
        if end.is_empty() {
            id.starts_with(begin) || id.ends_with(begin)
        } else {
            id.starts_with(begin) && id.ends_with(end)
        }
    };
    let listed = fetch(client, StateFilter::All, None, None, 1000).await?;
    let found: Vec<&Request> = listed.iter().filter(|r| matches(&r.id)).collect();
    match found.as_slice() {
        [] => Err(Failure::no(format!("no request `{}` is listed", visible(given))).next("guard requests list")),
        [one] => client.get(&format!("/requests/{}", segment(&one.id)), &[]).await,
        many => Err(Failure::usage(format!(
            "`{}` may be any of {}",
            visible(given),
            many.iter()
                .take(5)
                .map(|r| visible(&r.id))
                .collect::<Vec<_>>()
                .join(", ")
        ))
        .next("give more of the id")),
    }
}

async fn show(global: &Global, client: &Client, id: &str) -> Result<ExitCode, Failure> {
    let request = find(client, id).await?;
    let record = card::record(client, &request).await?;
    match global.output {
        Output::Json => output::json(&request, false)?,
        Output::Table => card::print(&request, &record)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn answer(
    global: &Global,
    client: &Client,
    id: &str,
    reason: String,
    approve: bool,
    grant: Option<GrantTerms>,
) -> Result<ExitCode, Failure> {
    let reason = reason.trim().to_owned();
    if !approve && reason.is_empty() {
        return Err(Failure::usage("a denial needs a reason").next("--reason \"open a pull request instead\""));
    }
    if reason.len() > REASON_BYTES {
        return Err(Failure::usage(format!(
            "the reason has {} bytes; at most {REASON_BYTES} fit",
            reason.len()
        )));
    }
    let request = find(client, id).await?;
    let record = card::record(client, &request).await?;
    if global.output == Output::Table {
        output::line(&output::sentence(&sentence(&record)))?;
    }
    if request.state != RequestState::Pending {
        return Err(Failure::no(format!(
            "request {} has ended already: {}",
            defuse(&request.id),
            card::ended(&request)
        )));
    }
    if !request.may_answer {
        let why = request
            .why_not
            .as_deref()
            .map_or_else(|| "the console does not say why".to_owned(), defuse);
        return Err(Failure::no(format!(
            "you cannot answer request {}: {why}",
            defuse(&request.id)
        )));
    }
    if grant.is_some() {
        match &request.grantable {
            // Before the answer is sent: what it will cover.
            Some(words) if global.output == Output::Table => output::line(&format!("later, too: {}", defuse(words)))?,
            Some(_) => {}
            None => {
                return Err(Failure::no(format!(
                    "request {} can only be approved once: a part of it is not known, or it takes several people",
                    defuse(&request.id)
                ))
                .next(format!("guard requests approve {}", defuse(&request.id))));
            }
        }
    }
    let verb = if approve { "approve" } else { "deny" };
    let path = format!("/requests/{}/{verb}", segment(&request.id));
    let body = AnswerBody {
        reason,
        digest: request.digest.clone(),
        grant,
    };
    let after: Request = client.send_json(Method::POST, &path, &body).await?;
    match global.output {
        Output::Json => output::json(&after, false)?,
        Output::Table => output::line(&answered(&after, approve, grant.is_some()))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How long a grant lasts.
fn terms(text: &str, times: Option<u32>) -> Result<GrantTerms, Failure> {
    match output::parse_seconds(text) {
        Some(seconds) if (60..=86_400).contains(&seconds) => Ok(GrantTerms { seconds, times }),
        _ => Err(Failure::usage(format!("`{}` is not a duration from 1m to 24h", visible(text))).next("--for 15m")),
    }
}

fn answered(request: &Request, approve: bool, granted: bool) -> String {
    let id = defuse(&request.id);
    match (approve, request.state) {
        (true, RequestState::Approved) if granted => {
            format!("approved, and for later (request {id})\n  → guard grants list")
        }
        (true, RequestState::Approved) => format!("approved once (request {id})"),
        (true, _) => format!(
            "approved by {} of {}; the action stays held (request {id})",
            request.approvals, request.quorum
        ),
        (false, _) => format!("denied (request {id})"),
    }
}

/// Prints requests as they come and change; connects again when the console was away.
async fn watch(global: &Global, client: &Client, label: Option<&str>, host: Option<&str>) -> Result<ExitCode, Failure> {
    let mut seen: HashMap<String, (RequestState, u32)> = HashMap::new();
    let mut wait = Duration::from_secs(1);
    let mut connected_before = false;
    loop {
        match watch_once(global, client, label, host, &mut seen, &mut connected_before).await {
            // Not signed in any more, not allowed: waiting would not help.
            Err(failure) if !failure.may_pass() || !connected_before => return Err(failure),
            Err(failure) => output::note(&format!("{failure}\nguard: trying again in {} s", wait.as_secs())),
            Ok(()) => wait = Duration::from_secs(1),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}

async fn watch_once(
    global: &Global,
    client: &Client,
    label: Option<&str>,
    host: Option<&str>,
    seen: &mut HashMap<String, (RequestState, u32)>,
    connected_before: &mut bool,
) -> Result<(), Failure> {
    // The stream first, then the list: what comes in between is in one of them at least.
    let mut stream = client.stream("/events", &[]).await?;
    let pending = fetch(client, StateFilter::Pending, label, host, 1000).await?;
    if !*connected_before && global.output == Output::Table {
        output::note(&format!(
            "guard: watching {} ({} waiting); Ctrl-C ends it",
            client.base(),
            pending.len()
        ));
    }
    *connected_before = true;
    for request in &pending {
        tell(global, request, seen)?;
    }
    let mut parser = sse::Parser::default();
    loop {
        let chunk = stream
            .chunk()
            .await
            .map_err(|e| Failure::unknown(format!("the console went away: {}", crate::failure::chain(&e))))?;
        let Some(chunk) = chunk else { return Ok(()) };
        let events = parser
            .push(&chunk)
            .map_err(|_| Failure::unknown("the console sends an event that is too large"))?;
        for event in events.iter().filter(|e| e.name == "request") {
            let request: Request = serde_json::from_str(&event.data)?;
            let wanted = label.is_none_or(|l| l == request.label)
                && host.is_none_or(|h| h == request.host || h == request.host_id);
            if wanted {
                tell(global, &request, seen)?;
            }
        }
    }
}

fn tell(global: &Global, request: &Request, seen: &mut HashMap<String, (RequestState, u32)>) -> Result<(), Failure> {
    let now = (request.state, request.approvals);
    if seen.insert(request.id.clone(), now) == Some(now) && request.outcome.is_none() {
        return Ok(());
    }
    if global.output == Output::Json {
        return output::json(request, true);
    }
    let time = request.ended_at.as_deref().unwrap_or(&request.asked_at);
    let state = match request.state {
        RequestState::Pending if request.approvals > 0 => {
            format!("{} of {} approved", request.approvals, request.quorum)
        }
        RequestState::Pending => format!("asks {}", card::asks(request)),
        _ => card::ended(request),
    };
    let outcome = request
        .outcome
        .as_deref()
        .map(|o| format!("; {}", defuse(o)))
        .unwrap_or_default();
    output::line(&format!(
        "{}  {}  {}  {state}{outcome}",
        output::local(time),
        defuse(&request.id),
        defuse(&request.sentence)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_as_short_as_tells_them_apart() {
        let a = "01JD0000000000000000000001";
        let b = "01JD0000000000000000010001";
        assert_eq!(short(a, &[a]), "01J…0001");
        assert_eq!(short(a, &[a, b]), "01J…00001");
        assert_eq!(short("x\n", &["x\n"]), "x⟨U+000A⟩");
    }
}
