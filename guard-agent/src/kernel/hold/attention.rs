//! How long the holder looks for the next question before it sleeps.
//!
//! Owns the measure of it; given the times of answers. To wake a thread on another CPU costs more than all the rest of an
//! answer, and far more when that CPU has halted: while questions come one upon the other, the holder stays awake between
//! them. It must never take a CPU for long that others want: [`MOST`] at a time, [`SHARE`] of one CPU in the long run.

use std::time::{Duration, Instant};

/// The next question is expected for so long. Longer than an exec and the few lines of a shell between two of them.
const SPELL: Duration = Duration::from_millis(1);
/// So much may be spent in one go: enough for a few dozen questions.
const MOST: Duration = Duration::from_millis(40);
/// One part in so many of the time is what may be spent.
const SHARE: u32 = 10;

pub(super) struct Attention {
    /// Whoever asks would wait for this CPU otherwise.
    several_cpus: bool,
    credit: Duration,
    credit_at: Instant,
    last_answer: Option<Instant>,
    /// A second answer within the time of one says that more may follow.
    often: bool,
}

impl Attention {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            several_cpus: false,
            credit: MOST,
            credit_at: now,
            last_answer: None,
            often: false,
        }
    }

    /// How many CPUs the holder may run on now.
    pub(super) fn cpus(&mut self, count: usize) {
        self.several_cpus = count > 1;
    }

    /// A question was answered at once.
    pub(super) fn answered(&mut self, now: Instant) {
        self.often = self
            .last_answer
            .is_some_and(|last| now.saturating_duration_since(last) < SPELL);
        self.last_answer = Some(now);
    }

    /// Until when to look, instead of sleeping.
    pub(super) fn until(&mut self, now: Instant) -> Option<Instant> {
        let earned = now.saturating_duration_since(self.credit_at) / SHARE;
        self.credit = MOST.min(self.credit + earned);
        self.credit_at = now;
        let last = self.last_answer.filter(|_| self.often && self.several_cpus)?;
        let until = (last + SPELL).min(now + self.credit);
        (until > now).then_some(until)
    }

    /// What looking took.
    pub(super) fn spent(&mut self, took: Duration) {
        self.credit = self.credit.saturating_sub(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn attention(cpus: usize, now: Instant) -> Attention {
        let mut attention = Attention::new(now);
        attention.cpus(cpus);
        attention
    }

    #[test]
    fn one_answer_is_no_reason_to_stay_awake_a_second_soon_after_is() {
        let mut now = Instant::now();
        let mut attention = attention(2, now);
        assert_eq!(attention.until(now), None);
        attention.answered(now);
        assert_eq!(attention.until(now), None);
        now += 900 * US;
        attention.answered(now);
        assert_eq!(attention.until(now), Some(now + SPELL));
        assert_eq!(attention.until(now + SPELL), None);
        now += 2 * SPELL;
        attention.answered(now);
        assert_eq!(attention.until(now), None);
    }

    #[test]
    fn the_only_cpu_is_left_to_whoever_asks() {
        let now = Instant::now();
        let mut attention = attention(1, now);
        attention.answered(now);
        attention.answered(now);
        assert_eq!(attention.until(now), None);
    }

    #[test]
    fn a_storm_gets_its_share_and_no_more() {
        let start = Instant::now();
        let mut now = start;
        let mut attention = attention(8, now);
        let mut spent = Duration::ZERO;
        while now < start + Duration::from_secs(10) {
            attention.answered(now);
            if let Some(until) = attention.until(now) {
                // The next comes after 500 µs.
                let took = (until - now).min(500 * US);
                attention.spent(took);
                spent += took;
            }
            now += 500 * US;
        }
        assert!(spent <= MOST + Duration::from_secs(1), "{spent:?}");
        assert!(spent >= Duration::from_millis(900), "{spent:?}");
    }
}
