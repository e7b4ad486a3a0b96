//! Words of a command line that is one text, as in `sh -c '…'`.
//!
//! Owns the division: quotes, and what ends a word. It is given any bytes, which need not be a command at all. It must never
//! be used to decide anything but what is hidden: shells differ.

use std::ops::Range;

/// Ranges of the words, without the quotes around a word that is quoted as a whole.
pub(super) fn words(text: &[u8]) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let (mut start, mut quote) = (None, None);
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        if let Some(open) = quote {
            if *byte == open {
                quote = None;
            } else if *byte == b'\\' && open == b'"' {
                bytes.next();
            }
            continue;
        }
        if ends_word(*byte) {
            if let Some(start) = start.take() {
                words.push(unquoted(text, start..at));
            }
            continue;
        }
        start.get_or_insert(at);
        match byte {
            b'\'' | b'"' => quote = Some(*byte),
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    if let Some(start) = start {
        words.push(unquoted(text, start..text.len()));
    }
    words
}

fn ends_word(byte: u8) -> bool {
    byte.is_ascii_whitespace() || b";|&<>()`".contains(&byte)
}

fn unquoted(text: &[u8], word: Range<usize>) -> Range<usize> {
    match text.get(word.clone()) {
        Some([quote @ (b'\'' | b'"'), inner @ .., last]) if quote == last && !inner.contains(quote) => {
            word.start + 1..word.end - 1
        }
        _ => word,
    }
}

/// The value that begins at `start` within a text: quoted, or as far as a shell would take it for one word.
pub(super) fn value(text: &[u8], start: usize) -> Range<usize> {
    let rest = text.get(start..).unwrap_or_default();
    let (escaped, quote) = match rest {
        [b'\\', quote @ (b'\'' | b'"'), ..] => (1, Some(*quote)),
        [quote @ (b'\'' | b'"'), ..] => (0, Some(*quote)),
        _ => (0, None),
    };
    let Some(quote) = quote else {
        let ends = |at: &usize| {
            rest.get(*at)
                .is_none_or(|byte| ends_word(*byte) || b"\"'".contains(byte))
                || rest.get(*at..*at + 2) == Some(b"$(")
        };
        let length = (0..=rest.len()).find(ends).unwrap_or(rest.len());
        return start..start + length;
    };
    let inner = start + escaped + 1;
    let mut bytes = text.iter().enumerate().skip(inner);
    while let Some((at, byte)) = bytes.next() {
        if *byte == quote {
            let trimmed = escaped == 1 && at > inner && text.get(at - 1) == Some(&b'\\');
            return inner..at - usize::from(trimmed);
        }
        if *byte == b'\\' && escaped == 0 && quote == b'"' {
            bytes.next();
        }
    }
    inner.min(text.len())..text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_divided_as_a_shell_would() {
        let of =
            |text: &'static str| -> Vec<&str> { words(text.as_bytes()).into_iter().map(|word| &text[word]).collect() };
        assert_eq!(of("a  'b c' \"d\\\" e\"; f|g"), ["a", "b c", "\"d\\\" e\"", "f", "g"]);
        assert_eq!(
            of("x='a b' y\\ z 'it''s' \"open "),
            ["x='a b'", "y\\ z", "'it''s'", "\"open "]
        );
        assert_eq!(of(""), [""; 0]);
        assert_eq!(of("'"), ["'"]);
    }

    #[test]
    fn a_value_ends_where_it_ends() {
        let of = |text: &'static str| &text[value(text.as_bytes(), 2)];
        assert_eq!(of("k=abc def"), "abc");
        assert_eq!(of("k=a$b;reboot"), "a$b");
        assert_eq!(of("k=$(cat x)"), "");
        assert_eq!(of("k=\"a \\\" b\" c"), "a \\\" b");
        assert_eq!(of("k='a b' c"), "a b");
        assert_eq!(of("k=\\\"a b\\\" c"), "a b");
        assert_eq!(of("k='open"), "open");
        assert_eq!(of("k="), "");
    }
}
