//! Policy: from a Cedar file to allow, ask or deny.
//!
//! Owns parsing, checking and evaluating rules. It is given the text of the policy file and facts about one action. It
//! must never answer from a fact that is not known: a rule that looks at one never allows, and a `forbid` that might
//! apply does.

mod annotations;
pub mod described;
pub mod diff;
mod parse;
mod reads;
pub mod recorded;
pub mod suite;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cedar_policy::{
    ActionConstraint, Authorizer, Context, Decision, Effect, Entities, Entity, EntityId, EntityTypeName, EntityUid,
    PolicyId, PolicySet, PrincipalConstraint, Request, ResourceConstraint, RestrictedExpression,
};
use guard_evidence::record::{FileOperation, MatchedRule};
use parking_lot::Mutex;

use annotations::Annotations;
pub use parse::{PolicyError, Problem, parse};
pub use reads::Reads;

/// The schema that every policy is checked against.
pub const SCHEMA: &str = include_str!("guard.cedarschema");
/// Rules that stand beside those of every file.
const BUILTIN: &str = include_str!("builtin.cedar");
/// Largest policy file, in bytes.
pub const POLICY_BYTES: usize = 1 << 20;

/// Ids of the rules that ask when no rule of the file can permit an action of the kind to a label.
const BUILTIN_ASK_EXEC: &str = "builtin:ask-every-exec";
const BUILTIN_ASK_CONNECTION: &str = "builtin:ask-every-connection";
const BUILTIN_ASK_WRITE: &str = "builtin:ask-every-write";

/// A checked policy file. Cheap to share; never changes.
#[derive(Debug)]
pub struct Policy {
    /// SHA-256 of the text, hex.
    pub digest: String,
    text: String,
    /// Rules in the file.
    pub count: u32,
    rules: HashMap<PolicyId, Rule>,
    authorizer: Authorizer,
    names: Names,
    /// The rules that can be evaluated without the facts of the key.
    without: Mutex<HashMap<Reads, Arc<PolicySet>>>,
}

/// One rule, and what has to be known before it can be evaluated.
#[derive(Debug)]
struct Rule {
    policy: cedar_policy::Policy,
    /// Of the file, not of [`BUILTIN`].
    of_file: bool,
    /// As the file has it, with its annotations.
    source: String,
    /// From 1; 0 for a rule of [`BUILTIN`].
    line: usize,
    effect: Effect,
    shown: MatchedRule,
    annotations: Annotations,
    reads: Reads,
    /// The scope alone, and the scope without its resource.
    scope: PolicySet,
    scope_any_resource: PolicySet,
    /// Each `when` and `unless` alone.
    clauses: Vec<(Reads, PolicySet)>,
}

#[derive(Debug)]
struct Names {
    workload: EntityTypeName,
    directory: EntityTypeName,
    executable: EntityTypeName,
    address: EntityTypeName,
    socket: EntityTypeName,
    file: EntityTypeName,
    exec: EntityUid,
    connect: EntityUid,
    listen: EntityUid,
    connect_unix: EntityUid,
    write: EntityUid,
}

/// What is known of an action.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub label: String,
    pub uid: u32,
    pub gid: u32,
    pub user: Option<String>,
    pub login_uid: Option<u32>,
    pub cgroup: String,
    pub container: Option<String>,
    pub deed: Deed,
}

/// What is about to be done.
#[derive(Debug, Clone)]
pub enum Deed {
    Exec(ExecFacts),
    Connect(ConnectFacts),
    Write(WriteFacts),
}

impl Default for Deed {
    fn default() -> Self {
        Self::Exec(ExecFacts::default())
    }
}

#[derive(Debug, Clone, Default)]
pub struct ExecFacts {
    /// `None`: not known (did not fit, not UTF-8, or a name that is no more).
    pub path: Option<String>,
    pub unlinked: bool,
    /// `None` before the thread is held.
    pub held: Option<HeldFacts>,
}

/// Of a connection the kernel's question tells all.
#[derive(Debug, Clone)]
pub struct ConnectFacts {
    pub peer: PeerFacts,
    /// As in records: `tcp`, `udp` …, of a unix socket `stream`, `datagram` or `seqpacket`.
    pub protocol: String,
    /// It listens there itself.
    pub listen: bool,
    /// Somebody outside connected it, or it was connected before the label.
    pub connected_before: bool,
    /// Whether the thread is held, so that people may be asked.
    pub held: bool,
}

/// Of a change of a file the kernel's question tells all.
#[derive(Debug, Clone)]
pub struct WriteFacts {
    pub operation: FileOperation,
    /// `None`: not known.
    pub path: Option<String>,
    /// The other end of a rename or link; the inner `None`: not known.
    pub new_path: Option<Option<String>>,
    pub directory: bool,
    /// Something that is there goes.
    pub replaces: bool,
    /// Whether the thread is held, so that people may be asked.
    pub held: bool,
}

/// Which end of a rename or link is the resource: each is put to the policy by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Path,
    New,
}

#[derive(Debug, Clone)]
pub enum PeerFacts {
    Ip {
        address: IpAddr,
        port: u16,
    },
    /// A path, a name outside the file system after `@`, or nothing. `None`: not known.
    Unix(Option<String>),
}

/// What was read from the held thread. `None`: not known (not UTF-8, cut short, unreadable).
#[derive(Debug, Clone, Default)]
pub struct HeldFacts {
    pub argv: Option<Vec<String>>,
    pub cwd: Option<String>,
    pub given: Option<String>,
    pub sha256: Option<String>,
}

/// The policy's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Allow {
        rules: Vec<MatchedRule>,
    },
    Ask(Ask),
    Deny {
        rules: Vec<MatchedRule>,
        because: String,
    },
    /// The answer depends on what only the held thread tells, or people have to be asked. Never given of a thread that is
    /// held.
    Hold,
}

/// Who has to agree: what all matching rules require, added up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub rules: Vec<MatchedRule>,
    /// Groups that every rule accepts; empty: any approver.
    pub groups: Vec<String>,
    /// Distinct people; the most that any rule wants.
    pub quorum: u32,
    /// The shortest that any rule sets.
    pub timeout: Option<Duration>,
    pub risks: Vec<String>,
    pub tags: Vec<String>,
}

/// A rule of the file, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleView {
    /// `@id`, or `rule-N` by its place.
    pub id: String,
    /// Whether the id is its own.
    pub named: bool,
    pub description: String,
    /// Else it forbids.
    pub permits: bool,
    /// From 1.
    pub line: usize,
    /// As the file has it.
    pub source: String,
}

/// One look at the rules, with `approved` as given.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Look {
    Permitted(Vec<PolicyId>),
    Forbidden {
        rules: Vec<PolicyId>,
        because: String,
    },
    NoRule,
    /// Depends on facts that are not known yet.
    Unknown,
}

impl Policy {
    /// A policy without rules: asks for everything.
    #[must_use]
    pub fn empty() -> Self {
        parse("", "").unwrap_or_else(|_| unreachable!("an empty text has no errors"))
    }

    /// The text that it was read from.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The rules of the file, in its order.
    #[must_use]
    pub fn rules(&self) -> Vec<RuleView> {
        let of_file = self.rules.values().filter(|rule| rule.of_file);
        let mut rules: Vec<RuleView> = of_file
            .map(|rule| RuleView {
                id: rule.shown.id.clone(),
                named: rule.annotations.id.is_some(),
                description: rule.shown.description.clone(),
                permits: rule.effect == Effect::Permit,
                line: rule.line,
                source: rule.source.clone(),
            })
            .collect();
        rules.sort_by_key(|rule| rule.line);
        rules
    }

    /// Answers for one action.
    #[must_use]
    pub fn evaluate(&self, facts: &Facts) -> Answer {
        let answer = self.evaluate_end(facts, End::Path);
        match &facts.deed {
            Deed::Write(WriteFacts { new_path: Some(_), .. }) => answer.and(self.evaluate_end(facts, End::New)),
            _ => answer,
        }
    }

    fn evaluate_end(&self, facts: &Facts, end: End) -> Answer {
        let (unknown, held) = (facts.unknown(), facts.is_held());
        let world = match World::new(&self.names, facts, end) {
            Ok(world) => world,
            Err(because) => {
                return Answer::Deny {
                    rules: Vec::new(),
                    because,
                };
            }
        };
        match self.look(&world, false, unknown, held) {
            Look::Permitted(rules) => {
                return Answer::Allow {
                    rules: self.shown(&rules),
                };
            }
            Look::Unknown => return Answer::Hold,
            Look::Forbidden { .. } | Look::NoRule => {}
        }
        match self.look(&world, true, unknown, held) {
            Look::Unknown => Answer::Hold,
            Look::Forbidden { rules, because } => Answer::Deny {
                rules: self.shown(&rules),
                because,
            },
            // Whoever is asked decides on what the thread is about to do, so it is held first.
            Look::Permitted(_) if !held => Answer::Hold,
            Look::Permitted(rules) => self.ask(&rules),
            Look::NoRule if self.covers(&world) => Answer::Deny {
                rules: Vec::new(),
                because: "no rule permits it".to_owned(),
            },
            Look::NoRule if !held => Answer::Hold,
            Look::NoRule => Answer::Ask(Ask {
                rules: vec![facts.asked_for_want_of_a_rule()],
                groups: Vec::new(),
                quorum: 1,
                timeout: None,
                risks: Vec::new(),
                tags: Vec::new(),
            }),
        }
    }

    /// Whether any rule looks at a user's name.
    #[must_use]
    pub fn reads_user(&self) -> bool {
        self.rules.values().any(|rule| rule.reads.intersects(Reads::USER))
    }

    /// Whether the answer to this action before it is held follows from the label and what is done alone: no rule that could
    /// apply to it looks at who does it.
    #[must_use]
    pub fn is_exact(&self, facts: &Facts) -> bool {
        World::new(&self.names, facts, End::Path).is_ok_and(|world| {
            self.rules
                .values()
                .filter(|rule| self.concerns(rule, &world))
                .all(|rule| !rule.reads.intersects(Reads::WHO | Reads::USER))
        })
    }

    /// Whether the rule is about actions of this kind by this label, judged by its scope.
    fn concerns(&self, rule: &Rule, world: &World) -> bool {
        let principal = match rule.policy.principal_constraint() {
            PrincipalConstraint::Any => true,
            PrincipalConstraint::Eq(uid) | PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid) => {
                uid == world.principal
            }
            PrincipalConstraint::Is(kind) => kind == self.names.workload,
        };
        let action = match rule.policy.action_constraint() {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(uid) => uid == world.action,
            ActionConstraint::In(uids) => uids.contains(&world.action),
        };
        principal && action
    }

    /// Whether any rule of the file could permit an action of this kind to this label, judged by the rules' scopes.
    fn covers(&self, world: &World) -> bool {
        // An address is in no directory.
        let kind = world.resource.type_name();
        let inside = |uid: &EntityUid| {
            uid.type_name() == kind || *uid.type_name() == self.names.directory && *kind != self.names.address
        };
        let resource = |rule: &Rule| match rule.policy.resource_constraint() {
            ResourceConstraint::Any => true,
            ResourceConstraint::Eq(uid) => uid.type_name() == kind,
            ResourceConstraint::In(uid) => inside(&uid),
            ResourceConstraint::Is(of) => of == *kind,
            ResourceConstraint::IsIn(of, uid) => of == *kind && inside(&uid),
        };
        self.rules
            .values()
            .filter(|rule| rule.of_file && rule.effect == Effect::Permit)
            .any(|rule| self.concerns(rule, world) && resource(rule))
    }

    fn look(&self, world: &World, approved: bool, unknown: Reads, held: bool) -> Look {
        let request = match world.request(approved) {
            Ok(request) => request,
            Err(because) => {
                return Look::Forbidden {
                    rules: Vec::new(),
                    because,
                };
            }
        };
        let response = self
            .authorizer
            .is_authorized(&request, &self.known(unknown), &world.entities);
        let reasons: Vec<PolicyId> = response.diagnostics().reason().cloned().collect();
        // Cedar skips a rule that fails to evaluate. For a forbid that would be an opening.
        let failed: Vec<PolicyId> = response
            .diagnostics()
            .errors()
            .map(|error| match error {
                cedar_policy::AuthorizationError::PolicyEvaluationError(error) => error.policy_id().clone(),
            })
            .filter(|id| self.rules.get(id).is_none_or(|rule| rule.effect == Effect::Forbid))
            .collect();
        if !failed.is_empty() {
            return Look::Forbidden {
                rules: failed,
                because: "a rule that forbids could not be evaluated".to_owned(),
            };
        }
        let forbidden = response.decision() == Decision::Deny && !reasons.is_empty();
        if forbidden {
            return Look::Forbidden {
                rules: reasons,
                because: "forbidden by policy".to_owned(),
            };
        }
        // What a hold will tell is not known yet; everything else will never be.
        let later = if held {
            Reads::NONE
        } else {
            unknown.without(Reads::PATH)
        };
        let never = unknown.without(later);
        let open = |effect| {
            self.rules
                .iter()
                .filter(move |(_, rule)| rule.effect == effect && rule.reads.intersects(unknown))
                .filter(|(_, rule)| rule.might_apply(&self.authorizer, &request, &world.entities, unknown))
        };
        let (undecided, decided): (Vec<_>, Vec<_>) =
            open(Effect::Forbid).partition(|(_, rule)| rule.reads.intersects(later));
        if !decided.is_empty() {
            return Look::Forbidden {
                rules: decided.into_iter().map(|(id, _)| id.clone()).collect(),
                because: "a rule that forbids looks at something that could not be read".to_owned(),
            };
        }
        if !undecided.is_empty() {
            return Look::Unknown;
        }
        if response.decision() == Decision::Allow {
            return Look::Permitted(reasons);
        }
        if open(Effect::Permit).any(|(_, rule)| !rule.reads.intersects(never)) {
            return Look::Unknown;
        }
        Look::NoRule
    }

    /// The rules that look at nothing unknown.
    fn known(&self, unknown: Reads) -> Arc<PolicySet> {
        let mut sets = self.without.lock();
        Arc::clone(sets.entry(unknown).or_insert_with(|| {
            let rules = self
                .rules
                .values()
                .filter(|rule| !rule.reads.intersects(unknown))
                .map(|r| r.policy.clone());
            Arc::new(PolicySet::from_policies(rules).unwrap_or_default())
        }))
    }

    fn shown(&self, ids: &[PolicyId]) -> Vec<MatchedRule> {
        let mut shown: Vec<_> = ids
            .iter()
            .filter_map(|id| self.rules.get(id))
            .map(|r| r.shown.clone())
            .collect();
        shown.sort_by(|a, b| a.id.cmp(&b.id));
        shown
    }

    /// Adds up what the rules require.
    fn ask(&self, ids: &[PolicyId]) -> Answer {
        let mut rules: Vec<&Rule> = ids.iter().filter_map(|id| self.rules.get(id)).collect();
        rules.sort_by(|a, b| a.shown.id.cmp(&b.shown.id));
        let mut groups: Option<Vec<String>> = None;
        for named in rules
            .iter()
            .map(|rule| &rule.annotations.approvers)
            .filter(|groups| !groups.is_empty())
        {
            groups = Some(match groups {
                None => named.clone(),
                Some(so_far) => so_far.into_iter().filter(|group| named.contains(group)).collect(),
            });
        }
        let shown: Vec<MatchedRule> = rules.iter().map(|rule| rule.shown.clone()).collect();
        if groups.as_ref().is_some_and(Vec::is_empty) {
            return Answer::Deny {
                rules: shown,
                because: "several rules ask, and the approver groups that they name have none in common".to_owned(),
            };
        }
        let collect = |of: fn(&Annotations) -> &Vec<String>| {
            let mut seen = HashSet::new();
            rules
                .iter()
                .flat_map(|rule| of(&rule.annotations))
                .filter(|x| seen.insert(*x))
                .cloned()
                .collect()
        };
        Answer::Ask(Ask {
            groups: groups.unwrap_or_default(),
            quorum: rules
                .iter()
                .map(|rule| rule.annotations.quorum)
                .max()
                .unwrap_or(1)
                .max(1),
            timeout: rules.iter().filter_map(|rule| rule.annotations.timeout).min(),
            risks: collect(|a| &a.risks),
            tags: collect(|a| &a.tags),
            rules: shown,
        })
    }
}

impl Answer {
    /// The rules that it comes from.
    #[must_use]
    pub fn rules(&self) -> &[MatchedRule] {
        match self {
            Self::Allow { rules } | Self::Deny { rules, .. } => rules,
            Self::Ask(ask) => &ask.rules,
            Self::Hold => &[],
        }
    }

    /// Of an action with two ends: what both answers allow, and all that both require.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (deny @ Self::Deny { .. }, _) | (_, deny @ Self::Deny { .. }) => deny,
            (Self::Hold, _) | (_, Self::Hold) => Self::Hold,
            (Self::Ask(one), Self::Ask(two)) => one.and(two),
            (ask @ Self::Ask(_), Self::Allow { .. }) | (Self::Allow { .. }, ask @ Self::Ask(_)) => ask,
            (Self::Allow { rules }, Self::Allow { rules: more }) => Self::Allow {
                rules: joined(rules, more),
            },
        }
    }
}

impl Ask {
    fn and(self, other: Self) -> Answer {
        let rules = joined(self.rules, other.rules);
        let groups = if self.groups.is_empty() {
            other.groups
        } else if other.groups.is_empty() {
            self.groups
        } else {
            let common: Vec<String> = self
                .groups
                .into_iter()
                .filter(|group| other.groups.contains(group))
                .collect();
            if common.is_empty() {
                return Answer::Deny {
                    rules,
                    because: "the rules for the two paths ask approver groups that have none in common".to_owned(),
                };
            }
            common
        };
        Answer::Ask(Self {
            rules,
            groups,
            quorum: self.quorum.max(other.quorum),
            timeout: self.timeout.into_iter().chain(other.timeout).min(),
            risks: joined(self.risks, other.risks),
            tags: joined(self.tags, other.tags),
        })
    }
}

/// Both lists, each entry once.
fn joined<T: PartialEq>(mut one: Vec<T>, two: Vec<T>) -> Vec<T> {
    for entry in two {
        if !one.contains(&entry) {
            one.push(entry);
        }
    }
    one
}

impl Rule {
    /// Whether the rule could apply, as far as the known facts tell: scope and every clause that looks only at known
    /// facts hold. A clause that fails to evaluate counts as holding.
    fn might_apply(&self, authorizer: &Authorizer, request: &Request, entities: &Entities, unknown: Reads) -> bool {
        let holds = |set: &PolicySet| {
            let response = authorizer.is_authorized(request, set, entities);
            response.decision() == Decision::Allow || response.diagnostics().errors().next().is_some()
        };
        let scope = if unknown.intersects(Reads::PATH) {
            &self.scope_any_resource
        } else {
            &self.scope
        };
        holds(scope)
            && self
                .clauses
                .iter()
                .filter(|(reads, _)| !reads.intersects(unknown))
                .all(|(_, set)| holds(set))
    }
}

impl Facts {
    /// Whether the thread is held: then nothing more can be learnt, and people may be asked.
    #[must_use]
    pub fn is_held(&self) -> bool {
        match &self.deed {
            Deed::Exec(exec) => exec.held.is_some(),
            Deed::Connect(connect) => connect.held,
            Deed::Write(write) => write.held,
        }
    }

    /// The path that the resource has, if it is known and has one.
    fn path(&self, end: End) -> Option<&str> {
        match &self.deed {
            Deed::Write(write) => write.end(end),
            Deed::Exec(exec) => exec.path.as_deref(),
            Deed::Connect(connect) => match &connect.peer {
                PeerFacts::Unix(name) => name.as_deref().filter(|name| name.starts_with('/')),
                PeerFacts::Ip { .. } => None,
            },
        }
    }

    /// The directory of a file that has no name.
    fn nameless_in(&self) -> Option<&str> {
        match &self.deed {
            Deed::Write(write) if write.operation == FileOperation::Tmpfile => write.path.as_deref(),
            _ => None,
        }
    }

    fn asked_for_want_of_a_rule(&self) -> MatchedRule {
        let (id, what, every) = match &self.deed {
            Deed::Exec(_) => (BUILTIN_ASK_EXEC, "anything", "exec"),
            Deed::Connect(_) => (BUILTIN_ASK_CONNECTION, "connections", "connection"),
            Deed::Write(_) => (BUILTIN_ASK_WRITE, "changes of files", "one outside its free space"),
        };
        MatchedRule {
            id: id.to_owned(),
            description: format!(
                "no rule permits {what} to {}, so every {every} is asked for",
                self.label
            ),
        }
    }

    fn unknown(&self) -> Reads {
        let mut unknown = Reads::NONE;
        let exec = match &self.deed {
            Deed::Exec(exec) => exec,
            Deed::Connect(connect) => {
                if matches!(connect.peer, PeerFacts::Unix(None)) {
                    unknown |= Reads::PATH;
                }
                return unknown;
            }
            Deed::Write(write) => {
                if write.path.is_none() || write.new_path == Some(None) {
                    unknown |= Reads::PATH;
                }
                return unknown;
            }
        };
        if exec.path.is_none() {
            unknown |= Reads::PATH;
        }
        match &exec.held {
            None => unknown |= Reads::HELD,
            Some(held) => {
                for (missing, what) in [
                    (held.argv.is_none(), Reads::ARGV),
                    (held.cwd.is_none(), Reads::CWD),
                    (held.given.is_none(), Reads::GIVEN),
                    (held.sha256.is_none(), Reads::SHA256),
                ] {
                    if missing {
                        unknown |= what;
                    }
                }
            }
        }
        unknown
    }
}

fn string(s: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(s.to_owned())
}

fn long(n: u32) -> RestrictedExpression {
    RestrictedExpression::new_long(i64::from(n))
}

impl ExecFacts {
    fn add_to(&self, context: &mut Vec<(&str, RestrictedExpression)>) {
        context.push(("unlinked", RestrictedExpression::new_bool(self.unlinked)));
        context.extend(self.path.as_deref().map(|path| ("path", string(path))));
        let Some(held) = &self.held else { return };
        if let Some(argv) = &held.argv {
            context.push((
                "argv",
                RestrictedExpression::new_set(argv.iter().map(|word| string(word))),
            ));
            context.push((
                "argc",
                RestrictedExpression::new_long(i64::try_from(argv.len()).unwrap_or(i64::MAX)),
            ));
            context.push(("argv0", string(argv.first().map_or("", String::as_str))));
            context.extend(
                self.path
                    .as_deref()
                    .map(|path| ("command", string(&command(path, argv)))),
            );
        }
        context.extend(held.cwd.as_deref().map(|cwd| ("cwd", string(cwd))));
        context.extend(held.given.as_deref().map(|given| ("given", string(given))));
        context.extend(held.sha256.as_deref().map(|sha256| ("sha256", string(sha256))));
    }
}

impl ConnectFacts {
    fn add_to(&self, context: &mut Vec<(&str, RestrictedExpression)>) {
        context.push(("protocol", string(&self.protocol)));
        if !self.listen {
            let before = RestrictedExpression::new_bool(self.connected_before);
            context.push(("connected_before", before));
        }
        match &self.peer {
            PeerFacts::Ip { address, port } => {
                context.push(("address", RestrictedExpression::new_ip(address.to_string())));
                context.push(("port", long((*port).into())));
                if !self.listen {
                    context.push(("loopback", RestrictedExpression::new_bool(is_this_host(address))));
                }
            }
            PeerFacts::Unix(name) => context.extend(name.as_deref().map(|name| ("name", string(name)))),
        }
    }
}

impl WriteFacts {
    fn end(&self, end: End) -> Option<&str> {
        match end {
            End::Path => self.path.as_deref(),
            End::New => self.new_path.as_ref().and_then(Option::as_deref),
        }
    }

    fn add_to(&self, context: &mut Vec<(&str, RestrictedExpression)>) {
        context.push(("operation", string(self.operation.word())));
        context.push(("directory", RestrictedExpression::new_bool(self.directory)));
        context.push(("replaces", RestrictedExpression::new_bool(self.replaces)));
        context.extend(self.path.as_deref().map(|path| ("path", string(path))));
        let new_path = self.new_path.as_ref().and_then(Option::as_deref);
        context.extend(new_path.map(|path| ("new_path", string(path))));
    }
}

/// Where no packet leaves the host: connect(2) turns the address without a value into the loopback's.
fn is_this_host(address: &IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

/// One action as Cedar sees it.
struct World {
    principal: EntityUid,
    action: EntityUid,
    resource: EntityUid,
    entities: Entities,
    context: Vec<(String, RestrictedExpression)>,
}

impl World {
    fn new(names: &Names, facts: &Facts, end: End) -> Result<Self, String> {
        let uid = |kind: &EntityTypeName, id: &str| EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id));
        let principal = uid(&names.workload, &facts.label);
        let (action, resource) = match &facts.deed {
            // No path begins without a slash, so no rule can name this one.
            Deed::Exec(exec) => (
                &names.exec,
                uid(&names.executable, exec.path.as_deref().unwrap_or("unknown")),
            ),
            Deed::Connect(connect) => match &connect.peer {
                PeerFacts::Ip { address, .. } => (
                    if connect.listen { &names.listen } else { &names.connect },
                    uid(&names.address, &address.to_string()),
                ),
                PeerFacts::Unix(name) => (
                    &names.connect_unix,
                    uid(&names.socket, name.as_deref().unwrap_or("unknown")),
                ),
            },
            Deed::Write(write) => (&names.write, uid(&names.file, write.end(end).unwrap_or("unknown"))),
        };
        let directories: HashSet<EntityUid> = facts
            .path(end)
            .map(ancestors)
            .unwrap_or_default()
            .into_iter()
            // A file without a name is in the directory that stands for it.
            .chain(facts.nameless_in())
            .map(|d| uid(&names.directory, d))
            .collect();
        let entities = [
            Entity::new_no_attrs(principal.clone(), HashSet::new()),
            Entity::new_no_attrs(resource.clone(), directories),
        ];
        let entities = Entities::from_entities(entities, None)
            .map_err(|e| format!("the action cannot be put to the policy: {e}"))?;

        let mut context: Vec<(&str, RestrictedExpression)> = vec![
            ("uid", long(facts.uid)),
            ("gid", long(facts.gid)),
            ("cgroup", string(&facts.cgroup)),
        ];
        context.extend(facts.user.as_deref().map(|user| ("user", string(user))));
        context.extend(facts.login_uid.map(|uid| ("login_uid", long(uid))));
        context.extend(facts.container.as_deref().map(|id| ("container", string(id))));
        match &facts.deed {
            Deed::Exec(exec) => exec.add_to(&mut context),
            Deed::Connect(connect) => connect.add_to(&mut context),
            Deed::Write(write) => write.add_to(&mut context),
        }
        let context = context
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Ok(Self {
            principal,
            action: action.clone(),
            resource,
            entities,
            context,
        })
    }

    fn request(&self, approved: bool) -> Result<Request, String> {
        let approved = ("approved".to_owned(), RestrictedExpression::new_bool(approved));
        let context = Context::from_pairs(self.context.iter().cloned().chain([approved]))
            .map_err(|e| format!("the action cannot be put to the policy: {e}"))?;
        Request::new(
            self.principal.clone(),
            self.action.clone(),
            self.resource.clone(),
            context,
            None,
        )
        .map_err(|e| format!("the action cannot be put to the policy: {e}"))
    }
}

/// The executable's own name and the words after `argv[0]`, which is whatever the caller chose.
fn command(path: &str, argv: &[String]) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    let words: Vec<&str> = std::iter::once(name)
        .chain(argv.iter().skip(1).map(String::as_str))
        .collect();
    guard_evidence::text::shell_words(&words)
}

/// Every directory above an absolute path: `/usr/bin/git` is in `/usr/bin`, `/usr` and `/`.
fn ancestors(path: &str) -> Vec<&str> {
    let mut above: Vec<&str> = path
        .match_indices('/')
        .skip(1)
        .map(|(at, _)| &path[..at])
        .filter(|parent| !parent.is_empty())
        .collect();
    if path.starts_with('/') {
        above.push("/");
    }
    above
}

#[cfg(test)]
mod tests;
