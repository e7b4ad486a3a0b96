//! Policies of the tests. Every label here is `policed`, so that `coder` stays without policy and asks for everything.
//! Given nothing. Never more than a test needs: docs/policy.md has the language.

/// The label of these policies.
pub const POLICED: &str = "policed";

/// `/usr/bin/id` runs unasked; the rest is asked.
pub const ALLOW_ID: &str = r#"
@id("id-is-harmless")
permit (principal == Workload::"policed", action == Action::"exec", resource)
when { context.path == "/usr/bin/id" };

@id("ask-the-rest")
permit (principal == Workload::"policed", action == Action::"exec", resource)
when { context.approved };
"#;

/// `/usr/bin/id` is forbidden, whoever approves; the rest is asked.
pub const FORBID_ID: &str = r#"
@id("never-id")
@description("nobody needs id")
forbid (principal == Workload::"policed", action == Action::"exec", resource)
when { context.path == "/usr/bin/id" };

@id("ask-the-rest")
permit (principal == Workload::"policed", action == Action::"exec", resource)
when { context.approved };
"#;

/// Everything asks any approver.
pub const ASK: &str = r#"
@id("ask-everything")
permit (principal == Workload::"policed", action == Action::"exec", resource)
when { context.approved };
"#;

/// Everything asks the group `code-push`.
pub const ASK_CODE_PUSH: &str = r#"
@id("ask-code-push")
@approvers("code-push")
permit (principal == Workload::"policed", action == Action::"exec", resource)
when { context.approved };
"#;

/// Everything asks, for five seconds.
pub const ASK_FIVE_SECONDS: &str = r#"
@id("ask-briefly")
@timeout("5s")
permit (principal == Workload::"policed", action == Action::"exec", resource)
when { context.approved };
"#;

/// Two different people are needed.
pub const ASK_TWO: &str = r#"
@id("four-eyes")
@quorum("2")
permit (principal == Workload::"policed", action == Action::"exec", resource)
when { context.approved };
"#;

/// Execs run unasked; of connections no rule speaks.
pub const ANY_PROGRAM: &str = r#"
@id("any-program")
permit (principal == Workload::"policed", action == Action::"exec", resource);
"#;

/// Execs run unasked, connections are asked.
pub const ASK_CONNECTIONS: &str = r#"
@id("any-program")
permit (principal == Workload::"policed", action == Action::"exec", resource);

@id("ask-connections")
permit (principal == Workload::"policed", action in [Action::"connect", Action::"connect_unix"], resource)
when { context.approved };
"#;

/// Execs run unasked, so are names of the resolver 127.0.0.1; connections are asked.
pub const NAMES_AND_ASK: &str = r#"
@id("any-program")
permit (principal == Workload::"policed", action == Action::"exec", resource);

@id("names")
permit (principal == Workload::"policed", action == Action::"connect", resource == Address::"127.0.0.1")
when { context.port == 53 && context.protocol == "udp" };

@id("ask-connections")
permit (principal == Workload::"policed", action in [Action::"connect", Action::"connect_unix"], resource)
when { context.approved };
"#;

/// Execs run unasked; one address is reached unasked, nothing else is.
pub const CONNECT_TO_8099: &str = r#"
@id("any-program")
permit (principal == Workload::"policed", action == Action::"exec", resource);

@id("web-server")
permit (principal == Workload::"policed", action == Action::"connect", resource == Address::"127.0.0.1")
when { context.port == 8099 && context.protocol == "tcp" };
"#;

/// Execs run unasked; below `/srv/policed` it writes unasked, in `/etc/never` nobody does, the rest is asked.
pub const ASK_WRITES: &str = r#"
@id("any-program")
permit (principal == Workload::"policed", action == Action::"exec", resource);

@id("own-files")
permit (principal == Workload::"policed", action == Action::"write", resource in Directory::"/srv/policed");

@id("ask-writes")
permit (principal == Workload::"policed", action == Action::"write", resource)
when { context.approved };

@id("never-there")
@description("nobody writes there")
forbid (principal, action == Action::"write", resource in Directory::"/etc/never");
"#;

/// Broken on its third line.
pub const MALFORMED: &str = "\n@id(\"broken\")\npermit (principal == Label::\"policed\", action == );\n";

/// Well-formed, but of an attribute that no schema knows.
pub const UNTYPED: &str = r#"
@id("untyped")
permit (principal == Workload::"policed", action == Action::"exec", resource)
when { context.colour == "red" };
"#;
