//! What a rule says besides its Cedar: `@id("…") @description("…") @approvers("…")` and so on.
//!
//! Owns the known annotations and their limits. It is given name and text pairs. It must never ignore one that it does
//! not know: a misspelt `@quorum` would ask too few people.

use std::time::Duration;

use guard_proto::limits::NAME_BYTES;

/// Annotations of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Annotations {
    pub(super) id: Option<String>,
    pub(super) description: Option<String>,
    /// Any of these groups; empty: any approver.
    pub(super) approvers: Vec<String>,
    pub(super) quorum: u32,
    pub(super) timeout: Option<Duration>,
    pub(super) risks: Vec<String>,
    pub(super) tags: Vec<String>,
    /// Whether anything was said about asking.
    pub(super) asks: bool,
}

/// A wrong annotation: what is wrong, and what to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) remedy: String,
}

const MAX_QUORUM: u32 = 16;
const MAX_TEXT: usize = 200;
const MAX_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) fn parse<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Annotations, Wrong> {
    let mut found = Annotations {
        id: None,
        description: None,
        approvers: Vec::new(),
        quorum: 1,
        timeout: None,
        risks: Vec::new(),
        tags: Vec::new(),
        asks: false,
    };
    for (name, value) in pairs {
        match name {
            "id" => {
                let fine = !value.is_empty()
                    && value.len() <= NAME_BYTES
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
                if !fine {
                    return Err(wrong(
                        format!("@id(\"{value}\") is not a name"),
                        "use letters, digits, `.`, `_` and `-`",
                    ));
                }
                found.id = Some(value.to_owned());
            }
            "description" => found.description = Some(text(name, value)?),
            "approvers" => {
                found.asks = true;
                found.approvers = list(name, value, ',')?;
            }
            "quorum" => {
                found.asks = true;
                found.quorum = value
                    .parse()
                    .ok()
                    .filter(|n| (1..=MAX_QUORUM).contains(n))
                    .ok_or_else(|| {
                        wrong(
                            format!("@quorum(\"{value}\") is not a number of people"),
                            "write a number from 1 to 16, as in @quorum(\"2\")",
                        )
                    })?;
            }
            "timeout" => {
                found.asks = true;
                found.timeout = Some(duration(value).ok_or_else(|| {
                    wrong(
                        format!("@timeout(\"{value}\") is not a length of time"),
                        "write a number and s, m, h or d, up to 30d, as in @timeout(\"15m\")",
                    )
                })?);
            }
            "risk" => found.risks = list(name, value, ';')?,
            "tag" => found.tags = list(name, value, ',')?,
            _ => {
                return Err(wrong(
                    format!("@{name} is not an annotation that Guard knows"),
                    "the known ones are @id, @description, @approvers, @quorum, @timeout, @risk and @tag",
                ));
            }
        }
    }
    Ok(found)
}

fn wrong(message: String, remedy: &str) -> Wrong {
    Wrong {
        message,
        remedy: remedy.to_owned(),
    }
}

fn text(name: &str, value: &str) -> Result<String, Wrong> {
    let fine = !value.trim().is_empty() && value.len() <= MAX_TEXT && !value.chars().any(char::is_control);
    if fine {
        Ok(value.trim().to_owned())
    } else {
        Err(wrong(
            format!("@{name} is empty, longer than {MAX_TEXT} bytes, or has control characters"),
            "shorten it to one line",
        ))
    }
}

fn list(name: &str, value: &str, separator: char) -> Result<Vec<String>, Wrong> {
    let parts: Vec<&str> = value
        .split(separator)
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect();
    if parts.is_empty() {
        return Err(wrong(
            format!("@{name}(\"{value}\") names nothing"),
            "name at least one, or leave the annotation out",
        ));
    }
    let mut out: Vec<String> = Vec::new();
    for part in parts {
        let part = text(name, part)?;
        if !out.contains(&part) {
            out.push(part);
        }
    }
    Ok(out)
}

/// `90s`, `15m`, `2h`, `1d`.
pub(super) fn duration(value: &str) -> Option<Duration> {
    let (number, seconds) = match value.as_bytes().last()? {
        b's' => (&value[..value.len() - 1], 1),
        b'm' => (&value[..value.len() - 1], 60),
        b'h' => (&value[..value.len() - 1], 3600),
        b'd' => (&value[..value.len() - 1], 24 * 3600),
        _ => return None,
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let length = Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(seconds)?);
    (length > Duration::ZERO && length <= MAX_TIMEOUT).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Some(Duration::from_secs(90)));
        assert_eq!(duration("15m"), Some(Duration::from_secs(900)));
        assert_eq!(duration("2h"), Some(Duration::from_secs(7200)));
        assert_eq!(duration("30d"), Some(MAX_TIMEOUT));
        for bad in [
            "",
            "s",
            "0s",
            "-1s",
            "+1s",
            "15",
            "15 m",
            "31d",
            "1.5h",
            "99999999999999999999s",
            "1ä",
        ] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn lists_and_limits() {
        let parse = |name, value| parse([(name, value)].into_iter());
        assert_eq!(parse("approvers", "a, b,a").unwrap().approvers, ["a", "b"]);
        assert_eq!(parse("risk", "one; two, three").unwrap().risks, ["one", "two, three"]);
        for (name, bad) in [
            ("approvers", ""),
            ("approvers", " , "),
            ("quorum", "0"),
            ("quorum", "17"),
            ("quorum", "two"),
            ("timeout", "soon"),
            ("id", "a b"),
            ("id", ""),
            ("description", "\u{1b}[31m"),
            ("quorom", "2"),
        ] {
            assert!(parse(name, bad).is_err(), "@{name}({bad})");
        }
    }
}
