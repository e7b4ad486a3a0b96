//! `guard evidence verify --report`: what an auditor reads, made of signed records with a hostile workload in them.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_evidence::chain::{Chain, Sealed, Stamp};
use guard_evidence::dsse;
use guard_evidence::key::SigningKey;
use guard_evidence::record::*;
use guard_evidence::statement::strings_sha256;
use guard_evidence::text::Text;

use crate::evidence::{ORIGIN, SEEDS, bundle_of};
use crate::{guard, run};

const HOSTILE: &str = "<script>alert(1)</script>\u{202E}\u{1b}[2J";

struct Story {
    chain: Chain,
    log: Vec<Vec<u8>>,
    /// Seconds after ten o'clock.
    now: u64,
}

impl Story {
    fn at(&self) -> String {
        format!("2026-11-21T10:{:02}:{:02}.000Z", self.now / 60, self.now % 60)
    }

    fn seal(&mut self, make: impl FnOnce(Header) -> Predicate) -> Sealed {
        let stamp = Stamp {
            at: self.at(),
            since_boot_ns: self.now + 1,
            boot_id: "b".to_owned(),
        };
        let sealed = self
            .chain
            .seal(&SigningKey::from_seed(&[SEEDS[0]; 32]), stamp, make)
            .unwrap();
        self.log.push(sealed.envelope.clone());
        sealed
    }

    fn happens(&mut self, event: Lifecycle) {
        self.seal(|header| Predicate::Lifecycle(Box::new(LifecycleRecord { header, event })));
    }

    fn asks(&mut self, id: &str, argv: &[&str]) -> (RequestRecord, String) {
        let workload = WorkloadFacts {
            label: "coder".to_owned(),
            cgroup: Text::from("/guard.slice"),
            container_id: None,
            uid: 1000,
            gid: 1000,
            user: None,
            login_uid: None,
            pid: 7,
            tid: 7,
            ancestry: vec![],
        };
        let exec = ExecAction {
            path: Some(Text::from("/usr/bin/git")),
            unlinked: false,
            device: 1,
            inode: 2,
            generation: 3,
            sha256: Some("ab".repeat(32)),
            size: Some(1),
            given: Text::from("git"),
            argv: argv.iter().map(|word| Text::from(*word)).collect(),
            argv_count: argv.len() as u64,
            argv_sha256: strings_sha256(argv),
            argv_truncated: false,
            environment: vec![],
            environment_count: 0,
            environment_sha256: strings_sha256::<&str>(&[]),
            cwd: Text::from("/srv"),
        };
        let mut made = None;
        let sealed = self.seal(|header| {
            let request = RequestRecord {
                header,
                request_id: id.to_owned(),
                host: HostFacts {
                    id: "H".to_owned(),
                    name: "build-7".to_owned(),
                    kernel: "6.12.0".to_owned(),
                    agent_version: "0.1.0".to_owned(),
                },
                workload,
                action: Action::Exec(Box::new(exec)),
                context: None,
                why: Why {
                    rules: vec![],
                    approver_groups: vec![],
                    quorum: 1,
                    policy_digest: "cd".repeat(32),
                    risks: vec![],
                    tags: vec![],
                },
                claims: None,
                nonce: "ef".repeat(32),
                expires_at: None,
            };
            made = Some(request.clone());
            Predicate::Request(Box::new(request))
        });
        (made.unwrap(), sealed.payload_digest)
    }

    fn people(&self, request: &RequestRecord, digest: &str, name: &str, verdict: Verdict, reason: &str) -> DecidedBy {
        let answer = Answer {
            who: PersonId {
                issuer: "local".to_owned(),
                subject: name.to_owned(),
            },
            name: name.to_owned(),
            groups: vec![],
            roles: vec!["approver".to_owned()],
            verdict,
            reason: reason.to_owned(),
            at: self.at(),
            channel: "web".to_owned(),
            signed_in_at: "2026-11-21T09:00:00.000Z".to_owned(),
            shown_digest: digest.to_owned(),
            authentication: None,
        };
        let signed = SignedDecision {
            console: ORIGIN.to_owned(),
            host_id: "H".to_owned(),
            request_id: request.request_id.clone(),
            request_digest: digest.to_owned(),
            nonce: request.nonce.clone(),
            verdict,
            answers: vec![answer],
            quorum: 1,
            owner: None,
            changes: None,
            grant: None,
            issued_at: self.at(),
            expires_at: "2026-11-21T11:00:00.000Z".to_owned(),
        };
        let statement = Statement::new(Predicate::SignedDecision(Box::new(signed)));
        let key = SigningKey::from_seed(&[SEEDS[1]; 32]);
        DecidedBy::People {
            envelope: STANDARD.encode(dsse::sign(&statement.to_payload().unwrap(), &key).unwrap()),
        }
    }

    fn ends(&mut self, request: &RequestRecord, digest: &str, verdict: Verdict, by: DecidedBy) {
        let (request_id, request_digest) = (request.request_id.clone(), digest.to_owned());
        let received_at = self.at();
        let decision = self.seal(|header| {
            Predicate::Decision(Box::new(DecisionRecord {
                header,
                request_id: request_id.clone(),
                request_digest: request_digest.clone(),
                verdict,
                by,
                received_at,
            }))
        });
        self.seal(|header| {
            Predicate::Enforcement(Box::new(EnforcementRecord {
                header,
                label: "coder".to_owned(),
                request_id: Some(request_id),
                request_digest: Some(request_digest),
                decision_digest: Some(decision.payload_digest),
                by_policy: None,
                verdict,
                effect: match verdict {
                    Verdict::Allow => Effect::Ran,
                    Verdict::Deny => Effect::Denied,
                },
                resume_ns: 1,
            }))
        });
    }

    /// Approved after 2 and 4 s, denied after 40 s with a reason, timed out; a theft; a gap in enforcement.
    fn whole() -> Self {
        let mut story = Self {
            chain: Chain::begin("host:H", 1),
            log: Vec::new(),
            now: 0,
        };
        let on = || Lifecycle::EnforcementOn {
            kernel: "6.12.0".to_owned(),
            agent_version: "0.1.0".to_owned(),
            programs: vec![],
        };
        story.happens(on());
        for (id, seconds) in [("R1", 2), ("R2", 4)] {
            let (request, digest) = story.asks(id, &["git", "push"]);
            story.now += seconds;
            let by = story.people(&request, &digest, "alice", Verdict::Allow, "");
            story.ends(&request, &digest, Verdict::Allow, by);
        }
        let (request, digest) = story.asks("R3", &["git", HOSTILE]);
        story.now += 40;
        let by = story.people(&request, &digest, "bob <b>", Verdict::Deny, HOSTILE);
        story.ends(&request, &digest, Verdict::Deny, by);
        let (request, digest) = story.asks("R4", &["git", "gc"]);
        story.ends(&request, &digest, Verdict::Deny, DecidedBy::Timeout);
        story.happens(Lifecycle::TheftRefused {
            label: "coder".to_owned(),
            object: "sign-in".to_owned(),
            count: 3,
            pid: 7,
            uid: 1000,
            comm: Text::from(HOSTILE),
        });
        story.happens(Lifecycle::EnforcementOff {
            why: "asked to".to_owned(),
            last_on: None,
        });
        story.now += 600;
        story.happens(on());
        story
    }

    /// The page, and the exit status of the verification.
    fn page(&self, home: &Path, status: i32, change: impl FnOnce(&mut Vec<u8>)) -> String {
        let (mut tar, trust) = bundle_of(&self.log);
        change(&mut tar);
        let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
        fs::write(path("b.tar"), tar).unwrap();
        fs::write(path("trust.json"), trust).unwrap();
        let (bundle, trust, report) = (path("b.tar"), path("trust.json"), path("report.html"));
        let args = ["evidence", "verify", &bundle, "--trust", &trust, "--report", &report];
        run(&mut guard(home, &args)).expect(status, &[]);
        fs::read_to_string(report).unwrap()
    }
}

/// The text of a table's row that begins with this heading.
fn row(page: &str, table: &str, heading: &str) -> Vec<String> {
    let from = page.find(&format!("id=\"{table}\"")).unwrap();
    let row = page[from..].find(&format!("scope=\"row\">{heading}</th>")).unwrap() + from;
    let end = page[row..].find("</tr>").unwrap() + row;
    let cells = page[row..end].split("<td").skip(1);
    cells
        .map(|cell| {
            cell.split_once('>')
                .unwrap()
                .1
                .split("</td>")
                .next()
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[test]
fn the_report_says_what_happened() {
    let home = tempfile::tempdir().unwrap();
    let page = Story::whole().page(home.path(), 0, |_| {});
    assert!(page.contains("Verification: VALID"), "{page}");
    // All, allowed: people, grants, policy, rules; denied: people, policy, host, timed out, killed; ended.
    let counts = ["4", "2", "2", "0", "0", "0", "2", "1", "0", "0", "1", "0", "0"];
    assert_eq!(row(&page, "actions", "exec"), counts);
    assert_eq!(row(&page, "actions", "All"), counts);
    assert!(
        page.contains("<dt>Median</dt><dd>4.0 s</dd><dt>95th percentile</dt><dd>40.0 s</dd>"),
        "{page}"
    );
    assert_eq!(row(&page, "approvers", "alice"), ["local alice", "2", "0", "0"]);
    assert!(page.contains("NOT known to be enforced from 2026-11-21T10:00:46.000Z to 2026-11-21T10:10:46.000Z"));
    assert!(page.contains("coder tried 3 times to reach sign-in"));
    // Records 2, 5 and 8 are decisions of people, 11 the time-out's.
    assert_eq!(
        row(&page, "controls", "AC-5")[1..],
        ["3".to_owned(), "2, 5, 8".to_owned()]
    );
    assert_eq!(
        row(&page, "controls", "SC-8")[1..],
        ["0".to_owned(), "nothing in these records".to_owned()]
    );
    assert_eq!(
        row(&page, "controls", "AU-12"),
        ["Audit record generation", "16", "0–15"].map(str::to_owned)
    );
    assert!(page.contains("This does not say that a control is satisfied."));
}

#[test]
fn nothing_in_the_report_is_markup_or_comes_from_elsewhere() {
    let home = tempfile::tempdir().unwrap();
    let page = Story::whole().page(home.path(), 0, |_| {});
    assert_eq!(
        page.matches("<b>").count() + page.matches("<script").count(),
        0,
        "{page}"
    );
    assert!(
        page.contains("&#60;script&#62;alert(1)&#60;/script&#62;⟨U+202E⟩⟨U+001B⟩[2J"),
        "{page}"
    );
    assert!(!page.contains('\u{202E}') && !page.contains('\u{1b}'));
    for word in ["http://", "https://", "src=", "href=", "@import", "url("] {
        assert!(!page.contains(word), "{word}");
    }
}

#[test]
fn what_does_not_hold_is_said_and_does_not_count() {
    let home = tempfile::tempdir().unwrap();
    let mut story = Story::whole();
    // A decision that another key signed, and what went on by it.
    let (request, digest) = story.asks("R5", &["git", "push"]);
    let DecidedBy::People { envelope } = story.people(&request, &digest, "mallory", Verdict::Allow, "") else {
        panic!("not people")
    };
    let signed = dsse::parse(&STANDARD.decode(envelope).unwrap())
        .unwrap()
        .unverified_payload()
        .to_vec();
    let forged = dsse::sign(&signed, &SigningKey::from_seed(&[9; 32])).unwrap();
    let by = DecidedBy::People {
        envelope: STANDARD.encode(forged),
    };
    story.ends(&request, &digest, Verdict::Allow, by);
    let page = story.page(home.path(), 1, |_| {});
    assert!(page.contains("Verification: INVALID"), "{page}");
    assert!(page.contains("2 records whose signatures hold do not count"), "{page}");
    assert!(page.contains("1 questions have no end in these records"), "{page}");
    assert_eq!(row(&page, "actions", "exec")[..2], ["4", "2"]);
    assert!(!page.contains("mallory"), "{page}");

    // A record that was altered after it was signed is nobody's: only the finding tells of it.
    let page = Story::whole().page(home.path(), 1, |tar| {
        let at = tar.windows(10).position(|bytes| bytes == b"{\"payload\"").unwrap() + 40;
        tar[at] ^= 1;
    });
    assert!(page.contains("INVALID: record 0: "), "{page}");
}

/// WCAG 2.2 AA: text stands out by at least 4.5 from what is behind it.
#[test]
fn colours_can_be_read() {
    let home = tempfile::tempdir().unwrap();
    let page = Story::whole().page(home.path(), 0, |_| {});
    let colour = |name: &str| {
        let at = page.find(&format!("--{name}: #")).unwrap() + name.len() + 5;
        u32::from_str_radix(&page[at..at + 6], 16).unwrap()
    };
    let luminance = |colour: u32| {
        let part = |shift: u32| {
            let c = f64::from((colour >> shift) & 0xFF) / 255.0;
            if c <= 0.04045 {
                c / 12.92
            } else {
                ((c + 0.055) / 1.055).powf(2.4)
            }
        };
        0.2126 * part(16) + 0.7152 * part(8) + 0.0722 * part(0)
    };
    for text in ["ink", "dim", "good", "doubt", "bad"] {
        for behind in [0x00FF_FFFF, colour("soft")] {
            let ratio = (luminance(behind) + 0.05) / (luminance(colour(text)) + 0.05);
            assert!(ratio >= 4.5, "{text}: {ratio}");
        }
    }
}
