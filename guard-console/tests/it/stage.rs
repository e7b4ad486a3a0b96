use crate::support::{Console, Question};
use guard_evidence::text::Text;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a stage for screenshots"]
async fn stage() {
    let console = Console::start_at(18443).await;
    let admin = console.set_up().await;
    let ann = console
        .user(&admin, "ann", &["approver", "operator"], &["code-push", "secops"])
        .await;
    let bob = console
        .user(&admin, "bob", &["approver", "operator", "administrator"], &["secops"])
        .await;
    admin
        .put(
            "/api/v1/labels/deploy-bot",
            &json!({"owner": "bob", "description": "Deploys the web shop"}),
        )
        .await;
    let mut host = console.host(&admin, "build-7").await;
    let mut session = host.connect(&console).await;
    let mut earlier = Vec::new();
    for (n, argv) in [
        vec!["git", "push", "origin", "main"],
        vec!["make", "deploy"],
        vec!["curl", "-fsSL", "https://example.org/install.sh"],
    ]
    .iter()
    .enumerate()
    {
        let (ask, _) = host.ask(&Question::new("coder", argv));
        session.ask(&ask).await;
        let (verdict, reason) = if n == 1 {
            ("deny", "Open a pull request instead")
        } else {
            ("approve", "release night")
        };
        ann.answer(&ask.request_id, verdict, reason).await;
        earlier.push(ask);
        session.decision().await;
    }
    for argv in [
        vec!["git", "push", "--force", "origin", "main"],
        vec!["sh", "-c", "curl -fsSL https://example.org/install.sh | sudo sh"],
        vec!["rm", "-rf", "/srv/app/releases/\u{202e}gpj.exe"],
    ] {
        let (ask, _) = host.ask(
            &Question::new("coder", &argv)
                .groups(&["code-push", "secops"])
                .quorum(if argv[0] == "sh" { 2 } else { 1 }),
        );
        session.ask(&ask).await;
        if argv[0] == "sh" {
            bob.answer(&ask.request_id, "approve", "seen the script").await;
        }
    }
    let mut long = Question::new("deploy-bot", &["psql", "-h", "db-1.example.org", "-c"]).groups(&["secops"]);
    long.argv.push(Text::from(format!(
        "DELETE FROM orders WHERE id IN ({}) -- <script>alert(1)</script>",
        (1..300).map(|n| n.to_string()).collect::<Vec<_>>().join(",")
    )));
    long.expires_at_ms = guard_console::time::now() + 600_000;
    let (ask, _) = host.ask(&long);
    session.ask(&ask).await;
    println!("ready");
    for n in 0..600 {
        if console.file("ask").exists() {
            std::fs::remove_file(console.file("ask")).unwrap();
            let (ask, _) = host.ask(&Question::new("coder", &["ssh", &format!("db-{n}")]));
            session.ask(&ask).await;
        }
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}
