//! Pieces of markup, and words for numbers.
//!
//! Owns the only places where markup is made outside templates: [`piece`] and [`marked`], which escape what they are
//! given.

use guard_evidence::statement::{Part, Style};
use guard_evidence::text::Text;

use crate::app::card::is_danger_word;
use crate::time::Millis;

/// One escaped piece of text in a span of a class of ours.
fn piece(text: &str, class: &'static str) -> String {
    let text = escape(text);
    if class.is_empty() {
        text
    } else {
        format!("<span class=\"{class}\">{text}</span>")
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A sentence as markup.
pub(super) fn styled(parts: &[Part]) -> Vec<String> {
    parts
        .iter()
        .map(|part| match part.style {
            Style::Plain => piece(&part.text, ""),
            Style::Who => piece(&part.text, "who"),
            Style::Where => piece(&part.text, "where"),
            Style::Danger => format!("<strong class=\"danger\">{}</strong>", escape(&part.text)),
            Style::What => format!("<code>{}</code>", marked(&part.text).concat()),
        })
        .collect()
}

/// Shown text with its danger words in bold.
pub(super) fn marked(shown: &str) -> Vec<String> {
    let ends_word = |c: char| c.is_whitespace() || ";|&()'\"`$<>".contains(c);
    shown
        .split_inclusive(ends_word)
        .flat_map(|run| {
            let word = run.trim_end_matches(ends_word);
            let rest = &run[word.len()..];
            let word = if is_danger_word(&Text::from(word)) {
                format!("<strong class=\"danger\">{}</strong>", escape(word))
            } else {
                escape(word)
            };
            [word, escape(rest)]
        })
        .collect()
}

/// As the page's own clock writes it.
pub(super) fn span(ms: Millis) -> String {
    let s = (ms / 1_000).max(0);
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {:02} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {:02} min", s / 3_600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn danger_is_bold_and_everything_escaped() {
        assert_eq!(
            marked("git push --force '<b>'").concat(),
            "git push <strong class=\"danger\">--force</strong> &#39;&lt;b&gt;&#39;"
        );
        assert_eq!(
            marked("sh -c 'ls;/bin/rm -rf /'").concat(),
            "sh -c &#39;ls;<strong class=\"danger\">/bin/rm</strong> <strong class=\"danger\">-rf</strong> /&#39;"
        );
        assert_eq!(marked("⟨U+202E⟩ä").concat(), "⟨U+202E⟩ä");
    }

    #[test]
    fn spans() {
        assert_eq!(span(-5), "0 s");
        assert_eq!(span(184_000), "3 min 04 s");
        assert_eq!(span(90_000_000), "1 d 1 h");
    }
}
