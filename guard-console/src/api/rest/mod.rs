//! REST under /api/v1: the table below owns paths, names and who may call; `guard_proto::rest` owns the shapes.

mod access;
mod answers;
mod body;
mod changes;
mod channels;
mod evidence;
mod grants;
mod hosts;
mod labels;
mod people;
mod requests;

use std::sync::LazyLock;

use axum::extract::State;

use super::endpoint::{Access, Endpoints, Operations};
use super::identity::Shared;
use super::openapi;
use crate::app::{Permission, Result};
use answers::ReadyJson;

pub(crate) use body::read as read_body;
pub use body::{Fields, Json, Path, take_left_over};
pub(crate) use changes::about;
pub(crate) use requests::{cursor, last_event_id};

/// Every REST endpoint.
#[must_use]
pub fn endpoints() -> Endpoints {
    let operations = people(Operations::default());
    let operations = asked(operations);
    let operations = hosts_and_labels(operations);
    let operations = evidence_and_changes(operations);
    operations
        .say("getOpenApi", "This document")
        .get("/api/v1/openapi.json", Access::Anyone, document)
        .done()
}

fn people(operations: Operations) -> Operations {
    use Access::{Anyone, Needs, SignedIn};
    use Permission as P;
    operations
        .say("getStatus", "The console's version, and how people sign in")
        .get("/api/v1/status", Anyone, people::status)
        .say("setUp", "Makes the first administrator; works once")
        .post("/api/v1/setup", Anyone, people::set_up)
        .say(
            "signIn",
            "Signs in by password; slow on purpose, locked for a while after repeated failures",
        )
        .post("/api/v1/sessions", Anyone, people::sign_in)
        .say("signOut", "Ends the session with which this is called")
        .delete("/api/v1/sessions/current", SignedIn, people::sign_out)
        .say("listSessions", "One's own sessions, or everybody's, newest first")
        .get("/api/v1/sessions", SignedIn, access::sessions)
        .say(
            "endSession",
            "Ends a session: one's own, or anybody's for who manages accounts",
        )
        .delete("/api/v1/sessions/{id}", SignedIn, access::end_session)
        .say("getMe", "Who calls")
        .get("/api/v1/me", SignedIn, people::me)
        .say("listUsers", "Accounts of people and programs, by name")
        .get("/api/v1/users", Needs(P::SeeUsers), people::users)
        .say("addUser", "Makes an account of a person")
        .post("/api/v1/users", Needs(P::ManageUsers), people::add_user)
        .say(
            "disableUser",
            "Disables an account, for ever; its sessions and keys end, its open approvals no longer count",
        )
        .post(
            "/api/v1/users/{name}/disable",
            Needs(P::ManageUsers),
            people::disable_user,
        )
        .say("endSessionsOf", "Ends every session of somebody")
        .delete(
            "/api/v1/users/{name}/sessions",
            Needs(P::ManageUsers),
            access::end_sessions_of,
        )
        .say("addServiceAccount", "Makes an account of a program")
        .post(
            "/api/v1/service-accounts",
            Needs(P::ManageUsers),
            access::add_service_account,
        )
        .say("listKeys", "Keys of service accounts, newest first")
        .get("/api/v1/keys", Needs(P::SeeUsers), access::keys)
        .say("makeKey", "Makes a key; its secret is shown only here")
        .post("/api/v1/keys", Needs(P::ManageUsers), access::make_key)
        .say("revokeKey", "Ends a key at once")
        .post("/api/v1/keys/{id}/revoke", Needs(P::ManageUsers), access::revoke_key)
}

fn asked(operations: Operations) -> Operations {
    use Access::Needs;
    use Permission as P;
    operations
        .say("listRequests", "Requests; pending: oldest first, others: newest first")
        .get("/api/v1/requests", Needs(P::SeeRequests), requests::list)
        .say("getRequest", "One request")
        .get("/api/v1/requests/{id}", Needs(P::SeeRequests), requests::show)
        .say("getRequestRecord", "The signed record of a request")
        .get("/api/v1/requests/{id}/record", Needs(P::SeeRequests), requests::record)
        .say("approveRequest", "Approves a request, once or with a grant for later ones")
        .post("/api/v1/requests/{id}/approve", Needs(P::AnswerRequests), requests::approve)
        .say("denyRequest", "Denies a request")
        .post("/api/v1/requests/{id}/deny", Needs(P::AnswerRequests), requests::deny)
        .say("listGrants", "Grants, newest first")
        .get("/api/v1/grants", Needs(P::SeeRequests), grants::list)
        .say("revokeGrant", "Ends a grant at once")
        .post("/api/v1/grants/{id}/revoke", Needs(P::RevokeGrants), grants::revoke)
        .say(
            "streamEvents",
            "Server-sent events: `request`, `host` and `change`, each with the thing as it is now; a comment every 15 s",
        )
        .get("/api/v1/events", Needs(P::SeeRequests), requests::events)
        .say(
            "pollRequests",
            "Requests that changed after `cursor`, oldest change first; waits for one if there is none",
        )
        .get("/api/v1/events/poll", Needs(P::SeeRequests), requests::poll)
}

fn hosts_and_labels(operations: Operations) -> Operations {
    use Access::Needs;
    use Permission as P;
    operations
        .say("listHosts", "Hosts, by name")
        .get("/api/v1/hosts", Needs(P::SeeHosts), hosts::list)
        .say("getHost", "One host")
        .get("/api/v1/hosts/{id}", Needs(P::SeeHosts), hosts::show)
        .say(
            "getEnforcement",
            "From when to when enforcement was on in the last seven days",
        )
        .get("/api/v1/hosts/{id}/enforcement", Needs(P::SeeHosts), hosts::enforcement)
        .say("revokeHost", "Cuts a host off at once, for ever")
        .post("/api/v1/hosts/{id}/revoke", Needs(P::RevokeHosts), hosts::revoke)
        .say("makeToken", "Makes a token with which one host joins; shown only here")
        .post("/api/v1/tokens", Needs(P::CreateTokens), hosts::create_token)
        .say(
            "listLabels",
            "Labels, by name: those that the console has, hosts have, or somebody was asked for",
        )
        .get("/api/v1/labels", Needs(P::SeeLabels), labels::list)
        .say("getLabel", "One label")
        .get("/api/v1/labels/{name}", Needs(P::SeeLabels), labels::show)
        .say("putLabel", "Makes a label, or changes its owner and description")
        .put("/api/v1/labels/{name}", Needs(P::ManageLabels), labels::put)
        .say("deleteLabel", "Forgets a label's owner and description")
        .delete("/api/v1/labels/{name}", Needs(P::ManageLabels), labels::delete)
}

fn evidence_and_changes(operations: Operations) -> Operations {
    use Access::Needs;
    use Permission as P;
    operations
        .say("listChanges", "Who changed who may decide, newest first")
        .get("/api/v1/changes", Needs(P::SeeChanges), changes::list)
        .say("listAlarms", "Alarms, newest first")
        .get("/api/v1/alarms", Needs(P::SeeAlarms), changes::alarms)
        .say(
            "listChannels",
            "In which other ways people hear of requests, and how each goes",
        )
        .get("/api/v1/channels", Needs(P::SeeChannels), channels::list)
        .say("listDeadLetters", "The last messages of channels that were given up")
        .get("/api/v1/dead-letters", Needs(P::SeeChannels), channels::dead_letters)
        .say("listOutputs", "Where events of the log go, and how far each has come")
        .get("/api/v1/outputs", Needs(P::SeeChannels), evidence::outputs)
        .say("listEvidence", "Stored records, newest first")
        .get("/api/v1/evidence", Needs(P::SeeEvidence), evidence::list)
        .say(
            "exportEvidence",
            "A bundle of evidence that can be checked without the console",
        )
        .get("/api/v1/evidence/bundle", Needs(P::SeeEvidence), evidence::bundle)
        .say("getRecord", "One stored record")
        .get("/api/v1/evidence/{digest}", Needs(P::SeeEvidence), evidence::show)
        .say(
            "getTrust",
            "The keys by which evidence is checked: a trust file (docs/evidence-format.md)",
        )
        .get("/api/v1/trust", Needs(P::SeeTrust), evidence::trust)
}

/// Made once; it is the same as long as the program runs.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| openapi::document(&endpoints().table).to_string());

async fn document(State(_): State<Shared>) -> Result<ReadyJson<&'static str>> {
    Ok(ReadyJson(DOCUMENT.as_str()))
}
