//! Running other programs, and telling the person what goes on.
//! Given commands. Never writes to standard output: that belongs to what the person asked for.

use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

static PROGRESS: AtomicBool = AtomicBool::new(false);

/// Sets whether [`progress`] prints: always with `verbose`, else only when standard error is a terminal.
pub fn set_progress(verbose: bool) {
    PROGRESS.store(verbose || std::io::stderr().is_terminal(), Ordering::Relaxed);
}

/// Prints one line about what goes on, to standard error, when somebody is there to read it.
pub fn progress(line: impl AsRef<str>) {
    if shows_progress() {
        say(line);
    }
}

/// Prints one line about something that was asked for, to standard error, always.
pub fn say(line: impl AsRef<str>) {
    // Nobody can do anything about a closed standard error.
    let _ = writeln!(std::io::stderr(), "xtask: {}", line.as_ref());
}

/// Whether progress is shown.
pub fn shows_progress() -> bool {
    PROGRESS.load(Ordering::Relaxed)
}

/// A command line as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// Runs a command quietly; its output is shown only when it fails.
///
/// # Errors
/// When it cannot be started or fails; the text has the last lines of its output.
pub fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a command and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; the text has the last lines of its output.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let text = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{text}`"))?;
    if !output.status.success() {
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        bail!("`{text}` failed ({}):\n{}", output.status, last_lines(&said, 40));
    }
    Ok(output.stdout)
}

/// Runs a command whose output the person sees on standard error.
///
/// # Errors
/// When it cannot be started or fails.
pub fn visible(command: &mut Command) -> Result<()> {
    let text = shown(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot run `{text}`"))?;
    if !status.success() {
        bail!("`{text}` failed ({status})");
    }
    Ok(())
}

/// Like [`visible`] when progress is shown, like [`quiet`] otherwise.
///
/// # Errors
/// As the two.
pub fn loud_or_quiet(command: &mut Command) -> Result<()> {
    if shows_progress() {
        visible(command)
    } else {
        quiet(command)
    }
}

/// The last lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Whether a program is on `PATH`.
pub fn on_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| is_program(&dir.join(program))))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// A short key over several inputs, for names of cached files.
pub fn key<I>(parts: I) -> String
where
    I: IntoIterator,
    I::Item: AsRef<OsStr>,
{
    let mut hasher = Sha256::new();
    for part in parts {
        let bytes = part.as_ref().as_encoded_bytes();
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    hex(&hasher.finalize()[..8])
}

/// A short key of a file's content.
///
/// # Errors
/// When the file cannot be read.
pub fn file_key(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut hasher).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hex(&hasher.finalize()[..8]))
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Holds an exclusive lock on `path` (created when missing) until dropped, so that two runs never build the same file at once.
///
/// # Errors
/// When the file cannot be created or locked.
pub fn lock(path: &Path) -> Result<std::fs::File> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let file = std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    if file.try_lock().is_err() {
        progress(format!("waiting for another xtask that holds {}", path.display()));
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
