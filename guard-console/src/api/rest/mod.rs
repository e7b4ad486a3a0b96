//! REST under /api/v1: docs/api.md owns paths and rules, `guard_proto::rest` the shapes.

mod access;
mod body;
mod changes;
mod channels;
mod evidence;
mod grants;
mod hosts;
mod people;
mod requests;

use super::endpoint::{Access, Endpoints};
use crate::app::Permission;

pub(crate) use body::read as read_body;
pub use body::{Fields, Json, take_left_over};
pub(crate) use changes::about;
pub(crate) use requests::{cursor, last_event_id};

/// Every REST endpoint.
#[must_use]
pub fn endpoints() -> Endpoints {
    use Access::{Anyone, Needs, SignedIn};
    use Permission as P;
    Endpoints::default()
        .get("/api/v1/status", Anyone, people::status)
        .post("/api/v1/setup", Anyone, people::set_up)
        .post("/api/v1/sessions", Anyone, people::sign_in)
        .delete("/api/v1/sessions/current", SignedIn, people::sign_out)
        .get("/api/v1/sessions", SignedIn, access::sessions)
        .delete("/api/v1/sessions/{id}", SignedIn, access::end_session)
        .get("/api/v1/me", SignedIn, people::me)
        .get("/api/v1/requests", Needs(P::SeeRequests), requests::list)
        .get("/api/v1/requests/{id}", Needs(P::SeeRequests), requests::show)
        .get("/api/v1/requests/{id}/record", Needs(P::SeeRequests), requests::record)
        .post(
            "/api/v1/requests/{id}/approve",
            Needs(P::AnswerRequests),
            requests::approve,
        )
        .post("/api/v1/requests/{id}/deny", Needs(P::AnswerRequests), requests::deny)
        .get("/api/v1/grants", Needs(P::SeeRequests), grants::list)
        .post("/api/v1/grants/{id}/revoke", Needs(P::RevokeGrants), grants::revoke)
        .get("/api/v1/events", Needs(P::SeeRequests), requests::events)
        .get("/api/v1/changes", Needs(P::SeeChanges), changes::list)
        .get("/api/v1/alarms", Needs(P::SeeAlarms), changes::alarms)
        .get("/api/v1/channels", Needs(P::SeeChannels), channels::list)
        .get("/api/v1/dead-letters", Needs(P::SeeChannels), channels::dead_letters)
        .get("/api/v1/hosts", Needs(P::SeeHosts), hosts::list)
        .get("/api/v1/hosts/{id}/enforcement", Needs(P::SeeHosts), hosts::enforcement)
        .post("/api/v1/hosts/{id}/revoke", Needs(P::RevokeHosts), hosts::revoke)
        .post("/api/v1/tokens", Needs(P::CreateTokens), hosts::create_token)
        .get("/api/v1/labels", Needs(P::SeeLabels), people::labels)
        .put("/api/v1/labels/{name}", Needs(P::ManageLabels), people::put_label)
        .delete("/api/v1/labels/{name}", Needs(P::ManageLabels), people::delete_label)
        .get("/api/v1/users", Needs(P::SeeUsers), people::users)
        .post("/api/v1/users", Needs(P::ManageUsers), people::add_user)
        .post(
            "/api/v1/users/{name}/disable",
            Needs(P::ManageUsers),
            people::disable_user,
        )
        .delete(
            "/api/v1/users/{name}/sessions",
            Needs(P::ManageUsers),
            access::end_sessions_of,
        )
        .post(
            "/api/v1/service-accounts",
            Needs(P::ManageUsers),
            access::add_service_account,
        )
        .get("/api/v1/keys", Needs(P::SeeUsers), access::keys)
        .post("/api/v1/keys", Needs(P::ManageUsers), access::make_key)
        .post("/api/v1/keys/{id}/revoke", Needs(P::ManageUsers), access::revoke_key)
        .get("/api/v1/evidence", Needs(P::SeeEvidence), evidence::list)
        .get("/api/v1/evidence/bundle", Needs(P::SeeEvidence), evidence::bundle)
        .get("/api/v1/trust", Needs(P::SeeTrust), evidence::trust)
        .get("/api/v1/evidence/{digest}", Needs(P::SeeEvidence), evidence::show)
}
