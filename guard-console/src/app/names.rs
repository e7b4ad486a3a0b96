//! Names that people choose, parsed once.

use guard_proto::limits::NAME_BYTES;

use super::{Error, Result};

/// A user name: lower case, so that no two people differ by case only.
pub(crate) fn username(text: &str) -> Result<String> {
    let middle = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-' | b'@' | b'+');
    let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let good = (1..=NAME_BYTES).contains(&bytes.len())
        && bytes.iter().all(|b| middle(*b))
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge);
    if good {
        return Ok(text.to_owned());
    }
    Err(Error::Invalid(format!(
        "a user name has 1 to {NAME_BYTES} characters of a-z 0-9 . _ - @ + and begins and ends with a letter or digit"
    )))
}

/// A group name: what policies name in `@approvers`.
pub(crate) fn group(text: &str) -> Result<String> {
    let good = (1..=NAME_BYTES).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':' | b'/'));
    if good {
        return Ok(text.to_owned());
    }
    let shown = guard_evidence::text::visible_fold(text, 80);
    Err(Error::Invalid(format!(
        "{shown:?} is not a group name: 1 to {NAME_BYTES} characters of a-z A-Z 0-9 . _ - : /"
    )))
}

pub(crate) fn label(text: &str) -> Result<String> {
    if guard_proto::limits::is_label(text) {
        return Ok(text.to_owned());
    }
    let shown = guard_evidence::text::visible_fold(text, 80);
    Err(Error::Invalid(format!(
        "{shown:?} is not a label: 1 to 63 characters of a-z 0-9 . _ - that begin and end with a letter or digit"
    )))
}

/// Free text of a person: bounded, and shown escaped wherever it is shown.
pub(crate) fn free_text(what: &str, text: &str, max_bytes: usize) -> Result<String> {
    let text = text.trim();
    if text.len() > max_bytes {
        return Err(Error::Invalid(format!("{what} has at most {max_bytes} bytes")));
    }
    Ok(text.to_owned())
}

/// A host's display name as the host asks for it, reduced to what a host name may have.
pub(crate) fn host(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') {
                c.to_ascii_lowercase()
            } else {
                '-'
            }
        })
        .take(64)
        .collect();
    let name = name.trim_matches(|c| !char::is_alphanumeric(c));
    if name.is_empty() {
        "host".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["alice", "a", "a.b@example.org", "op+1"] {
            assert!(username(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "Alice",
            "a b",
            "al\u{202e}ice",
            "-a",
            "a-",
            "аlice",
            &"a".repeat(129),
        ] {
            assert!(username(bad).is_err(), "{bad}");
        }
        assert_eq!(host("Build-7.Example.org"), "build-7.example.org");
        assert_eq!(host("\u{202e}<b>"), "b");
        assert_eq!(host("⟨⟩"), "host");
    }
}
