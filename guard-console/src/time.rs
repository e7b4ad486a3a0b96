//! Time as the console keeps it: Unix milliseconds in SQL, RFC 3339 in UTC towards people and programs.
//!
//! Owns both conversions. It must never guess: what is not a time is an error.

use jiff::Timestamp;

/// Unix milliseconds.
pub type Millis = i64;

#[must_use]
pub fn now() -> Millis {
    Timestamp::now().as_millisecond()
}

/// `2026-10-01T12:00:00.000Z`. Out of the calendar's range: the nearest end of it.
#[must_use]
pub fn rfc3339(at: Millis) -> String {
    let timestamp = Timestamp::from_millisecond(at).unwrap_or(if at < 0 { Timestamp::MIN } else { Timestamp::MAX });
    timestamp.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

pub fn parse_rfc3339(text: &str) -> Result<Millis, jiff::Error> {
    text.parse::<Timestamp>().map(Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(parse_rfc3339(&rfc3339(1_764_000_000_123)).unwrap(), 1_764_000_000_123);
        assert_eq!(parse_rfc3339("2026-01-01T01:00:00+01:00").unwrap(), 1_767_225_600_000);
        assert!(parse_rfc3339("yesterday").is_err());
    }
}
