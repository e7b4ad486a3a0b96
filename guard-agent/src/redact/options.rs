//! Secrets by where they stand among the words of a command.
//!
//! Owns `--password X`, `--token=X`, `-u user:pass`, headers and assignments. It is given words: arguments, or those of a
//! command that is one argument. It must never take more than the value, so that people see what is done.

use super::names::says_secret;
use super::words::words;

/// Commands within commands within commands.
const DEPTH: u32 = 3;

/// Programs with an option of one letter for a password, and whether that can stand apart from it.
const SHORT: [(&str, u8, bool); 11] = [
    ("sshpass", b'p', true),
    ("mysql", b'p', false),
    ("mysqldump", b'p', false),
    ("mysqladmin", b'p', false),
    ("mariadb", b'p', false),
    ("mariadb-dump", b'p', false),
    ("redis-cli", b'a', true),
    ("ldapsearch", b'w', true),
    ("ldapmodify", b'w', true),
    ("zip", b'P', true),
    ("unzip", b'P', true),
];
/// Words of a command whose next word is a secret, though they are no options.
const SETTINGS: [&[u8]; 2] = [b"aws_secret_access_key", b"aws_session_token"];
const SCHEMES: [&[u8]; 8] = [
    b"bearer",
    b"basic",
    b"token",
    b"digest",
    b"negotiate",
    b"ntlm",
    b"apikey",
    b"bot",
];

/// Calls `found` with the rule, the word's index and the range within the word.
pub(super) fn find(words: &[&[u8]], found: &mut dyn FnMut(&'static str, usize, std::ops::Range<usize>)) {
    find_within(words, 0, found);
}

fn find_within(list: &[&[u8]], depth: u32, found: &mut dyn FnMut(&'static str, usize, std::ops::Range<usize>)) {
    // Whatever came before it: `sudo`, variables, another command.
    let mut program: &[u8] = b"";
    for (index, word) in list.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|before| list.get(before).copied());
        let value = following(program, before, word).or_else(|| within(program, word));
        if let Some((rule, start)) = value
            && is_secret(word.get(start..).unwrap_or_default())
        {
            found(rule, index, start..word.len());
        }
        let name = base(word);
        if SHORT.iter().any(|(of, ..)| of.as_bytes() == name) {
            program = name;
        }
        if depth < DEPTH && word.iter().any(u8::is_ascii_whitespace) {
            let ranges = words(word);
            let inner: Vec<&[u8]> = ranges.iter().filter_map(|range| word.get(range.clone())).collect();
            find_within(&inner, depth + 1, &mut |rule, inner, range| {
                let offset = ranges.get(inner).map_or(0, |range| range.start);
                found(rule, index, range.start + offset..range.end + offset);
            });
        }
    }
}

/// A word that is the value of the option before it: the rule, and where the secret begins in it.
fn following(program: &[u8], before: Option<&[u8]>, word: &[u8]) -> Option<(&'static str, usize)> {
    let before = before?;
    if SETTINGS.contains(&before) {
        return Some(("option", 0));
    }
    match before {
        b"-H" | b"--header" | b"--proxy-header" => return header(word),
        b"-u" | b"-U" | b"--user" | b"--proxy-user" => return after_user(word),
        _ => {}
    }
    let name = option_name(before)?;
    let apart = |(of, letter, apart): &(&str, u8, bool)| *apart && of.as_bytes() == program && name == [*letter];
    let is = SHORT.iter().any(apart) || name.len() > 1 && says_secret(name);
    (is && !is_option(word) && !is_path(word)).then_some(("option", 0))
}

/// A word that has name and value in itself.
fn within(program: &[u8], word: &[u8]) -> Option<(&'static str, usize)> {
    if let Some(rest) = word.strip_prefix(b"-H") {
        return header(rest).map(|(rule, at)| (rule, at + 2));
    }
    if word.starts_with(b"pass:") {
        return Some(("option", 5));
    }
    if let Some(equals) = word.iter().position(|byte| *byte == b'=') {
        let (name, value) = word.split_at(equals);
        let (value, start) = (value.get(1..).unwrap_or_default(), equals + 1);
        let shift = |(rule, at): (&'static str, usize)| (rule, at + start);
        match name {
            b"--header" | b"--proxy-header" => return header(value).map(shift),
            b"--user" | b"--proxy-user" => return after_user(value).map(shift),
            _ => {}
        }
        if let Some(name) = option_name(name) {
            return (name.len() > 1 && says_secret(name) && !is_path(value)).then_some(("option", start));
        }
        // A text that goes on after the value is looked at as a text.
        let whole = !value.iter().any(u8::is_ascii_whitespace) || matches!(value, [b'\'' | b'"', .., b'\'' | b'"']);
        let named = name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(byte));
        return (whole && named && says_secret(name)).then_some(("named-value", start));
    }
    if let Some(rest) = word.strip_prefix(b"-u") {
        return after_user(rest).map(|(rule, at)| (rule, at + 2));
    }
    let attached = |(of, letter, _): &(&str, u8, bool)| {
        of.as_bytes() == program
            && word.strip_prefix(b"-").and_then(|rest| rest.first()) == Some(letter)
            && word.len() > 2
    };
    SHORT.iter().any(attached).then_some(("option", 2))
}

/// `-x`, `--long`: without its dashes.
fn option_name(word: &[u8]) -> Option<&[u8]> {
    let rest = word.strip_prefix(b"-")?;
    let name = rest.strip_prefix(b"-").unwrap_or(rest);
    let fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
    (!name.is_empty() && name.iter().all(fine)).then_some(name)
}

/// The next option, where a value was left out.
fn is_option(word: &[u8]) -> bool {
    match word {
        [b'-', b'-', first, ..] => first.is_ascii_alphabetic(),
        [b'-', letter] => letter.is_ascii_alphabetic(),
        _ => false,
    }
}

/// A file that has the secret in it. Keys in base64 begin with a slash, too.
fn is_path(value: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 17] = [
        b"./", b"../", b"~/", b"file:", b"/etc/", b"/home/", b"/root/", b"/tmp/", b"/var/", b"/usr/", b"/opt/",
        b"/srv/", b"/run/", b"/mnt/", b"/dev/", b"/proc/", b"/data/",
    ];
    BEGINNINGS.iter().any(|beginning| value.starts_with(beginning))
}

/// `Name: value` of HTTP, if the name says that it is a secret.
fn header(line: &[u8]) -> Option<(&'static str, usize)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let name = line.get(..colon)?.trim_ascii();
    let own = [&b"authorization"[..], b"proxy-authorization", b"set-cookie"];
    if !own.iter().any(|own| name.eq_ignore_ascii_case(own)) && !says_secret(name) {
        return None;
    }
    let blank = |at: usize| {
        let rest = line.get(at..).unwrap_or_default();
        at + rest.len() - rest.trim_ascii_start().len()
    };
    let start = blank(colon + 1);
    let rest = line.get(start..)?;
    let scheme = SCHEMES.iter().find(|scheme| {
        let (first, after) = rest.split_at(rest.len().min(scheme.len()));
        first.eq_ignore_ascii_case(scheme) && after.first().is_some_and(u8::is_ascii_whitespace)
    });
    Some((
        "authorization",
        scheme.map_or(start, |scheme| blank(start + scheme.len())),
    ))
}

/// A word before credentials, and none of them.
pub(super) fn is_scheme(word: &[u8]) -> bool {
    SCHEMES.iter().any(|scheme| word.eq_ignore_ascii_case(scheme))
}

/// `user:password`, where it is not `uid:gid` or a URL.
fn after_user(word: &[u8]) -> Option<(&'static str, usize)> {
    let colon = word.iter().position(|byte| *byte == b':')?;
    let (user, password) = (word.get(..colon)?, word.get(colon + 1..)?);
    let name = |byte: &u8| byte.is_ascii_alphanumeric() || b"._@\\-/".contains(byte) || !byte.is_ascii();
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let fine = user.iter().all(name) && !password.starts_with(b"//") && !is_path(password);
    (fine && !(digits(user) && digits(password))).then_some(("option", colon + 1))
}

fn base(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// Not empty, not one of the values that are no secret, and not where a shell or a program takes it from.
pub(super) fn is_secret(value: &[u8]) -> bool {
    const PLAIN: [&[u8]; 11] = [
        b"true", b"false", b"yes", b"no", b"on", b"off", b"none", b"null", b"0", b"1", b"$",
    ];
    let bare = match value {
        [quote @ (b'\'' | b'"'), inner @ .., last] if quote == last => inner,
        _ => value,
    };
    !bare.is_empty() && !PLAIN.iter().any(|plain| bare.eq_ignore_ascii_case(plain)) && !is_reference(bare)
}

/// `$NAME`, `${NAME}`, `$(command)`, `{{ name }}`.
fn is_reference(value: &[u8]) -> bool {
    let name = match value {
        [b'$', b'(', .., b')'] | [b'`', .., b'`'] => return true,
        [b'$', b'{', name @ .., b'}'] | [b'$', name @ ..] => name,
        [b'{', b'{', name @ .., b'}', b'}'] => name.trim_ascii(),
        _ => return false,
    };
    let fine = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    name.first().is_some_and(|first| !first.is_ascii_digit()) && name.iter().all(fine)
}
