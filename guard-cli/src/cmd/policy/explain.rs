//! `guard policy explain`: what a policy makes of one action, and by which rules.

use std::path::Path;
use std::process::ExitCode;

use guard_evidence::record::{FileOperation, MatchedRule};
use guard_evidence::text::visible;
use guard_policy::described::{Described, Exec, Peer, Write};
use guard_policy::{Answer, Ask, Policy};
use serde_json::json;

use crate::args::{Deed, Global, Output};
use crate::failure::{Failure, NO};
use crate::output;

pub(super) fn run(global: &Global, file: Option<&Path>, label: &str, deed: &Deed) -> Result<ExitCode, Failure> {
    let policy = match file {
        Some(file) => super::load(file)?,
        None => super::in_force()?,
    };
    let facts = described(label, deed)?.facts().map_err(Failure::usage)?;
    let answer = policy.evaluate(&facts);
    match global.output {
        Output::Json => output::json(&as_json(&policy, &answer), false)?,
        Output::Table => as_text(&policy, &answer)?,
    }
    Ok(match answer {
        Answer::Allow { .. } | Answer::Ask(_) => ExitCode::SUCCESS,
        Answer::Deny { .. } | Answer::Hold => ExitCode::from(NO),
    })
}

fn described(label: &str, deed: &Deed) -> Result<Described, Failure> {
    let mut described = Described {
        label: label.to_owned(),
        ..Described::default()
    };
    match deed {
        Deed::Exec { path, arguments, cwd } => {
            let name = path.rsplit('/').next().unwrap_or_default().to_owned();
            described.exec = Some(Exec {
                path: path.clone(),
                argv: Some([vec![name], arguments.clone()].concat()),
                cwd: cwd.clone(),
                ..Exec::default()
            });
        }
        Deed::Connect { peer, protocol } => described.connect = Some(of_peer(peer, protocol.as_deref())),
        Deed::Listen { peer, protocol } => described.listen = Some(of_peer(peer, protocol.as_deref())),
        Deed::Write {
            operation,
            path,
            new_path,
        } => {
            described.write = Some(Write {
                operation: operation_called(operation)?,
                path: path.clone(),
                new_path: new_path.clone(),
                ..Write::default()
            });
        }
    }
    Ok(described)
}

/// `203.0.113.7:443`, `[2001:db8::1]:443`, or the name of a unix socket.
fn of_peer(text: &str, protocol: Option<&str>) -> Peer {
    let address = text.parse::<std::net::SocketAddr>().ok();
    Peer {
        address: address.map(|address| address.ip()),
        port: address.map(|address| address.port()),
        socket: address.is_none().then(|| text.to_owned()),
        protocol: protocol.map(str::to_owned),
        ..Peer::default()
    }
}

fn operation_called(word: &str) -> Result<FileOperation, Failure> {
    serde_json::from_value(json!(word)).map_err(|_| {
        Failure::usage(format!("`{}` is no change of a file", visible(word))).next(
            "one of: open create unlink rename link symlink mkdir rmdir mknod truncate chmod chown xattr tmpfile write",
        )
    })
}

fn verdict(answer: &Answer) -> &'static str {
    match answer {
        Answer::Allow { .. } => "allow",
        Answer::Ask(_) => "ask",
        Answer::Deny { .. } | Answer::Hold => "deny",
    }
}

/// Where a rule stands in its file; a built-in one stands nowhere.
fn line_of(policy: &Policy, rule: &MatchedRule) -> Option<usize> {
    policy
        .rules()
        .iter()
        .find(|found| found.id == rule.id)
        .map(|found| found.line)
}

fn as_json(policy: &Policy, answer: &Answer) -> serde_json::Value {
    let rules: Vec<_> = answer
        .rules()
        .iter()
        .map(|rule| json!({ "id": rule.id, "description": rule.description, "line": line_of(policy, rule) }))
        .collect();
    let mut value = json!({ "answer": verdict(answer), "rules": rules, "policy_digest": policy.digest });
    match answer {
        Answer::Ask(ask) => {
            value["approver_groups"] = json!(ask.groups);
            value["quorum"] = json!(ask.quorum);
            value["timeout_seconds"] = json!(ask.timeout.map(|timeout| timeout.as_secs()));
            value["risks"] = json!(ask.risks);
            value["tags"] = json!(ask.tags);
        }
        Answer::Deny { because, .. } => value["because"] = json!(because),
        Answer::Allow { .. } | Answer::Hold => {}
    }
    value
}

fn as_text(policy: &Policy, answer: &Answer) -> Result<(), Failure> {
    let said = match answer {
        Answer::Allow { .. } => "allowed: nobody is asked".to_owned(),
        Answer::Ask(ask) => asks(ask),
        Answer::Deny { because, .. } => format!("denied: {}", visible(because)),
        Answer::Hold => "denied: it cannot be told".to_owned(),
    };
    output::line(&output::styled(output::BOLD, &said))?;
    for rule in answer.rules() {
        let place = line_of(policy, rule)
            .map(|line| format!("  (line {line})"))
            .unwrap_or_default();
        output::line(&format!(
            "  {}  {}{place}",
            visible(&rule.id),
            visible(&rule.description)
        ))?;
    }
    if let Answer::Ask(ask) = answer {
        for (name, words) in [("risk", &ask.risks), ("tag", &ask.tags)] {
            for word in words {
                output::line(&format!("  {name}: {}", visible(word)))?;
            }
        }
    }
    Ok(())
}

fn asks(ask: &Ask) -> String {
    let whom = match ask.groups.as_slice() {
        [] => "any approver".to_owned(),
        groups => format!(
            "approvers of {}",
            groups
                .iter()
                .map(|group| format!("\"{}\"", visible(group)))
                .collect::<Vec<_>>()
                .join(" or ")
        ),
    };
    let people = match ask.quorum {
        1 => "one of them has to agree".to_owned(),
        number => format!("{number} different people have to agree"),
    };
    let until = match ask.timeout {
        Some(timeout) => format!(
            " within {}",
            output::seconds(i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX))
        ),
        None => String::new(),
    };
    format!("asks {whom}: {people}{until}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_addresses_or_sockets() {
        let peer = of_peer("[2001:db8::1]:443", None);
        assert_eq!((peer.port, peer.socket), (Some(443), None));
        let peer = of_peer("/run/docker.sock", Some("stream"));
        assert_eq!((peer.address, peer.socket.as_deref()), (None, Some("/run/docker.sock")));
        // What is neither is told when facts are made of it.
        let facts = |peer| {
            described("x", &Deed::Connect { peer, protocol: None })
                .unwrap()
                .facts()
                .is_ok()
        };
        assert!(facts("203.0.113.7:443".to_owned()) && !facts("example.org:443".to_owned()));
    }

    #[test]
    fn operations_have_the_words_of_records() {
        assert_eq!(operation_called("rename").unwrap(), FileOperation::Rename);
        assert!(operation_called("delete").is_err());
    }
}
