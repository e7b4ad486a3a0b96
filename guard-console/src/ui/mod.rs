//! Pages: HTML on the server, made live by server-sent events.
//!
//! Owns markup. It is given what `app` gives to every actor. Whatever a workload wrote goes through
//! `guard_evidence::text` and the templates' escaping, never around them.

mod access;
mod answer;
mod assets;
mod card;
mod changes;
mod form;
mod grants;
mod lists;
mod manage;
mod markup;
mod page;
mod queue;
mod sign_in;
mod sign_on;

use crate::api::endpoint::{Access, Endpoints};
use crate::app::Permission;

/// Every page.
#[must_use]
pub fn endpoints() -> Endpoints {
    use Access::{Anyone, Needs, SignedIn};
    use Permission as P;
    Endpoints::default()
        .get("/", Needs(P::SeeRequests), queue::queue)
        .get("/ui/events", Needs(P::SeeRequests), queue::events)
        .get("/requests/{id}", Needs(P::SeeRequests), queue::request)
        .get("/requests/{id}/card", Needs(P::SeeRequests), queue::card)
        .get("/requests/{id}/answer", Needs(P::SeeRequests), queue::answer_section)
        .post("/requests/{id}/answer", Needs(P::AnswerRequests), queue::give_answer)
        .post("/requests/{id}/grant", Needs(P::AnswerRequests), queue::give_grant)
        .get("/grants", Needs(P::SeeRequests), grants::grants)
        .post("/grants/{id}/revoke", Needs(P::RevokeGrants), grants::revoke)
        .get("/history", Needs(P::SeeRequests), lists::history)
        .get("/evidence", Needs(P::SeeEvidence), lists::evidence)
        .get("/changes", Needs(P::SeeChanges), changes::changes)
        .get("/changes/rows", Needs(P::SeeChanges), changes::rows)
        .get("/alarms", Needs(P::SeeAlarms), changes::alarms)
        .get("/alarms/rows", Needs(P::SeeAlarms), changes::alarm_list)
        .get("/hosts", Needs(P::SeeHosts), manage::hosts)
        .post("/hosts/tokens", Needs(P::CreateTokens), manage::create_token)
        .post("/hosts/{id}/revoke", Needs(P::RevokeHosts), manage::revoke_host)
        .get("/labels", Needs(P::SeeLabels), manage::labels)
        .post("/labels", Needs(P::ManageLabels), manage::put_label)
        .get("/users", Needs(P::SeeUsers), manage::users)
        .post("/users", Needs(P::ManageUsers), manage::add_user)
        .post("/users/{name}/disable", Needs(P::ManageUsers), manage::disable_user)
        .get("/access", SignedIn, access::access)
        .post("/access/sessions/{id}/end", SignedIn, access::end_session)
        .post("/access/accounts", Needs(P::ManageUsers), access::add_account)
        .post("/access/keys", Needs(P::ManageUsers), access::make_key)
        .post("/access/keys/{id}/revoke", Needs(P::ManageUsers), access::revoke_key)
        .get("/login", Anyone, sign_in::login_page)
        .get("/login/state", Anyone, sign_in::state)
        .post("/login", Anyone, sign_in::login)
        .get("/login/oidc/{name}", Anyone, sign_on::begin)
        .get("/login/oidc/{name}/callback", Anyone, sign_on::callback)
        .post("/logout", SignedIn, sign_in::logout)
        .get("/setup", Anyone, sign_in::setup_page)
        .post("/setup", Anyone, sign_in::set_up)
        .get("/assets/{name}", Anyone, assets::asset)
}
