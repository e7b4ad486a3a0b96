//! What one record says: in-toto Statement v1 with one of Guard's predicates.
//!
//! Owns the JSON shape of evidence (docs/evidence-format.md is its prose). It is given observations and makes bytes
//! that are signed once and never serialised again. It must never drop what it does not know: a reader verifies the
//! bytes first and keeps them.

use serde::{Deserialize, Serialize};

use crate::change::{ChangeRecord, ChangesHead};
use crate::grant::GrantUse;
use crate::key::PublicKey;
use crate::text::Text;

/// `_type` of every statement.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// DSSE payload type of every envelope.
pub const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// One statement. `subject` is what the record is about, for tools that know nothing of Guard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statement {
    #[serde(rename = "_type")]
    pub kind: String,
    pub subject: Vec<Subject>,
    #[serde(flatten)]
    pub predicate: Predicate,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// `exec:/usr/bin/git`, `request:01J…`.
    pub name: String,
    pub digest: Digest,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Lower-case hex.
    pub sha256: String,
}

/// The predicate, told apart by `predicateType`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "predicateType", content = "predicate")]
pub enum Predicate {
    /// Somebody is asked. Signed by the host.
    #[serde(rename = "urn:guard:record:request:v1")]
    Request(Box<RequestRecord>),
    /// An answer of people, or of a time-out, as the host received it. Signed by the host, and inside by the console.
    #[serde(rename = "urn:guard:record:decision:v1")]
    Decision(Box<DecisionRecord>),
    /// What the kernel did. Signed by the host.
    #[serde(rename = "urn:guard:record:enforcement:v1")]
    Enforcement(Box<EnforcementRecord>),
    /// Start, stop, policy, labels, lost events, recovery. Signed by the host or the console.
    #[serde(rename = "urn:guard:record:lifecycle:v1")]
    Lifecycle(Box<LifecycleRecord>),
    /// A change of who may decide. Signed by the console.
    #[serde(rename = "urn:guard:record:change:v1")]
    Change(Box<ChangeRecord>),
    /// People's answer as the console signs it for the host. Not a link of a chain by itself.
    #[serde(rename = "urn:guard:decision:v1")]
    SignedDecision(Box<SignedDecision>),
}

/// Where a record stands among its signer's records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// `host:<ULID>` or `console:<origin>`.
    pub signer: String,
    /// Grows by one with every new key or lost spool; never reused.
    pub epoch: u64,
    /// 1, 2, 3 … within the epoch, without gaps.
    pub sequence: u64,
    /// SHA-256 (hex) of the previous envelope of this epoch; 64 zeros for the first.
    pub previous: String,
    /// The signer's clock, RFC 3339 UTC with milliseconds.
    pub at: String,
    /// Nanoseconds since boot, and which boot: a clock that nobody can set back.
    pub since_boot_ns: u64,
    pub boot_id: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestRecord {
    pub header: Header,
    /// ULID.
    pub request_id: String,
    pub host: HostFacts,
    pub workload: WorkloadFacts,
    pub action: Action,
    /// More about it; an agent that knows nothing more leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Box<Context>>,
    pub why: Why,
    /// What the workload says about itself. A claim: quoted, never believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims: Option<Claims>,
    /// 32 bytes, hex; the decision repeats it.
    pub nonce: String,
    /// After which the host denies by itself; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    pub id: String,
    pub name: String,
    pub kernel: String,
    pub agent_version: String,
}

/// What else the host knows of an action. Kernel facts, unless a field says who said it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Context {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<HowHeld>,
    /// The executable's path in the workload's own mount namespace, where that is another one than `path` says. A kernel
    /// fact, but who set up that namespace chose what is mounted there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_inside: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The systemd unit that the cgroup's path names, innermost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<Text>,
    /// How many of `WorkloadFacts::ancestry`, from its front, are inside the workload; the others are what started it.
    #[serde(default)]
    pub ancestry_inside: u32,
    /// Of a connection: the names by which the workload looked its address up lately, the last one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub looked_up: Vec<LookedUp>,
}

/// A name that a resolver of the host gave an address, asked by the workload. The workload chose the name, and whoever runs
/// its zone the address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookedUp {
    pub name: Text,
    pub resolver: std::net::IpAddr,
    /// Whole seconds between the reply and the question.
    pub seconds_ago: u64,
}

/// How a thread waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HowHeld {
    /// The thread alone waits; otherwise its whole process is stopped.
    pub thread_alone: bool,
    /// Why it is not the thread alone, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Who else traces it, and so can change what runs after an approval. `comm` is a claim of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracer: Option<TracerFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracerFacts {
    pub pid: u32,
    pub comm: Text,
}

/// The container that the cgroup's path names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub id: String,
    /// `docker`, `podman`, `containerd`, `cri-o`; absent when the path does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Id of the Kubernetes pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// As the runtime's own files on the host say; whoever started the container chose them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Text>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadFacts {
    pub label: String,
    /// Path below the cgroup v2 root.
    pub cgroup: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    pub uid: u32,
    pub gid: u32,
    /// Name in the host's user database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    pub pid: u32,
    pub tid: u32,
    /// From the process itself up to PID 1, bounded; the process comes first.
    pub ancestry: Vec<ProcessFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFacts {
    pub pid: u32,
    /// Nanoseconds since boot.
    pub start_ns: u64,
    pub comm: Text,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<Text>,
    /// Bounded; as /proc shows it now, written by the workload.
    pub argv: Vec<Text>,
    pub uid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Action {
    Exec(Box<ExecAction>),
    Connect(Box<ConnectAction>),
    File(Box<FileAction>),
}

/// Changing a file or a name. An answer holds for this one system call; opening holds for the open file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FileAction {
    pub operation: FileOperation,
    /// Host view, from the kernel's walk; absent when it did not fit or is in another mount namespace. Of a rename or link the
    /// name that there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Text>,
    /// Where a rename goes, the new name of a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_path: Option<Text>,
    /// The path below the root of its file system, where nothing says through which mount it was reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_in_file_system: Option<Text>,
    /// What a symlink points at: the beginning of it, written by the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Text>,
    /// Name of the extended attribute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attribute: Option<Text>,
    pub flags: Vec<FileFlag>,
    /// It is a directory.
    pub directory: bool,
    pub device: u32,
    /// Of the file; of a name that is made, moved or taken away that of its directory.
    pub inode: u64,
    pub generation: u32,
    /// As asked for, with the sort of what is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// What there is before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_mode: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_size: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileOperation {
    /// Opening what exists for writing.
    #[default]
    Open,
    Create,
    Unlink,
    Rename,
    Link,
    Symlink,
    Mkdir,
    Rmdir,
    Mknod,
    Truncate,
    Chmod,
    Chown,
    Xattr,
    /// A file without a name; `path` is its directory.
    Tmpfile,
    /// Through a descriptor from before the label, or from somebody else.
    Write,
}

impl FileOperation {
    /// As in records and policies.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::Unlink => "unlink",
            Self::Rename => "rename",
            Self::Link => "link",
            Self::Symlink => "symlink",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::Mknod => "mknod",
            Self::Truncate => "truncate",
            Self::Chmod => "chmod",
            Self::Chown => "chown",
            Self::Xattr => "xattr",
            Self::Tmpfile => "tmpfile",
            Self::Write => "write",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileFlag {
    /// What is in the file goes.
    Truncates,
    /// Two names change places.
    Exchanges,
    /// There is something under the new name, which goes.
    Replaces,
    /// An attribute is taken away.
    Removes,
    /// By a shared mapping of memory.
    Maps,
}

/// Reaching somebody over a socket. An answer holds for this one socket and this peer, however many messages follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectAction {
    pub peer: Peer,
    /// What the socket speaks: `tcp`, `udp` …, of a unix socket `stream`, `datagram` or `seqpacket`; a number where it has no
    /// name.
    pub protocol: String,
    pub how: ConnectHow,
}

/// Who is reached, as the kernel has it: never what the caller called it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Peer {
    Ip {
        /// IPv4 also where the socket speaks IPv6.
        address: std::net::IpAddr,
        port: u16,
        /// Index of the network interface, for a link-local address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<u32>,
    },
    /// A unix socket by the name that it was bound to, host view; absent when that is not known.
    Unix {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<Text>,
    },
    /// A unix socket with a name outside the file system, without its leading NUL. Whoever came first has it.
    Abstract { name: Text },
    /// A unix socket without a name.
    Nameless,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectHow {
    /// connect(2), or the first bytes of TCP fast open.
    Connect,
    /// A message that names its destination.
    Message,
    /// A message on a socket that somebody else connected, or that was connected before it was labelled.
    ConnectedBefore,
    /// listen(2) where other hosts can reach it: the peer is the own address.
    Listen,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecAction {
    /// Host view, from the kernel's dentry walk; absent when it did not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Text>,
    pub unlinked: bool,
    pub device: u32,
    pub inode: u64,
    pub generation: u32,
    /// Of the content, hex; absent when it could not be read in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Name as the workload gave it to execve(2).
    pub given: Text,
    pub argv: Vec<Text>,
    pub argv_count: u64,
    /// SHA-256 over every string followed by NUL, hex.
    pub argv_sha256: String,
    /// `argv` leaves something out.
    pub argv_truncated: bool,
    /// Chosen by name in the agent's configuration.
    pub environment: Vec<Text>,
    pub environment_count: u64,
    pub environment_sha256: String,
    pub cwd: Text,
}

/// Why somebody is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    pub rules: Vec<MatchedRule>,
    /// Groups asked; empty: any approver.
    pub approver_groups: Vec<String>,
    pub quorum: u32,
    /// SHA-256 of the policy text, hex.
    pub policy_digest: String,
    /// Short sentences: what could go wrong, at most three.
    pub risks: Vec<String>,
    pub tags: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MatchedRule {
    /// `@id` of the policy, or `builtin:…`.
    pub id: String,
    /// `@description`, or a sentence made from the rule.
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Claims {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call: Option<Text>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Text>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Allow,
    Deny,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionRecord {
    pub header: Header,
    pub request_id: String,
    /// SHA-256 of the request record's payload, hex.
    pub request_digest: String,
    pub verdict: Verdict,
    pub by: DecidedBy,
    pub received_at: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum DecidedBy {
    /// The console's DSSE envelope, exact bytes in base64, around a [`SignedDecision`].
    People { envelope: String },
    /// The policy's time-out passed: denied.
    Timeout,
    /// The host refused by itself: local `forbid`, policy changed, console refused the request.
    Host { because: String },
}

/// What the console signs and the host checks. Everything it needs to hold good is inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedDecision {
    /// Log origin of the console.
    pub console: String,
    pub host_id: String,
    pub request_id: String,
    pub request_digest: String,
    pub nonce: String,
    pub verdict: Verdict,
    /// One per person whose answer counted.
    pub answers: Vec<Answer>,
    pub quorum: u32,
    /// The label's owner at that time: issuer and subject, to be compared with the answers'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<PersonId>,
    /// Which changes of owners, roles and groups the console knew when the people decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<ChangesHead>,
    /// The people answered an earlier request, with this grant, which covers this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Box<GrantUse>>,
    pub issued_at: String,
    /// The host refuses it afterwards.
    pub expires_at: String,
}

/// A person, as the identity provider names one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PersonId {
    /// `local` or an OIDC issuer.
    pub issuer: String,
    pub subject: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub who: PersonId,
    /// Display name at that time.
    pub name: String,
    pub groups: Vec<String>,
    pub roles: Vec<String>,
    pub verdict: Verdict,
    pub reason: String,
    pub at: String,
    /// `web`, `cli`, `api` …
    pub channel: String,
    /// When the session signed in.
    pub signed_in_at: String,
    /// SHA-256 (hex) of the request payload that was shown.
    pub shown_digest: String,
    /// How the identity provider says that they proved who they are; absent for local accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
}

/// What an identity provider says of a sign-in; its words, not checked by anybody.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authentication {
    /// When, which may be long before the session signed in (`auth_time`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Class of it (`acr`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Methods (`amr`): `pwd`, `otp`, `hwk` …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnforcementRecord {
    pub header: Header,
    pub label: String,
    /// When people were asked: the request and the decision records' payload digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_digest: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_digest: Option<String>,
    /// When the policy decided alone: what, and by which rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_policy: Option<PolicyDecided>,
    pub verdict: Verdict,
    pub effect: Effect,
    /// Between the verdict and the effect, nanoseconds.
    pub resume_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyDecided {
    pub workload: WorkloadFacts,
    pub action: PolicyAction,
    pub rules: Vec<MatchedRule>,
    pub policy_digest: String,
}

/// An action that only the kernel key described (fast), or one that was read from the held thread.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PolicyAction {
    ExecKey {
        path: Option<Text>,
        device: u32,
        inode: u64,
        generation: u32,
    },
    Exec(Box<ExecAction>),
    Connect(Box<ConnectAction>),
    File(Box<FileAction>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Effect {
    /// The syscall went on; for an approved exec, everything matched what was approved.
    Ran,
    Denied,
    /// It failed for a reason of its own. Positive errno.
    Failed {
        errno: i32,
    },
    /// It differed from what was approved and was killed before its first instruction.
    Killed {
        what: String,
        approved: String,
        found: String,
    },
    /// The thread was gone before the verdict took effect.
    Died,
    /// The question ended by itself before an answer.
    Withdrawn {
        why: String,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LifecycleRecord {
    pub header: Header,
    pub event: Lifecycle,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Lifecycle {
    /// First record of an epoch. `key`: PKIX PEM, of consoles its id.
    Begun {
        why: String,
        key: String,
        /// Where the epoch before it ended, if the signer knows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<ChainEnd>,
    },
    /// The key that follows the one that signs this. It is in force when it begins an epoch; until then nothing has changed.
    NextKey {
        key: PublicKey,
    },
    /// From here on this host accepts decisions of this key of its console only: the one before it named it.
    ConsoleKey {
        key: PublicKey,
    },
    EnforcementOn {
        kernel: String,
        agent_version: String,
        programs: Vec<String>,
    },
    EnforcementOff {
        why: String,
        /// When it was last seen to be on (RFC 3339), if that is not this moment.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last_on: Option<String>,
    },
    PolicyLoaded {
        digest: String,
        policies: u32,
    },
    LabelAdded {
        label: String,
        cgroup: Text,
        source: String,
    },
    LabelRemoved {
        label: String,
        cgroup: Text,
    },
    EventsLost {
        count: u64,
    },
    /// The spool's last frame was torn and cut off.
    Recovered {
        cut_bytes: u64,
    },
    DecisionRefused {
        request_id: String,
        because: String,
    },
    /// The console's log contradicts what this host has seen of it, so the host takes no receipt from it.
    LogRefused {
        because: String,
        /// The signed head that the host held, and the one that it was offered: both in full, as proof.
        known: String,
        offered: String,
    },
    /// A labelled process tried to reach what no decision opens: the agent, the console, an approver's sign-in. At most
    /// one for each label, object and minute.
    TheftRefused {
        label: String,
        /// `sign-in`, `browser profile`, `agent's files`, `console's address`, `process outside` …
        object: String,
        /// Attempts since the last such record.
        count: u64,
        /// Of the last attempt. `comm` is a claim of the workload.
        pid: u32,
        uid: u32,
        comm: Text,
    },
    /// A place that labelled workloads must not reach is there and could not be looked at. What was protected there stays so.
    Unprotected {
        path: Text,
        because: String,
    },
    /// No agent ran from one time to the other (RFC 3339), but the kernel programs stayed attached all the while: enforcement was
    /// on. After a time without them there is `EnforcementOn` alone.
    AgentAway {
        from: String,
        to: String,
    },
    /// What exact rules in the kernel allowed from one time to the other (RFC 3339): counted there, without a question and a record
    /// of each. At most one a minute for each label, and more of the same time when there are many rules.
    AllowedByRules {
        label: String,
        from: String,
        to: String,
        rules: Vec<RuleUses>,
    },
    /// Enforcement is on, and has been since a time (RFC 3339). Written at the start, every ten minutes, and as the last one by an
    /// agent that stops in order: then the programs stay in force without it.
    Enforcing {
        since: String,
        stopping: bool,
        counters: KernelCounters,
    },
}

/// The last record of an epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainEnd {
    pub epoch: u64,
    pub sequence: u64,
    /// SHA-256 of its envelope, hex.
    pub digest: String,
}

/// One exact rule: an answer of the policy that the kernel gave again by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleUses {
    #[serde(flatten)]
    pub rule: ExactRule,
    /// Since the record before this one.
    pub count: u64,
    /// Names the kernel's counter; it never counts back.
    pub counter: String,
    /// What it said. The next record of this counter begins there, so that nothing is counted twice.
    pub through: u64,
}

/// What the policy allowed, and by which rules of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExactRule {
    pub action: PolicyAction,
    pub rules: Vec<MatchedRule>,
    pub policy_digest: String,
}

/// What the kernel side has counted since `Lifecycle::Enforcing`'s `since`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct KernelCounters {
    /// Events that did not fit the ring; their threads were not let through.
    pub lost_events: u64,
    /// Actions and forks refused because a table was full.
    pub refused_full: u64,
    /// Actions and forks refused because their label was at its quota.
    pub refused_quota: u64,
    /// Approved execs that nobody compared: killed.
    pub unchecked: u64,
    /// Actions let through without an agent, because the configuration says so.
    pub allowed_while_away: u64,
}
