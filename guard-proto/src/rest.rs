//! The REST API under `/api/v1`: bodies as both sides see them.
//!
//! Owns the JSON shapes; docs/api.md owns paths and rules. Times are RFC 3339 in UTC; ids are ULIDs unless said
//! otherwise. Unknown fields in a request body are an error; in an answer they are to be ignored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::limits::REASON_BYTES;

/// Where a request stands. Ends are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RequestState {
    Pending,
    Approved,
    Denied,
    TimedOut,
    Withdrawn,
}

impl RequestState {
    /// As it stands in JSON, SQL and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::TimedOut => "timed_out",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// A page of anything. `next` is an opaque cursor; absent on the last page.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// One request, for lists and details alike. Text that the workload wrote is raw here (JSON-escaped only); whoever
/// shows it makes control characters visible.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Request {
    pub id: String,
    pub state: RequestState,
    pub label: String,
    pub host_id: String,
    /// The host's display name.
    pub host: String,
    /// `exec`; later also `connect`, `write` …
    pub action: String,
    /// One line: the command as a shell would read it, or address, or path. Control characters shown escaped.
    pub what: String,
    /// One sentence, verb first, as on the card. Control characters shown escaped; no markup.
    pub sentence: String,
    pub asked_at: String,
    pub expires_at: Option<String>,
    pub approver_groups: Vec<String>,
    pub quorum: u32,
    /// Approvals so far.
    pub approvals: u32,
    /// The owner of the label, as the console knows it.
    pub owner: Option<String>,
    /// SHA-256 of the request record's payload, hex: what an answer is bound to.
    pub digest: String,
    /// Answers so far, oldest first.
    pub decisions: Vec<DecisionView>,
    /// What the kernel then did: `ran`, `denied`, `failed`, `killed`, `died`.
    pub outcome: Option<String>,
    pub outcome_detail: Option<String>,
    pub ended_at: Option<String>,
    /// Whether whoever asks may answer it now.
    pub may_answer: bool,
    /// Why not, as a sentence, where the button would be.
    pub why_not: Option<String>,
    /// What approving it with a grant would cover later, too; absent where there can be none. Safe to show.
    #[serde(default)]
    pub grantable: Option<String>,
    /// The grant that answered it.
    #[serde(default)]
    pub grant: Option<String>,
    /// What changed within a day before it was asked, or since, about its label, the label's owner, and the accounts that answered or
    /// ask now; newest first, at most five.
    #[serde(default)]
    pub recent_changes: Vec<ChangeView>,
    /// The statement inside the request record, verbatim JSON (`guard-evidence` has its types).
    pub statement: serde_json::Value,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DecisionView {
    pub by: String,
    /// `approve` or `deny`.
    pub verdict: String,
    pub reason: String,
    pub at: String,
    /// `web`, `cli`, `api` …
    pub channel: String,
    /// Why it no longer counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub void_because: Option<String>,
}

/// `POST /requests/{id}/approve` and `/deny`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({"reason": "as agreed in ticket 7", "digest": "3f79bb7b435b05321651daefd374cdc681dc06faa65e374e38337b88ca046dea"}))]
pub struct AnswerBody {
    /// Required to deny; at most [`REASON_BYTES`].
    #[serde(default)]
    #[schemars(length(max = REASON_BYTES))]
    pub reason: String,
    /// The digest that the person was shown; the answer is refused when the request has another.
    #[schemars(length(equal = 64))]
    pub digest: String,
    /// Approves later actions too, those that are exactly the same (`grantable` says what that is). Only to approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantTerms>,
}

/// How long a grant lasts; whichever end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantTerms {
    /// 60 to 86,400.
    #[schemars(range(min = 60, max = 86_400))]
    pub seconds: u64,
    /// How many later actions, 1 to 1,000; any number when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000))]
    pub times: Option<u32>,
}

/// One approval that covers later actions too. Safe to show.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Grant {
    pub id: String,
    /// `good`, `expired`, `used up`, `revoked`; `suspended` while who made it may not approve.
    pub state: String,
    /// Exactly what, where, until when and how often.
    pub words: String,
    /// User name.
    pub by: String,
    pub label: String,
    pub host: String,
    pub host_id: String,
    /// The request that was approved with it.
    pub request_id: String,
    pub granted_at: String,
    pub expires_at: String,
    pub times: Option<u32>,
    pub used: u32,
    pub last_used_at: Option<String>,
    pub revoked_by: Option<String>,
}

/// `POST /setup`: only until the first administrator exists.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetupBody {
    /// From the one-time link in `setup-link` in the data directory.
    pub secret: String,
    pub username: String,
    pub password: String,
}

/// `POST /sessions`: a bearer token for programs (`guard login`).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({"username": "ann", "password": "correct horse battery staple"}))]
pub struct LoginBody {
    pub username: String,
    pub password: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Session {
    /// Sent as `Authorization: Bearer …`. Shown once.
    pub token: String,
    pub expires_at: String,
    pub me: Me,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Me {
    pub username: String,
    pub roles: Vec<Role>,
    pub groups: Vec<String>,
    /// As an identity provider says it: to be shown, never to be trusted. Empty for local accounts.
    #[serde(default)]
    pub display_name: String,
    /// The identity provider by which this session signed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Users, labels, owners, hosts, tokens. Gives no right to approve.
    Administrator,
    /// Answers requests of labels that they do not own.
    Approver,
    /// Sees requests and hosts; makes tokens.
    Operator,
    /// Sees everything, evidence included; changes nothing.
    Auditor,
}

impl Role {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Administrator => "administrator",
            Self::Approver => "approver",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
        }
    }
}

/// `POST /users`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({"username": "ann", "password": "correct horse battery staple", "roles": ["approver"], "groups": ["sre"]}))]
pub struct NewUser {
    pub username: String,
    pub password: String,
    pub roles: Vec<Role>,
    #[serde(default)]
    pub groups: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct User {
    pub username: String,
    /// `local` or the issuer of an identity provider: with the subject, who it is.
    #[serde(default)]
    pub issuer: String,
    #[serde(default)]
    pub subject: String,
    /// A program, which acts by keys and answers nothing.
    #[serde(default)]
    pub service: bool,
    /// As an identity provider says it: to be shown, never to be trusted.
    #[serde(default)]
    pub display_name: String,
    #[serde(default)]
    pub email: String,
    pub roles: Vec<Role>,
    pub groups: Vec<String>,
    pub created_at: String,
    pub disabled: bool,
}

/// One session, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SessionView {
    /// Names it, opens nothing.
    pub id: String,
    pub username: String,
    /// `web` or `api`.
    pub kind: String,
    pub address: String,
    pub signed_in_at: String,
    pub last_used_at: String,
    pub expires_at: String,
    /// The identity provider by which it was signed in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// How, as the provider says: `pwd`, `otp`, `hwk` …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Whether it is that of whoever asks.
    pub current: bool,
}

/// `POST /service-accounts`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({"username": "nightly", "roles": ["auditor"], "description": "exports evidence"}))]
pub struct NewServiceAccount {
    pub username: String,
    /// Never `approver`.
    pub roles: Vec<Role>,
    #[serde(default)]
    pub description: String,
}

/// `POST /keys`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({"account": "nightly", "expires_in": 86400}))]
pub struct NewKey {
    /// A service account.
    pub account: String,
    /// Some of the account's; all when left out.
    #[serde(default)]
    pub roles: Option<Vec<Role>>,
    /// Seconds until it expires: 60 to 31,622,400; 90 days when left out.
    #[serde(default)]
    #[schemars(range(min = 60, max = 31_622_400))]
    pub expires_in: Option<u64>,
    #[serde(default)]
    pub description: String,
}

/// A key of a service account, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Key {
    pub id: String,
    pub account: String,
    pub roles: Vec<Role>,
    pub description: String,
    pub created_at: String,
    pub created_by: String,
    pub expires_at: String,
    pub last_used_at: Option<String>,
    /// `good`, `expired`, `revoked`, or `disabled` with its account.
    pub state: String,
}

/// A key that was just made; the only time its secret is known.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct MadeKey {
    /// Sent as `Authorization: Bearer …`.
    pub secret: String,
    #[serde(flatten)]
    pub key: Key,
}

/// `PUT /labels/{name}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({"owner": null, "description": "writes code", "reason": "ann has left"}))]
pub struct LabelBody {
    /// A user name, or null for none.
    pub owner: Option<String>,
    #[serde(default)]
    pub description: String,
    /// Why it is changed; kept in the record. At most [`REASON_BYTES`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = REASON_BYTES))]
    pub reason: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Label {
    pub name: String,
    pub owner: Option<String>,
    pub description: String,
    /// Hosts that have workloads with it now.
    pub hosts: Vec<String>,
    pub pending: u64,
    /// Another one after each change; its `ETag`.
    #[serde(default)]
    pub version: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    pub id: String,
    pub name: String,
    /// `online`, `offline` or `revoked`.
    pub state: String,
    pub agent_version: String,
    pub kernel: String,
    pub policy_digest: String,
    pub enforcing: bool,
    pub enforcing_since: Option<String>,
    pub last_seen: Option<String>,
    pub enrolled_at: String,
    pub certificate_expires_at: String,
    pub lost_events: u64,
    pub labels: Vec<String>,
}

/// `POST /tokens`: lets one host join.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(example = json!({"expires_in": 3600, "description": "build-7"}))]
pub struct NewToken {
    /// Seconds until it expires: 60 to 604,800; one hour when left out.
    #[serde(default)]
    #[schemars(range(min = 60, max = 604_800))]
    pub expires_in: Option<u64>,
    #[serde(default)]
    pub description: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Token {
    /// `guard1.<address of the host API>.<sha256 of the CA, hex>.<secret>`: everything `guard-agent enroll` needs.
    pub token: String,
    pub expires_at: String,
}

/// One change of who may decide, as it stands in the log. Everything but `statement` and `why` is safe to show.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChangeView {
    /// SHA-256 of the record's envelope, hex.
    pub digest: String,
    /// Position in the log.
    pub index: u64,
    pub at: String,
    /// `user_created`, `label`, `host_revoked` …
    pub kind: String,
    /// User name; absent when nobody who was signed in did it.
    pub by: Option<String>,
    /// `by admin`, `with a token made by admin` …
    pub by_words: String,
    /// What happened: `the owner of coder was changed from ann to bob`.
    pub what: String,
    /// The account, label or host that changed.
    pub user: Option<String>,
    pub label: Option<String>,
    pub host_id: Option<String>,
    pub why: Option<String>,
    /// The statement inside the record (`guard-evidence` has its types).
    pub statement: serde_json::Value,
}

/// Something that an approver should know: evidence that does not fit, an action that was not what was approved, an attempt at
/// theft, a time without enforcement. Safe to show.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Alarm {
    pub id: String,
    pub at: String,
    pub host: String,
    pub host_id: String,
    /// `fork`, `gap`, `mismatch`, `theft`, `enforcement-off` …
    pub kind: String,
    pub detail: String,
}

/// A way in which people hear of requests outside the page, and how it goes.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ChannelView {
    /// `webhook:<name>`.
    pub name: String,
    /// Messages that are to be delivered.
    pub waiting: u64,
    pub oldest_waiting_at: Option<String>,
    /// Messages that were given up.
    pub dead_letters: u64,
    /// When something was delivered last.
    pub delivered_at: Option<String>,
    /// When something failed last, and why.
    pub failed_at: Option<String>,
    pub failed_because: Option<String>,
}

/// A message that was given up. What it said is that of the request, which is there.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    pub id: String,
    pub channel: String,
    pub request_id: String,
    /// `asked`, `changed` or `ended`.
    pub event: String,
    pub made_at: String,
    pub given_up_at: Option<String>,
    pub attempts: u32,
    pub why: String,
}

/// One stored record, without its envelope.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RecordView {
    /// SHA-256 of the envelope, hex.
    pub digest: String,
    /// Position in the log.
    pub index: u64,
    /// `host:<id>` or `console:<origin>`.
    #[serde(default)]
    pub signer: String,
    /// Display name; `(console)` for the console's own records, which have no `host_id`.
    pub host: String,
    pub host_id: String,
    pub epoch: u64,
    pub sequence: u64,
    /// `request`, `decision`, `enforcement`, `lifecycle`, `change`.
    pub kind: String,
    pub request_id: Option<String>,
    pub at: String,
    /// One line for people, control characters escaped.
    pub summary: String,
}

/// An output of events for another system (`GET /outputs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutputView {
    pub name: String,
    /// `file`, `http` or `otlp`.
    pub kind: String,
    /// Index of the first record that the other side does not have.
    pub position: u64,
    /// Records of the log from there on.
    pub behind: u64,
    /// Events that it took, and that it refused for good.
    pub delivered: u64,
    pub refused: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<String>,
    /// Why nothing gets through, and since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<String>,
}

/// An error: RFC 9457, `application/problem+json`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// `urn:guard:problem:<name>`, stable.
    #[serde(rename = "type")]
    pub kind: String,
    /// What happened.
    pub title: String,
    pub status: u16,
    /// To what, why, and what to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// `GET /status`, without signing in.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    pub version: String,
    /// Whether the first administrator is still to be made.
    pub needs_setup: bool,
    pub time: String,
    /// Identity providers by which people may sign in.
    #[serde(default)]
    pub sign_in_with: Vec<SignInWith>,
}

/// An identity provider, as the sign-in page shows it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct SignInWith {
    pub name: String,
    pub label: String,
}
