//! What must not be recorded, sent or shown, and what stands in its place.
//!
//! Owns the mark that stands for a secret, and the key of this host that it is made with. It is given what the workload
//! wrote, before anything of it is stored or leaves the agent; policies see what is true. It must never let out a part of
//! what a rule took, nor something from which a secret can be found by trying; and two texts that differ must differ
//! afterwards, or an approval of one would cover the other.

mod find;
mod names;
mod options;
mod patterns;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use aws_lc_rs::hmac;
use guard_evidence::text::Text;
use rand::RngCore as _;

use crate::config::Redact;
use crate::files;
use crate::kernel::api::Argv;
use find::{Hit, in_arguments, in_path, in_text, in_variable};
pub use patterns::{Pattern, PatternError, Rules};

/// Name of the key in the state directory.
const KEY_FILE: &str = "redact.key";
const KEY_BYTES: usize = 32;
/// Bytes of the HMAC in a mark: enough that nobody meets another text with the same by chance, as nobody without the key can
/// look for one.
const MARK_BYTES: usize = 8;

/// Rules, and the key that marks are made with. The key never leaves it.
pub struct Redactor {
    rules: Rules,
    key: hmac::Key,
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

/// Why nothing can be redacted, so that the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum RedactError {
    #[error("[redact]: {0}")]
    Pattern(#[from] PatternError),
    #[error("{}: {source}", path.display())]
    Key { path: PathBuf, source: io::Error },
    #[error("{} is not a key of {KEY_BYTES} bytes\n  → remove it: a new one is made, and grants of actions with a secret in them end", .0.display())]
    Damaged(PathBuf),
}

impl Redactor {
    /// With the key of this host, which is made the first time.
    ///
    /// # Errors
    /// [`RedactError`], also when the key is there but is none: it is never replaced silently.
    pub fn open(state_dir: &Path, configured: &Redact) -> Result<Self, RedactError> {
        let rules = Rules::new(configured.built_in, &configured.patterns)?;
        let path = state_dir.join(KEY_FILE);
        let failed = |source| RedactError::Key {
            path: path.clone(),
            source,
        };
        let key = match fs::read(&path) {
            Ok(key) => key,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut key = [0; KEY_BYTES];
                rand::rngs::OsRng.fill_bytes(&mut key);
                files::replace(&path, &key, 0o600).map_err(failed)?;
                key.to_vec()
            }
            Err(error) => return Err(failed(error)),
        };
        if key.len() != KEY_BYTES {
            return Err(RedactError::Damaged(path));
        }
        Ok(Self::with_key(&key, rules))
    }

    /// With a key of the caller's.
    #[must_use]
    pub fn with_key(key: &[u8], rules: Rules) -> Self {
        Self {
            rules,
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
        }
    }

    /// A path, or what a symbolic link points at.
    #[must_use]
    pub fn path(&self, path: &[u8]) -> Text {
        Text::from(self.replace(path, in_path(&self.rules, path)))
    }

    /// A text that stands alone: a claim, a name.
    #[must_use]
    pub fn text(&self, text: &[u8]) -> Text {
        Text::from(self.replace(text, in_text(&self.rules, text)))
    }

    /// Arguments of one command, each as it is recorded. `gap` is where some were left out: before the one with this index.
    #[must_use]
    pub fn arguments<T: AsRef<[u8]>>(&self, arguments: &[T], gap: Option<usize>) -> Vec<Text> {
        let arguments: Vec<&[u8]> = arguments.iter().map(AsRef::as_ref).collect();
        let hits = in_arguments(&self.rules, &arguments, gap);
        let replaced = arguments.iter().zip(hits);
        replaced
            .map(|(argument, hits)| Text::from(self.replace(argument, hits)))
            .collect()
    }

    /// `NAME=value`: the whole value if the name says that it is a secret, or if it looks like a key.
    #[must_use]
    pub fn variable(&self, entry: &[u8]) -> Text {
        Text::from(self.replace(entry, in_variable(&self.rules, entry)))
    }

    /// What stands in evidence for the digest of something that may hold secrets and that no reader sees whole: it tells two
    /// apart, and nobody without the key can try what it is of. Lower-case hex.
    #[must_use]
    pub fn digest(&self, sha256: &[u8]) -> String {
        hex::encode(hmac::sign(&self.key, &[b"digest\0", sha256].concat()))
    }

    /// Arguments as they are recorded, and the digest over them. Where not even the agent kept all of them, the digest is
    /// [`Redactor::digest`] of the true ones.
    #[must_use]
    pub fn argv(&self, argv: &Argv) -> (Vec<Text>, String) {
        let recorded = self.arguments(&argv.strings, argv.gap);
        let digest = match argv.gap {
            None => guard_evidence::statement::strings_sha256(&recorded),
            Some(_) => self.digest(&argv.sha256),
        };
        (recorded, digest)
    }

    fn replace(&self, text: &[u8], hits: Vec<Hit<'_>>) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len());
        let mut from = 0;
        for hit in find::merged(hits) {
            out.extend_from_slice(text.get(from..hit.range.start).unwrap_or_default());
            let secret = text.get(hit.range.clone()).unwrap_or_default();
            out.extend_from_slice(self.mark(hit.rule, secret).as_bytes());
            from = hit.range.end;
        }
        out.extend_from_slice(text.get(from..).unwrap_or_default());
        out
    }

    /// `[redacted github-token 3f9a1c2e5b7d9e01]`. What a shell might take for more than a word is said, so that nothing can
    /// be hidden from people by being called a password.
    fn mark(&self, rule: &str, secret: &[u8]) -> String {
        let tag = hmac::sign(&self.key, &[b"mark\0", secret].concat());
        let tag = hex::encode(tag.as_ref().get(..MARK_BYTES).unwrap_or_default());
        let syntax =
            secret.iter().any(|byte| b";|&<>`\n\r".contains(byte)) || secret.windows(2).any(|two| two == b"$(");
        let syntax = if syntax { ", with shell syntax" } else { "" };
        format!("[redacted {rule} {tag}{syntax}]")
    }
}

/// The built-in rules with a key that everybody knows.
pub(crate) fn for_fuzzing() -> Arc<Redactor> {
    static REDACTOR: LazyLock<Arc<Redactor>> = LazyLock::new(|| match Rules::new(true, &[]) {
        Ok(rules) => Arc::new(Redactor::with_key(&[7; KEY_BYTES], rules)),
        Err(error) => unreachable!("the built-in rules are part of the program: {error}"),
    });
    Arc::clone(&REDACTOR)
}

/// For the fuzzer: arguments with NUL between them, and secrets among them.
pub fn fuzz_redact(data: &[u8]) {
    let redactor = for_fuzzing();
    let arguments: Vec<&[u8]> = data.split(|byte| *byte == 0).collect();
    let recorded = redactor.arguments(&arguments, None);
    assert_eq!(recorded.len(), arguments.len());
    for (argument, recorded) in arguments.iter().zip(&recorded) {
        find::assert_none_left(recorded.as_bytes());
        find::assert_none_left(redactor.text(argument).as_bytes());
        find::assert_none_left(redactor.path(argument).as_bytes());
        find::assert_none_left(redactor.variable(argument).as_bytes());
    }
    // A secret within whatever it is: gone, and told apart from another one.
    let (before, after) = data.split_at(data.len() / 2);
    for secret in find::SAMPLES {
        let with = |secret: &[u8]| redactor.text(&[before, b" ", secret, b" ", after].concat());
        let shown = with(secret);
        let core = &secret[secret.len() / 4..];
        let has = |text: &[u8]| text.windows(core.len()).any(|part| part == core);
        assert!(has(data) || !has(shown.as_bytes()), "{secret:?} survived in {shown:?}");
        let mut other = secret.to_vec();
        if let Some(last) = other.iter_mut().rfind(|byte| **byte == b'x') {
            *last = b'y';
        }
        assert_ne!(with(&other), shown, "two secrets look the same");
    }
}
