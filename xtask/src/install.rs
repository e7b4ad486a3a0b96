//! `cargo xtask install`: puts Guard where a package would, on this machine or below a directory.
//! Given the programs and packaging/. Never starts anything and never replaces a configuration.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile};
use crate::{paths, run};

/// What goes where, besides the programs: from packaging/ to below the root.
pub(crate) const FILES: [(&str, &str); 3] = [
    (
        "packaging/systemd/guard-agent.service",
        "usr/lib/systemd/system/guard-agent.service",
    ),
    (
        "packaging/systemd/guard-console.service",
        "usr/lib/systemd/system/guard-console.service",
    ),
    (
        "packaging/sysusers.d/guard-console.conf",
        "usr/lib/sysusers.d/guard-console.conf",
    ),
];
const EXAMPLE: (&str, &str) = ("packaging/agent.toml.example", "usr/share/doc/guard/agent.toml.example");
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/guard"),
    ("zsh", "usr/share/zsh/vendor-completions/_guard"),
    ("fish", "usr/share/fish/vendor_completions.d/guard.fish"),
];

/// Builds what is shipped and installs it below `root`.
///
/// # Errors
/// When it does not build, or a file cannot be written; the text says which.
pub fn install(root: &Path, profile: Profile) -> Result<()> {
    let here = root == Path::new("/");
    if here && !paths::is_root() {
        bail!("installing into / needs root: run it with sudo, or name another directory with --root");
    }
    let programs = build::all(profile)?;
    for name in build::PROGRAMS {
        let to = target(root, &format!("usr/bin/{name}"))?;
        // Never over a program that runs.
        let new = to.with_extension("new");
        run::quiet(
            Command::new("strip")
                .arg("--strip-all")
                .arg("-o")
                .arg(&new)
                .arg(programs.join(name)),
        )?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
        fs::rename(&new, &to).with_context(|| format!("cannot write {}", to.display()))?;
    }
    for (from, to) in FILES.iter().chain([&EXAMPLE]) {
        let to = target(root, to)?;
        fs::copy(paths::repo().join(from), &to).with_context(|| format!("cannot write {}", to.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
    }
    let guard = programs.join("guard");
    for (shell, to) in COMPLETIONS {
        let script = run::output(Command::new(&guard).args(["completions", shell]))?;
        let to = target(root, to)?;
        fs::write(&to, script).with_context(|| format!("cannot write {}", to.display()))?;
    }
    let pages = target(root, "usr/share/man/man1/x")?;
    run::quiet(
        Command::new(&guard)
            .arg("man")
            .arg(pages.parent().context("a file has a directory")?),
    )?;
    if here {
        run::quiet(&mut Command::new("systemd-sysusers"))?;
        run::quiet(Command::new("systemctl").arg("daemon-reload"))?;
    }
    run::say(
        "installed. On the console's machine: systemctl enable --now guard-console, then open the link in \
         /var/lib/guard-console/setup-link.\nOn each host: guard doctor, guard-agent enroll --token-file FILE, \
         systemctl enable --now guard-agent.",
    );
    Ok(())
}

/// The path below the root, its directory made.
fn target(root: &Path, path: &str) -> Result<std::path::PathBuf> {
    let to = root.join(path);
    let directory = to.parent().context("a file has a directory")?;
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(to)
}
