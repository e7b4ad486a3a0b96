use super::*;
use crate::kernel::{Allowed, Away, Writes};

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text.as_bytes(), Path::new("agent.toml")).map_err(|e| e.to_string())
}

#[test]
fn nothing_written_means_the_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.state_dir, Path::new("/var/lib/guard-agent"));
    assert_eq!(config.policy_file, Path::new("/etc/guard/policy.cedar"));
    assert_eq!(config.kernel.park_after, Duration::from_millis(500));
    assert_eq!((config.labels.default.pending, config.kernel.away), (1_000, Away::Park));
}

#[test]
fn everything_can_be_set() {
    let config = parse(
        r#"
        state_dir = "/srv/guard"
        socket = "/run/g.sock"
        policy_file = "/etc/p.cedar"
        record_environment = ["GIT_*", "HOME"]
        hash_deadline = "5s"
        [[label]]
        name = "coder"
        cgroup = "/system.slice/agent-*.service"
        [hold]
        park_after = "250ms"
        away_after = "5s"
        away = "deny"
        [limits]
        pending_per_label = 10
        spool_mib = 64
        [evidence]
        witnesses = ["w.example.org+b097821f+BNdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea"]
        quorum = 1
        key = "p256"
        rotate_key_every = "90d"
        [redact]
        built_in = false
        patterns = [{ name = "ticket", regex = "CASE-[0-9]+" }]
        [log]
        format = "json"
        level = "debug"
        "#,
    )
    .unwrap();
    assert!(!config.redact.built_in);
    assert_eq!(config.redact.patterns.len(), 1);
    assert_eq!(config.labels.patterns[0].name, "coder");
    assert_eq!(config.kernel.away, Away::Deny);
    assert_eq!(config.kernel.park_after, Duration::from_millis(250));
    assert_eq!((config.labels.default.pending, config.spool_bytes), (10, 64 << 20));
    assert_eq!(
        config.log,
        Log {
            json: true,
            level: tracing::Level::DEBUG
        }
    );
    assert_eq!(config.key, Algorithm::P256);
    assert_eq!(config.rotate_key_every, Some(Duration::from_secs(90 * 86_400)));
    assert_eq!(config.record_environment, ["GIT_*", "HOME"]);
}

#[test]
fn the_sample_is_valid_and_says_the_defaults() {
    let sample = include_str!("../../../packaging/agent.toml.example");
    let config = Config::parse(sample.as_bytes(), Path::new(DEFAULT_PATH)).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    // Every line that is only commented out has to be right too.
    let open: String = sample
        .lines()
        .map(|line| {
            line.strip_prefix("#")
                .filter(|rest| !rest.starts_with(' ') && !rest.is_empty())
                .unwrap_or(line)
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let config = parse(&open).unwrap();
    assert_eq!(config.labels.patterns.len(), 1);
    assert_eq!(config.labels.settings["coder"], config.labels.default);
}

#[test]
fn errors_name_line_and_remedy() {
    for (text, start, needle) in [
        (
            "[redact]\npatterns = [{ name = \"A\", regex = \"a\" }]",
            "agent.toml:2:22: \"A\" is not the name of a pattern",
            "docs/agent.md",
        ),
        (
            "[[redact.patterns]]\nname = \"jwt\"\nregex = \"a\"",
            "agent.toml:2:8: there is a pattern with the name \"jwt\" already",
            "docs/agent.md",
        ),
        (
            "[[redact.patterns]]\nname = \"a\"\nregex = \"(\"",
            "agent.toml:3:9: the pattern is not a regular expression",
            "docs/agent.md",
        ),
        (
            "[[redact.patterns]]\nname = \"a\"\nregex = \"a*\"",
            "agent.toml:3:9: the pattern matches nothing at all",
            "docs/agent.md",
        ),
        (
            "stat_dir = \"/x\"",
            "agent.toml:1:1: unknown field `stat_dir`",
            "docs/agent.md",
        ),
        (
            "\n[hold]\naway = \"sleep\"",
            "agent.toml:3:8: unknown variant `sleep`",
            "docs/agent.md",
        ),
        (
            "[limits]\npending_per_label = \"many\"",
            "agent.toml:2:21: invalid type: string",
            "docs/agent.md",
        ),
        (
            "[limits]\npending_per_label = 0",
            "agent.toml:2:21: pending_per_label = 0",
            "range",
        ),
        ("[limits]\npending_per_label = -1", "agent.toml:2:21:", "→"),
        (
            "state_dir = \"x\"",
            "agent.toml:1:13: state_dir is not an absolute path",
            "slash",
        ),
        (
            "[[label]]\nname = \"Coder\"\ncgroup = \"/x\"",
            "agent.toml:2:8: \"Coder\" is not a label",
            "a-z",
        ),
        (
            "[[label]]\nname = \"coder\"\ncgroup = \"x\"",
            "agent.toml:3:10: \"x\" is not a path",
            "/sys/fs/cgroup",
        ),
        (
            "[[label]]\nname = \"coder\"\ncgroup = \"/a/../b\"",
            "agent.toml:3:10:",
            "/sys/fs/cgroup",
        ),
        (
            "[[label]]\nname = \"coder\"",
            "agent.toml:2:8: [[label]] \"coder\" has neither a cgroup nor a setting",
            "add cgroup",
        ),
        (
            "[hold]\npark_after = \"soon\"",
            "agent.toml:2:14: park_after = \"soon\"",
            "500ms",
        ),
        (
            "[hold]\npark_after = 500",
            "agent.toml:2:14: invalid type: integer",
            "docs/agent.md",
        ),
        ("record_environment = [\"A=B\"]", "agent.toml:1:23:", "names"),
        ("a = \"", "agent.toml:1:", "TOML"),
        (
            "[log]\nlevel = \"info\"\nlevel = \"info\"",
            "agent.toml:3:1: duplicate key",
            "TOML",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(start), "{text:?}: {error}");
        assert!(error.contains(needle), "{text:?}: {error}");
    }
    assert!(
        Config::parse(b"\xff", Path::new("x"))
            .unwrap_err()
            .to_string()
            .contains("UTF-8")
    );
}

#[test]
fn an_unreadable_file_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let error = Config::load(Some(dir.path())).unwrap_err().to_string();
    assert!(error.contains("cannot be read") && error.contains('→'), "{error}");
    let error = Config::load(Some(&dir.path().join("none"))).unwrap_err().to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn patterns() {
    let matches = |pattern: &str, path: &str| {
        LabelPattern {
            name: "x".to_owned(),
            cgroup: pattern.to_owned(),
        }
        .matches(path)
    };
    for (pattern, path) in [
        ("/a", "/a"),
        ("/system.slice/agent-*.service", "/system.slice/agent-7.service"),
        ("/system.slice/agent-*.service", "/system.slice/agent-.service"),
        ("/*/x", "/a/x"),
        ("/**", "/a/b/c"),
        ("/**/docker-*.scope", "/user.slice/u/docker-abc.scope"),
        ("/a*b*c", "/aXbYbZc"),
        ("/**/a*b", "/x/a1/a2b"),
    ] {
        assert!(matches(pattern, path), "{pattern} {path}");
    }
    for (pattern, path) in [
        ("/a", "/ab"),
        ("/a", "/a/b"),
        ("/*/x", "/a/b/x"),
        ("/system.slice/agent-*.service", "/system.slice/agent-a/b.service"),
        ("/a*", "/b"),
        ("/**/x", "/x/y"),
    ] {
        assert!(!matches(pattern, path), "{pattern} {path}");
    }
    // Many stars against a text that does not match: no blow-up.
    assert!(!matches(
        &format!("/{}b", "*a".repeat(500)),
        &format!("/{}", "a".repeat(4000))
    ));
}

#[test]
fn protect_takes_paths_of_the_host_and_of_homes_and_addresses() {
    let text = b"[protect]\npaths = [\"/srv/keys\", \"~/.ssh\"]\naddresses = [\"console.example.org:443\", \"[2001:db8::7]:9\"]";
    let config = Config::parse(text, Path::new("agent.toml")).unwrap();
    assert_eq!(
        config.protect.paths,
        [PathBuf::from("/srv/keys"), PathBuf::from("~/.ssh")]
    );
    assert_eq!(config.protect.addresses, ["console.example.org:443", "[2001:db8::7]:9"]);
    for wrong in [
        "paths = [\"/\"]",
        "paths = [\"~\"]",
        "paths = [\"srv\"]",
        "paths = [\"/a/../b\"]",
        "paths = [\"/a/\"]",
        "path = []",
        "addresses = [\"console.example.org\"]",
        "addresses = [\":1\"]",
        "addresses = [\"::1:1\"]",
        "addresses = [\"a:0\"]",
        "addresses = [\"a b:1\"]",
    ] {
        let error = Config::parse(format!("[protect]\n{wrong}").as_bytes(), Path::new("agent.toml")).unwrap_err();
        assert!(error.line == 2, "{wrong}: {error}");
    }
}

#[test]
fn a_label_may_have_its_own_settings() {
    let config = parse(
        r#"
        [hold]
        away = "deny"
        looping = 4
        [limits]
        tasks_per_label = 100
        [[label]]
        name = "coder"
        cgroup = "/a"
        away = "park"
        pending = 20
        [[label]]
        name = "coder"
        cgroup = "/b"
        [[label]]
        name = "runs"
        tasks = 9
        sockets = 30
        allow = ["mount", "namespaces", "mount"]
        "#,
    )
    .unwrap();
    assert_eq!(config.labels.patterns.len(), 2);
    let settings = |away, pending, looping, tasks, sockets| LabelSettings {
        away,
        pending,
        looping,
        tasks,
        sockets,
        allow: Allowed::default(),
        writes: Writes::Ask,
    };
    let mut allow = Allowed::default();
    assert!(allow.add("mount") && allow.add("namespaces"));
    let runs = LabelSettings {
        allow,
        ..settings(Away::Deny, 1_000, 4, 9, 30)
    };
    assert_eq!(config.labels.settings("coder"), settings(Away::Park, 20, 4, 100, 4_096));
    assert_eq!(config.labels.settings("runs"), runs);
    assert_eq!(
        config.labels.settings("other"),
        settings(Away::Deny, 1_000, 4, 100, 4_096)
    );
    assert_eq!(config.kernel.pending, 1_000 + PENDING_HEADROOM);
    for (text, start) in [
        (
            "[[label]]\nname = \"a\"\npending = 0",
            "agent.toml:3:11: pending = 0 is not within 1 to 2048",
        ),
        (
            "[[label]]\nname = \"a\"\nlooping = 2000",
            "agent.toml:3:11: looping = 2000",
        ),
        (
            "[[label]]\nname = \"a\"\nallow = [\"mount\", \"everything\"]",
            "agent.toml:3:19: nothing that a label may be allowed is called \"everything\"",
        ),
        ("[[label]]\nname = \"a\"\ntasks = -1", "agent.toml:3:9: tasks = -1"),
        (
            "[[label]]\nname = \"a\"\nfree = [\"/srv/../etc\"]",
            "agent.toml:3:9: \"/srv/../etc\" is not a directory that can be free",
        ),
        ("[hold]\nfree = [\"tmp\"]", "agent.toml:2:9: \"tmp\" is not a directory"),
        (
            "[[label]]\nname = \"a\"\nfree = [\"/\"]",
            "agent.toml:3:9: \"/\" is not a directory",
        ),
        (
            "[[label]]\nname = \"a\"\naway = \"x\"",
            "agent.toml:3:8: unknown variant `x`",
        ),
        (
            "[[label]]\nname = \"a\"\ntasks = 1\n[[label]]\nname = \"a\"\ntasks = 2",
            "agent.toml:5:8: what holds for \"a\" is set",
        ),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(start), "{text:?}: {error}");
    }
}

#[test]
fn writes_are_asked_about_unless_it_says_otherwise() {
    let config = parse("").unwrap();
    assert_eq!(config.labels.default.writes, Writes::Ask);
    assert_eq!((config.kernel.writes, config.kernel.files), (Writes::Ask, true));
    assert_eq!(
        config.labels.free_for_all,
        ["/dev/shm", "/tmp", "/var/tmp"].map(PathBuf::from)
    );
    let config = parse("[hold]\nwrites = \"free\"\nfree = []").unwrap();
    assert_eq!((config.kernel.writes, config.kernel.files), (Writes::Free, false));
    assert!(config.labels.free_for_all.is_empty());
    let config = parse(
        r#"
        [hold]
        writes = "free"
        free = ["/scratch"]
        [[label]]
        name = "coder"
        writes = "ask"
        free = ["/srv/work", "/tmp/coder"]
        [[label]]
        name = "runs"
        free = ["/srv/runs"]
        "#,
    )
    .unwrap();
    assert_eq!(config.labels.settings("coder").writes, Writes::Ask);
    assert_eq!(config.labels.settings("runs").writes, Writes::Free);
    assert_eq!((config.kernel.writes, config.kernel.files), (Writes::Free, true));
    let free: Vec<_> = config.labels.free_directories().collect();
    let of = |label: Option<&str>, path: &str| (label.map(str::to_owned), PathBuf::from(path));
    assert_eq!(
        free,
        [
            of(Some("coder"), "/srv/work"),
            of(Some("coder"), "/tmp/coder"),
            of(Some("runs"), "/srv/runs"),
            of(None, "/scratch")
        ]
    );
}
