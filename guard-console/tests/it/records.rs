//! Evidence comes in unbroken, once, and goes out as it came.

use guard_evidence::chain::Sealed;
use guard_evidence::record::Lifecycle;
use guard_evidence::verify::{Asked, Status};
use serde_json::json;
use tonic::Code;

use crate::support::{Console, Question, batch};

#[tokio::test(flavor = "multi_thread")]
async fn stored_once_and_given_out_exactly() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let first = host.lifecycle();
    let (ask, request) = host.ask(&Question::new("coder", &["make", "\u{1b}[31m"]));
    let last = host.lifecycle();
    let through = host
        .append(&console, vec![batch(&[&first, &request]), batch(&[&last])])
        .await
        .unwrap();
    assert_eq!(through, [2, 3]);
    // Again, overlapping: nothing new.
    let through = host
        .append(&console, vec![batch(&[&first, &request, &last]), batch(&[&last])])
        .await
        .unwrap();
    assert_eq!(through, [3, 3]);
    let (_, list) = admin.get("/api/v1/evidence?host=build-7").await;
    let items = list["items"].as_array().unwrap();
    assert_eq!(
        items.iter().map(|i| i["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        // Before them the console recorded itself, the set-up, the token and the host.
        [6, 5, 4]
    );
    assert!(items[1]["summary"].as_str().unwrap().contains("⟨U+001B⟩"));
    let (_, list) = admin
        .get(&format!(
            "/api/v1/evidence?request={}&kind=request&limit=1",
            ask.request_id
        ))
        .await;
    assert_eq!(list["items"][0]["digest"], request.envelope_digest);
    let response = admin
        .request("GET", &format!("/api/v1/evidence/{}", request.envelope_digest))
        .send()
        .await
        .unwrap();
    assert_eq!(response.bytes().await.unwrap(), request.envelope);
    let (_, page) = admin.get("/api/v1/evidence?host=build-7&limit=2").await;
    let next = page["next"].as_str().unwrap();
    let (_, page) = admin
        .get(&format!("/api/v1/evidence?host=build-7&limit=2&cursor={next}"))
        .await;
    assert_eq!(
        (page["items"].as_array().unwrap().len(), &page["next"]),
        (1, &json!(null))
    );
    // The next epoch.
    host.chain = guard_evidence::chain::Chain::begin(format!("host:{}", host.id()), 2);
    let next = host.lifecycle();
    assert_eq!(host.append(&console, vec![batch(&[&next])]).await.unwrap(), [1]);
    let console = console.restart().await;
    let admin = console.sign_in("admin").await;
    let (_, list) = admin.get("/api/v1/evidence?host=build-7").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_and_nothing_of_it_stored() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let one = host.lifecycle();
    let fork_point = host.chain.clone();
    let two = host.lifecycle();
    let three = host.lifecycle();
    host.ship(&console, &[&one]).await;

    let gap = host.append(&console, vec![batch(&[&three])]).await.unwrap_err();
    assert_eq!(gap.code(), Code::FailedPrecondition);
    assert!(gap.message().contains("records 2 to 2 are missing"), "{gap}");
    host.ship(&console, &[&two]).await;
    // Another record in a place that is filled, and one that follows it.
    host.chain = fork_point;
    let (_, other_two) = host.ask(&Question::new("coder", &["evil"]));
    let other_three = host.lifecycle();
    for wrong in [&other_two, &other_three] {
        let fork = host.append(&console, vec![batch(&[wrong])]).await.unwrap_err();
        assert_eq!(fork.code(), Code::FailedPrecondition, "{fork}");
    }
    // Another host's record; a damaged one; one that claims another place.
    let mut stranger = console.host(&admin, "other").await;
    let foreign = stranger.lifecycle();
    host.append(&console, vec![batch(&[&foreign])]).await.unwrap_err();
    let mut damaged = batch(&[&three]);
    let middle = damaged.records[0].envelope.len() / 2;
    damaged.records[0].envelope[middle] ^= 1;
    host.append(&console, vec![damaged]).await.unwrap_err();
    let mut moved = batch(&[&three]);
    moved.records[0].sequence = 4;
    host.append(&console, vec![moved]).await.unwrap_err();

    host.ship(&console, &[&three]).await;
    let (_, list) = admin.get("/api/v1/evidence?host=build-7").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    // The alarms, each once, for approvers too.
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let (_, alarms) = ann.get("/api/v1/alarms").await;
    let alarms = alarms["items"].as_array().unwrap();
    let mut kinds: Vec<&str> = alarms.iter().map(|a| a["kind"].as_str().unwrap()).collect();
    kinds.sort_unstable();
    assert_eq!(
        kinds,
        [
            "bad-signature",
            "bad-signature",
            "events-lost",
            "events-lost",
            "events-lost",
            "fork",
            "fork",
            "gap",
            "malformed"
        ]
    );
    let (_, page) = ann.get("/api/v1/alarms?limit=4").await;
    let next = page["next"].as_str().unwrap();
    let (_, rest) = ann.get(&format!("/api/v1/alarms?limit=100&cursor={next}")).await;
    assert_eq!(
        (rest["items"].as_array().unwrap().len(), &rest["next"]),
        (5, &json!(null))
    );
    assert_eq!(ann.get("/api/v1/alarms?cursor=x").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_verifies() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut a = console.host(&admin, "a").await;
    let mut b = console.host(&admin, "b").await;
    for host in [&mut a, &mut b] {
        for _ in 0..3 {
            let records = [host.lifecycle(), host.lifecycle()];
            host.ship(&console, &[&records[0], &records[1]]).await;
        }
    }
    let response = admin.request("GET", "/api/v1/evidence/bundle").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-tar");
    // The console's own records belong to every bundle: itself, the set-up, two tokens, two hosts.
    for (query, records, asked) in [
        ("", 18, Asked::WholeLog),
        ("?host=a", 12, Asked::Part),
        ("?label=x", 6, Asked::Part),
    ] {
        let (dir, report) = admin.export(query, asked).await;
        assert_ne!(report.status, Status::Invalid, "{report:#?}");
        if asked == Asked::WholeLog {
            assert_eq!(report.status, Status::Valid, "{report:#?}");
        }
        assert_eq!(
            std::fs::read_dir(dir.path().join("bundle/records")).unwrap().count(),
            records
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hosts_report_is_an_alarm_and_a_time_line() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let mut host = console.host(&admin, "build-7").await;
    let on = || Lifecycle::EnforcementOn {
        kernel: "6.12.0".to_owned(),
        agent_version: "0.1.0".to_owned(),
        programs: vec![],
    };
    let events = [
        on(),
        Lifecycle::TheftRefused {
            label: "coder".to_owned(),
            object: "sign-in\u{1b}".to_owned(),
            count: 3,
            pid: 812,
            uid: 1000,
            comm: guard_evidence::text::Text::from("cat\u{202e}"),
        },
        Lifecycle::EnforcementOff {
            why: "removed".to_owned(),
            last_on: None,
        },
        on(),
    ];
    let records: Vec<Sealed> = events.into_iter().map(|event| host.tells(event)).collect();
    let records: Vec<&Sealed> = records.iter().collect();
    // Sent twice: raised once.
    for _ in 0..2 {
        host.ship(&console, &records).await;
    }
    let (_, alarms) = ann.get("/api/v1/alarms").await;
    let items = alarms["items"].as_array().unwrap();
    assert_eq!(items.len(), 2, "{alarms}");
    let theft = items.iter().find(|a| a["kind"] == "theft").unwrap();
    let detail = theft["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("coder tried 3 times to reach sign-in⟨U+001B⟩ (last: cat⟨U+202E⟩, pid 812"),
        "{detail}"
    );
    assert_eq!(
        ann.get(&format!("/api/v1/hosts/{}/enforcement", host.id())).await.0,
        403
    );
    let (_, told) = admin.get(&format!("/api/v1/hosts/{}/enforcement", host.id())).await;
    assert_eq!(told["on"].as_array().unwrap().len(), 2, "{told}");
    assert_eq!(told["gaps"][0]["why"], "removed");
}
