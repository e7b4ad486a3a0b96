//! Saved sign-ins.
//!
//! Owns the credentials files below `$XDG_CONFIG_HOME/guard` (one per profile). It is given sessions to save. It must
//! never write one that others can read, nor use one that others could read or write.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Everything needed to talk to one console as one person.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Credentials {
    pub(crate) url: String,
    pub(crate) username: String,
    pub(crate) token: Token,
    pub(crate) expires_at: String,
    /// The only authorities that the console's certificate may come from.
    pub(crate) ca_pem: String,
}

/// A bearer token, which debug output does not show.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(pub(crate) String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Where the profile's credentials are, whether or not they exist.
pub(crate) fn path(profile: &str) -> Result<PathBuf, Failure> {
    if !guard_proto::limits::is_label(profile) {
        return Err(Failure::usage(format!(
            "`{}` cannot name a sign-in: use a-z, 0-9, `.`, `_` and `-`",
            guard_evidence::text::visible(profile)
        )));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    let Some(config) = config else {
        return Err(
            Failure::usage("neither XDG_CONFIG_HOME nor HOME says where sign-ins are saved")
                .next("export HOME=/path/to/your/home"),
        );
    };
    Ok(config.join("guard").join(file_name("credentials", profile)))
}

fn file_name(what: &str, profile: &str) -> String {
    if profile == "default" {
        format!("{what}.json")
    } else {
        format!("{what}.{profile}.json")
    }
}

/// Where the keys are kept that the profile's console vouched for.
pub(crate) fn trust_path(profile: &str) -> Result<PathBuf, Failure> {
    Ok(path(profile)?.with_file_name(file_name("trust", profile)))
}

/// The saved sign-in, or `None` if there is none.
pub(crate) fn load(profile: &str) -> Result<Option<Credentials>, Failure> {
    let path = path(profile)?;
    let shown = path.display();
    let mut file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::unknown(format!("{shown}: {e}"))),
    };
    let meta = file.metadata().map_err(|e| Failure::unknown(format!("{shown}: {e}")))?;
    if meta.permissions().mode() & 0o077 != 0 {
        return Err(
            Failure::unknown(format!("{shown} can be read or changed by others, so it is not used")).next(format!(
                "chmod 600 {shown}   and, if others may have read it: guard logout && guard login …"
            )),
        );
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Failure::unknown(format!(
            "{shown} belongs to another user, so it is not used"
        )));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)
        .map_err(|e| Failure::unknown(format!("{shown}: {e}")))?;
    let credentials = serde_json::from_str(&text)
        .map_err(|e| Failure::unknown(format!("{shown} is damaged: {e}")).next("guard login"))?;
    Ok(Some(credentials))
}

/// Saves a sign-in: whole or not at all, readable by its user only.
pub(crate) fn save(profile: &str, credentials: &Credentials) -> Result<PathBuf, Failure> {
    let path = path(profile)?;
    let mut text = serde_json::to_vec_pretty(credentials).map_err(|e| Failure::unknown(e.to_string()))?;
    text.push(b'\n');
    write(&path, &text)?;
    Ok(path)
}

/// Keeps the console's trust file beside the sign-in, as [`save`] does.
pub(crate) fn save_trust(profile: &str, trust: &[u8]) -> Result<(), Failure> {
    write(&trust_path(profile)?, trust)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        guard_evidence::files::replace(path, bytes, 0o600)
    };
    write().map_err(|e| Failure::unknown(format!("cannot save {}: {e}", path.display())))
}

/// Forgets the sign-in. Whether there was one.
pub(crate) fn remove(profile: &str) -> Result<bool, Failure> {
    let path = path(profile)?;
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Failure::unknown(format!("{}: {e}", path.display()))),
    }
}
