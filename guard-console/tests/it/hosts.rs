//! Joining, being who the certificate says, being revoked.

use guard_proto::v1::approval_client::ApprovalClient;
use guard_proto::v1::host_message::Kind as HostKind;
use guard_proto::v1::{Heartbeat, RecordBatch, RenewRequest};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tonic::Code;
use tonic::transport::Identity;

use crate::support::{Console, Question, certificate_request};

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once_and_not_for_ever() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let (_, token) = admin.post("/api/v1/tokens", &json!({"expires_in": 60})).await;
    let token = token["token"].as_str().unwrap();
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts[0], "guard1");
    assert_eq!(parts[1], format!("localhost:{}", console.hosts.port()));
    assert_eq!(parts[2].len(), 64);
    console.enroll(token, "build-7").await.unwrap();
    let spent = console.enroll(token, "build-8").await.err().unwrap();
    assert_eq!(spent.code(), Code::Unauthenticated);
    assert!(spent.message().contains("guard tokens create"), "{spent}");
    for bad in ["", "guard1.x.y.z", &"A".repeat(43), &"x".repeat(100_000)] {
        assert_eq!(
            console.enroll(bad, "x").await.err().unwrap().code(),
            Code::Unauthenticated
        );
    }
    for bad in [0, 59, 604_801] {
        assert_eq!(admin.post("/api/v1/tokens", &json!({"expires_in": bad})).await.0, 400);
    }
    // A name that is taken is made unique.
    let (_, token) = admin.post("/api/v1/tokens", &json!({})).await;
    let second = console
        .enroll(token["token"].as_str().unwrap(), "Build-7")
        .await
        .unwrap();
    assert_eq!(second.reply.hostname, "build-7-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_our_certificate_there_is_no_service() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let host = console.host(&admin, "build-7").await;
    // None at all.
    let mut client = ApprovalClient::new(console.channel(None).await);
    let error = client.renew(RenewRequest { csr_pem: String::new() }).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated);
    // Another authority's, with the name of a real host.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, format!("host:{}", host.id()));
    let foreign = params.self_signed(&key).unwrap();
    let identity = Identity::from_pem(foreign.pem(), key.serialize_pem());
    match console.try_channel(Some(&identity)).await {
        Err(_) => {}
        // TLS 1.3: the client may learn of it with its first call only.
        Ok(channel) => {
            let mut client = ApprovalClient::new(channel);
            assert!(client.renew(RenewRequest { csr_pem: String::new() }).await.is_err());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_seen_and_revoked() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let (key, csr) = certificate_request();
    let mut client = ApprovalClient::new(console.channel(Some(&host.identity)).await);
    let bad = client
        .renew(RenewRequest {
            csr_pem: "nonsense".to_owned(),
        })
        .await
        .unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    let renewed = client.renew(RenewRequest { csr_pem: csr }).await.unwrap().into_inner();
    host.identity = Identity::from_pem(renewed.certificate_chain_pem, key.serialize_pem());

    let mut older = host.connect(&console).await;
    let mut session = host.connect(&console).await;
    assert_eq!(
        older.try_next().await.unwrap_err().code(),
        Code::Aborted,
        "a newer stream takes over"
    );
    let beat = Heartbeat {
        at_ms: 0,
        pending: 0,
        lost_events: 7,
        enforcing: false,
    };
    session.say(HostKind::Heartbeat(beat)).await;
    session.silent().await;
    let (_, hosts) = admin.get("/api/v1/hosts").await;
    let view = &hosts["items"][0];
    assert_eq!((&view["state"], &view["lost_events"]), (&json!("online"), &json!(7)));
    assert_eq!(
        (&view["enforcing"], &view["labels"]),
        (&json!(false), &json!(["coder"]))
    );

    let mut evidence = host.evidence(&console).await;
    let (send, receive) = tokio::sync::mpsc::channel::<RecordBatch>(1);
    let mut stored = evidence
        .append(tokio_stream::wrappers::ReceiverStream::new(receive))
        .await
        .unwrap()
        .into_inner();
    let path = format!("/api/v1/hosts/{}/revoke", host.id());
    assert_eq!(admin.send(admin.request("POST", &path)).await.0, 204);
    let end = loop {
        if let Err(end) = session.try_next().await {
            break end;
        }
    };
    assert_eq!(end.code(), Code::PermissionDenied);
    let end = tokio::time::timeout(std::time::Duration::from_secs(5), stored.message())
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied);
    drop(send);
    assert_eq!(host.open(&console).await.err().unwrap().code(), Code::PermissionDenied);
    let (_, hosts) = admin.get("/api/v1/hosts").await;
    assert_eq!(hosts["items"][0]["state"], "revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_asks_for_itself_only() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut a = console.host(&admin, "a").await;
    let mut b = console.host(&admin, "b").await;
    let mut from_b = b.connect(&console).await;
    let (of_a, _) = a.ask(&Question::new("coder", &["make"]));
    // A's record, sent by B.
    assert!(from_b.refused(&of_a).await.contains("not trusted"));
    // Signed by B, but naming A.
    let real = std::mem::replace(&mut b.reply.host_id, a.reply.host_id.clone());
    let (naming_a, _) = b.ask(&Question::new("coder", &["make"]));
    assert!(from_b.refused(&naming_a).await.contains("another host"));
    b.reply.host_id = real;
    // A's request id, used again by B.
    let mut from_a = a.connect(&console).await;
    from_a.ask(&of_a).await;
    let (mut ask, _) = b.ask(&Question::new("coder", &["make"]));
    ask.request_id.clone_from(&of_a.request_id);
    assert!(from_b.refused(&ask).await.contains("request id"));
    // Fields that do not repeat what the record says.
    let (good, _) = b.ask(&Question::new("coder", &["make"]));
    let changed = |change: &dyn Fn(&mut guard_proto::v1::Ask)| {
        let mut ask = good.clone();
        change(&mut ask);
        ask
    };
    for ask in [
        changed(&|a| a.quorum = 2),
        changed(&|a| a.approver_groups = vec!["me".to_owned()]),
        changed(&|a| a.nonce = vec![0; 32]),
        changed(&|a| a.expires_at_ms = 5),
        changed(&|a| a.record.push(b' ')),
        changed(&|a| a.record = b"{}".to_vec()),
        changed(&|a| a.record = vec![b'x'; 70_000]),
    ] {
        from_b.refused(&ask).await;
    }
    // B cannot end A's request.
    use guard_proto::v1::{Withdraw, withdraw};
    let withdraw = Withdraw {
        request_id: of_a.request_id.clone(),
        why: withdraw::Why::Died.into(),
    };
    from_b.say(HostKind::Withdraw(withdraw)).await;
    from_b.ask(&good).await;
    let (_, request) = admin.get(&format!("/api/v1/requests/{}", of_a.request_id)).await;
    assert_eq!(request["state"], "pending");
    // The same id with another record.
    let (other, _) = b.ask(&Question::new("coder", &["make", "again"]));
    let again = guard_proto::v1::Ask {
        request_id: good.request_id.clone(),
        ..other
    };
    from_b.refused(&again).await;
}
