//! Secrets that are known by how they look.
//!
//! Owns the built-in patterns and the limits of those in the configuration. It is given bytes of a workload, valid UTF-8 or
//! not: patterns match bytes. It must never take more than linear time.

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// The longest pattern of the configuration, in bytes, and how many there may be.
const PATTERN_BYTES: usize = 1_000;
const PATTERNS: usize = 64;
/// Compiled, in bytes, and what a search may use beside that on each thread: of one pattern, and of all together.
const COMPILED_BYTES: usize = 1 << 20;
const SEARCH_BYTES: usize = 64 << 10;
const ALL_COMPILED_BYTES: usize = 16 << 20;
const ALL_SEARCH_BYTES: usize = 512 << 10;
const NAME_BYTES: usize = 40;

/// What already looks like a mark: otherwise a text could be made to look like another one after its secret went.
const MARK: (&str, &str) = ("mark", r"\[redacted ");

/// Name and pattern. What the group `secret` matched goes, or all of it. Several may have one name.
const BUILT_IN: [(&str, &str); 22] = [
    ("private-key", PRIVATE_KEY),
    ("aws-key", r"(?:\b|_)(?P<secret>(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16})"),
    (
        "gcp-key",
        r"AIza[0-9A-Za-z_-]{30,}|ya29\.[0-9A-Za-z_-]{20,}|GOCSPX-[0-9A-Za-z_-]{20,}",
    ),
    ("azure-key", r"[0-9A-Za-z_~.-]{3}[0-9]Q~[0-9A-Za-z_~.-]{31,34}"),
    ("azure-key", r"[?&]sig=(?P<secret>[0-9A-Za-z%+/=_-]{20,})"),
    (
        "github-token",
        r"gh[pousr]_[0-9A-Za-z_]{20,}|github_pat_[0-9A-Za-z_]{20,}",
    ),
    (
        "gitlab-token",
        r"gl(?:pat|oas|dt|rt|cbt|ptt|ft|soat|imt|agent|wt|ffct)-[0-9A-Za-z_.-]{20,}",
    ),
    ("slack-token", r"xox[a-z]-[0-9A-Za-z-]{10,}|xapp-[0-9A-Za-z-]{10,}"),
    (
        "slack-token",
        r"hooks\.slack\.com/(?:services|workflows|triggers)/(?P<secret>[0-9A-Za-z/_-]{20,})",
    ),
    ("anthropic-key", r"sk-ant-[0-9A-Za-z_-]{16,}"),
    (
        "openai-key",
        r"(?:\b|_)(?P<secret>sk-(?:[0-9A-Za-z_]{1,15}-){0,8}[0-9A-Za-z_]{16,}[0-9A-Za-z_-]*)",
    ),
    ("npm-token", r"npm_[0-9A-Za-z]{30,}"),
    ("pypi-token", r"pypi-Ag[0-9A-Za-z_-]{20,}"),
    ("stripe-key", r"[sr]k_(?:live|test)_[0-9A-Za-z]{16,}"),
    ("huggingface-token", r"hf_[0-9A-Za-z]{30,}"),
    ("docker-token", r"dckr_(?:pat|oat)_[0-9A-Za-z_-]{20,}"),
    ("vault-token", r"hv[sbr]\.[0-9A-Za-z_-]{20,}"),
    ("age-key", r"AGE-SECRET-KEY-1[0-9A-Z]{50,}"),
    (
        "jwt",
        r"eyJ[0-9A-Za-z_-]{8,}\.[0-9A-Za-z_-]{2,}(?:\.[0-9A-Za-z_-]*){0,3}",
    ),
    (
        "authorization",
        concat!(
            r#"(?i)authorization\\?["']?[ \t]*[:=][ \t]*\\?["']?"#,
            r"(?:(?:bearer|basic|token|digest|negotiate|ntlm|apikey|bot)[ \t]+)?",
            r#"(?P<secret>[^\s"'`;|&<>()\\$]+)"#
        ),
    ),
    (
        "authorization",
        r"(?i)\bbearer[ \t]+(?P<secret>[0-9A-Za-z._~+/-]{16,}=*)",
    ),
    // In HTTP a user alone may be a token; elsewhere it is a name.
    (
        "url-user",
        r#"(?i)(?:https?://|ftp://)(?P<secret>[^\s/?#"'<>\\`]+)@|[a-z][a-z0-9+.-]*://[^\s/?#"'<>\\`:@]*:(?P<password>[^\s/?#"'<>\\`]+)@"#,
    ),
];

/// From its first line on, as far as it can be one: real line breaks, those of JSON, or arguments of their own (NUL). Short
/// lines belong to it only before the last line, so that no command stands within it.
const PRIVATE_KEY: &str = concat!(
    r"-----BEGIN(?:[ \x00][A-Z0-9]+){0,4}[ \x00]PRIVATE[ \x00]KEY(?:[ \x00]BLOCK)?-----",
    r"(?:(?:[\s\x00]|\\[nrt])+[A-Za-z][A-Za-z-]{2,20}:(?:[ \x00][0-9A-Za-z,.()][0-9A-Za-z,.()-]*){1,4})*",
    r"(?:(?:[\s\x00]|\\[nrt])*[0-9A-Za-z+/=]{16,})*",
    r"(?:(?:(?:[\s\x00]|\\[nrt])*[0-9A-Za-z+/=]{1,15}){0,2}(?:[\s\x00]|\\[nrt])*",
    r"-----END(?:[ \x00][A-Z0-9]+){0,4}[ \x00]PRIVATE[ \x00]KEY(?:[ \x00]BLOCK)?-----)?",
);

/// Name and separator before a value, whatever the name says.
const NAMED: &str = r#"(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)\\?["']?\]?(?P<sep>[ \t]*(?::=|={1,2}>?|:)[ \t]*)"#;

/// Why a pattern of the configuration is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("\"{0}\" is not the name of a pattern: 1 to {NAME_BYTES} of a-z, 0-9 and -")]
    Name(String),
    #[error("there is a pattern with the name \"{0}\" already")]
    Again(String),
    #[error("the pattern has more than {PATTERN_BYTES} bytes")]
    Long,
    #[error("there are more than {PATTERNS} patterns")]
    Many,
    #[error("the pattern matches nothing at all, everywhere")]
    Empty,
    #[error("the pattern is not a regular expression, or becomes too large: {0}")]
    Regex(String),
}

/// One pattern.
#[derive(Debug, Clone)]
pub struct Pattern {
    name: String,
    regex: Regex,
}

impl Pattern {
    /// A pattern of the configuration: it matches bytes (`.`, `\w` and the like are ASCII), in linear time, whatever it is.
    ///
    /// # Errors
    /// [`PatternError`] for an expression that is none, too large, or matches the empty text.
    pub fn new(name: &str, regex: &str) -> Result<Self, PatternError> {
        if regex.len() > PATTERN_BYTES {
            return Err(PatternError::Long);
        }
        let regex = compiled(regex).map_err(|error| regex_error(&error))?;
        if regex.is_match(b"") {
            return Err(PatternError::Empty);
        }
        Ok(Self {
            name: name.to_owned(),
            regex,
        })
    }

    /// Whether one more may have this name.
    ///
    /// # Errors
    /// [`PatternError`] for a name that is none or is taken.
    pub fn check_name(name: &str, others: &[Self]) -> Result<(), PatternError> {
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > NAME_BYTES || !name.bytes().all(fine) {
            return Err(PatternError::Name(name.to_owned()));
        }
        let built_in = BUILT_IN
            .iter()
            .chain([&MARK])
            .map(|(name, _)| *name)
            .chain(super::find::NAMES);
        let taken = built_in
            .chain(others.iter().map(|other| other.name.as_str()))
            .any(|other| other == name);
        if taken {
            return Err(PatternError::Again(name.to_owned()));
        }
        Ok(())
    }
}

pub(super) fn compiled(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern)
        .unicode(false)
        .size_limit(COMPILED_BYTES)
        .dfa_size_limit(SEARCH_BYTES)
        .build()
}

/// The last line says what is wrong; those before draw where.
fn regex_error(error: &regex::Error) -> PatternError {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    PatternError::Regex(last.trim_start_matches("error: ").to_owned())
}

/// What is looked for.
#[derive(Debug)]
pub struct Rules {
    /// All of `patterns` at once, to tell which of them match at all.
    set: RegexSet,
    patterns: Vec<Pattern>,
    /// Names of variables and options count, too.
    pub(super) built_in: bool,
    pub(super) named: Regex,
    /// The built-in `private-key`, for arguments with a NUL between them.
    pub(super) private_key: Regex,
}

impl Rules {
    /// The built-in rules, if they are wanted, and these.
    ///
    /// # Errors
    /// [`PatternError`] for too many, or more than can be looked for together.
    pub fn new(built_in: bool, own: &[Pattern]) -> Result<Self, PatternError> {
        if own.len() > PATTERNS {
            return Err(PatternError::Many);
        }
        let mut patterns = Vec::new();
        let inside: &[(&str, &str)] = if built_in { &BUILT_IN } else { &[] };
        for (name, pattern) in std::iter::once(&MARK).chain(inside) {
            patterns.push(Pattern {
                name: (*name).to_owned(),
                regex: compiled(pattern).map_err(|error| regex_error(&error))?,
            });
        }
        patterns.extend_from_slice(own);
        let set = RegexSetBuilder::new(patterns.iter().map(|pattern| pattern.regex.as_str()))
            .unicode(false)
            .size_limit(ALL_COMPILED_BYTES)
            .dfa_size_limit(ALL_SEARCH_BYTES)
            .build()
            .map_err(|error| regex_error(&error))?;
        Ok(Self {
            set,
            patterns,
            built_in,
            named: compiled(NAMED).map_err(|error| regex_error(&error))?,
            private_key: compiled(PRIVATE_KEY).map_err(|error| regex_error(&error))?,
        })
    }

    /// Calls `found` with the name of the rule and the range, for everything that looks like a secret.
    pub(super) fn find<'r>(&'r self, text: &[u8], mut found: impl FnMut(&'r str, std::ops::Range<usize>)) {
        for index in &self.set.matches(text) {
            let Some(pattern) = self.patterns.get(index) else {
                continue;
            };
            for captures in pattern.regex.captures_iter(text) {
                let part = captures
                    .name("secret")
                    .or_else(|| captures.name("password"))
                    .or_else(|| captures.get(0));
                if let Some(part) = part {
                    found(&pattern.name, part.range());
                }
            }
        }
    }
}
