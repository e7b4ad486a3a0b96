//! `guard requests`.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use guard_evidence::record::{Action, ConnectAction, ConnectHow, Peer};
use guard_evidence::text::Text;
use guard_proto::rest::{ChangeView, DecisionView, RequestState};

use crate::console::Console;
use crate::guard;

#[test]
fn waiting_ones_come_first_on_all_pages() {
    let console = Console::signed_in();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(console.ask(&["git", "push"], |r| {
            r.asked_at = format!("2026-11-21T10:00:0{n}Z");
            if n % 2 == 1 {
                r.state = RequestState::Denied;
                r.ended_at = Some(format!("2026-11-21T10:01:0{n}Z"));
            }
        }));
    }
    let listed = |args: &[&str]| -> Vec<String> {
        let json = console.guard(&[args, &["-o", "json"]].concat()).expect(0, &[]).json();
        json["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let pick = |order: &[usize]| order.iter().map(|n| ids[*n].clone()).collect::<Vec<_>>();
    assert_eq!(listed(&["requests", "list"]), pick(&[0, 2, 4, 3, 1]));
    assert_eq!(listed(&["requests", "list", "--limit", "4"]), pick(&[0, 2, 4, 3]));
    assert_eq!(listed(&["requests", "list", "--state", "pending"]), pick(&[0, 2, 4]));
    assert_eq!(listed(&["requests", "list", "--state", "denied"]), pick(&[1, 3]));
    assert_eq!(listed(&["requests", "list", "--state", "timed_out"]), pick(&[]));
    let table = console
        .guard(&["requests", "list"])
        .expect(0, &["STATE", "any approver (0 of 1)", "1m00s"]);
    assert!(!table.out.contains('\u{1b}'), "no colours in a pipe");
    let pending = console
        .guard(&["requests", "list", "--state", "pending"])
        .expect(0, &["git push"]);
    assert!(!pending.out.contains("STATE"));
}

#[test]
fn the_card_has_everything_and_nothing_hidden() {
    let console = Console::signed_in();
    let id = console.ask(&["git", "push", "--force\u{202E}"], |_| {});
    let card = console.guard(&["requests", "show", &id]).expect(
        0,
        &[
            "coder wants to run `git push '--force⟨U+202E⟩'` on build-7",
            "first push of this agent",
            "pushes need review (code-push)",
            "any approver: 0 of 1 approved",
            "task: \"release⟨U+001B⟩[2J\"",
            "/usr/bin/git",
            "SHA-256 abab",
            "/srv/app",
            "owned by owner",
            "bash agent.sh",
            "guard requests approve",
        ],
    );
    assert!(!card.out.contains(['\u{1b}', '\u{202E}']));
    // In UX.md's order.
    let order = [
        "wants to run",
        "could go wrong",
        "why it asks",
        "the agent says",
        "arguments",
        "executable",
        "label",
        "state",
    ];
    let at: Vec<usize> = order.iter().map(|word| card.out.find(word).unwrap()).collect();
    assert!(at.is_sorted(), "{}", card.out);
    let json = console
        .guard(&["requests", "show", &id, "-o", "json"])
        .expect(0, &[])
        .json();
    assert_eq!(json["state"], "pending");
}

#[test]
fn the_card_of_a_connection_says_who_is_reached_and_how() {
    let console = Console::signed_in();
    let connect = |peer, protocol: &str, how| {
        Action::Connect(Box::new(ConnectAction {
            peer,
            protocol: protocol.to_owned(),
            how,
        }))
    };
    let to = |port| Peer::Ip {
        address: [203, 0, 113, 7].into(),
        port,
        scope: None,
    };
    for (action, said) in [
        (
            connect(to(443), "tcp", ConnectHow::Connect),
            &[
                "coder wants to connect to `203.0.113.7 port 443 (TCP)` on build-7",
                "it connects",
            ][..],
        ),
        (
            connect(to(53), "udp", ConnectHow::Listen),
            &["coder wants to listen on", "it listens where other hosts can reach it"],
        ),
        (
            connect(
                Peer::Abstract {
                    name: Text::from("\u{1b}[2J\u{202E}"),
                },
                "stream",
                ConnectHow::ConnectedBefore,
            ),
            &["@⟨U+001B⟩[2J⟨U+202E⟩", "unix socket", "made before it was labelled"],
        ),
    ] {
        let id = console.ask_for(action, |_| {});
        let card = console.guard(&["requests", "show", &id]).expect(0, said);
        assert!(
            card.out.contains("an approval holds for this one socket"),
            "{}",
            card.out
        );
        assert!(!card.out.contains(['\u{1b}', '\u{202E}']) && !card.out.contains("arguments"));
        let list = console.guard(&["requests", "list"]).expect(0, &[]);
        assert!(!list.out.contains(['\u{1b}', '\u{202E}']), "{}", list.out);
    }
}

#[test]
fn an_answer_repeats_the_digest() {
    let console = Console::signed_in();
    let id = console.ask(&["git", "push"], |_| {});
    let digest = console.world.lock().unwrap().requests[0].digest.clone();
    // By the end of its id, in any case.
    console
        .guard(&["requests", "approve", &id[20..].to_lowercase(), "--reason", " fine "])
        .expect(0, &["wants to run `git push`", "approved once"]);
    let log = console.world.lock().unwrap().log.clone();
    assert_eq!(log[0].0, format!("POST /requests/{id}/approve"));
    assert_eq!(log[0].1, serde_json::json!({ "reason": "fine", "digest": digest }));

    let id = console.ask(&["rm", "-rf", "/"], |_| {});
    console.guard(&["requests", "deny", &id]).expect(2, &["--reason"]);
    console
        .guard(&["requests", "deny", &id, "--reason", " "])
        .expect(2, &["needs a reason"]);
    console
        .guard(&["requests", "deny", &id, "--reason", &"x".repeat(2001)])
        .expect(2, &["at most 2000"]);
    let json = console
        .guard(&["requests", "deny", &id, "--reason", "no", "-o", "json"])
        .expect(0, &[])
        .json();
    assert_eq!(json["state"], "denied");

    let id = console.ask(&["git", "push"], |r| r.quorum = 2);
    console
        .guard(&["requests", "approve", &id])
        .expect(0, &["approved by 1 of 2", "stays held"]);
}

#[test]
fn the_card_says_what_changed_lately() {
    let console = Console::signed_in();
    let id = console.ask(&["git", "push"], |r| {
        r.recent_changes = vec![ChangeView {
            digest: "ab".repeat(32),
            index: 7,
            at: "2026-11-21T10:00:00Z".to_owned(),
            kind: "label".to_owned(),
            by: Some("admin".to_owned()),
            by_words: "by admin\u{1b}[2J".to_owned(),
            what: "the owner of coder was changed from ann to bob".to_owned(),
            user: None,
            label: Some("coder".to_owned()),
            host_id: None,
            why: None,
            statement: serde_json::Value::Null,
        }];
        r.decisions = vec![DecisionView {
            by: "bob".to_owned(),
            verdict: "approve".to_owned(),
            reason: String::new(),
            at: "2026-11-21T10:00:41Z".to_owned(),
            channel: "web".to_owned(),
            void_because: Some("the account was disabled".to_owned()),
        }];
    });
    console.guard(&["requests", "show", &id]).expect(
        0,
        &[
            "changed lately",
            "the owner of coder was changed from ann to bob ",
            " ago by admin⟨U+001B⟩[2J",
            "no longer counts: the account was disabled",
        ],
    );
}

#[test]
fn no_is_exit_status_one_with_its_reason() {
    let console = Console::signed_in();
    let own = console.ask(&["git"], |r| {
        r.may_answer = false;
        r.why_not = Some("you own this workload".to_owned());
    });
    console
        .guard(&["requests", "approve", &own])
        .expect(1, &["you own this workload"]);
    let ended = console.ask(&["git"], |r| {
        r.state = RequestState::Approved;
        r.ended_at = Some("2026-11-21T10:00:41Z".to_owned());
        r.decisions = vec![DecisionView {
            by: "bob".to_owned(),
            verdict: "approve".to_owned(),
            reason: String::new(),
            at: "2026-11-21T10:00:41Z".to_owned(),
            channel: "web".to_owned(),
            void_because: None,
        }];
    });
    console
        .guard(&["requests", "deny", &ended, "--reason", "x"])
        .expect(1, &["approved by bob at 2026-11-21 10:00:41 after 41s"]);
    let raced = console.ask(&["git"], |r| r.label = "raced".to_owned());
    console
        .guard(&["requests", "approve", &raced])
        .expect(1, &["the request has ended: denied by bob"]);
    console
        .guard(&["requests", "approve", "01JD9999999999999999999999"])
        .expect(1, &["no such request"]);
    console
        .guard(&["requests", "approve", "zzzz"])
        .expect(1, &["no request `zzzz`"]);
    console
        .guard(&["requests", "approve", "01JD"])
        .expect(2, &["may be any of"]);
    assert_eq!(
        console.world.lock().unwrap().log.len(),
        1,
        "only the raced one was sent"
    );
}

#[test]
fn what_is_shown_must_be_what_is_answered() {
    let console = Console::signed_in();
    let id = console.ask(&["git"], |r| r.digest = "00".repeat(32));
    console
        .guard(&["requests", "approve", &id])
        .expect(3, &["names another digest", "do not answer it"]);
    let (a, b) = (console.ask(&["ls"], |_| {}), console.ask(&["rm"], |_| {}));
    {
        let mut world = console.world.lock().unwrap();
        let other = world.envelopes[&b].clone();
        world.envelopes.insert(a.clone(), other);
    }
    console
        .guard(&["requests", "show", &a])
        .expect(3, &["names another digest"]);
    assert!(console.world.lock().unwrap().log.is_empty());
}

#[test]
fn watching_prints_each_change_once() {
    let console = Console::signed_in();
    let id = console.ask(&["git", "push"], |_| {});
    let mut child = guard(console.home.path(), &["requests", "watch", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<serde_json::Value>(&lines.next().unwrap().unwrap()).unwrap();
    let first = next();
    assert_eq!(
        (first["id"].as_str(), first["state"].as_str()),
        (Some(id.as_str()), Some("pending"))
    );
    // The stream of this console ends at once: the next round tells what is new, and nothing twice.
    console.world.lock().unwrap().requests[0].state = RequestState::Denied;
    assert_eq!(next()["state"], "denied");
    let other = console.ask(&["ls"], |_| {});
    assert_eq!(next()["id"], other.as_str());
    child.kill().unwrap();
    child.wait().unwrap();
}
