//! Order statistics of a few measured values.
//! Given numbers. Never averages: a few outliers of a busy machine would decide.

use anyhow::{Context, Result, bail};

/// Measured values in order.
#[derive(Clone, Debug)]
pub(super) struct Values(Vec<u64>);

impl Values {
    pub(super) fn new(mut values: Vec<u64>) -> Result<Self> {
        if values.is_empty() {
            bail!("nothing was measured");
        }
        values.sort_unstable();
        Ok(Self(values))
    }

    /// One number a line, as the micro-benchmark prints them.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let values = text
            .lines()
            .map(|line| line.trim().parse().with_context(|| format!("{line:?} is no number")))
            .collect::<Result<_>>()?;
        Self::new(values)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest value that at least so many per cent of all values do not exceed.
    pub(super) fn percentile(&self, percent: usize) -> u64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    pub(super) fn median(&self) -> u64 {
        self.percentile(50)
    }
}

/// 1234567 as 1,234,567.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// With a sign: what something costs more than something else.
pub(super) fn difference(more: u64, less: u64) -> String {
    if more >= less {
        format!("+{}", grouped(more - less))
    } else {
        format!("−{}", grouped(less - more))
    }
}

/// How many times, to the nearest thousandth.
pub(super) fn ratio(more: u64, less: u64) -> String {
    let less = less.max(1);
    let thousandths = (more.saturating_mul(1000) + less / 2) / less;
    format!("{}.{:03}", thousandths / 1000, thousandths % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values = Values::parse("5\n1\n4\n2\n3\n").unwrap();
        assert_eq!(
            (values.median(), values.percentile(95), values.percentile(0)),
            (3, 5, 1)
        );
        let hundred = Values::new((1..=100).rev().collect()).unwrap();
        assert_eq!((hundred.median(), hundred.percentile(95)), (50, 95));
        assert!(Values::parse("").is_err());
        assert!(Values::parse("1\nx").is_err());
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(difference(1200, 200), "+1,000");
        assert_eq!(difference(200, 201), "−1");
        assert_eq!(ratio(3, 2), "1.500");
        assert_eq!(ratio(9996, 10_000), "1.000");
    }
}
