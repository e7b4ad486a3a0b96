//! From when to when enforcement was on, as a host's own records say it.
//!
//! Owns the reading of one host's chain as times. It is given its records in order. It must never call a time covered
//! that no record covers: programs in the kernel do not outlive a boot, and a silence is not known to have been anything.

use serde::{Deserialize, Serialize};

use crate::record::{Header, Lifecycle, Predicate, Statement};
use crate::text::visible_fold;

/// A time in which enforcement was on. RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    pub from: String,
    /// Absent: still on at the last record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// A time in which it was off, or is not known to have been on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub from: String,
    /// Absent: until now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Safe to show.
    pub why: String,
}

/// A time without an agent in which the kernel programs stayed in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    pub from: String,
    pub to: String,
}

/// What one host's records say, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enforcement {
    pub on: Vec<Interval>,
    pub gaps: Vec<Gap>,
    pub away: Vec<Away>,
    /// Actions that went on without an agent, because the configuration of a label says so.
    pub let_through: u64,
    /// Time of the last record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

impl Enforcement {
    /// In words, one line each: times on, gaps, absences of the agent. Safe to show.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let time = |text: &str| visible_fold(text, 40);
        let mut lines = Vec::new();
        for on in &self.on {
            let to = match (&on.to, &self.until) {
                (Some(to), _) => format!("to {}", time(to)),
                (None, Some(until)) => format!("and still at its last record, {}", time(until)),
                (None, None) => "on".to_owned(),
            };
            lines.push(format!("enforcement on from {} {to}", time(&on.from)));
        }
        for gap in &self.gaps {
            let to = gap
                .to
                .as_deref()
                .map_or_else(|| "on".to_owned(), |to| format!("to {}", time(to)));
            lines.push(format!(
                "NOT known to be enforced from {} {to}: {}",
                time(&gap.from),
                gap.why
            ));
        }
        for away in &self.away {
            lines.push(format!(
                "without an agent from {} to {}; enforcement stayed on",
                time(&away.from),
                time(&away.to)
            ));
        }
        if self.let_through > 0 {
            lines.push(format!(
                "{} actions went on without an agent, because the host's configuration lets them",
                self.let_through
            ));
        }
        lines
    }
}

/// Reads records of one host in the order of its chain.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    told: Enforcement,
    boot: String,
    /// `since` and `allowed_while_away` of the last `Enforcing`.
    counted: (String, u64),
    /// Since when it is off or not known, and why.
    off: Option<(String, String)>,
}

impl Reader {
    /// The next record.
    pub fn read(&mut self, header: &Header, statement: &Statement) {
        let same_boot = self.told.until.is_none() || self.boot == header.boot_id;
        if !same_boot && self.is_on() {
            let last = self.told.until.clone().unwrap_or_default();
            self.close(&last, "the machine was started anew");
        }
        if let Predicate::Lifecycle(record) = &statement.predicate {
            self.event(header, &record.event, same_boot);
        }
        self.told.until = Some(header.at.clone());
        self.boot.clone_from(&header.boot_id);
    }

    #[must_use]
    pub fn finish(mut self) -> Enforcement {
        if let Some((from, why)) = self.off {
            self.told.gaps.push(Gap { from, to: None, why });
        }
        self.told
    }

    fn event(&mut self, header: &Header, event: &Lifecycle, same_boot: bool) {
        match event {
            Lifecycle::EnforcementOff { why } => self.close(&header.at, &visible_fold(why, 160)),
            Lifecycle::AgentAway { from, to } if same_boot => {
                if !self.is_on() && self.off.is_none() {
                    self.open(from);
                }
                if self.is_on() {
                    self.told.away.push(Away {
                        from: from.clone(),
                        to: to.clone(),
                    });
                    // The next start goes on from here.
                    self.told.until = Some(to.clone());
                }
            }
            Lifecycle::EnforcementOn { .. } => {
                if self.is_on() && !self.goes_on(&header.at) {
                    let last = self.told.until.clone().unwrap_or_default();
                    self.close(
                        &last,
                        "the agent ended, and no record says that the kernel programs stayed",
                    );
                }
                if !self.is_on() {
                    self.open(&header.at);
                }
            }
            Lifecycle::Enforcing { since, counters, .. } => {
                let before = if self.counted.0 == *since { self.counted.1 } else { 0 };
                self.told.let_through += counters.allowed_while_away.saturating_sub(before);
                self.counted = (since.clone(), counters.allowed_while_away);
                // It may reach back over the time for which there is no record in this part of the log.
                if !self.is_on() {
                    self.open(since);
                }
            }
            _ => {}
        }
    }

    fn is_on(&self) -> bool {
        self.told.on.last().is_some_and(|last| last.to.is_none())
    }

    /// Whether a start follows on an absence that reached up to it.
    fn goes_on(&self, at: &str) -> bool {
        const SECONDS: i64 = 60;
        let (Some(away), Ok(at)) = (self.told.away.last(), at.parse::<jiff::Timestamp>()) else {
            return false;
        };
        away.to
            .parse::<jiff::Timestamp>()
            .is_ok_and(|to| (at.as_second() - to.as_second()).abs() <= SECONDS)
    }

    fn open(&mut self, from: &str) {
        if let Some((since, why)) = self.off.take() {
            self.told.gaps.push(Gap {
                from: since,
                to: Some(from.to_owned()),
                why,
            });
        }
        self.told.on.push(Interval {
            from: from.to_owned(),
            to: None,
        });
    }

    fn close(&mut self, at: &str, why: &str) {
        if let Some(last) = self.told.on.last_mut()
            && last.to.is_none()
        {
            last.to = Some(at.to_owned());
        }
        if self.off.is_none() {
            self.off = Some((at.to_owned(), why.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::LifecycleRecord;

    fn at(minute: u32) -> String {
        format!("2026-11-21T10:{minute:02}:00.000Z")
    }

    fn on() -> Lifecycle {
        Lifecycle::EnforcementOn {
            kernel: "6.12.0".to_owned(),
            agent_version: "0.1.0".to_owned(),
            programs: vec![],
        }
    }

    fn off() -> Lifecycle {
        Lifecycle::EnforcementOff {
            why: "removed".to_owned(),
        }
    }

    fn away(from: u32, to: u32) -> Lifecycle {
        Lifecycle::AgentAway {
            from: at(from),
            to: at(to),
        }
    }

    /// Minutes, boots and events.
    fn read(events: &[(u32, &str, Lifecycle)]) -> Enforcement {
        let mut reader = Reader::default();
        for (minute, boot, event) in events {
            let header = Header {
                at: at(*minute),
                boot_id: (*boot).to_owned(),
                ..crate::testing::header(1)
            };
            let record = LifecycleRecord {
                header: header.clone(),
                event: event.clone(),
            };
            reader.read(&header, &Statement::new(Predicate::Lifecycle(Box::new(record))));
        }
        reader.finish()
    }

    /// Minutes from and to.
    type Times = Vec<(&'static str, Option<&'static str>)>;

    fn times(told: &Enforcement) -> (Times, Times) {
        let minute = |text: &str| -> &'static str {
            let text = text.get(14..16).unwrap().to_owned();
            Box::leak(text.into_boxed_str())
        };
        (
            told.on
                .iter()
                .map(|i| (minute(&i.from), i.to.as_deref().map(minute)))
                .collect(),
            told.gaps
                .iter()
                .map(|g| (minute(&g.from), g.to.as_deref().map(minute)))
                .collect(),
        )
    }

    #[test]
    fn an_agent_that_was_away_is_no_gap() {
        let told = read(&[(1, "a", on()), (9, "a", away(5, 9)), (9, "a", on())]);
        assert_eq!(times(&told), (vec![("01", None)], vec![]));
        assert_eq!(told.away.len(), 1);
        // An absence alone, at the beginning of a part: it was on then.
        let told = read(&[(9, "a", away(5, 9)), (9, "a", on())]);
        assert_eq!(times(&told), (vec![("05", None)], vec![]));
    }

    #[test]
    fn off_and_on_again_is_a_gap() {
        let told = read(&[(1, "a", on()), (5, "a", off()), (9, "a", on())]);
        assert_eq!(
            times(&told),
            (vec![("01", Some("05")), ("09", None)], vec![("05", Some("09"))])
        );
        assert_eq!(told.gaps[0].why, "removed");
        let told = read(&[(1, "a", on()), (5, "a", off())]);
        assert_eq!(times(&told), (vec![("01", Some("05"))], vec![("05", None)]));
    }

    #[test]
    fn what_no_record_covers_is_a_gap() {
        // Started again without a word of what was in between.
        let told = read(&[
            (1, "a", on()),
            (5, "a", Lifecycle::EventsLost { count: 1 }),
            (9, "a", on()),
        ]);
        assert_eq!(
            times(&told),
            (vec![("01", Some("05")), ("09", None)], vec![("05", Some("09"))])
        );
        // Another boot: programs do not outlive it, whatever a record claims.
        let told = read(&[(1, "a", on()), (9, "b", away(1, 9)), (9, "b", on())]);
        assert_eq!(
            times(&told),
            (vec![("01", Some("01")), ("09", None)], vec![("01", Some("09"))])
        );
        assert!(told.away.is_empty());
        // An absence of long ago does not cover a later start.
        let told = read(&[(1, "a", on()), (4, "a", away(2, 4)), (4, "a", on()), (20, "a", on())]);
        assert_eq!(told.gaps.len(), 1, "{told:?}");
    }
}
