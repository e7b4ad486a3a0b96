use super::*;
use crate::testing;

/// Made once: patterns take long to compile.
fn redactor() -> &'static Redactor {
    static REDACTOR: LazyLock<Redactor> = LazyLock::new(testing::redactor);
    &REDACTOR
}

/// What is left of a text: each mark as `<rule>`.
fn shown(text: &str) -> String {
    plain(&redactor().text(text.as_bytes()))
}

fn plain(text: &Text) -> String {
    let mark = regex::Regex::new(r"\[redacted ([a-z-]+) [0-9a-f]{16}(, with shell syntax)?\]").unwrap();
    mark.replace_all(&text.display(), |captures: &regex::Captures<'_>| {
        format!("<{}{}>", &captures[1], if captures.get(2).is_some() { "!" } else { "" })
    })
    .into_owned()
}

fn arguments(list: &[&str]) -> Vec<String> {
    redactor().arguments(list, None).iter().map(plain).collect()
}

/// Letters and digits as in a token.
fn long(count: usize) -> String {
    "a1B2c3D4e5".chars().cycle().take(count).collect()
}

#[test]
fn tokens_go_by_how_they_look() {
    let (t36, t24) = (long(36), long(24));
    for (rule, secret) in [
        ("aws-key", "AKIAIOSFODNN7EXAMPLE".to_owned()),
        ("gcp-key", format!("AIza{}", long(35))),
        ("gcp-key", format!("ya29.{t36}")),
        ("azure-key", format!("abc8Q~{}", long(34))),
        ("github-token", format!("ghp_{t36}")),
        ("github-token", format!("github_pat_{}_{}", long(22), long(59))),
        ("gitlab-token", format!("glpat-{}", long(20))),
        ("slack-token", format!("xoxb-123456789012-{t24}")),
        ("anthropic-key", format!("sk-ant-api03-{t36}-{t36}-AA")),
        ("openai-key", format!("sk-{}", long(48))),
        ("openai-key", format!("sk-proj-{t36}_{t36}-{t24}")),
        ("npm-token", format!("npm_{t36}")),
        ("pypi-token", format!("pypi-AgEIcHlwaS5vcmc{t36}")),
        ("stripe-key", format!("sk_live_{t24}")),
        ("huggingface-token", format!("hf_{}", long(34))),
        ("docker-token", format!("dckr_pat_{}", long(27))),
        ("vault-token", format!("hvs.{t24}")),
        ("jwt", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl".to_owned()),
    ] {
        assert_eq!(shown(&secret), format!("<{rule}>"), "{secret}");
        for (before, after) in [
            ("x=", ""),
            ("(", ")"),
            ("'", "'"),
            ("see ", ", or"),
            ("\u{202E}", "\u{fc}"),
            ("_", "\n"),
        ] {
            let expected = Text::from(format!("{before}<{rule}>{after}")).display();
            assert_eq!(shown(&format!("{before}{secret}{after}")), expected);
        }
    }
    assert_eq!(
        shown(&format!("https://hooks.slack.com/services/T00000000/B00000000/{t24}")),
        "https://hooks.slack.com/services/<slack-token>"
    );
    assert_eq!(
        shown(&format!(
            "https://a.blob.core.windows.net/c?sv=2024&sig={}%3D&se=1",
            long(43)
        )),
        "https://a.blob.core.windows.net/c?sv=2024&sig=<azure-key>&se=1"
    );
}

#[test]
fn look_alikes_stay() {
    for text in [
        "ghp_short",
        "glpat-",
        "AKIA",
        "sk-some-long-kebab-case-class-name-here",
        "task-0123456789abcdefghijkl",
        "npm_config_cache",
        "pypi-mirror-for-the-whole-company-network",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ bob@host",
        "sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "6b1c7f0e-8c1f-4a57-9d0c-0d0a3a3f4b5c",
        "git@github.com:a/b.git",
        "ssh://git@github.com/a/b",
        "https://example.org/@scope/package",
        "https://example.org/?mail=a@b",
        "the bearer of this letter",
        "authorization of people",
        "a token of thanks: none",
        "sort --key=2 --max-tokens=4096 --tokenizer gpt2",
        "PWD=/home/ann TOKENIZERS_PARALLELISM=false MAX_TOKENS=4",
        "TOKEN=$GITHUB_TOKEN curl -H \"Authorization: Bearer $TOKEN\" x",
        "PASSWORD=${DB_PASSWORD} TOKEN=$(cat /run/token)",
        "TOKEN= reboot",
        "password",
        "docker run my-secret:latest -v secret:/run/x -u 1000:1000",
        "mkdir -p a; ssh -p 22 host",
        "date -u +%H:%M",
        "docker login --password-stdin --username bob",
        "vault --token-file /run/token",
        "openssl --private-key /etc/ssl/private.pem",
    ] {
        assert_eq!(redactor().text(text.as_bytes()), Text::from(text), "{text}");
        let words: Vec<&str> = text.split(' ').collect();
        if !text.contains(['"', '$']) {
            assert_eq!(arguments(&words).join(" "), Text::from(text).display());
        }
    }
}

#[test]
fn private_keys_go_as_a_whole() {
    let body = format!("{}\n{}\nabc=", long(64), long(64));
    for (begin, end) in [
        ("", ""),
        ("RSA ", ""),
        ("OPENSSH ", ""),
        ("EC ", ""),
        ("ENCRYPTED ", ""),
        ("PGP ", " BLOCK"),
    ] {
        let key = format!("-----BEGIN {begin}PRIVATE KEY{end}-----\n{body}\n-----END {begin}PRIVATE KEY{end}-----");
        for form in [
            key.clone(),
            key.replace('\n', "\\n"),
            key.replace('\n', " "),
            key.replace('\n', "\r\n"),
        ] {
            assert_eq!(
                shown(&format!("echo '{form}' > k")).replace('!', ""),
                "echo '<private-key>' > k"
            );
        }
        let words: Vec<&str> = key.split_whitespace().collect();
        let hidden = arguments(&words);
        assert!(hidden.iter().all(|word| word == "<private-key>"), "{hidden:?}");
    }
    let headers =
        format!("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,2A\n\n{body}");
    assert!(shown(&headers).starts_with("<private-key"), "{}", shown(&headers));
    // A command is no part of it.
    let command = "-----BEGIN PRIVATE KEY-----\nreboot\n";
    assert!(shown(command).contains("reboot"), "{}", shown(command));
}

#[test]
fn options_headers_and_users() {
    for (words, expected) in [
        (
            &["mysql", "--password", "hunter2", "db"][..],
            "mysql --password <option> db",
        ),
        (&["mysql", "--password=hunter2"], "mysql --password=<named-value>"),
        (&["mysql", "-phunter2", "db"], "mysql -p<option> db"),
        (&["sshpass", "-p", "x y", "ssh"], "sshpass -p <option> ssh"),
        (&["sudo", "redis-cli", "-a", "pw"], "sudo redis-cli -a <option>"),
        (&["x", "--api-key", "-k1"], "x --api-key <option>"),
        (&["x", "--password", "--host", "h"], "x --password --host h"),
        (&["x", "--token", "a;reboot"], "x --token <option!>"),
        (&["java", "-Ddb.password=a b"], "java -Ddb.password=<option>"),
        (&["curl", "-u", "bob:pw"], "curl -u bob:<option>"),
        (&["curl", "-ubob:pw"], "curl -ubob:<option>"),
        (&["curl", "--user=:pw"], "curl --user=:<option>"),
        (
            &["curl", "-H", "Authorization: Bearer abc"],
            "curl -H Authorization: Bearer <authorization>",
        ),
        (&["curl", "-HX-Api-Key:abc"], "curl -HX-Api-Key:<authorization>"),
        (
            &["curl", "--header=Cookie: a=b; c=d"],
            "curl --header=Cookie: <authorization!>",
        ),
        (&["curl", "-H", "Accept: text/html"], "curl -H Accept: text/html"),
        (&["env", "DB_PASSWORD=a;b&c", "x"], "env DB_PASSWORD=<named-value!> x"),
        (
            &["docker", "run", "-e", "API_TOKEN=abc"],
            "docker run -e API_TOKEN=<named-value>",
        ),
        (
            &["kubectl", "--from-literal=password=pw"],
            "kubectl --from-literal=password=<named-value>",
        ),
        (&["openssl", "-passin", "pass:pw"], "openssl -passin pass:<option>"),
        (
            &["aws", "configure", "set", "aws_secret_access_key", "/k"],
            "aws configure set aws_secret_access_key <option>",
        ),
        (&["x", "https://bob:p@w@h/x"], "x https://<url-user>@h/x"),
        (&["x", "postgres://bob:pw@h/db"], "x postgres://bob:<url-user>@h/db"),
        (
            &["x", "https://h/?access_token=abc&b=c"],
            "x https://h/?access_token=<named-value>&b=c",
        ),
        // Commands in one argument.
        (
            &["sh", "-c", "mysql --password hunter2 | x"],
            "sh -c mysql --password <option> | x",
        ),
        (
            &["sh", "-c", "TOKEN=abc curl -X DELETE h"],
            "sh -c TOKEN=<named-value> curl -X DELETE h",
        ),
        (
            &["sh", "-c", "curl -u 'bob:p w' -H \"Authorization: token abc\" h"],
            "sh -c curl -u 'bob:<option>' -H \"Authorization: token <authorization>\" h",
        ),
        (
            &["sh", "-c", "sh -c \"x --token 'a b'\""],
            "sh -c sh -c \"x --token '<option>'\"",
        ),
        (
            &["sh", "-c", "export A_KEY='a b' && reboot"],
            "sh -c export A_KEY=<named-value> && reboot",
        ),
        (
            &["python", "-c", "login(password = \"a b\", x={'token': 'c'})"],
            "python -c login(password = \"<named-value>\", x={'token': '<named-value>'})",
        ),
        (
            &["curl", "-d", "{\"password\":\"a\\\"b\",\"user\":\"u\"}"],
            "curl -d {\"password\":\"<named-value>\",\"user\":\"u\"}",
        ),
    ] {
        assert_eq!(arguments(words).join(" "), expected);
    }
}

#[test]
fn variables() {
    let of = |entry: &str| plain(&redactor().variable(entry.as_bytes()));
    for (entry, expected) in [
        ("GITHUB_TOKEN=x", "GITHUB_TOKEN=<named-value>"),
        ("DB_PASSWORD=correct horse", "DB_PASSWORD=<named-value>"),
        ("aws_secret_access_key=abc", "aws_secret_access_key=<named-value>"),
        (
            "URL=https://bob:pw@example.org/x",
            "URL=https://<url-user>@example.org/x",
        ),
        (
            "http_proxy=http://u:p@10.0.0.1:3128",
            "http_proxy=http://<url-user>@10.0.0.1:3128",
        ),
        ("X=ghp_0123456789abcdefghij", "X=<github-token>"),
        ("Y=Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc", "Y=Bearer <jwt>"),
        ("Z=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "Z=<long-random>"),
    ] {
        assert_eq!(of(entry), expected);
    }
    for entry in [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
        "LD_PRELOAD=/opt/lib/x86_64-linux-gnu/libfoo.so.1",
        "GIT_SSH_COMMAND=ssh -i /home/a/.ssh/id_ed25519",
        "SSH_AUTH_SOCK=/run/user/1000/agent",
        "NODE_OPTIONS=--max-old-space-size=4096",
        "http_proxy=http://10.0.0.1:3128",
        "LANG=C.UTF-8",
        "TOKEN=",
        "odd",
        "",
    ] {
        assert_eq!(of(entry), entry);
    }
}

#[test]
fn paths_lead_where_they_led() {
    let of = |path: &str| plain(&redactor().path(path.as_bytes()));
    assert_eq!(of("/srv/TOKEN=abc/../rm"), "/srv/TOKEN=<named-value>/../rm");
    assert_eq!(of("/srv/ghp_0123456789abcdefghij/x"), "/srv/<github-token>/x");
    assert_eq!(of("https://bob:pw@h/x"), "https://<url-user>@h/x");
    for path in [
        "/usr/bin/git",
        "/",
        "",
        "../a b/c",
        "/nix/store/0c1m2k3j4h5g6f7d8s9a0q1w2e3r4t5y-git-2.4/bin/git",
    ] {
        assert_eq!(of(path), path);
    }
}

#[test]
fn bytes_that_are_no_text_hide_nothing() {
    let token = format!("ghp_{}", long(36));
    for (before, after) in [
        (&b"\xff"[..], &b"\xfe"[..]),
        (b"\xc3", b"\xa9"),
        (b"\xe2\x80", b""),
        (b"\0", b"\0"),
    ] {
        let text = [before, token.as_bytes(), after].concat();
        assert_eq!(
            plain(&redactor().text(&text)),
            plain(&Text::from([before, b"<github-token>", after].concat()))
        );
    }
    let shown = redactor().arguments(&[&b"--password"[..], b"hunter\xff2"], None);
    assert_eq!(plain(&shown[1]), "<option>");
    assert_eq!(
        plain(&redactor().variable(b"\xffTOKEN=a\xffb")),
        "⟨0xFF⟩TOKEN=<named-value>"
    );
}

#[test]
fn two_secrets_stay_two_and_nothing_else_becomes_one() {
    let of = |text: &str| redactor().text(text.as_bytes());
    assert_eq!(of("--x TOKEN=abc"), of("--x TOKEN=abc"));
    assert_ne!(of("--x TOKEN=abc"), of("--x TOKEN=abd"));
    // The same secret is known again wherever it is found.
    let mark = |text: &Text| text.display().split(' ').next_back().unwrap().to_owned();
    assert_eq!(
        mark(&of("TOKEN=abc")),
        mark(&redactor().arguments(&["--token", "abc"], None)[1])
    );
    // Another host cannot tell.
    let other = Redactor::with_key(&[6; 32], Rules::new(true, &[]).unwrap());
    assert_ne!(other.text(b"TOKEN=abc"), of("TOKEN=abc"));
    assert_ne!(other.digest(&[1; 32]), redactor().digest(&[1; 32]));
    // Who writes what was shown instead of the secret is not taken for the secret.
    let forged = of("TOKEN=abc").display();
    assert_ne!(of(&forged).display(), forged);
    assert!(of("a [redacted x 00]").display().starts_with("a [redacted mark "));
}

#[test]
fn digests_are_over_what_is_recorded() {
    let argv = |strings: &[&str], gap| Argv {
        strings: strings.iter().map(|string| string.as_bytes().to_vec()).collect(),
        count: strings.len() as u64,
        bytes: 1,
        sha256: [3; 32],
        gap,
    };
    let (recorded, digest) = redactor().argv(&argv(&["x", "--token", "abc"], None));
    assert_eq!(digest, guard_evidence::statement::strings_sha256(&recorded));
    assert_ne!(
        digest,
        guard_evidence::statement::strings_sha256(&["x", "--token", "abc"])
    );
    let (plain_argv, digest) = redactor().argv(&argv(&["git", "push"], None));
    assert_eq!(plain_argv, [Text::from("git"), Text::from("push")]);
    assert_eq!(digest, guard_evidence::statement::strings_sha256(&["git", "push"]));
    // Of what was not kept, nobody can say what it held.
    let (recorded, digest) = redactor().argv(&argv(&["x", "abc", "y"], Some(1)));
    assert_eq!(
        recorded.iter().map(plain).collect::<Vec<_>>(),
        ["x", "<after-gap>", "y"]
    );
    assert_eq!(digest, redactor().digest(&[3; 32]));
}

#[test]
fn own_patterns_and_their_limits() {
    let own = [
        Pattern::new("ticket", "CASE-[0-9]+").unwrap(),
        Pattern::new("customer", r"customer (?P<secret>\w+)").unwrap(),
    ];
    let only_own = Redactor::with_key(&[1; 32], Rules::new(false, &own).unwrap());
    assert_eq!(
        plain(&only_own.text(b"customer \xffx CASE-17, customer bob, TOKEN=abc")),
        "customer ⟨0xFF⟩x <ticket>, customer <customer>, TOKEN=abc"
    );
    assert!(only_own.text(b"[redacted a]").display().starts_with("[redacted mark "));
    let both = Redactor::with_key(&[1; 32], Rules::new(true, &own).unwrap());
    assert_eq!(plain(&both.text(b"CASE-17 TOKEN=abc")), "<ticket> TOKEN=<named-value>");

    for name in ["", "A", "a b", "\u{e9}", &"a".repeat(41)] {
        assert!(
            matches!(Pattern::check_name(name, &[]), Err(PatternError::Name(_))),
            "{name}"
        );
    }
    for name in ["mark", "github-token", "named-value", "ticket"] {
        assert!(
            matches!(Pattern::check_name(name, &own), Err(PatternError::Again(_))),
            "{name}"
        );
    }
    assert_eq!(Pattern::new("x", &"a".repeat(1_001)).unwrap_err(), PatternError::Long);
    assert_eq!(Pattern::new("x", "a*").unwrap_err(), PatternError::Empty);
    for bad in ["(", "a{1000}{1000}", r"(?=a)b", r"(a)\1"] {
        let error = Pattern::new("x", bad).unwrap_err();
        assert!(
            matches!(&error, PatternError::Regex(why) if !why.is_empty() && !why.contains('\n')),
            "{error}"
        );
    }
    let many: Vec<Pattern> = (0..65)
        .map(|n| Pattern::new(&format!("n{n}"), "abc").unwrap())
        .collect();
    assert_eq!(Rules::new(false, &many).unwrap_err(), PatternError::Many);
}

#[test]
fn the_key_is_made_once_and_only_root_may_read_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let rules = Redact {
        built_in: true,
        patterns: Vec::new(),
    };
    let open = || Redactor::open(directory.path(), &rules);
    let first = open().unwrap().text(b"TOKEN=abc");
    assert_eq!(open().unwrap().text(b"TOKEN=abc"), first);
    let file = directory.path().join(KEY_FILE);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!format!("{:?}", open().unwrap()).contains(&hex::encode(fs::read(&file).unwrap())));
    fs::write(&file, b"short").unwrap();
    assert!(open().unwrap_err().to_string().contains("redact.key"));
}

#[test]
fn long_hostile_texts_take_linear_time() {
    use nix::time::{ClockId, clock_gettime};
    // Of this thread: the machine may be busy.
    let time = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().tv_sec();
    let began = time();
    for part in [
        "TOKEN=",
        "token:",
        "a=",
        "'",
        "\\\"token\\\":\\\"",
        "-----BEGIN PRIVATE KEY-----\n",
        "https://a:",
        "x ",
        "$(",
        "sk-a1-",
    ] {
        let text = part.repeat((128 << 10) / part.len());
        let _ = redactor().arguments(&["sh", "-c", &text], None);
        let _ = redactor().variable(text.as_bytes());
    }
    // Hundreds of times as long if a part of it were quadratic.
    assert!(time() - began < 60);
}

#[test]
fn promises_of_the_fuzzer_hold_for_words_in_any_order() {
    let words: [&[u8]; 40] = [
        b"--password",
        b"--token=",
        b"-u",
        b"-ubob:",
        b"-H",
        b"Authorization: Bearer ",
        b"PASSWORD=",
        b"token",
        b"secret\": \"",
        b"\\\"",
        b"'",
        b"\"",
        b"ghp_0123456789abcdefghijklmnopqrstuvwxyz",
        b"ghp_",
        b"glpat-",
        b"xoxb-0123456789ab",
        b"AKIA",
        b"eyJ",
        b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
        b"sk-",
        b"npm_",
        b"AIza",
        b"-----BEGIN ",
        b"RSA PRIVATE KEY-----",
        b"-----END ",
        b"https://",
        b"bob:pw@",
        b"$(",
        b"\\n",
        b"[redacted ",
        b"\0",
        b" ",
        b"\n",
        b"=",
        b":",
        b"/",
        b"\xff",
        b"x",
        b"0123456789abcdef",
        b";",
    ];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    for _ in 0..1_000 {
        let count = next(12);
        let data: Vec<u8> = (0..count).flat_map(|_| words[next(words.len())]).copied().collect();
        fuzz_redact(&data);
    }
}
