//! Enrolled machines that speak gRPC and sign records.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_evidence::chain::{Chain, Sealed, Stamp};
use guard_evidence::key::SigningKey;
use guard_evidence::record::{
    Action, ChainEnd, DecidedBy, DecisionRecord, Effect, EnforcementRecord, HostFacts, Lifecycle, LifecycleRecord,
    MatchedRule, Predicate, RequestRecord, Verdict, Why,
};
use guard_proto::v1::approval_client::ApprovalClient;
use guard_proto::v1::console_message::Kind as ConsoleKind;
use guard_proto::v1::evidence_client::EvidenceClient;
use guard_proto::v1::host_message::Kind as HostKind;
use guard_proto::v1::{Ask, ConsoleMessage, EnrollReply, Hello, HostMessage, RecordBatch, RecordFrame, RecordsStored};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Identity};
use ulid::Ulid;

use super::console::Console;
use super::question::{self, Question};

/// An enrolled machine.
pub(crate) struct Host {
    pub(crate) reply: EnrollReply,
    pub(crate) identity: Identity,
    pub(crate) evidence_key: SigningKey,
    pub(crate) chain: Chain,
}

impl Host {
    pub(crate) fn id(&self) -> &str {
        &self.reply.host_id
    }

    fn stamp() -> Stamp {
        let at = guard_console::time::rfc3339(guard_console::time::now());
        Stamp {
            at,
            since_boot_ns: 1,
            boot_id: "boot".to_owned(),
        }
    }

    /// Signs the next record of this host's chain.
    pub(crate) fn seal(&mut self, make: impl FnOnce(guard_evidence::record::Header) -> Predicate) -> Sealed {
        self.chain.seal(&self.evidence_key, Self::stamp(), make).unwrap()
    }

    pub(crate) fn tells(&mut self, event: Lifecycle) -> Sealed {
        self.seal(|header| Predicate::Lifecycle(Box::new(LifecycleRecord { header, event })))
    }

    /// The key that follows, and the records of it: the old key names it, and it begins an epoch.
    pub(crate) fn replaces_key(&mut self, key: SigningKey) -> [Sealed; 2] {
        let named = self.tells(Lifecycle::NextKey { key: key.public() });
        [named, self.begins_with(key)]
    }

    pub(crate) fn begins_with(&mut self, key: SigningKey) -> Sealed {
        let after = self.chain.end();
        self.chain = self.chain.next_epoch();
        self.evidence_key = key;
        self.begins_after(after)
    }

    /// The first record of the epoch that the chain is in.
    pub(crate) fn begins_after(&mut self, after: Option<ChainEnd>) -> Sealed {
        self.tells(Lifecycle::Begun {
            why: "the key was replaced".to_owned(),
            key: self.evidence_key.public().to_pem().unwrap(),
            after,
        })
    }

    /// Some record.
    pub(crate) fn lifecycle(&mut self) -> Sealed {
        self.tells(Lifecycle::EventsLost { count: 1 })
    }

    pub(crate) fn ask(&mut self, question: &Question<'_>) -> (Ask, Sealed) {
        let id = Ulid::new().to_string();
        let nonce: [u8; 32] = rand::random();
        let host = HostFacts {
            id: self.reply.host_id.clone(),
            name: self.reply.hostname.clone(),
            kernel: "6.12.0".to_owned(),
            agent_version: "0.1.0".to_owned(),
        };
        let request = |header| {
            let expires = (question.expires_at_ms != 0).then(|| guard_console::time::rfc3339(question.expires_at_ms));
            Predicate::Request(Box::new(RequestRecord {
                header,
                request_id: id.clone(),
                host,
                workload: question::workload(question.label, question.evil.as_ref()),
                action: question
                    .action
                    .clone()
                    .unwrap_or_else(|| Action::Exec(Box::new(question::exec(&question.argv, question.evil.as_ref())))),
                context: None,
                why: Why {
                    rules: vec![MatchedRule {
                        id: "code-push".to_owned(),
                        description: "Pushing code asks first.".to_owned(),
                    }],
                    approver_groups: question.groups.clone(),
                    quorum: question.quorum,
                    policy_digest: "cd".repeat(32),
                    risks: vec![],
                    tags: vec![],
                },
                claims: question.claims.clone(),
                nonce: hex::encode(nonce),
                expires_at: expires,
            }))
        };
        let sealed = self.seal(request);
        let ask = Ask {
            request_id: id,
            record: sealed.envelope.clone(),
            approver_groups: question.groups.clone(),
            quorum: question.quorum,
            expires_at_ms: question.expires_at_ms,
            nonce: nonce.to_vec(),
        };
        (ask, sealed)
    }

    pub(crate) async fn connect(&self, console: &Console) -> Session {
        let mut session = self.open(console).await.unwrap();
        let welcome = session.next().await;
        assert!(matches!(welcome, ConsoleKind::Welcome(_)), "{welcome:?}");
        session
    }

    pub(crate) async fn open(&self, console: &Console) -> Result<Session, tonic::Status> {
        let (send, receive) = mpsc::channel(64);
        let hello = Hello {
            agent_version: "0.1.0".to_owned(),
            protocol_version: 1,
            kernel_release: "6.12.0".to_owned(),
            boot_id: "boot".to_owned(),
            policy_digest: "cd".repeat(32),
            labels: vec!["coder".to_owned()],
            enforcing: true,
            enforcing_since_ms: 1_700_000_000_000,
        };
        send.send(HostMessage {
            kind: Some(HostKind::Hello(hello)),
        })
        .await
        .unwrap();
        let channel = console.channel(Some(&self.identity)).await;
        let messages = ApprovalClient::new(channel)
            .session(ReceiverStream::new(receive))
            .await?
            .into_inner();
        Ok(Session { send, messages })
    }

    pub(crate) async fn evidence(&self, console: &Console) -> EvidenceClient<Channel> {
        EvidenceClient::new(console.channel(Some(&self.identity)).await)
    }

    /// Ships batches of records; gives the sequence through which each is stored.
    pub(crate) async fn append(&self, console: &Console, batches: Vec<RecordBatch>) -> Result<Vec<u64>, tonic::Status> {
        let answers = self.receipts(console, batches).await?;
        Ok(answers.iter().map(|answer| answer.through_sequence).collect())
    }

    /// As [`Self::append`], with all that the console answers.
    pub(crate) async fn receipts(
        &self,
        console: &Console,
        batches: Vec<RecordBatch>,
    ) -> Result<Vec<RecordsStored>, tonic::Status> {
        let mut client = self.evidence(console).await;
        let mut stored = client.append(tokio_stream::iter(batches)).await?.into_inner();
        let mut answers = Vec::new();
        while let Some(answer) = stored.message().await? {
            answers.push(answer);
        }
        Ok(answers)
    }

    /// Ships these records.
    pub(crate) async fn ship(&self, console: &Console, records: &[&Sealed]) {
        self.append(console, vec![batch(records)]).await.unwrap();
    }

    /// Records as an agent makes them of an approval: received, and ran.
    pub(crate) fn carried_out(&mut self, request: &str, digest: &str, envelope: &[u8]) -> [Sealed; 2] {
        let decided = self.seal(|header| {
            Predicate::Decision(Box::new(DecisionRecord {
                header,
                request_id: request.to_owned(),
                request_digest: digest.to_owned(),
                verdict: Verdict::Allow,
                by: DecidedBy::People {
                    envelope: STANDARD.encode(envelope),
                },
                received_at: guard_console::time::rfc3339(guard_console::time::now()),
            }))
        });
        let ran = self.seal(|header| {
            Predicate::Enforcement(Box::new(EnforcementRecord {
                header,
                label: "coder".to_owned(),
                request_id: Some(request.to_owned()),
                request_digest: Some(digest.to_owned()),
                decision_digest: Some(decided.payload_digest.clone()),
                by_policy: None,
                verdict: Verdict::Allow,
                effect: Effect::Ran,
                resume_ns: 1,
            }))
        });
        [decided, ran]
    }
}

/// A batch of these records, of one epoch.
pub(crate) fn batch(records: &[&Sealed]) -> RecordBatch {
    let frame = |record: &&Sealed| RecordFrame {
        sequence: record.header.sequence,
        envelope: record.envelope.clone(),
    };
    RecordBatch {
        epoch: records[0].header.epoch,
        records: records.iter().map(frame).collect(),
        known_size: 0,
    }
}

/// A live stream.
pub(crate) struct Session {
    pub(crate) send: mpsc::Sender<HostMessage>,
    pub(crate) messages: Streaming<ConsoleMessage>,
}

impl Session {
    pub(crate) async fn say(&self, kind: HostKind) {
        self.send.send(HostMessage { kind: Some(kind) }).await.unwrap();
    }

    /// The next message, or the status with which the stream ended.
    pub(crate) async fn try_next(&mut self) -> Result<ConsoleKind, tonic::Status> {
        let message = tokio::time::timeout(Duration::from_secs(60), self.messages.message());
        let message = message.await.expect("a message within ten seconds")?;
        Ok(message.expect("a message, not the end").kind.unwrap())
    }

    pub(crate) async fn next(&mut self) -> ConsoleKind {
        self.try_next().await.unwrap()
    }

    /// Asks. Decisions of earlier questions, which may come in between, are let go by.
    pub(crate) async fn ask(&mut self, ask: &Ask) {
        self.say(HostKind::Ask(ask.clone())).await;
        loop {
            match self.next().await {
                ConsoleKind::AskReceived(received) => {
                    assert_eq!(received.request_id, ask.request_id);
                    assert!(received.accepted, "{}", received.refused_because);
                    return;
                }
                ConsoleKind::Decision(earlier) if earlier.request_id != ask.request_id => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn refused(&mut self, ask: &Ask) -> String {
        self.say(HostKind::Ask(ask.clone())).await;
        match self.next().await {
            ConsoleKind::AskReceived(received) if !received.accepted => received.refused_because,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn decision(&mut self) -> guard_proto::v1::Decision {
        match self.next().await {
            ConsoleKind::Decision(decision) => decision,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing arrives for a while.
    pub(crate) async fn silent(&mut self) {
        let next = tokio::time::timeout(Duration::from_millis(300), self.messages.message()).await;
        assert!(next.is_err(), "{next:?}");
    }
}
