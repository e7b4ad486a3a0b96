//! agent.toml as it is written.
//!
//! Owns the TOML shape and the way from spans to lines. It is given bytes. It must never accept a key it does not know.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_evidence::cosign::{KeyKind, VerifierKey};
use guard_evidence::key::Algorithm;
use guard_proto::limits::is_label;
use serde::Deserialize;
use toml::Spanned;

use super::{Config, ConfigError, LabelPattern, LabelRules, Log, PENDING_HEADROOM, ProtectMore, Redact};
use crate::kernel::{Allowed, Away, LabelSettings, Writes};
use crate::redact::{Pattern, PatternError, Rules};

/// Largest configuration file, in bytes.
const CONFIG_BYTES: usize = 1 << 20;
/// Half of what a host may have waiting, so that no label can take every place.
const PENDING_PER_LABEL: u32 = 2_048;
const _: () = assert!(PENDING_PER_LABEL as usize == guard_proto::limits::PENDING_PER_HOST / 2);
/// Paths, and addresses, of `[protect]`.
const PROTECT_MORE: usize = 64;
/// Directories of `free`.
const FREE_PER_LABEL: usize = 64;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    state_dir: Option<Spanned<PathBuf>>,
    socket: Option<Spanned<PathBuf>>,
    policy_file: Option<Spanned<PathBuf>>,
    record_environment: Option<Vec<Spanned<String>>>,
    hash_deadline: Option<Spanned<String>>,
    #[serde(default)]
    label: Vec<RawLabel>,
    #[serde(default)]
    hold: RawHold,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    protect: RawProtect,
    #[serde(default)]
    redact: RawRedact,
    #[serde(default)]
    evidence: RawEvidence,
    #[serde(default)]
    policy: RawPolicy,
    #[serde(default)]
    log: RawLog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEvidence {
    #[serde(default)]
    witnesses: Vec<Spanned<String>>,
    quorum: Option<Spanned<i64>>,
    key: Option<Algorithm>,
    rotate_key_every: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLabel {
    name: Spanned<String>,
    cgroup: Option<Spanned<String>>,
    away: Option<Spanned<RawAway>>,
    pending: Option<Spanned<i64>>,
    looping: Option<Spanned<i64>>,
    tasks: Option<Spanned<i64>>,
    sockets: Option<Spanned<i64>>,
    allow: Option<Vec<Spanned<String>>>,
    writes: Option<RawWrites>,
    #[serde(default)]
    free: Vec<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHold {
    park_after: Option<Spanned<String>>,
    away_after: Option<Spanned<String>>,
    away: Option<RawAway>,
    writes: Option<RawWrites>,
    free: Option<Vec<Spanned<PathBuf>>>,
    looping: Option<Spanned<i64>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawWrites {
    Ask,
    Free,
}

impl RawWrites {
    fn resolve(self) -> Writes {
        match self {
            Self::Ask => Writes::Ask,
            Self::Free => Writes::Free,
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawAway {
    Park,
    Deny,
    Allow,
}

impl RawAway {
    fn resolve(self) -> Away {
        match self {
            Self::Park => Away::Park,
            Self::Deny => Away::Deny,
            Self::Allow => Away::Allow,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    pending_per_label: Option<Spanned<i64>>,
    tasks_per_label: Option<Spanned<i64>>,
    sockets_per_label: Option<Spanned<i64>>,
    spool_mib: Option<Spanned<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProtect {
    #[serde(default)]
    paths: Vec<Spanned<String>>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRedact {
    built_in: Option<bool>,
    #[serde(default)]
    patterns: Vec<RawPattern>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPattern {
    name: Spanned<String>,
    regex: Spanned<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPolicy {
    kernel_rules: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: Option<RawFormat>,
    level: Option<RawLevel>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

pub(super) fn resolve(bytes: &[u8], file: &Path) -> Result<Config, ConfigError> {
    let whole = |message: String, remedy: &str| ConfigError {
        file: file.to_owned(),
        line: 0,
        column: 0,
        message,
        remedy: remedy.to_owned(),
    };
    if bytes.len() > CONFIG_BYTES {
        return Err(whole(
            format!("{} bytes are more than {CONFIG_BYTES}", bytes.len()),
            "shorten it",
        ));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|e| whole(format!("not UTF-8 at byte {}", e.valid_up_to()), "save it as UTF-8"))?;
    let error = |span: Option<Range<usize>>, message: String, remedy: &str| {
        let (line, column) = span.map_or((0, 0), |span| place(text, span.start));
        ConfigError {
            file: file.to_owned(),
            line,
            column,
            message,
            remedy: remedy.to_owned(),
        }
    };
    let raw: Raw = toml::from_str(text).map_err(|e| {
        let message = e.message().trim_end().to_owned();
        let remedy = if message.starts_with("unknown field") {
            "correct the name or delete the line; docs/agent.md lists every key"
        } else if message.starts_with("invalid type") || message.starts_with("unknown variant") {
            "write a value of the kind that docs/agent.md names for this key"
        } else if message.starts_with("missing field") {
            "add the key; docs/agent.md shows an example"
        } else {
            "mend the line; it is not valid TOML (https://toml.io)"
        };
        error(e.span(), message, remedy)
    })?;

    let absolute = |key: &str, path: Option<Spanned<PathBuf>>, default: PathBuf| match path {
        None => Ok(default),
        Some(path) if path.as_ref().is_absolute() => Ok(path.into_inner()),
        Some(path) => Err(error(
            Some(path.span()),
            format!("{key} is not an absolute path"),
            "begin it with a slash",
        )),
    };
    let length = |key: &str, value: Option<Spanned<String>>, default: Duration, range: Range<Duration>| match value {
        None => Ok(default),
        Some(value) => milliseconds(value.as_ref())
            .filter(|length| range.contains(length))
            .ok_or_else(|| {
                error(
                    Some(value.span()),
                    format!(
                        "{key} = \"{}\" is not a length of time from {:?} to {:?}",
                        value.as_ref(),
                        range.start,
                        range.end
                    ),
                    "write a number and ms, s, m, h or d, as in \"500ms\"",
                )
            }),
    };

    let default = Config::default();
    let mut kernel = default.kernel.clone();
    let (ms, s) = (Duration::from_millis, Duration::from_secs);
    kernel.park_after = length("park_after", raw.hold.park_after, kernel.park_after, ms(10)..s(60))?;
    kernel.away_after = length("away_after", raw.hold.away_after, kernel.away_after, s(1)..s(600))?;

    let number =
        |key: &str, value: Option<Spanned<i64>>, default: u32, range: std::ops::RangeInclusive<u32>| match value {
            None => Ok(default),
            Some(value) => u32::try_from(*value.as_ref())
                .ok()
                .filter(|number| range.contains(number))
                .ok_or_else(|| {
                    error(
                        Some(value.span()),
                        format!(
                            "{key} = {} is not within {} to {}",
                            value.as_ref(),
                            range.start(),
                            range.end()
                        ),
                        "write a number within the range",
                    )
                }),
        };
    let (pending_range, looping_range, tasks_range) = (1..=PENDING_PER_LABEL, 1..=1_024, 1..=65_536);
    let sockets_range = 1..=65_536;
    let mut labels = LabelRules::default();
    let add_free = |space: &mut Vec<PathBuf>, paths: Vec<Spanned<PathBuf>>, whose: &str| {
        for path in paths {
            let text = path.as_ref().to_string_lossy();
            let fine = text.len() <= 4096
                && text.strip_prefix('/').is_some_and(|body| {
                    body.split('/')
                        .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'))
                });
            if !fine {
                return Err(error(
                    Some(path.span()),
                    format!("\"{text}\" is not a directory that can be free"),
                    "write an absolute path without a slash at its end, as in \"/srv/work\"",
                ));
            }
            if space.len() >= FREE_PER_LABEL {
                return Err(error(
                    Some(path.span()),
                    format!("{whose} has more than {FREE_PER_LABEL} free directories"),
                    "name the directory above them",
                ));
            }
            space.push(path.into_inner());
        }
        Ok(())
    };
    if let Some(paths) = raw.hold.free {
        labels.free_for_all.clear();
        add_free(&mut labels.free_for_all, paths, "[hold]")?;
    }
    labels.default = LabelSettings {
        away: raw.hold.away.map_or(labels.default.away, RawAway::resolve),
        pending: number(
            "pending_per_label",
            raw.limits.pending_per_label,
            labels.default.pending,
            pending_range.clone(),
        )?,
        looping: number(
            "looping",
            raw.hold.looping,
            labels.default.looping,
            looping_range.clone(),
        )?,
        tasks: number(
            "tasks_per_label",
            raw.limits.tasks_per_label,
            labels.default.tasks,
            tasks_range.clone(),
        )?,
        sockets: number(
            "sockets_per_label",
            raw.limits.sockets_per_label,
            labels.default.sockets,
            sockets_range.clone(),
        )?,
        allow: Allowed::default(),
        writes: raw.hold.writes.map_or(labels.default.writes, RawWrites::resolve),
    };
    for label in raw.label {
        if !is_label(label.name.as_ref()) {
            return Err(error(
                Some(label.name.span()),
                format!("\"{}\" is not a label", label.name.as_ref()),
                "use 1 to 63 of a-z 0-9 . _ - with a letter or digit at both ends",
            ));
        }
        let name = label.name.as_ref().clone();
        let numbers = [&label.pending, &label.looping, &label.tasks, &label.sockets];
        let sets = label.away.is_some()
            || label.allow.is_some()
            || label.writes.is_some()
            || numbers.iter().any(|number| number.is_some());
        let names_space = !label.free.is_empty();
        if names_space {
            let space = labels.free.entry(name.clone()).or_default();
            add_free(space, label.free, &format!("\"{name}\""))?;
        }
        if sets {
            if labels.settings.contains_key(&name) {
                return Err(error(
                    Some(label.name.span()),
                    format!("what holds for \"{name}\" is set in an earlier [[label]] already"),
                    "set it in one of them; it holds for all cgroups of the label",
                ));
            }
            let mut allow = Allowed::default();
            for what in label.allow.unwrap_or_default() {
                if !allow.add(what.as_ref()) {
                    return Err(error(
                        Some(what.span()),
                        format!("nothing that a label may be allowed is called \"{}\"", what.as_ref()),
                        &format!(
                            "use some of {}; docs/agent.md says what they stand for",
                            Allowed::all_names()
                        ),
                    ));
                }
            }
            let settings = LabelSettings {
                allow,
                away: label
                    .away
                    .map_or(labels.default.away, |away| away.into_inner().resolve()),
                pending: number("pending", label.pending, labels.default.pending, pending_range.clone())?,
                looping: number("looping", label.looping, labels.default.looping, looping_range.clone())?,
                tasks: number("tasks", label.tasks, labels.default.tasks, tasks_range.clone())?,
                sockets: number("sockets", label.sockets, labels.default.sockets, sockets_range.clone())?,
                writes: label.writes.map_or(labels.default.writes, RawWrites::resolve),
            };
            labels.settings.insert(name.clone(), settings);
        }
        let Some(pattern) = label.cgroup else {
            if sets || names_space {
                continue;
            }
            return Err(error(
                Some(label.name.span()),
                format!("[[label]] \"{name}\" has neither a cgroup nor a setting"),
                "add cgroup, or one of away, writes, free, pending, looping, tasks, sockets, allow; docs/agent.md shows examples",
            ));
        };
        let cgroup = pattern.as_ref();
        let fine = cgroup.starts_with('/')
            && cgroup.len() > 1
            && cgroup.len() <= 4096
            && !cgroup.ends_with('/')
            && cgroup[1..]
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..");
        if !fine {
            return Err(error(
                Some(pattern.span()),
                format!("\"{cgroup}\" is not a path below the cgroup v2 root"),
                "write it as /sys/fs/cgroup shows it, without /sys/fs/cgroup, as in \"/system.slice/agent-*.service\"",
            ));
        }
        labels.patterns.push(LabelPattern {
            name,
            cgroup: pattern.into_inner(),
        });
    }

    let mut record_environment = match raw.record_environment {
        None => default.record_environment.clone(),
        Some(_) => Vec::new(),
    };
    for name in raw.record_environment.unwrap_or_default() {
        let body = name.as_ref().strip_suffix('*').unwrap_or(name.as_ref());
        let fine =
            !body.is_empty() && body.len() <= 256 && body.bytes().all(|b| b.is_ascii_graphic() && !b"=*".contains(&b));
        if !fine {
            return Err(error(
                Some(name.span()),
                format!("\"{}\" is not the name of an environment variable", name.as_ref()),
                "write names such as \"GIT_SSH_COMMAND\", or a beginning and a star such as \"GIT_*\"",
            ));
        }
        record_environment.push(name.into_inner());
    }

    let mut protect = ProtectMore::default();
    for path in raw.protect.paths {
        let text = path.as_ref();
        let body = text.strip_prefix("~/").or_else(|| text.strip_prefix('/')).unwrap_or("");
        // A path through `..` or to a whole file system would close more than anybody means.
        let fine = text.len() <= 4096
            && body
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'));
        if !fine {
            return Err(error(
                Some(path.span()),
                format!("\"{text}\" is not a path that can be protected"),
                "write an absolute path, or one below every home as in \"~/.ssh\", without a slash at its end",
            ));
        }
        protect.paths.push(text.into());
    }
    for address in raw.protect.addresses {
        let text = address.as_ref();
        let fine = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty()
                && host.len() <= 255
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
                && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'))
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !fine {
            return Err(error(
                Some(address.span()),
                format!("\"{text}\" is not HOST:PORT"),
                "write it as in \"console.example.org:443\" or \"[2001:db8::7]:443\"",
            ));
        }
        protect.addresses.push(address.into_inner());
    }
    if protect.paths.len() > PROTECT_MORE || protect.addresses.len() > PROTECT_MORE {
        return Err(whole(
            format!("[protect] has more than {PROTECT_MORE} entries"),
            "protect the directory above them",
        ));
    }

    let mut redact = Redact {
        built_in: raw.redact.built_in.unwrap_or(default.redact.built_in),
        patterns: Vec::new(),
    };
    let pattern_error = |place: Option<Range<usize>>, why: &PatternError| {
        error(
            place,
            why.to_string(),
            "write a name and a regular expression of the Rust crate regex; docs/agent.md shows an example",
        )
    };
    let mut last = None;
    for pattern in raw.redact.patterns {
        let (name, regex) = (pattern.name.as_ref(), pattern.regex.as_ref());
        let place = || match Pattern::check_name(name, &redact.patterns) {
            Ok(()) => pattern.regex.span(),
            Err(_) => pattern.name.span(),
        };
        let added = Pattern::check_name(name, &redact.patterns).and_then(|()| Pattern::new(name, regex));
        redact
            .patterns
            .push(added.map_err(|why| pattern_error(Some(place()), &why))?);
        last = Some(pattern.regex.span());
    }
    // What they are together. The built-in ones alone are fine, and take a moment to compile.
    if last.is_some() {
        Rules::new(redact.built_in, &redact.patterns).map_err(|why| pattern_error(last, &why))?;
    }

    let mut witnesses: Vec<VerifierKey> = Vec::new();
    for witness in raw.evidence.witnesses {
        let key = VerifierKey::parse(witness.as_ref()).ok().filter(|key| {
            let new = |other: &VerifierKey| other.key != key.key;
            key.kind == KeyKind::Witness && witnesses.iter().all(new)
        });
        let Some(key) = key else {
            return Err(error(
                Some(witness.span()),
                "this is not the key of one more witness".to_owned(),
                "write what `guard witness serve` prints, each key once",
            ));
        };
        witnesses.push(key);
    }
    let all = u32::try_from(witnesses.len()).unwrap_or(u32::MAX);
    let quorum = number("quorum", raw.evidence.quorum, all, 0..=all)?;

    let rotate_key_every = match raw.evidence.rotate_key_every {
        None => None,
        every => Some(length("rotate_key_every", every, s(0), s(3_600)..s(10 * 366 * 86_400))?),
    };

    let spool = number("spool_mib", raw.limits.spool_mib, 1_024, 16..=1_048_576)?;
    kernel.away = labels.default.away;
    kernel.looping = labels.default.looping;
    kernel.tasks = labels.default.tasks;
    kernel.sockets = labels.default.sockets;
    kernel.writes = labels.default.writes;
    kernel.files =
        labels.default.writes == Writes::Ask || labels.settings.values().any(|settings| settings.writes == Writes::Ask);
    kernel.pending = labels.default.pending + PENDING_HEADROOM;

    Ok(Config {
        file: file.to_owned(),
        state_dir: absolute("state_dir", raw.state_dir, default.state_dir)?,
        socket: absolute("socket", raw.socket, default.socket)?,
        policy_file: absolute("policy_file", raw.policy_file, default.policy_file)?,
        labels,
        record_environment,
        kernel,
        spool_bytes: u64::from(spool) << 20,
        witnesses,
        quorum: quorum as usize,
        key: raw.evidence.key.unwrap_or(default.key),
        rotate_key_every,
        protect,
        redact,
        kernel_rules: raw.policy.kernel_rules.unwrap_or(default.kernel_rules),
        hash_deadline: length("hash_deadline", raw.hash_deadline, default.hash_deadline, s(1)..s(3600))?,
        log: Log {
            json: matches!(raw.log.format, Some(RawFormat::Json)),
            level: match raw.log.level {
                Some(RawLevel::Error) => tracing::Level::ERROR,
                Some(RawLevel::Warn) => tracing::Level::WARN,
                None | Some(RawLevel::Info) => tracing::Level::INFO,
                Some(RawLevel::Debug) => tracing::Level::DEBUG,
                Some(RawLevel::Trace) => tracing::Level::TRACE,
            },
        },
    })
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    (
        before.matches('\n').count() + 1,
        before.rsplit('\n').next().unwrap_or_default().chars().count() + 1,
    )
}

/// `500ms`, `2s`, `5m`, `1h`, `90d`.
fn milliseconds(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(unit)?))
}
