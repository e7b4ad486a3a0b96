//! Records for unit tests.

use crate::record::{
    Action, ExecAction, Header, HostFacts, Lifecycle, MatchedRule, ProcessFacts, RequestRecord, Why, WorkloadFacts,
};
use crate::statement::strings_sha256;
use crate::text::Text;

pub(crate) const HOST: &str = "01JD0000000000000000000001";
pub(crate) const CONSOLE: &str = "console.example.org/guard";

pub(crate) fn header(sequence: u64) -> Header {
    Header {
        signer: format!("host:{HOST}"),
        epoch: 1,
        sequence,
        previous: "0".repeat(64),
        at: "2026-11-21T10:00:00.000Z".to_owned(),
        since_boot_ns: 1_000_000_000,
        boot_id: "00000000-0000-4000-8000-000000000000".to_owned(),
    }
}

pub(crate) fn workload(label: &str) -> WorkloadFacts {
    WorkloadFacts {
        label: label.to_owned(),
        cgroup: Text::from("/guard.slice/run-1"),
        container_id: None,
        uid: 1000,
        gid: 1000,
        user: Some("agent".to_owned()),
        login_uid: None,
        pid: 4242,
        tid: 4242,
        ancestry: vec![ProcessFacts {
            pid: 4242,
            start_ns: 900_000_000,
            comm: Text::from("bash"),
            executable: Some(Text::from("/usr/bin/bash")),
            argv: vec![Text::from("bash"), Text::from("agent.sh")],
            uid: 1000,
        }],
    }
}

pub(crate) fn request(sequence: u64, label: &str, argv: &[&str]) -> RequestRecord {
    RequestRecord {
        header: header(sequence),
        request_id: format!("01JD{sequence:022}"),
        host: HostFacts {
            id: HOST.to_owned(),
            name: "build-7".to_owned(),
            kernel: "6.12.0".to_owned(),
            agent_version: "0.1.0".to_owned(),
        },
        workload: workload(label),
        action: Action::Exec(Box::new(ExecAction {
            path: Some(Text::from("/usr/bin/git")),
            unlinked: false,
            device: 1,
            inode: 2,
            generation: 3,
            sha256: Some("ab".repeat(32)),
            size: Some(100),
            given: Text::from("/usr/bin/git"),
            argv: argv.iter().map(|s| Text::from(*s)).collect(),
            argv_count: u64::try_from(argv.len()).unwrap(),
            argv_sha256: strings_sha256(argv),
            argv_truncated: false,
            environment: vec![],
            environment_count: 0,
            environment_sha256: strings_sha256::<&str>(&[]),
            cwd: Text::from("/srv/app"),
        })),
        context: None,
        why: Why {
            rules: vec![MatchedRule {
                id: "code-push".to_owned(),
                description: "pushes need review".to_owned(),
            }],
            approver_groups: vec![],
            quorum: 1,
            policy_digest: "cd".repeat(32),
            risks: vec![],
            tags: vec![],
        },
        claims: None,
        nonce: "ef".repeat(32),
        expires_at: None,
    }
}

/// A minute of the morning that tests of times are about.
pub(crate) fn at(minute: u32) -> String {
    format!("2026-11-21T10:{minute:02}:00.000Z")
}

pub(crate) fn enforcement_on() -> Lifecycle {
    Lifecycle::EnforcementOn {
        kernel: "6.12.0".to_owned(),
        agent_version: "0.1.0".to_owned(),
        programs: vec![],
    }
}
