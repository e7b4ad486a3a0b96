//! What a policy would have been told of an action that is in a record.
//!
//! Owns that translation, for asking what another policy would have done. It is given a record of a request. It must never take what
//! the record lacks for known.

use guard_evidence::record::{
    Action, ConnectAction, ConnectHow, ExecAction, FileAction, FileFlag, FileOperation, Peer, RequestRecord,
};
use guard_evidence::text::Text;

use crate::{ConnectFacts, Deed, ExecFacts, Facts, HeldFacts, PeerFacts, WriteFacts};

/// The facts of the action that was asked about.
#[must_use]
pub fn facts(request: &RequestRecord) -> Facts {
    let workload = &request.workload;
    Facts {
        label: workload.label.clone(),
        uid: workload.uid,
        gid: workload.gid,
        user: workload.user.clone(),
        login_uid: workload.login_uid,
        cgroup: known(&workload.cgroup).unwrap_or_default(),
        container: workload.container_id.clone(),
        deed: match &request.action {
            Action::Exec(exec) => Deed::Exec(of_exec(exec)),
            Action::Connect(connect) => Deed::Connect(of_connect(connect)),
            Action::File(file) => Deed::Write(of_file(file)),
        },
    }
}

fn known(text: &Text) -> Option<String> {
    str::from_utf8(text.as_bytes()).ok().map(str::to_owned)
}

fn of_exec(exec: &ExecAction) -> ExecFacts {
    let argv = exec.argv.iter().map(known).collect::<Option<Vec<_>>>();
    ExecFacts {
        path: exec.path.as_ref().and_then(known),
        unlinked: exec.unlinked,
        held: Some(HeldFacts {
            argv: argv.filter(|_| !exec.argv_truncated),
            cwd: known(&exec.cwd),
            given: known(&exec.given),
            sha256: exec.sha256.clone(),
        }),
    }
}

fn of_connect(connect: &ConnectAction) -> ConnectFacts {
    ConnectFacts {
        peer: match &connect.peer {
            Peer::Ip { address, port, .. } => PeerFacts::Ip {
                address: *address,
                port: *port,
            },
            Peer::Unix { path } => PeerFacts::Unix(path.as_ref().and_then(known)),
            Peer::Abstract { name } => PeerFacts::Unix(known(name).map(|name| format!("@{name}"))),
            Peer::Nameless => PeerFacts::Unix(Some(String::new())),
        },
        protocol: connect.protocol.clone(),
        listen: connect.how == ConnectHow::Listen,
        connected_before: connect.how == ConnectHow::ConnectedBefore,
        held: true,
    }
}

fn of_file(file: &FileAction) -> WriteFacts {
    let two = matches!(file.operation, FileOperation::Rename | FileOperation::Link);
    WriteFacts {
        operation: file.operation,
        path: file.path.as_ref().and_then(known),
        new_path: two.then(|| file.new_path.as_ref().and_then(known)),
        directory: file.directory,
        replaces: file
            .flags
            .iter()
            .any(|flag| matches!(flag, FileFlag::Truncates | FileFlag::Replaces)),
        held: true,
    }
}
