//! Text that somebody else wrote: any bytes, kept exactly, shown safely.
//!
//! Owns the JSON form of such bytes and the one way in which they are shown to a person. It is given bytes of a
//! workload and makes one-line strings. It must never let through a character that a terminal or a browser acts on.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};

/// Any bytes. In JSON a string if they are valid UTF-8, else `{"base64": "…"}`; there is one form for each value and
/// the other one is refused.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Text(Vec<u8>);

impl Text {
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// On one line, everything that is not plainly visible written as `⟨U+202E⟩`, and bytes that are no UTF-8 as
    /// `⟨0xFF⟩`.
    #[must_use]
    pub fn display(&self) -> String {
        tokens(&self.0).concat()
    }

    /// As [`Text::display`], with the middle folded if it is longer than `max` characters.
    #[must_use]
    pub fn fold(&self, max: usize) -> String {
        fold_tokens(&tokens(&self.0), max)
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display())
    }
}

/// Debug output reaches logs and terminals too.
impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.display())
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &STANDARD.encode(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, or {\"base64\": …} for bytes that are not UTF-8")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text::from(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text, A::Error> {
                let Some((key, value)) = map.next_entry::<String, String>()? else {
                    return Err(de::Error::custom("an empty object is not text"));
                };
                if key != "base64" || map.next_key::<String>()?.is_some() {
                    return Err(de::Error::custom(
                        "text that is not a string has exactly the field `base64`",
                    ));
                }
                let bytes = STANDARD
                    .decode(value)
                    .map_err(|_| de::Error::custom("`base64` is not valid base64"))?;
                if std::str::from_utf8(&bytes).is_ok() {
                    return Err(de::Error::custom("valid UTF-8 is written as a string, not as base64"));
                }
                Ok(Text(bytes))
            }
        }

        deserializer.deserialize_any(TextVisitor)
    }
}

/// Shows `text` on one line with every character that is not plainly visible written as `⟨U+202E⟩`.
///
/// Escaped are controls (C0, C1, DEL), format characters (bidi, zero width, tags), separators other than the plain
/// space, characters that draw nothing, private use and unassigned ones, and `⟨` `⟩` themselves, so that what looks
/// like an escape always is one.
#[must_use]
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            out.push(c);
        } else {
            out.push_str(&escape(c));
        }
    }
    out
}

/// As [`visible`], for text that somebody else has made visible already: escapes stay as they are.
///
/// For what another program sends for display. It cannot tell a true escape from one that was written by hand, so
/// what is decided upon is to be made visible from the source.
#[must_use]
pub fn defuse(text: &str) -> String {
    text.chars()
        .map(|c| {
            if is_plain(c) || matches!(c, '⟨' | '⟩') {
                c.to_string()
            } else {
                escape(c)
            }
        })
        .collect()
}

/// As [`visible`], with the middle folded if the result is longer than `max` characters.
#[must_use]
pub fn visible_fold(text: &str, max: usize) -> String {
    fold_tokens(&tokens(text.as_bytes()), max)
}

/// A command as one line that a shell would read alike, and that cannot hide anything: quoted where needed, invisible
/// characters shown as in [`visible`] (such a line is for reading, not for pasting).
#[must_use]
pub fn shell_words<T: AsRef<[u8]>>(argv: &[T]) -> String {
    argv.iter()
        .map(|word| shell_word(word.as_ref()))
        .collect::<Vec<_>>()
        .join(" ")
}

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

fn shell_word(word: &[u8]) -> String {
    let safe = |b: &u8| b.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(b);
    if !word.is_empty() && word.iter().all(safe) {
        return tokens(word).concat();
    }
    let mut out = String::from("'");
    for token in tokens(word) {
        out.push_str(if token == "'" { "'\\''" } else { &token });
    }
    out.push('\'');
    out
}

fn escape(c: char) -> String {
    format!("⟨U+{:04X}⟩", u32::from(c))
}

fn is_plain(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    // Drawn as nothing although they are letters or marks: Hangul fillers, the grapheme joiner, Khmer inherent vowels,
    // Mongolian and other variation selectors, the blank Braille pattern; and our own brackets.
    if matches!(u32::from(c),
        0x034F | 0x115F | 0x1160 | 0x17B4 | 0x17B5 | 0x180B..=0x180F | 0x2800 | 0x27E8 | 0x27E9 | 0x3164
        | 0xFE00..=0xFE0F | 0xFFA0 | 0xE0100..=0xE01EF)
    {
        return false;
    }
    !matches!(
        c.general_category(),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::Surrogate
            | GeneralCategory::PrivateUse
            | GeneralCategory::Unassigned
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
            | GeneralCategory::SpaceSeparator
    )
}

/// One string for each character or stray byte, so that folding never cuts through an escape.
fn tokens(bytes: &[u8]) -> Vec<String> {
    let mut out = Vec::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.extend(
            chunk
                .valid()
                .chars()
                .map(|c| if is_plain(c) { c.to_string() } else { escape(c) }),
        );
        out.extend(chunk.invalid().iter().map(|b| format!("⟨0x{b:02X}⟩")));
    }
    out
}

fn fold_tokens(tokens: &[String], max: usize) -> String {
    let lengths: Vec<usize> = tokens.iter().map(|t| t.chars().count()).collect();
    if lengths.iter().sum::<usize>() <= max {
        return tokens.concat();
    }
    // Room for the note itself; both ends get half of the rest.
    let room = max.saturating_sub(24) / 2;
    let fits = |lengths: &mut dyn Iterator<Item = &usize>| {
        let mut sum = 0;
        lengths
            .take_while(|n| {
                sum += **n;
                sum <= room
            })
            .count()
    };
    let head = fits(&mut lengths.iter());
    let tail = fits(&mut lengths.iter().rev());
    let left_out = tokens.len() - head - tail;
    format!(
        "{}⟨… {left_out} more …⟩{}",
        tokens[..head].concat(),
        tokens[tokens.len() - tail..].concat()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_string_round_trips_through_json() {
        let mut cases: Vec<Vec<u8>> = (0..=255).map(|b| vec![b]).collect();
        cases.extend([
            vec![],
            b"plain".to_vec(),
            "ünï\u{202E}\0\u{10FFFF}".into(),
            vec![0xC3],
            b"a\xFFb".to_vec(),
        ]);
        for bytes in cases {
            let text = Text::from(bytes);
            let json = serde_json::to_string(&text).unwrap();
            assert_eq!(serde_json::from_str::<Text>(&json).unwrap(), text, "{json}");
        }
    }

    #[test]
    fn only_one_json_form_is_accepted() {
        for bad in [
            r#"{"base64":"YQ=="}"#,         // valid UTF-8
            r#"{"base64":"/w"}"#,           // no padding
            r#"{"base64":"/w==","x":"1"}"#, // more fields
            r#"{"base32":"/w=="}"#,
            "{}",
            "1",
            "null",
            "[255]",
        ] {
            assert!(serde_json::from_str::<Text>(bad).is_err(), "{bad}");
        }
        assert_eq!(
            serde_json::from_str::<Text>(r#"{"base64":"/w=="}"#).unwrap().as_bytes(),
            b"\xFF"
        );
    }

    #[test]
    fn nothing_invisible_gets_through() {
        assert_eq!(visible("a\u{202E}b"), "a⟨U+202E⟩b");
        assert_eq!(visible("line\nnext\tx\r"), "line⟨U+000A⟩next⟨U+0009⟩x⟨U+000D⟩");
        assert_eq!(visible("\u{1b}[31mred"), "⟨U+001B⟩[31mred");
        assert_eq!(visible("\u{9b}31m"), "⟨U+009B⟩31m");
        assert_eq!(visible("⟨U+202E⟩"), "⟨U+27E8⟩U+202E⟨U+27E9⟩");
        assert_eq!(defuse("a⟨U+202E⟩\u{202E}"), "a⟨U+202E⟩⟨U+202E⟩");
        assert_eq!(visible("plain ünïcödé 漢字 🦀"), "plain ünïcödé 漢字 🦀");
        for c in [
            '\u{200B}',
            '\u{200D}',
            '\u{2060}',
            '\u{FEFF}',
            '\u{AD}',
            '\u{A0}',
            '\u{3164}',
            '\u{2028}',
            '\u{E0041}',
            '\u{E000}',
            '\u{FFFF}',
            '\u{061C}',
            '\u{2066}',
            '\u{7f}',
            '\u{85}',
            '\u{FE0F}',
            '\u{180E}',
        ] {
            assert_eq!(visible(&c.to_string()), format!("⟨U+{:04X}⟩", u32::from(c)));
        }
        assert_eq!(Text::from(&b"a\xFF\xC3"[..]).display(), "a⟨0xFF⟩⟨0xC3⟩");
        assert_eq!(format!("{:?}", Text::from("\u{1b}")), "\"⟨U+001B⟩\"");
        // Every character at all: what is shown has no control, and escapes are unambiguous.
        for c in (0..=0x10_FFFF).filter_map(char::from_u32) {
            let shown = visible(&c.to_string());
            assert!(
                shown == c.to_string() || (shown.starts_with("⟨U+") && shown.ends_with('⟩')),
                "{c:?}"
            );
            assert!(!shown.chars().any(char::is_control));
        }
    }

    #[test]
    fn long_text_folds_in_the_middle() {
        let text = format!("begin{}end --force", "x".repeat(500));
        let folded = Text::from(text).fold(60);
        assert!(folded.starts_with("begin"), "{folded}");
        assert!(folded.ends_with("end --force"), "{folded}");
        assert!(folded.chars().count() <= 60, "{folded}");
        assert!(folded.contains("more …⟩"));
        assert_eq!(Text::from("short").fold(60), "short");
        // An escape is never cut.
        let folded = Text::from("\u{202E}".repeat(100)).fold(60);
        assert_eq!(folded.matches('⟨').count(), folded.matches('⟩').count());
        assert!(!Text::from("abcdef").fold(0).is_empty());
    }

    #[test]
    fn commands_read_as_a_shell_would() {
        assert_eq!(shell_words(&["git", "push", "--force"]), "git push --force");
        assert_eq!(
            shell_words(&["sh", "-c", "echo 'a b'; rm $x"]),
            r"sh -c 'echo '\''a b'\''; rm $x'"
        );
        assert_eq!(shell_words(&["", "a\nb"]), "'' 'a⟨U+000A⟩b'");
        assert_eq!(shell_words(&[&b"\xFF"[..]]), "'⟨0xFF⟩'");
        assert_eq!(shell_words::<&str>(&[]), "");
        assert_eq!(shell_words(&["~root", "a*", "#x", "a=b"]), "'~root' 'a*' '#x' a=b");
    }
}
