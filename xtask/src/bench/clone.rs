//! From a clean clone to the end of the demonstration, with a clock.
//! Given the committed state of this tree. Never counts a cache as cold that was warm: it says which were there.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::document::Section;
use crate::{paths, run};

pub(super) fn measure() -> Result<Section> {
    let directory = std::env::temp_dir().join(format!("guard-clone-{}", std::process::id()));
    let result = measure_in(&directory);
    // A leftover in the temporary directory harms nobody.
    let _ = std::fs::remove_dir_all(&directory);
    result
}

fn measure_in(directory: &Path) -> Result<Section> {
    let dirty = run::output(
        Command::new("git")
            .args(["status", "--porcelain"])
            .current_dir(paths::repo()),
    )?;
    if !dirty.is_empty() {
        run::progress("what is not committed is not measured");
    }
    let commit = run::output(
        Command::new("git")
            .args(["rev-parse", "--short", "HEAD"])
            .current_dir(paths::repo()),
    )?;
    let caches = caches()?;
    let begun = Instant::now();
    run::visible(
        Command::new("git")
            .args(["clone", "--quiet", "--no-hardlinks"])
            .arg(paths::repo())
            .arg(directory),
    )?;
    let mut command = Command::new("cargo");
    command
        .args(["xtask", "demo", "--auto"])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(std::io::stderr());
    // What the cargo that runs this xtask has set for it.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO") && text != "CARGO_HOME" || text == "RUSTUP_TOOLCHAIN" || text == "GUARD_BUILT" {
            command.env_remove(&name);
        }
    }
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo xtask demo --auto` in a clean clone failed ({status})");
    }
    let seconds = begun.elapsed().as_secs();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let body = format!(
        "`git clone` and `cargo xtask demo --auto` of {} with an empty target directory on {cpus} CPUs: **{}.{} minutes**.\n\n{caches}\n\n\
         Command: `cargo xtask bench --from-clone`.",
        String::from_utf8_lossy(&commit).trim(),
        seconds / 60,
        seconds % 60 / 6,
    );
    Ok(Section::new("From a clean clone", &body))
}

/// What was there before, in words.
fn caches() -> Result<String> {
    let cache = paths::cache()?;
    let home = std::env::var_os("CARGO_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let has = |path: &Path| path.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    let words = |there: bool| if there { "warm" } else { "cold" };
    let lines = [
        ("downloaded crates", has(&home.join("registry/cache"))),
        (
            "Debian packages of `cargo xtask setup`",
            run::on_path("qemu-system-x86_64") && run::on_path("mmdebstrap"),
        ),
        ("guest images and kernels", has(&cache.join("images"))),
        (
            "saved guests (of other builds: a new build saves its own)",
            has(&cache.join("states")),
        ),
    ]
    .map(|(what, there)| format!("- {what}: {}", words(there)));
    Ok(lines.join("\n"))
}
