//! What a host says of its own enforcement.

use guard_evidence::enforcement::Reader;
use guard_evidence::record::{Header, KernelCounters, Lifecycle, LifecycleRecord, Predicate, Statement};
use jiff::Timestamp;

use crate::evidence::shown_safely;

/// 2026-01-01T00:00:00Z.
const BEGIN: i64 = 1_767_225_600;
/// Clocks of one host may differ by so much.
const SLACK: i64 = 60;

/// A chain of lifecycle records whose own times only grow, and whose claims may be anything: six bytes for each.
pub fn lifecycle(data: &[u8]) {
    let mut reader = Reader::default();
    let mut minute = 0;
    for (number, bytes) in data.chunks_exact(6).enumerate() {
        let &[kind, step, one, other, more, text] = bytes else {
            return;
        };
        minute += i64::from(step);
        let header = Header {
            signer: "host:01J00000000000000000000000".to_owned(),
            epoch: 1,
            sequence: number as u64 + 1,
            previous: "0".repeat(64),
            at: at(minute),
            since_boot_ns: 0,
            boot_id: format!("boot {}", kind >> 6),
        };
        // A claim may be of before, of now, of later, or no time at all.
        let claim = |byte: u8| match byte {
            0xff => String::from_utf8_lossy(&[text, 0x1b, text]).into_owned(),
            _ => at(minute - 128 + i64::from(byte)),
        };
        let event = match kind % 6 {
            0 => Lifecycle::EnforcementOn {
                kernel: String::new(),
                agent_version: String::new(),
                programs: Vec::new(),
            },
            1 => Lifecycle::EnforcementOff {
                why: claim(one),
                last_on: (more % 2 == 0).then(|| claim(other)),
            },
            2 => Lifecycle::AgentAway {
                from: claim(one),
                to: claim(other),
            },
            3 => Lifecycle::Enforcing {
                since: claim(one),
                stopping: more % 2 == 0,
                counters: KernelCounters {
                    allowed_while_away: u64::from(other),
                    ..KernelCounters::default()
                },
            },
            4 => Lifecycle::Recovered { cut_bytes: more.into() },
            _ => Lifecycle::Unprotected {
                path: bytes.into(),
                because: claim(one),
            },
        };
        let record = LifecycleRecord {
            header: header.clone(),
            event,
        };
        let statement = Statement::new(Predicate::Lifecycle(Box::new(record)));
        shown_safely(&guard_evidence::statement::summary(&statement));
        if let Some(doubt) = reader.read(&header, &statement) {
            shown_safely(&doubt);
        }
    }
    let told = reader.finish();
    for line in told.lines() {
        shown_safely(&line);
    }
    // Nothing is called on before it was, after it was off, or twice.
    let mut end = None;
    for (number, on) in told.on.iter().enumerate() {
        let (Some(from), to) = (seconds(&on.from), on.to.as_deref().map(seconds)) else {
            panic!("on since no time: {:?}", on.from)
        };
        assert!(from <= BEGIN + minute * 60 + SLACK, "on in the future: {told:?}");
        if let Some(end) = end {
            assert!(from + SLACK >= end, "on twice at a time: {told:?}");
        }
        match to {
            Some(Some(to)) => {
                assert!(to + SLACK >= from, "off before it was on: {told:?}");
                end = Some(to);
            }
            Some(None) => panic!("off at no time: {told:?}"),
            None => assert_eq!(number + 1, told.on.len(), "on without an end, and again: {told:?}"),
        }
    }
}

fn at(minute: i64) -> String {
    Timestamp::from_second(BEGIN + minute * 60).map_or_else(|_| String::new(), |at| at.to_string())
}

fn seconds(text: &str) -> Option<i64> {
    text.parse().ok().map(Timestamp::as_second)
}
