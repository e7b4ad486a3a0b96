//! All secrets of a text, a command or a variable, by every rule.
//!
//! Owns how the rules come together. It is given any bytes. It must never let one rule see what another one left, so that
//! what goes does not depend on their order.

use std::ops::Range;
use std::sync::LazyLock;

use regex::bytes::Regex;

use super::names::says_secret;
use super::options::{self, is_scheme, is_secret};
use super::patterns::{Rules, compiled};
use super::words::{value, words};

/// Names of rules that are no patterns.
pub(super) const NAMES: [&str; 4] = ["named-value", "option", "after-gap", "long-random"];

/// The shortest run of letters and digits in a variable that may be a key.
const KEY: usize = 24;

/// A part that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hit<'r> {
    pub(super) range: Range<usize>,
    pub(super) rule: &'r str,
}

/// In order; what overlaps is one, by the name of the first.
pub(super) fn merged(mut hits: Vec<Hit<'_>>) -> Vec<Hit<'_>> {
    hits.retain(|hit| !hit.range.is_empty());
    hits.sort_by_key(|hit| (hit.range.start, std::cmp::Reverse(hit.range.end)));
    let mut merged: Vec<Hit<'_>> = Vec::new();
    for hit in hits {
        match merged.last_mut() {
            Some(last) if hit.range.start < last.range.end => last.range.end = last.range.end.max(hit.range.end),
            _ => merged.push(hit),
        }
    }
    merged
}

/// What looks like a secret, whatever stands beside it.
fn by_look<'r>(rules: &'r Rules, text: &[u8]) -> Vec<Hit<'r>> {
    let mut hits = Vec::new();
    rules.find(text, |rule, range| hits.push(Hit { range, rule }));
    // `Authorization: Bearer $TOKEN` is where it comes from.
    let credentials = |text: &[u8]| is_secret(text) && !is_scheme(text);
    hits.retain(|hit| hit.rule != "authorization" || text.get(hit.range.clone()).is_some_and(credentials));
    hits
}

/// What a text has by itself.
fn alone<'r>(rules: &'r Rules, text: &[u8]) -> Vec<Hit<'r>> {
    let mut hits = by_look(rules, text);
    if rules.built_in {
        named_values(rules, text, &mut hits);
    }
    hits
}

/// A value in a path ends with its component: where the path leads is to be seen.
pub(super) fn in_path<'r>(rules: &'r Rules, path: &[u8]) -> Vec<Hit<'r>> {
    let mut hits = by_look(rules, path);
    let mut start = 0;
    for component in path.split(|byte| *byte == b'/').filter(|_| rules.built_in) {
        let mut found = Vec::new();
        named_values(rules, component, &mut found);
        hits.extend(found.into_iter().map(|hit| Hit {
            range: hit.range.start + start..hit.range.end + start,
            ..hit
        }));
        start += component.len() + 1;
    }
    hits
}

pub(super) fn in_text<'r>(rules: &'r Rules, text: &[u8]) -> Vec<Hit<'r>> {
    let mut hits = alone(rules, text);
    if rules.built_in && text.iter().any(u8::is_ascii_whitespace) {
        let ranges = words(text);
        let list: Vec<&[u8]> = ranges.iter().filter_map(|range| text.get(range.clone())).collect();
        options::find(&list, &mut |rule, index, range| {
            let offset = ranges.get(index).map_or(0, |range| range.start);
            hits.push(Hit {
                range: range.start + offset..range.end + offset,
                rule,
            });
        });
    }
    hits
}

pub(super) fn in_arguments<'r>(rules: &'r Rules, arguments: &[&[u8]], gap: Option<usize>) -> Vec<Vec<Hit<'r>>> {
    let mut hits: Vec<Vec<Hit<'r>>> = arguments.iter().map(|argument| alone(rules, argument)).collect();
    if !rules.built_in {
        return hits;
    }
    let (front, back) = arguments.split_at(gap.unwrap_or(0).min(arguments.len()));
    for (list, offset) in [(front, 0), (back, front.len())] {
        options::find(list, &mut |rule, index, range| {
            if let Some(hits) = hits.get_mut(offset + index) {
                hits.push(Hit { range, rule });
            }
        });
    }
    // The option that it may be the value of was left out.
    if let Some((first, hits)) = gap.and_then(|_| back.first().zip(hits.get_mut(front.len()))) {
        hits.push(Hit {
            range: 0..first.len(),
            rule: "after-gap",
        });
    }
    split_keys(rules, arguments, &mut hits);
    hits
}

/// Private keys that a shell divided into arguments.
fn split_keys(rules: &Rules, arguments: &[&[u8]], hits: &mut [Vec<Hit<'_>>]) {
    let begins = |argument: &&[u8]| argument.windows(10).any(|part| part == b"-----BEGIN");
    if !arguments.iter().any(begins) {
        return;
    }
    let joined = arguments.join(&0);
    let mut found = rules
        .private_key
        .find_iter(&joined)
        .map(|found| found.range())
        .peekable();
    let mut start = 0;
    for (argument, hits) in arguments.iter().zip(hits) {
        let end = start + argument.len();
        while let Some(key) = found.peek().filter(|key| key.start < end) {
            hits.push(Hit {
                range: key.start.max(start) - start..key.end.clamp(start, end) - start,
                rule: "private-key",
            });
            if key.end > end {
                break;
            }
            found.next();
        }
        start = end + 1;
    }
}

/// The whole value where its name or its look says so; otherwise as any text.
pub(super) fn in_variable<'r>(rules: &'r Rules, entry: &[u8]) -> Vec<Hit<'r>> {
    let mut hits = in_text(rules, entry);
    let Some(equals) = entry.iter().position(|byte| *byte == b'=').filter(|_| rules.built_in) else {
        return hits;
    };
    let (name, value) = (
        entry.get(..equals).unwrap_or_default(),
        entry.get(equals + 1..).unwrap_or_default(),
    );
    let rule = match () {
        () if says_secret(name) => "named-value",
        () if looks_random(value) => "long-random",
        () => return hits,
    };
    hits.push(Hit {
        range: equals + 1..entry.len(),
        rule,
    });
    hits
}

/// `name = value`, `"name": "value"`, anywhere in a text.
fn named_values(rules: &Rules, text: &[u8], hits: &mut Vec<Hit<'_>>) {
    let mut from = 0;
    while let Some(captures) = rules.named.captures_at(text, from) {
        let (Some(name), Some(sep)) = (captures.name("name"), captures.name("sep")) else {
            break;
        };
        from = sep.end();
        if !says_secret(name.as_bytes()) {
            continue;
        }
        let quoted = text
            .get(name.end()..sep.start())
            .is_some_and(|between| !between.is_empty());
        let opens = matches!(text.get(from..), Some([b'"' | b'\'', ..] | [b'\\', b'"' | b'\'', ..]));
        let blank = |byte: Option<&u8>| byte.is_some_and(|byte| b" \t".contains(byte));
        let (before, after) = (blank(sep.as_bytes().first()), blank(sep.as_bytes().last()));
        let value_follows = if sep.as_bytes().contains(&b'=') {
            // `NAME= command` is a command.
            before || opens || !after
        } else {
            quoted || opens || after
        };
        if !value_follows {
            continue;
        }
        let value = value(text, from);
        if text.get(value.clone()).is_some_and(is_secret) {
            from = value.end.max(from);
            hits.push(Hit {
                range: value,
                rule: "named-value",
            });
        }
    }
}

/// A long run that no person wrote: letters and digits mixed, and no path.
fn looks_random(value: &[u8]) -> bool {
    value
        .split(|byte| byte.is_ascii_whitespace() || b"\"'=,;:&?".contains(byte))
        .filter(|word| !matches!(word, [b'/' | b'.' | b'~', ..]))
        .flat_map(|word| word.split(|byte| !(byte.is_ascii_alphanumeric() || b"+/_-".contains(byte))))
        .filter(|run| run.len() >= KEY)
        .any(|run| {
            let digits = run.iter().filter(|byte| byte.is_ascii_digit()).count();
            let letters = run.iter().filter(|byte| byte.is_ascii_alphabetic()).count();
            let separators = run.len() - digits - letters;
            digits >= 3 && letters >= 3 && separators * 8 <= run.len()
        })
}

/// For the fuzzer: secrets that no neighbour can change.
pub(super) const SAMPLES: [&[u8]; 8] = [
    b"ghp_0123456789abcdefghijklmnopqrstuvwxyz",
    b"glpat-0123456789abcdefghix",
    b"xoxb-123456789012-abcdefx",
    b"npm_0123456789abcdefghijklmnopqrstuvwxyz",
    b"AIza0123456789abcdefghijklmnopqrstuvwxy",
    b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJlx",
    b"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEx\n-----END PRIVATE KEY-----",
    b"https://bob:hunter2x@example.org/",
];

/// For the fuzzer: nothing that needs no context is left.
pub(super) fn assert_none_left(recorded: &[u8]) {
    static PLAIN: LazyLock<Option<Regex>> = LazyLock::new(|| {
        compiled(
            r"gh[pousr]_[0-9A-Za-z]{36}|github_pat_[0-9A-Za-z_]{22}|glpat-[0-9A-Za-z_-]{20}|xox[bp]-[0-9A-Za-z-]{10}|npm_[0-9A-Za-z]{36}|AIza[0-9A-Za-z_-]{35}|eyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10}|-----BEGIN (RSA )?PRIVATE KEY-----|https://[a-z]+:[a-z]+@",
        )
        .ok()
    });
    let plain = PLAIN.as_ref().is_some_and(|plain| !plain.is_match(recorded));
    assert!(plain, "a secret is left in {:?}", String::from_utf8_lossy(recorded));
}
