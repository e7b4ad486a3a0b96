//! Making statements of records, reading them back, and saying in words what they say.
//!
//! Owns subjects, parsing and the sentences that people read. It is given typed records or verified payload bytes. It
//! must never emit text of the workload except through [`crate::text`], nor markup: callers style the parts.

use sha2::{Digest as _, Sha256};

use crate::key::PublicKey;
use crate::record::{
    Action, ConnectAction, ConnectHow, DecidedBy, Digest, Effect, ExecAction, Header, Lifecycle, Peer, PolicyAction,
    PolicyDecided, Predicate, RequestRecord, RuleUses, STATEMENT_TYPE, Statement, Subject, Verdict,
};
use crate::text::{Text, shell_words, visible, visible_fold};
use crate::writing;

/// Longest text of a workload in one line for people, in characters.
const LINE: usize = 160;

/// Payload bytes that are no statement of ours.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    #[error("not a statement of a known kind: {0}")]
    Malformed(String),
    #[error("`_type` is `{0}`, not {STATEMENT_TYPE}")]
    Type(String),
}

impl From<serde_json::Error> for StatementError {
    fn from(error: serde_json::Error) -> Self {
        // It quotes the input.
        Self::Malformed(visible_fold(&error.to_string(), 300))
    }
}

/// SHA-256 in lower-case hex: how every digest in evidence is written.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// SHA-256 (hex) over every string followed by NUL: `argv_sha256` and `environment_sha256`.
#[must_use]
pub fn strings_sha256<T: AsRef<[u8]>>(strings: &[T]) -> String {
    let mut hash = Sha256::new();
    for string in strings {
        hash.update(string.as_ref());
        hash.update([0]);
    }
    hex::encode(hash.finalize())
}

impl Statement {
    /// The statement around a predicate; its subject follows from the predicate.
    #[must_use]
    pub fn new(predicate: Predicate) -> Self {
        Self {
            kind: STATEMENT_TYPE.to_owned(),
            subject: vec![subject(&predicate)],
            predicate,
        }
    }

    /// Payload bytes: written once, signed, never written again.
    ///
    /// # Errors
    /// Never for records made of the types here.
    pub fn to_payload(&self) -> Result<Vec<u8>, StatementError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Reads a payload whose signature holds.
    ///
    /// # Errors
    /// If it is not a statement of a kind that this version knows.
    pub fn from_payload(payload: &[u8]) -> Result<Self, StatementError> {
        let statement: Self = serde_json::from_slice(payload)?;
        if statement.kind == STATEMENT_TYPE {
            Ok(statement)
        } else {
            Err(StatementError::Type(visible_fold(&statement.kind, 80)))
        }
    }

    /// Place in its signer's chain; a console's signed decision has none.
    #[must_use]
    pub fn header(&self) -> Option<&Header> {
        match &self.predicate {
            Predicate::Request(r) => Some(&r.header),
            Predicate::Decision(r) => Some(&r.header),
            Predicate::Enforcement(r) => Some(&r.header),
            Predicate::Lifecycle(r) => Some(&r.header),
            Predicate::Change(r) => Some(&r.header),
            Predicate::SignedDecision(_) => None,
        }
    }

    /// The request that it belongs to, if any.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        match &self.predicate {
            Predicate::Request(r) => Some(&r.request_id),
            Predicate::Decision(r) => Some(&r.request_id),
            Predicate::Enforcement(r) => r.request_id.as_deref(),
            Predicate::SignedDecision(r) => Some(&r.request_id),
            Predicate::Lifecycle(r) => match &r.event {
                Lifecycle::DecisionRefused { request_id, .. } => Some(request_id),
                _ => None,
            },
            Predicate::Change(_) => None,
        }
    }

    /// The label that it belongs to, as far as the record itself says.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        match &self.predicate {
            Predicate::Request(r) => Some(&r.workload.label),
            Predicate::Enforcement(r) => Some(&r.label),
            Predicate::Lifecycle(r) => match &r.event {
                Lifecycle::LabelAdded { label, .. }
                | Lifecycle::LabelRemoved { label, .. }
                | Lifecycle::AllowedByRules { label, .. }
                | Lifecycle::TheftRefused { label, .. } => Some(label),
                _ => None,
            },
            Predicate::Change(r) => r.change.label(),
            Predicate::Decision(_) | Predicate::SignedDecision(_) => None,
        }
    }

    /// `request`, `decision`, `enforcement`, `lifecycle`, `change` or `signed_decision`.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match &self.predicate {
            Predicate::Request(_) => "request",
            Predicate::Decision(_) => "decision",
            Predicate::Enforcement(_) => "enforcement",
            Predicate::Lifecycle(_) => "lifecycle",
            Predicate::Change(_) => "change",
            Predicate::SignedDecision(_) => "signed_decision",
        }
    }
}

/// What the record is about, for tools that know nothing of Guard. Where nothing has a content digest, the subject is
/// a name and the digest is that of the name.
fn subject(predicate: &Predicate) -> Subject {
    let named = |name: String| Subject {
        digest: Digest {
            sha256: sha256_hex(name.as_bytes()),
        },
        name,
    };
    let of = |name: String, sha256: &str| Subject {
        name,
        digest: Digest {
            sha256: sha256.to_owned(),
        },
    };
    let exec = |exec: &ExecAction| {
        let name = format!("exec:{}", path_of(exec).display());
        match &exec.sha256 {
            Some(sha256) => of(name, sha256),
            None => named(name),
        }
    };
    let record = |h: &Header| named(format!("record:{}/{}/{}", h.signer, h.epoch, h.sequence));
    match predicate {
        Predicate::Request(r) => match &r.action {
            Action::Exec(action) => exec(action),
            Action::Connect(action) => named(connect_subject(action)),
            Action::File(action) => named(writing::subject(action)),
        },
        Predicate::Decision(r) => of(format!("request:{}", r.request_id), &r.request_digest),
        Predicate::SignedDecision(r) => of(format!("request:{}", r.request_id), &r.request_digest),
        Predicate::Enforcement(r) => match (&r.request_id, &r.request_digest, &r.by_policy) {
            (Some(id), Some(digest), _) => of(format!("request:{id}"), digest),
            (
                _,
                _,
                Some(PolicyDecided {
                    action: PolicyAction::Exec(action),
                    ..
                }),
            ) => exec(action),
            (
                _,
                _,
                Some(PolicyDecided {
                    action: PolicyAction::Connect(action),
                    ..
                }),
            ) => named(connect_subject(action)),
            (
                _,
                _,
                Some(PolicyDecided {
                    action: PolicyAction::File(action),
                    ..
                }),
            ) => named(writing::subject(action)),
            (
                _,
                _,
                Some(PolicyDecided {
                    action:
                        PolicyAction::ExecKey {
                            device,
                            inode,
                            generation,
                            ..
                        },
                    ..
                }),
            ) => named(format!("exec-key:{device}:{inode}:{generation}")),
            _ => record(&r.header),
        },
        Predicate::Lifecycle(r) => record(&r.header),
        Predicate::Change(r) => named(r.change.subject()),
    }
}

fn connect_subject(action: &ConnectAction) -> String {
    let word = if action.how == ConnectHow::Listen {
        "listen"
    } else {
        "connect"
    };
    format!("{word}:{}", what_of_connect(action, usize::MAX))
}

fn path_of(exec: &ExecAction) -> &Text {
    exec.path.as_ref().unwrap_or(&exec.given)
}

/// One piece of a sentence. The text is already safe to show; the style is for the surface to draw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub text: String,
    pub style: Style,
}

/// What a piece of a sentence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    /// The label.
    Who,
    /// The command, address or path, in a fixed-width font.
    What,
    /// A word that names a danger.
    Danger,
    /// The host.
    Where,
}

/// The card's sentence, built from kernel facts: `coder wants to run `git push --force` on build-7`.
#[must_use]
pub fn sentence(request: &RequestRecord) -> Vec<Part> {
    let part = |text: String, style| Part { text, style };
    let plain = |text: &str| part(text.to_owned(), Style::Plain);
    let mut parts = vec![part(visible(&request.workload.label), Style::Who)];
    match &request.action {
        Action::Exec(exec) => parts.extend([plain(" wants to run "), part(what_of_exec(exec, LINE), Style::What)]),
        Action::Connect(connect) => parts.extend([
            plain(connect_verb(connect)),
            part(connect_words(connect, LINE), Style::What),
        ]),
        Action::File(file) => parts.extend(writing::sentence(file, LINE)),
    }
    if request.workload.uid == 0 {
        parts.extend([plain(" "), part("as root".to_owned(), Style::Danger)]);
    }
    if let Action::Exec(exec) = &request.action
        && exec.unlinked
    {
        parts.extend([plain(" from "), part("a deleted file".to_owned(), Style::Danger)]);
    }
    parts.extend([plain(" on "), part(visible(&request.host.name), Style::Where)]);
    parts
}

/// A sentence without style; commands stand between backquotes.
#[must_use]
pub fn plain_sentence(parts: &[Part]) -> String {
    parts
        .iter()
        .map(|p| {
            if p.style == Style::What {
                format!("`{}`", p.text)
            } else {
                p.text.clone()
            }
        })
        .collect()
}

/// One line for lists: the command as a shell would read it, folded in the middle at `max` characters.
///
/// A program that was started under another name than its own says so: `sh (really /usr/bin/python3)`.
#[must_use]
pub fn what(action: &Action, max: usize) -> String {
    match action {
        Action::Exec(exec) => what_of_exec(exec, max),
        Action::Connect(connect) => what_of_connect(connect, max),
        Action::File(file) => writing::line(file, max),
    }
}

/// The word that lists show for the kind of an action: `exec`, `connect`.
#[must_use]
pub fn action_word(action: &Action) -> &'static str {
    match action {
        Action::Exec(_) => "exec",
        Action::Connect(connect) if connect.how == ConnectHow::Listen => "listen",
        Action::Connect(_) => "connect",
        Action::File(_) => "write",
    }
}

fn connect_verb(connect: &ConnectAction) -> &'static str {
    match (connect.how, &connect.peer) {
        (ConnectHow::Listen, _) => " wants to listen on ",
        (ConnectHow::Connect, Peer::Ip { .. }) => " wants to connect to ",
        (ConnectHow::Connect, _) => " wants to connect to the unix socket ",
        (ConnectHow::Message, Peer::Ip { .. }) => " wants to send to ",
        (ConnectHow::Message, _) => " wants to send to the unix socket ",
        (ConnectHow::ConnectedBefore, Peer::Ip { .. }) => {
            " wants to send on a connection made before or elsewhere, to "
        }
        (ConnectHow::ConnectedBefore, _) => {
            " wants to send on a connection made before or elsewhere, to the unix socket "
        }
    }
}

/// The peer for a sentence: `203.0.113.7 port 443 (TCP)`, `/run/docker.sock`.
fn connect_words(connect: &ConnectAction, max: usize) -> String {
    match &connect.peer {
        Peer::Ip { address, port, scope } => {
            let scope = scope.map(|scope| format!("%{scope}")).unwrap_or_default();
            let protocol = visible_fold(&connect.protocol, 16).to_uppercase();
            format!("{address}{scope} port {port} ({protocol})")
        }
        peer => unix_name(peer, max),
    }
}

/// One line for lists: `203.0.113.7:443 (tcp)`, `/run/docker.sock`.
fn what_of_connect(connect: &ConnectAction, max: usize) -> String {
    match &connect.peer {
        Peer::Ip { address, port, scope } => {
            let scope = scope.map(|scope| format!("%{scope}")).unwrap_or_default();
            let protocol = visible_fold(&connect.protocol, 16);
            match address {
                std::net::IpAddr::V4(address) => format!("{address}:{port} ({protocol})"),
                std::net::IpAddr::V6(address) => format!("[{address}{scope}]:{port} ({protocol})"),
            }
        }
        peer => unix_name(peer, max),
    }
}

/// The name of a unix socket, safe to show; one that is not in the file system begins with `@`.
#[must_use]
pub fn unix_name(peer: &Peer, max: usize) -> String {
    match peer {
        Peer::Unix { path: Some(path) } => path.fold(max),
        Peer::Unix { path: None } => "whose path is not known".to_owned(),
        Peer::Abstract { name } => format!("@{}", name.fold(max)),
        Peer::Nameless => "without a name".to_owned(),
        Peer::Ip { address, .. } => address.to_string(),
    }
}

fn what_of_exec(exec: &ExecAction, max: usize) -> String {
    let path = path_of(exec);
    let base = |bytes: &[u8]| bytes.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
    let mut line = if exec.argv.is_empty() {
        shell_words(std::slice::from_ref(path))
    } else {
        shell_words(&exec.argv)
    };
    if exec.argv_truncated {
        line.push_str(&format!(" ⟨… {} arguments in all⟩", exec.argv_count));
    }
    let line = fold_shown(&line, max);
    // argv[0] is the caller's choice: it must not be able to name another program than the one that runs.
    if exec
        .argv
        .first()
        .is_some_and(|argv0| base(argv0.as_bytes()) != base(path.as_bytes()))
    {
        format!(
            "{line} (really {})",
            shell_words(&[fold_shown(&path.display(), max / 2)]).replace('\'', "")
        )
    } else {
        line
    }
}

/// Folds text that has been made visible already (its brackets are escapes, not to be escaped again).
pub(crate) fn fold_shown(shown: &str, max: usize) -> String {
    let chars: Vec<char> = shown.chars().collect();
    if chars.len() <= max {
        return shown.to_owned();
    }
    let room = max.saturating_sub(24) / 2;
    let mut head = room;
    let mut tail = chars.len() - room;
    // Never inside an escape: back to before its `⟨`, forward to after its `⟩`.
    let inside = |at: usize| {
        let before = &chars[..at];
        let open = before.iter().rposition(|c| *c == '⟨');
        open.filter(|open| !before[*open..].contains(&'⟩'))
    };
    if let Some(open) = inside(head) {
        head = open;
    }
    if inside(tail).is_some() {
        tail += chars[tail..].iter().position(|c| *c == '⟩').map_or(0, |n| n + 1);
    }
    let ends = |range: &[char]| range.iter().collect::<String>();
    format!(
        "{}⟨… {} more …⟩{}",
        ends(&chars[..head]),
        tail - head,
        ends(&chars[tail..])
    )
}

/// One line for people about any record, safe to show.
#[must_use]
pub fn summary(statement: &Statement) -> String {
    match &statement.predicate {
        Predicate::Request(r) => plain_sentence(&sentence(r)),
        Predicate::Decision(r) => match &r.by {
            DecidedBy::People { .. } => format!(
                "{} by people (request {})",
                verdict_word(r.verdict),
                visible(&r.request_id)
            ),
            DecidedBy::Timeout => format!("timed out: denied (request {})", visible(&r.request_id)),
            DecidedBy::Host { because } => format!(
                "{} by the host: {} (request {})",
                verdict_word(r.verdict),
                visible_fold(because, LINE),
                visible(&r.request_id)
            ),
        },
        Predicate::Enforcement(r) => {
            let what = match (&r.by_policy, &r.request_id) {
                (Some(decided), _) => format!("{} by policy", policy_words(&decided.action)),
                (None, Some(id)) => format!("request {}", visible(id)),
                (None, None) => "an action".to_owned(),
            };
            // The last rule says why a policy or the host refused.
            let why = match (r.verdict, r.by_policy.as_ref().and_then(|decided| decided.rules.last())) {
                (Verdict::Deny, Some(rule)) if !rule.description.is_empty() => {
                    format!(": {}", visible_fold(&rule.description, LINE))
                }
                _ => String::new(),
            };
            format!("{}: {what} ({}){why}", effect_words(&r.effect), visible(&r.label))
        }
        Predicate::Lifecycle(r) => lifecycle_words(&r.event),
        Predicate::Change(r) => r.summary(),
        Predicate::SignedDecision(d) => {
            let names: Vec<String> = d.answers.iter().map(|a| visible_fold(&a.name, 64)).collect();
            format!(
                "{} by {} (request {})",
                verdict_word(d.verdict),
                names.join(", "),
                visible(&d.request_id)
            )
        }
    }
}

/// What the policy decided alone.
pub(crate) fn policy_words(action: &PolicyAction) -> String {
    match action {
        PolicyAction::Exec(exec) => format!("`{}`", what_of_exec(exec, LINE)),
        PolicyAction::ExecKey { path: Some(path), .. } => format!("`{}`", path.fold(LINE)),
        PolicyAction::ExecKey { inode, .. } => format!("inode {inode}"),
        PolicyAction::Connect(connect) => {
            let what = what_of_connect(connect, LINE);
            match connect.how {
                ConnectHow::Listen => format!("listening on `{what}`"),
                _ => format!("connection to `{what}`"),
            }
        }
        PolicyAction::File(file) => format!("`{}`", writing::line(file, LINE)),
    }
}

/// The rules that were used most, and how many more there are.
fn uses_words(rules: &[RuleUses]) -> String {
    const SHOWN: usize = 3;
    let mut most: Vec<&RuleUses> = rules.iter().collect();
    most.sort_by_key(|uses| std::cmp::Reverse(uses.count));
    let mut words: Vec<String> = most
        .iter()
        .take(SHOWN)
        .map(|uses| format!("{} {}×", policy_words(&uses.rule.action), uses.count))
        .collect();
    if most.len() > SHOWN {
        words.push(format!("{} more", most.len() - SHOWN));
    }
    words.join(", ")
}

fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "approved",
        Verdict::Deny => "denied",
    }
}

/// What the kernel did, in words.
#[must_use]
pub fn effect_words(effect: &Effect) -> String {
    match effect {
        Effect::Ran => "ran".to_owned(),
        Effect::Denied => "denied".to_owned(),
        Effect::Failed { errno } => format!("failed by itself with errno {errno}"),
        Effect::Killed { what, approved, found } => format!(
            "killed before its first instruction: {} differs from what was approved (approved {}, found {})",
            visible_fold(what, 40),
            visible_fold(approved, 80),
            visible_fold(found, 80)
        ),
        Effect::Died => "died before the answer took effect".to_owned(),
        Effect::Withdrawn { why } => format!("withdrawn: {}", visible_fold(why, LINE)),
    }
}

pub(crate) fn lifecycle_words(event: &Lifecycle) -> String {
    match event {
        Lifecycle::Begun { why, key, after } => {
            let key = PublicKey::from_pem(key).map_or_else(|_| visible_fold(key, 16), |key| key.id());
            let after = after
                .as_ref()
                .map(|end| format!(", after record {} of epoch {}", end.sequence, end.epoch))
                .unwrap_or_default();
            format!("chain begun: {} (key {key}{after})", visible_fold(why, LINE))
        }
        Lifecycle::NextKey { key } => format!("key {} is to follow", key.id()),
        Lifecycle::ConsoleKey { key } => format!("decisions are the console's by key {} from here on", key.id()),
        Lifecycle::EnforcementOn {
            kernel,
            agent_version,
            programs,
        } => format!(
            "enforcement on: {} programs, kernel {}, agent {}",
            programs.len(),
            visible_fold(kernel, 64),
            visible_fold(agent_version, 32)
        ),
        Lifecycle::EnforcementOff { why, last_on } => {
            let last_on = last_on
                .as_deref()
                .map(|at| format!(" (last seen on at {})", visible_fold(at, 40)))
                .unwrap_or_default();
            format!("enforcement off: {}{last_on}", visible_fold(why, LINE))
        }
        Lifecycle::PolicyLoaded { digest, policies } => {
            format!(
                "policy loaded: {policies} policies, digest {}",
                visible_fold(digest, 64)
            )
        }
        Lifecycle::LabelAdded { label, cgroup, source } => {
            format!(
                "label {} added to {} ({})",
                visible(label),
                cgroup.fold(LINE),
                visible_fold(source, 32)
            )
        }
        Lifecycle::LabelRemoved { label, cgroup } => {
            format!("label {} removed from {}", visible(label), cgroup.fold(LINE))
        }
        Lifecycle::EventsLost { count } => format!("{count} kernel events lost"),
        Lifecycle::Recovered { cut_bytes } => format!("spool recovered: {cut_bytes} bytes of a torn last frame cut"),
        Lifecycle::DecisionRefused { request_id, because } => {
            format!(
                "decision refused: {} (request {})",
                visible_fold(because, LINE),
                visible(request_id)
            )
        }
        Lifecycle::LogRefused { because, .. } => {
            format!("the console's log was refused: {}", visible_fold(because, LINE))
        }
        Lifecycle::TheftRefused {
            label,
            object,
            count,
            pid,
            uid,
            comm,
        } => {
            let times = if *count == 1 {
                "once".to_owned()
            } else {
                format!("{count} times")
            };
            format!(
                "{} tried {times} to reach {} (last: {}, pid {pid}, uid {uid}); refused",
                visible(label),
                visible_fold(object, 64),
                comm.fold(32)
            )
        }
        Lifecycle::Unprotected { path, because } => format!(
            "{} cannot be protected from labelled workloads: {}",
            path.fold(LINE),
            visible_fold(because, LINE)
        ),
        Lifecycle::AgentAway { from, to } => format!(
            "the agent was away from {} to {}; the kernel programs stayed in force",
            visible_fold(from, 40),
            visible_fold(to, 40)
        ),
        Lifecycle::AllowedByRules { label, from, to, rules } => format!(
            "{} by policy, in the kernel, {} times from {} to {}: {}",
            visible(label),
            rules.iter().map(|uses| u128::from(uses.count)).sum::<u128>(),
            visible_fold(from, 40),
            visible_fold(to, 40),
            uses_words(rules)
        ),
        Lifecycle::Enforcing {
            since,
            stopping,
            counters,
        } => format!(
            "enforcing since {}{}; so far {} events lost, {} refused for want of room, {} over a quota, {} not compared, {} let through \
             without an agent",
            visible_fold(since, 40),
            if *stopping {
                "; the agent stops, the kernel programs stay in force"
            } else {
                ""
            },
            counters.lost_events,
            counters.refused_full,
            counters.refused_quota,
            counters.unchecked,
            counters.allowed_while_away,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::EnforcementRecord;
    use crate::testing;

    #[test]
    fn statements_round_trip_and_keep_their_shape() {
        let statement = Statement::new(Predicate::Request(Box::new(testing::request(
            1,
            "coder",
            &["git", "push", "--force"],
        ))));
        let payload = statement.to_payload().unwrap();
        assert_eq!(Statement::from_payload(&payload).unwrap(), statement);
        let json: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!(json["_type"], STATEMENT_TYPE);
        assert_eq!(json["predicateType"], "urn:guard:record:request:v1");
        assert_eq!(json["predicate"]["action"]["kind"], "exec");
        assert_eq!(json["subject"][0]["name"], "exec:/usr/bin/git");
        assert_eq!(json["subject"][0]["digest"]["sha256"], "ab".repeat(32));
    }

    #[test]
    fn bytes_that_are_not_utf8_survive() {
        let mut request = testing::request(1, "coder", &["cat"]);
        let Action::Exec(exec) = &mut request.action else {
            panic!("no exec")
        };
        exec.argv.push(Text::from(&b"\xFF\x00"[..]));
        exec.cwd = Text::from(&b"/tmp/\x80"[..]);
        let statement = Statement::new(Predicate::Request(Box::new(request)));
        assert_eq!(
            Statement::from_payload(&statement.to_payload().unwrap()).unwrap(),
            statement
        );
    }

    #[test]
    fn other_payloads_are_refused() {
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"x","predicate":{}}"#,
        ] {
            assert!(Statement::from_payload(bad.as_bytes()).is_err(), "{bad}");
        }
        let mut statement = Statement::new(Predicate::Request(Box::new(testing::request(1, "coder", &["ls"]))));
        statement.kind = "https://in-toto.io/Statement/v0.1".to_owned();
        assert!(matches!(
            Statement::from_payload(&statement.to_payload().unwrap()),
            Err(StatementError::Type(_))
        ));
    }

    #[test]
    fn the_sentence_names_what_runs() {
        let request = testing::request(1, "coder", &["git", "push", "--force"]);
        let parts = sentence(&request);
        assert_eq!(
            plain_sentence(&parts),
            "coder wants to run `git push --force` on build-7"
        );
        assert_eq!(
            parts[0],
            Part {
                text: "coder".to_owned(),
                style: Style::Who
            }
        );

        let mut request = testing::request(1, "coder", &["ls", "x\u{202E}\n"]);
        request.workload.uid = 0;
        assert_eq!(
            plain_sentence(&sentence(&request)),
            "coder wants to run `ls 'x⟨U+202E⟩⟨U+000A⟩' (really /usr/bin/git)` as root on build-7"
        );
    }

    #[test]
    fn connections_say_who_is_reached() {
        let with = |peer, how| {
            let mut request = testing::request(1, "coder", &["curl"]);
            request.action = Action::Connect(Box::new(ConnectAction {
                peer,
                protocol: "tcp".to_owned(),
                how,
            }));
            let statement = Statement::new(Predicate::Request(Box::new(request.clone())));
            let read = Statement::from_payload(&statement.to_payload().unwrap()).unwrap();
            assert_eq!(read, statement);
            (
                plain_sentence(&sentence(&request)),
                what(&request.action, 160),
                read.subject[0].name.clone(),
            )
        };
        let ip = |address: &str, scope| Peer::Ip {
            address: address.parse().unwrap(),
            port: 443,
            scope,
        };
        assert_eq!(
            with(ip("203.0.113.7", None), ConnectHow::Connect),
            (
                "coder wants to connect to `203.0.113.7 port 443 (TCP)` on build-7".to_owned(),
                "203.0.113.7:443 (tcp)".to_owned(),
                "connect:203.0.113.7:443 (tcp)".to_owned()
            )
        );
        let (sentence, what, _) = with(ip("fe80::1", Some(2)), ConnectHow::Message);
        assert_eq!(sentence, "coder wants to send to `fe80::1%2 port 443 (TCP)` on build-7");
        assert_eq!(what, "[fe80::1%2]:443 (tcp)");
        let (sentence, _, subject) = with(ip("0.0.0.0", None), ConnectHow::Listen);
        assert_eq!(sentence, "coder wants to listen on `0.0.0.0 port 443 (TCP)` on build-7");
        assert_eq!(subject, "listen:0.0.0.0:443 (tcp)");
        let name = Text::from("/run/\u{202E}x\u{1b}[2J");
        let (sentence, what, _) = with(Peer::Abstract { name }, ConnectHow::Connect);
        assert_eq!(what, "@/run/⟨U+202E⟩x⟨U+001B⟩[2J");
        assert!(
            sentence.starts_with("coder wants to connect to the unix socket `@/run/"),
            "{sentence}"
        );
    }

    #[test]
    fn the_tail_of_a_long_command_stays_visible() {
        let long = "x".repeat(1000);
        let request = testing::request(1, "coder", &["git", &long, "--force"]);
        let text = plain_sentence(&sentence(&request));
        assert!(text.contains("--force` on build-7"), "{text}");
        assert!(text.chars().count() < 220, "{text}");
        let request = testing::request(1, "coder", &["git", &"\u{202E}".repeat(500), "--force"]);
        let text = plain_sentence(&sentence(&request));
        assert_eq!(text.matches('⟨').count(), text.matches('⟩').count(), "{text}");
    }

    #[test]
    fn uses_of_rules_round_trip_and_name_the_most_used() {
        let uses = |path: &str, count| RuleUses {
            rule: crate::record::ExactRule {
                action: PolicyAction::ExecKey {
                    path: Some(Text::from(path)),
                    device: 1,
                    inode: 2,
                    generation: 3,
                },
                rules: Vec::new(),
                policy_digest: "ab".to_owned(),
            },
            count,
            counter: "5f-7".to_owned(),
            through: u64::MAX,
        };
        let statement = Statement::new(Predicate::Lifecycle(Box::new(crate::record::LifecycleRecord {
            header: testing::header(1),
            event: Lifecycle::AllowedByRules {
                label: "coder".to_owned(),
                from: "2026-01-01T00:00:00Z".to_owned(),
                to: "2026-01-01T00:01:00Z".to_owned(),
                rules: vec![uses("/a", 1), uses("/b\u{1b}", u64::MAX), uses("/c", 3), uses("/d", 2)],
            },
        })));
        let payload = statement.to_payload().unwrap();
        assert_eq!(Statement::from_payload(&payload).unwrap(), statement);
        assert_eq!(statement.label(), Some("coder"));
        let text = summary(&statement);
        assert!(
            text.starts_with("coder by policy, in the kernel, 18446744073709551621 times"),
            "{text}"
        );
        let most = format!(": `/b⟨U+001B⟩` {}×, `/c` 3×, `/d` 2×, 1 more", u64::MAX);
        assert!(text.ends_with(&most), "{text}");
    }

    #[test]
    fn summaries_have_no_hidden_characters() {
        let mut header = testing::header(1);
        header.signer = "host:x".to_owned();
        let record = EnforcementRecord {
            header,
            label: "coder".to_owned(),
            request_id: Some("01J\u{1b}[2J".to_owned()),
            request_digest: None,
            decision_digest: None,
            by_policy: None,
            verdict: Verdict::Allow,
            effect: Effect::Killed {
                what: "argv".to_owned(),
                approved: "a".to_owned(),
                found: "b\n".to_owned(),
            },
            resume_ns: 5,
        };
        let denied = EnforcementRecord {
            by_policy: Some(PolicyDecided {
                workload: testing::workload("coder"),
                action: PolicyAction::ExecKey {
                    path: Some(Text::from("/bin/ls")),
                    device: 1,
                    inode: 2,
                    generation: 3,
                },
                rules: vec![crate::record::MatchedRule {
                    id: "builtin:denied".to_owned(),
                    description: "3 wait\u{1b}".to_owned(),
                }],
                policy_digest: String::new(),
            }),
            verdict: Verdict::Deny,
            effect: Effect::Denied,
            ..record.clone()
        };
        let text = summary(&Statement::new(Predicate::Enforcement(Box::new(denied))));
        assert_eq!(text, "denied: `/bin/ls` by policy (coder): 3 wait⟨U+001B⟩");
        let text = summary(&Statement::new(Predicate::Enforcement(Box::new(record))));
        assert!(!text.chars().any(char::is_control), "{text}");
        assert!(
            text.starts_with("killed before its first instruction: argv differs"),
            "{text}"
        );
    }
}
