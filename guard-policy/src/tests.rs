use super::*;

fn facts(label: &str, path: &str, argv: &[&str]) -> Facts {
    Facts {
        label: label.to_owned(),
        uid: 1000,
        gid: 1000,
        cgroup: "/guard/x".to_owned(),
        deed: Deed::Exec(ExecFacts {
            path: Some(path.to_owned()),
            unlinked: false,
            held: Some(HeldFacts {
                argv: Some(argv.iter().map(|&s| s.to_owned()).collect()),
                cwd: Some("/srv/app".to_owned()),
                given: Some(path.to_owned()),
                sha256: Some("ab".repeat(32)),
            }),
        }),
        ..Facts::default()
    }
}

/// Of a thread that is held.
fn connection(label: &str, peer: PeerFacts, protocol: &str) -> Facts {
    Facts {
        label: label.to_owned(),
        uid: 1000,
        gid: 1000,
        cgroup: "/guard/x".to_owned(),
        deed: Deed::Connect(ConnectFacts {
            peer,
            protocol: protocol.to_owned(),
            listen: false,
            connected_before: false,
            held: true,
        }),
        ..Facts::default()
    }
}

fn to(address: &str, port: u16) -> PeerFacts {
    PeerFacts::Ip {
        address: address.parse().unwrap(),
        port,
    }
}

fn socket(name: &str) -> PeerFacts {
    PeerFacts::Unix(Some(name.to_owned()))
}

fn exec(facts: &mut Facts) -> &mut ExecFacts {
    match &mut facts.deed {
        Deed::Exec(exec) => exec,
        Deed::Connect(_) | Deed::Write(_) => panic!("no exec"),
    }
}

fn before_hold(mut facts: Facts) -> Facts {
    match &mut facts.deed {
        Deed::Exec(exec) => exec.held = None,
        Deed::Connect(connect) => connect.held = false,
        Deed::Write(write) => write.held = false,
    }
    facts
}

fn policy(text: &str) -> Policy {
    parse(text, "policy.cedar").unwrap_or_else(|e| panic!("{e}"))
}

fn word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Allow { .. } => "allow",
        Answer::Ask(_) => "ask",
        Answer::Deny { .. } => "deny",
        Answer::Hold => "hold",
    }
}

const CODER: &str = r#"
@id("tools")
permit(principal == Workload::"coder", action == Action::"exec", resource in Directory::"/usr/bin");

@id("push") @description("Pushing is reviewed") @approvers("code-push, leads") @quorum("2") @timeout("15m") @tag("git")
permit(principal == Workload::"coder", action == Action::"exec", resource == Executable::"/usr/local/bin/git")
when { context.approved && context.command like "git push *" };

@id("status")
permit(principal == Workload::"coder", action, resource == Executable::"/usr/local/bin/git")
when { context.command == "git status" };

@id("never-dd")
forbid(principal, action, resource == Executable::"/usr/bin/dd");

@id("no-force")
forbid(principal, action == Action::"exec", resource) when { context.argv.contains("--force") };
"#;

#[test]
fn three_outcomes() {
    let policy = policy(CODER);
    assert_eq!(policy.count, 5);
    for (label, path, argv, fast, held) in [
        // `no-force` looks at argv and might apply to everything, so everything is held first …
        ("coder", "/usr/bin/ls", &["ls", "-l"][..], "hold", "allow"),
        ("coder", "/usr/bin/ls", &["ls", "--force"], "hold", "deny"),
        ("coder", "/usr/local/bin/git", &["git", "push", "origin"], "hold", "ask"),
        (
            "coder",
            "/usr/local/bin/git",
            &["git", "push", "--force"],
            "hold",
            "deny",
        ),
        ("coder", "/usr/local/bin/git", &["git", "status"], "hold", "allow"),
        ("coder", "/usr/local/bin/git", &["git", "status now"], "hold", "deny"),
        ("coder", "/usr/local/bin/git", &["git", "fetch"], "hold", "deny"),
        ("coder", "/opt/tool", &["tool"], "hold", "deny"),
        // … except what the key alone forbids.
        ("coder", "/usr/bin/dd", &["dd"], "deny", "deny"),
        ("other", "/usr/bin/dd", &["dd"], "deny", "deny"),
        // No rule permits anything to other: asked, but the forbids hold.
        ("other", "/usr/bin/ls", &["ls"], "hold", "ask"),
        ("other", "/usr/bin/ls", &["ls", "--force"], "hold", "deny"),
    ] {
        let facts = facts(label, path, argv);
        assert_eq!(
            word(&policy.evaluate(&before_hold(facts.clone()))),
            fast,
            "before the hold: {label} {argv:?}"
        );
        assert_eq!(word(&policy.evaluate(&facts)), held, "held: {label} {argv:?}");
    }
}

#[test]
fn the_key_alone_answers_when_no_rule_needs_more() {
    let policy = policy(
        r#"permit(principal == Workload::"coder", action, resource in Directory::"/usr");
           permit(principal == Workload::"coder", action, resource in Directory::"/opt") when { context.approved };
           permit(principal == Workload::"coder", action == Action::"exec", resource) when { context.argv.contains("--dry-run") };
           forbid(principal == Workload::"data", action == Action::"exec", resource) when { context.cwd like "/etc*" };"#,
    );
    let answer = |label, path| policy.evaluate(&before_hold(facts(label, path, &["x"])));
    assert_eq!(
        word(&answer("coder", "/usr/bin/ls")),
        "allow",
        "an allow that a further permit cannot change"
    );
    assert_eq!(word(&answer("coder", "/opt/x")), "hold");
    assert_eq!(word(&answer("coder", "/srv/x")), "hold");
    assert_eq!(word(&answer("data", "/usr/bin/ls")), "hold");
    let Answer::Allow { rules } = answer("coder", "/usr/bin/ls") else {
        panic!()
    };
    assert_eq!(rules[0].id, "rule-1");
}

#[test]
fn an_empty_policy_asks_for_everything() {
    let policy = Policy::empty();
    let facts = facts("any", "/bin/true", &["true"]);
    assert_eq!(policy.evaluate(&before_hold(facts.clone())), Answer::Hold);
    let Answer::Ask(ask) = policy.evaluate(&facts) else {
        panic!()
    };
    assert_eq!((ask.quorum, ask.groups.len(), ask.timeout), (1, 0, None));
    assert_eq!(ask.rules[0].id, BUILTIN_ASK_EXEC);
}

#[test]
fn what_is_not_known_never_allows_and_always_forbids() {
    let policy = policy(
        r#"permit(principal == Workload::"coder", action == Action::"exec", resource) when { context.path like "/usr/*" };
           permit(principal == Workload::"coder", action, resource) when { context.approved };
           permit(principal == Workload::"free", action, resource);
           permit(principal == Workload::"args", action == Action::"exec", resource) when { context.argv.contains("ok") };
           forbid(principal == Workload::"free", action, resource in Directory::"/etc");
           forbid(principal == Workload::"args", action == Action::"exec", resource) unless { context.cwd == "/srv/app" };"#,
    );
    let mut no_path = facts("coder", "/usr/bin/ls", &["ls"]);
    assert_eq!(word(&policy.evaluate(&no_path)), "allow");
    exec(&mut no_path).path = None;
    assert_eq!(word(&policy.evaluate(&no_path)), "ask");
    no_path.label = "free".to_owned();
    assert_eq!(
        word(&policy.evaluate(&no_path)),
        "deny",
        "the forbid by directory might apply"
    );
    assert_eq!(
        word(&policy.evaluate(&before_hold(no_path.clone()))),
        "deny",
        "a hold would not tell the path"
    );
    let mut args = facts("args", "/bin/x", &["ok"]);
    assert_eq!(word(&policy.evaluate(&before_hold(args.clone()))), "hold");
    assert_eq!(word(&policy.evaluate(&args)), "allow");
    exec(&mut args).held.as_mut().unwrap().argv = None;
    assert_eq!(word(&policy.evaluate(&args)), "deny");
    let mut args = facts("args", "/bin/x", &["ok"]);
    exec(&mut args).held.as_mut().unwrap().cwd = None;
    assert_eq!(word(&policy.evaluate(&args)), "deny");
}

#[test]
fn a_forbid_that_fails_to_evaluate_forbids() {
    let policy = policy(
        r#"permit(principal, action, resource);
           forbid(principal, action, resource) when { context.uid * 9223372036854775807 == 1 };"#,
    );
    let answer = policy.evaluate(&facts("coder", "/bin/x", &["x"]));
    assert_eq!(word(&answer), "deny", "{answer:?}");
}

#[test]
fn a_forbid_unless_approved_asks() {
    let policy = policy(
        r#"@id("all") permit(principal, action, resource);
           @id("sudo") forbid(principal, action, resource == Executable::"/usr/bin/sudo") unless { context.approved };"#,
    );
    assert_eq!(
        word(&policy.evaluate(&facts("coder", "/usr/bin/sudo", &["sudo"]))),
        "ask"
    );
    assert_eq!(
        word(&policy.evaluate(&before_hold(facts("coder", "/usr/bin/ls", &["ls"])))),
        "allow"
    );
}

#[test]
fn requirements_add_up() {
    let policy = policy(
        r#"@id("a") @approvers("dev, ops") @timeout("1h") @risk("one") @tag("x, y")
           permit(principal, action, resource) when { context.approved };
           @id("b") @approvers("ops, sec") @quorum("2") @timeout("15m") @risk("two; one") @tag("y")
           permit(principal, action, resource in Directory::"/usr") when { context.approved };
           @id("c") permit(principal, action, resource in Directory::"/usr/bin") when { context.approved };
           @id("d") @approvers("nobody-else") permit(principal, action, resource in Directory::"/opt") when { context.approved };"#,
    );
    let Answer::Ask(ask) = policy.evaluate(&facts("l", "/usr/bin/x", &["x"])) else {
        panic!()
    };
    assert_eq!(ask.groups, ["ops"]);
    assert_eq!(ask.quorum, 2);
    assert_eq!(ask.timeout, Some(Duration::from_secs(900)));
    assert_eq!(ask.risks, ["one", "two"]);
    assert_eq!(ask.tags, ["x", "y"]);
    assert_eq!(
        ask.rules.iter().map(|r| r.id.as_str()).collect::<Vec<_>>(),
        ["a", "b", "c"]
    );
    let answer = policy.evaluate(&facts("l", "/opt/x", &["x"]));
    assert!(
        matches!(&answer, Answer::Deny { because, .. } if because.contains("none in common")),
        "{answer:?}"
    );
}

#[test]
fn a_command_begins_with_the_executable_whatever_it_is_called() {
    let policy = policy(
        r#"permit(principal, action == Action::"exec", resource) when { context.command == "git status" };
           forbid(principal, action == Action::"exec", resource) when { context.command like "git push *" };
           permit(principal, action, resource == Executable::"/usr/bin/busybox") when { context.argv0 == "ls" };"#,
    );
    for (path, argv, expected) in [
        ("/usr/bin/git", &["git", "status"][..], "allow"),
        ("/usr/bin/git", &["/usr/bin/git", "status"], "allow"),
        ("/usr/bin/git", &["ls", "status"], "allow"),
        ("/usr/bin/git", &["harmless", "push", "--force"], "deny"),
        ("/usr/bin/rm", &["git", "status"], "deny"),
        ("/usr/bin/git", &[], "deny"),
        ("/usr/bin/busybox", &["ls"], "allow"),
        ("/usr/bin/busybox", &["wget"], "deny"),
    ] {
        assert_eq!(
            word(&policy.evaluate(&facts("coder", path, argv))),
            expected,
            "{path} {argv:?}"
        );
    }
}

#[test]
fn labels_are_exact() {
    let policy = policy(r#"permit(principal == Workload::"coder", action, resource);"#);
    assert_eq!(word(&policy.evaluate(&facts("coder", "/bin/x", &["x"]))), "allow");
    for other in ["Coder", "coder2", "code", "coder\""] {
        assert_eq!(
            word(&policy.evaluate(&facts(other, "/bin/x", &["x"]))),
            "ask",
            "{other}"
        );
    }
}

#[test]
fn connections_have_their_own_rules() {
    let policy = policy(
        r#"@id("tools") permit(principal == Workload::"coder", action == Action::"exec", resource in Directory::"/usr/bin");
           @id("own") permit(principal == Workload::"coder", action == Action::"connect", resource) when { context.loopback };
           @id("net") permit(principal == Workload::"coder", action == Action::"connect", resource)
           when { context.address.isInRange(ip("10.0.0.0/8")) && context.port == 443 && context.protocol == "tcp" };
           @id("one") permit(principal == Workload::"coder", action, resource == Address::"2001:db8::1") when { context.approved };
           @id("never") forbid(principal, action == Action::"connect", resource) when { context.port == 25 };
           @id("log") permit(principal == Workload::"coder", action == Action::"connect_unix", resource in Directory::"/run/log");
           @id("bus") permit(principal == Workload::"coder", action == Action::"connect_unix", resource == Socket::"@bus");
           @id("docker") forbid(principal, action, resource == Socket::"/run/docker.sock");"#,
    );
    for (label, peer, protocol, fast, held) in [
        ("coder", to("127.0.0.1", 80), "tcp", "allow", "allow"),
        ("coder", to("0.0.0.0", 80), "tcp", "allow", "allow"),
        ("coder", to("::1", 80), "udp", "allow", "allow"),
        ("coder", to("127.0.0.1", 25), "tcp", "deny", "deny"),
        ("coder", to("10.1.2.3", 443), "tcp", "allow", "allow"),
        ("coder", to("10.1.2.3", 443), "udp", "deny", "deny"),
        ("coder", to("11.1.2.3", 443), "tcp", "deny", "deny"),
        ("coder", to("2001:db8::1", 1), "tcp", "hold", "ask"),
        ("coder", socket("/run/log/x"), "datagram", "allow", "allow"),
        ("coder", socket("/run/logx"), "datagram", "deny", "deny"),
        ("coder", socket("@bus"), "stream", "allow", "allow"),
        ("coder", socket("@/run/log/x"), "stream", "deny", "deny"),
        ("coder", socket(""), "stream", "deny", "deny"),
        // It may be docker's.
        ("coder", PeerFacts::Unix(None), "stream", "deny", "deny"),
        ("coder", socket("/run/docker.sock"), "stream", "deny", "deny"),
        // No rule permits anything to other: asked, but the forbids hold.
        ("other", to("10.1.2.3", 443), "tcp", "hold", "ask"),
        ("other", to("10.1.2.3", 25), "tcp", "deny", "deny"),
        ("other", socket("/run/docker.sock"), "stream", "deny", "deny"),
    ] {
        let facts = connection(label, peer, protocol);
        let early = policy.evaluate(&before_hold(facts.clone()));
        assert_eq!(word(&early), fast, "before the hold: {facts:?}");
        assert_eq!(word(&policy.evaluate(&facts)), held, "held: {facts:?}");
    }
}

#[test]
fn rules_about_execs_do_not_deny_every_connection() {
    let ask = |text: &str, peer| {
        let answer = policy(text).evaluate(&connection("coder", peer, "tcp"));
        let Answer::Ask(ask) = answer else {
            return word(&answer).to_owned();
        };
        ask.rules[0].id.clone()
    };
    let execs = r#"permit(principal == Workload::"coder", action == Action::"exec", resource);"#;
    assert_eq!(ask(execs, to("192.0.2.1", 1)), BUILTIN_ASK_CONNECTION);
    assert_eq!(ask(execs, socket("/run/x")), BUILTIN_ASK_CONNECTION);
    // Nothing with an address is in a directory, a socket is.
    let files = r#"permit(principal == Workload::"coder", action, resource in Directory::"/usr");"#;
    assert_eq!(ask(files, to("192.0.2.1", 1)), BUILTIN_ASK_CONNECTION);
    assert_eq!(ask(files, socket("/run/x")), "deny");
    assert_eq!(ask(files, socket("/usr/x")), "allow");
    let any = r#"@id("any") permit(principal, action, resource) when { context.approved };"#;
    assert_eq!(ask(any, to("192.0.2.1", 1)), "any");
}

#[test]
fn builtin_rules_are_below_the_file_and_permit_nothing_else() {
    let before = |mut facts: Facts| {
        if let Deed::Connect(connect) = &mut facts.deed {
            connect.connected_before = true;
        }
        facts
    };
    let log = || connection("coder", socket("/run/systemd/journal/socket"), "datagram");
    let handed = || before(connection("coder", socket(""), "stream"));
    let one = r#"@id("one") permit(principal, action == Action::"connect_unix", resource == Socket::"/run/x");"#;
    for text in ["", one] {
        let policy = policy(text);
        for (facts, rule) in [(log(), "builtin:log"), (handed(), "builtin:handed-over")] {
            for facts in [before_hold(facts.clone()), facts] {
                let Answer::Allow { rules } = policy.evaluate(&facts) else {
                    panic!("{text:?}: {facts:?}");
                };
                assert_eq!(rules[0].id, rule);
            }
        }
        // Without a rule of the file asked, with one denied: the built-in rules do not count.
        let other = if text.is_empty() { "ask" } else { "deny" };
        for facts in [
            connection("coder", socket(""), "stream"),
            before(connection("coder", socket("/run/y"), "stream")),
            connection("coder", socket("/run/systemd/journal/other"), "stream"),
            connection("coder", socket("@/run/systemd/journal/socket"), "stream"),
            connection("coder", PeerFacts::Unix(None), "stream"),
            connection("coder", socket("/run/systemd/private"), "stream"),
            connection("coder", socket("/run/dbus/system_bus_socket"), "stream"),
        ] {
            assert_eq!(word(&policy.evaluate(&facts)), other, "{text:?}: {facts:?}");
        }
        assert_eq!(
            word(&policy.evaluate(&before(connection("coder", to("127.0.0.1", 1), "tcp")))),
            "ask"
        );
        assert_eq!(policy.count, u32::from(!text.is_empty()));
    }
    let never = policy(r#"forbid(principal, action == Action::"connect_unix", resource);"#);
    assert_eq!(word(&never.evaluate(&log())), "deny");
    assert_eq!(word(&never.evaluate(&handed())), "deny");
}

#[test]
fn directories() {
    assert_eq!(ancestors("/usr/bin/git"), ["/usr", "/usr/bin", "/"]);
    assert_eq!(ancestors("/init"), ["/"]);
    assert_eq!(ancestors("x"), Vec::<&str>::new());
    assert_eq!(ancestors(""), Vec::<&str>::new());
}

#[test]
fn errors_have_a_place_and_a_remedy() {
    for (text, line, needle) in [
        ("permit(principal, action, resource)", 1, "unexpected end"),
        (
            "// fine\n\npermit(principal, action, resource) when { context.pth == \"x\" };",
            3,
            "pth",
        ),
        (
            "permit(principal, action, resource) when {\n  context.uid == \"root\" };",
            2,
            "",
        ),
        ("permit(principal == User::\"x\", action, resource);", 1, "User"),
        ("permit(principal, action == Action::\"fly\", resource);", 1, "fly"),
        (
            "permit(principal, action, resource);\n@quorom(\"2\")\npermit(principal, action, resource);",
            2,
            "@quorom",
        ),
        ("@timeout(\"soon\") permit(principal, action, resource);", 1, "soon"),
        (
            "@id(\"a\") permit(principal, action, resource);\n@id(\"a\") permit(principal, action, resource);",
            2,
            "two rules",
        ),
        ("@quorum(\"2\") forbid(principal, action, resource);", 1, "asks nobody"),
        ("permit(principal == ?principal, action, resource);", 1, "template"),
        (
            "permit(principal, action, resource) when { context.user == \"x\" };",
            1,
            "user",
        ),
        ("\u{0}", 1, ""),
    ] {
        let error = parse(text, "p.cedar").unwrap_err();
        let problem = &error.problems[0];
        assert_eq!(problem.line, line, "{text:?}: {error}");
        assert!(error.to_string().starts_with(&format!("p.cedar:{line}:")), "{error}");
        assert!(error.to_string().contains(needle), "{text:?}: {error}");
    }
    let error = parse("@quorom(\"2\") permit(principal, action, resource);", "p").unwrap_err();
    assert!(error.problems[0].remedy.as_deref().unwrap().contains("@quorum"));
    assert!(parse(&"/".repeat(POLICY_BYTES + 1), "p").is_err());
}

#[test]
fn an_answer_is_exact_unless_a_rule_for_it_looks_at_who_asks() {
    let policy = parse(
        r#"
        permit(principal, action == Action::"exec", resource in Directory::"/usr");
        permit(principal, action == Action::"connect", resource) when { context.port == 443 };
        forbid(principal == Workload::"data", action == Action::"exec", resource) when { context.uid == 0 };
        permit(principal == Workload::"named", action == Action::"exec", resource)
        when { context has user && context.user == "x" };
        permit(principal == Workload::"held", action == Action::"exec", resource) when { context has cwd };
        "#,
        "p",
    )
    .unwrap();
    let run = |label| policy.is_exact(&before_hold(facts(label, "/usr/bin/git", &[])));
    assert!(run("coder"));
    assert!(run("held"), "what a hold tells is not known to the first look");
    assert!(!run("data") && !run("named"));
    assert!(policy.is_exact(&connection("data", to("10.0.0.1", 443), "tcp")));
    let whole = parse(
        "forbid(principal, action, resource) when { context has container };",
        "p",
    )
    .unwrap();
    assert!(!whole.is_exact(&connection("coder", to("10.0.0.1", 443), "tcp")));
}

#[test]
fn any_bytes_parse_or_say_why() {
    for text in [
        "",
        "\n",
        "//x",
        "permit",
        "@",
        "@id",
        "{",
        "\u{202E}",
        "permit(principal,action,resource)when{1}",
        "é;é",
    ] {
        let _ = parse(text, "p");
    }
}

/// Of a thread that is held.
fn write(label: &str, operation: FileOperation, path: Option<&str>, new_path: Option<Option<&str>>) -> Facts {
    Facts {
        label: label.to_owned(),
        uid: 1000,
        gid: 1000,
        cgroup: "/guard/x".to_owned(),
        deed: Deed::Write(WriteFacts {
            operation,
            path: path.map(str::to_owned),
            new_path: new_path.map(|path| path.map(str::to_owned)),
            directory: false,
            replaces: false,
            held: true,
        }),
        ..Facts::default()
    }
}

#[test]
fn both_ends_of_a_rename_must_be_allowed() {
    let policy = policy(
        r#"@id("work") permit(principal == Workload::"coder", action == Action::"write", resource in Directory::"/srv/work");
           @id("etc") @approvers("ops") permit(principal == Workload::"coder", action == Action::"write", resource in Directory::"/etc")
           when { context.approved };
           @id("home") @approvers("people") permit(principal == Workload::"coder", action == Action::"write", resource in Directory::"/home")
           when { context.approved && context.operation != "unlink" };
           @id("never") forbid(principal, action == Action::"write", resource in Directory::"/etc/ssh");"#,
    );
    use FileOperation::{Create, Rename, Tmpfile, Unlink};
    for (label, operation, path, new_path, fast, held) in [
        ("coder", Create, Some("/srv/work/a"), None, "allow", "allow"),
        ("coder", Create, Some("/srv/workers"), None, "deny", "deny"),
        ("coder", Tmpfile, Some("/srv/work"), None, "allow", "allow"),
        ("coder", Create, Some("/srv/work"), None, "deny", "deny"),
        ("coder", Unlink, Some("/etc/hosts"), None, "hold", "ask"),
        ("coder", Unlink, Some("/home/x"), None, "deny", "deny"),
        (
            "coder",
            Rename,
            Some("/srv/work/a"),
            Some(Some("/srv/work/b")),
            "allow",
            "allow",
        ),
        (
            "coder",
            Rename,
            Some("/srv/work/a"),
            Some(Some("/etc/hosts")),
            "hold",
            "ask",
        ),
        (
            "coder",
            Rename,
            Some("/etc/hosts"),
            Some(Some("/srv/work/a")),
            "hold",
            "ask",
        ),
        (
            "coder",
            Rename,
            Some("/srv/work/a"),
            Some(Some("/etc/ssh/x")),
            "deny",
            "deny",
        ),
        (
            "coder",
            Rename,
            Some("/etc/ssh/x"),
            Some(Some("/srv/work/a")),
            "deny",
            "deny",
        ),
        // The groups that the two ends ask have nobody in common.
        (
            "coder",
            Rename,
            Some("/etc/hosts"),
            Some(Some("/home/x")),
            "hold",
            "deny",
        ),
        // An end that is not known is never allowed, and may be what is forbidden.
        ("coder", Rename, Some("/srv/work/a"), Some(None), "deny", "deny"),
        ("coder", Create, None, None, "deny", "deny"),
        ("other", Create, Some("/srv/work/a"), None, "hold", "ask"),
        ("other", Create, Some("/etc/ssh/a"), None, "deny", "deny"),
    ] {
        let facts = write(label, operation, path, new_path);
        let word = |answer: &Answer| match answer {
            Answer::Allow { .. } => "allow",
            Answer::Ask(_) => "ask",
            Answer::Deny { .. } => "deny",
            Answer::Hold => "hold",
        };
        let name = format!("{label} {operation:?} {path:?} {new_path:?}");
        assert_eq!(word(&policy.evaluate(&before_hold(facts.clone()))), fast, "fast {name}");
        assert_eq!(word(&policy.evaluate(&facts)), held, "held {name}");
    }
    let Answer::Ask(ask) = policy.evaluate(&write("other", Create, Some("/srv/a"), None)) else {
        panic!("not asked")
    };
    assert_eq!(ask.rules[0].id, BUILTIN_ASK_WRITE);
}
