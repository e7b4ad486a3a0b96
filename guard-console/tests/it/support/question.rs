//! What hosts ask about.

use guard_evidence::record::{Action, Claims, ExecAction, ProcessFacts, WorkloadFacts};
use guard_evidence::statement::strings_sha256;
use guard_evidence::text::Text;

/// A question as a test wants it.
pub(crate) struct Question<'a> {
    pub(crate) label: &'a str,
    pub(crate) argv: Vec<Text>,
    pub(crate) groups: Vec<String>,
    pub(crate) quorum: u32,
    pub(crate) expires_at_ms: i64,
    pub(crate) claims: Option<Claims>,
    /// Instead of running `argv`.
    pub(crate) action: Option<Action>,
    /// Put wherever a workload can put text.
    pub(crate) evil: Option<Text>,
}

impl<'a> Question<'a> {
    pub(crate) fn new(label: &'a str, argv: &[&str]) -> Self {
        let argv = argv.iter().map(|a| Text::from(*a)).collect();
        Self {
            label,
            argv,
            groups: Vec::new(),
            quorum: 1,
            expires_at_ms: 0,
            claims: None,
            action: None,
            evil: None,
        }
    }

    pub(crate) fn groups(mut self, groups: &[&str]) -> Self {
        self.groups = groups.iter().map(|g| (*g).to_owned()).collect();
        self
    }

    pub(crate) fn quorum(mut self, quorum: u32) -> Self {
        self.quorum = quorum;
        self
    }
}

pub(super) fn workload(label: &str, evil: Option<&Text>) -> WorkloadFacts {
    let text = |ours: &str| evil.cloned().unwrap_or_else(|| Text::from(ours));
    let process = |pid, comm: &str, argv: &[&str]| ProcessFacts {
        pid,
        start_ns: 1,
        comm: text(comm),
        executable: Some(text("/usr/bin/bash")),
        argv: argv.iter().map(|a| text(a)).collect(),
        uid: 1000,
    };
    WorkloadFacts {
        label: label.to_owned(),
        cgroup: text("/guard/coder-1"),
        container_id: None,
        uid: 1000,
        gid: 1000,
        user: Some("agent".to_owned()),
        login_uid: Some(1000),
        pid: 42,
        tid: 42,
        ancestry: vec![
            process(42, "bash", &["bash", "agent.sh"]),
            process(7, "node", &["node", "agent.js"]),
        ],
    }
}

pub(super) fn exec(argv: &[Text], evil: Option<&Text>) -> ExecAction {
    let text = |ours: &str| evil.cloned().unwrap_or_else(|| Text::from(ours));
    let path = format!("/usr/bin/{}", argv.first().map(Text::display).unwrap_or_default());
    ExecAction {
        path: Some(text(&path)),
        unlinked: false,
        device: 1,
        inode: 2,
        generation: 3,
        sha256: Some("ab".repeat(32)),
        size: Some(12_345),
        given: text(&path),
        argv: argv.to_vec(),
        argv_count: argv.len() as u64,
        argv_sha256: strings_sha256(argv),
        argv_truncated: false,
        environment: vec![text("PATH=/usr/bin")],
        environment_count: 1,
        environment_sha256: "00".repeat(32),
        cwd: text("/srv/app"),
    }
}
