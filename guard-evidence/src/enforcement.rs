//! From when to when enforcement was on, as a host's own records say it.
//!
//! Owns the reading of one host's chain as times. It is given its records in order. It must never call a time covered
//! that no record covers: programs in the kernel do not outlive a boot, and a silence is not known to have been anything.

use serde::{Deserialize, Serialize};

use crate::record::{Header, Lifecycle, Predicate, Statement};
use crate::text::visible_fold;

/// A time in which enforcement was on. RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Interval {
    pub from: String,
    /// Absent: still on at the last record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// A time in which it was off, or is not known to have been on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Away {
    pub from: String,
    pub to: String,
}

/// What one host's records say, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

/// Times of one host may differ by so much and still be the same moment: each is read from a clock that is being set.
const SLACK_SECONDS: i64 = 60;

/// Reads records of one host in the order of its chain.
#[derive(Debug, Clone, Default)]
pub struct Reader {
    told: Enforcement,
    boot: String,
    /// `allowed_while_away` of the last `Enforcing` of this interval.
    counted: u64,
    /// Since when it is off or not known, and why.
    off: Option<(String, String)>,
    /// An absence was told, and the start that ended it was not yet. Each covers one start alone.
    before_start: bool,
}

impl Reader {
    /// The next record. What it says that cannot be true after those before it, safe to show; that part is not believed.
    pub fn read(&mut self, header: &Header, statement: &Statement) -> Option<String> {
        let same_boot = self.told.until.is_none() || self.boot == header.boot_id;
        if !same_boot && self.is_on() {
            let last = self.told.until.clone().unwrap_or_default();
            self.close(&last, "the machine was started anew");
        }
        let doubt = match &statement.predicate {
            Predicate::Lifecycle(record) => self.event(header, &record.event, same_boot).err(),
            _ => None,
        };
        self.told.until = Some(header.at.clone());
        self.boot.clone_from(&header.boot_id);
        doubt
    }

    #[must_use]
    pub fn finish(mut self) -> Enforcement {
        if let Some((from, why)) = self.off {
            self.told.gaps.push(Gap { from, to: None, why });
        }
        self.told
    }

    fn event(&mut self, header: &Header, event: &Lifecycle, same_boot: bool) -> Result<(), String> {
        match event {
            Lifecycle::EnforcementOff { why, last_on } => {
                let why = visible_fold(why, 160);
                let from = self.told.on.last().map(|on| on.from.as_str());
                match last_on.as_deref() {
                    Some(last_on) if after(last_on, &header.at) || from.is_some_and(|from| after(from, last_on)) => {
                        let text = format!(
                            "says that enforcement was last on at {}, which cannot be",
                            shown(last_on)
                        );
                        self.close(&header.at, &why);
                        return Err(text);
                    }
                    last_on => self.close(last_on.unwrap_or(&header.at), &why),
                }
            }
            Lifecycle::AgentAway { from, to } => self.away(header, from, to, same_boot)?,
            Lifecycle::EnforcementOn { .. } => {
                let told = std::mem::take(&mut self.before_start);
                if self.is_on() && !(told && self.goes_on(&header.at)) {
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
                self.before_start = false;
                let doubt = self.claims(header, since);
                if !self.is_on() {
                    // It may reach back over the time for which there is no record in this part of the log.
                    self.open(if doubt.is_none() { since } else { &header.at });
                }
                // Counters begin anew with the programs.
                let more = counters.allowed_while_away.checked_sub(self.counted);
                self.told.let_through += more.unwrap_or(counters.allowed_while_away);
                self.counted = counters.allowed_while_away;
                return doubt.map_or(Ok(()), Err);
            }
            _ => {}
        }
        Ok(())
    }

    /// What is wrong with a claim that enforcement has been on since a time.
    fn claims(&self, header: &Header, since: &str) -> Option<String> {
        let since_shown = shown(since);
        if after(since, &header.at) {
            return Some(format!(
                "says that enforcement has been on since {since_shown}, which had not come yet"
            ));
        }
        let gap = match (&self.off, self.told.gaps.last()) {
            (Some((from, _)), _) => Some(from),
            (None, Some(gap)) => gap.to.as_ref(),
            (None, None) => None,
        };
        gap.filter(|gap| after(gap, since)).map(|gap| {
            format!(
                "says that enforcement has been on since {since_shown}, but earlier records know of none until {}",
                shown(gap)
            )
        })
    }

    fn away(&mut self, header: &Header, from: &str, to: &str, same_boot: bool) -> Result<(), String> {
        let says = format!(
            "says that enforcement went on without an agent from {} to {}",
            shown(from),
            shown(to)
        );
        if !same_boot {
            return Err(format!("{says}, but the machine was started anew in between"));
        }
        if after(from, to) || after(to, &header.at) {
            return Err(format!("{says}, which cannot be"));
        }
        if let Some((since, _)) = &self.off {
            return Err(format!("{says}, but it was off since {}", shown(since)));
        }
        if let Some(until) = self.told.until.as_deref().filter(|until| after(until, from)) {
            return Err(format!("{says}, but there was an agent at {}", shown(until)));
        }
        if !self.is_on() {
            self.open(from);
        }
        self.told.away.push(Away {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        // The next start goes on from here.
        self.told.until = Some(to.to_owned());
        self.before_start = true;
        Ok(())
    }

    fn is_on(&self) -> bool {
        self.told.on.last().is_some_and(|last| last.to.is_none())
    }

    /// Whether a start follows on an absence that reached up to it.
    fn goes_on(&self, at: &str) -> bool {
        let (Some(away), Some(at)) = (self.told.away.last(), seconds(at)) else {
            return false;
        };
        seconds(&away.to).is_some_and(|to| at.abs_diff(to) <= SLACK_SECONDS.unsigned_abs())
    }

    fn open(&mut self, from: &str) {
        if let Some((since, why)) = self.off.take() {
            self.told.gaps.push(Gap {
                from: since,
                to: Some(from.to_owned()),
                why,
            });
        }
        self.counted = 0;
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

fn shown(text: &str) -> String {
    visible_fold(text, 40)
}

fn seconds(text: &str) -> Option<i64> {
    text.parse().ok().map(jiff::Timestamp::as_second)
}

/// Whether one time is clearly after another; also if either is none.
fn after(one: &str, other: &str) -> bool {
    match (seconds(one), seconds(other)) {
        (Some(one), Some(other)) => one > other.saturating_add(SLACK_SECONDS),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::LifecycleRecord;
    use crate::testing::{at, enforcement_on as on};

    fn off() -> Lifecycle {
        Lifecycle::EnforcementOff {
            why: "removed".to_owned(),
            last_on: None,
        }
    }

    fn away(from: u32, to: u32) -> Lifecycle {
        Lifecycle::AgentAway {
            from: at(from),
            to: at(to),
        }
    }

    fn enforcing(since: u32) -> Lifecycle {
        Lifecycle::Enforcing {
            since: at(since),
            stopping: false,
            counters: crate::record::KernelCounters::default(),
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
        // Nor does one that another start ended, however short a while ago.
        let told = read(&[(3, "a", on()), (4, "a", away(3, 4)), (4, "a", on()), (4, "a", on())]);
        assert_eq!(told.gaps.len(), 1, "{told:?}");
        let told = read(&[
            (3, "a", on()),
            (4, "a", away(3, 4)),
            (4, "a", enforcing(3)),
            (4, "a", on()),
        ]);
        assert_eq!(told.gaps.len(), 1, "{told:?}");
    }
}
