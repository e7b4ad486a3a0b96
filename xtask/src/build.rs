//! Builds the BPF object with Debian's compiler and user space with the stable toolchain.
//! Given the source tree. Never touches the object when it did not change, so that the agent is not rebuilt for nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{paths, run, setup};

/// The compiler whose BPF target has a prebuilt `core`.
pub(crate) const BPF_RUSTC: &str = "/usr/bin/rustc";
const BPF_CARGO: &str = "/usr/bin/cargo";
const BPF_TARGET: &str = "bpfel-unknown-none";

/// How user space is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// What tests and virtual machines use: one build serves all of them.
    Dev,
    /// What is shipped.
    Release,
}

impl Profile {
    /// The directory below the target directory.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// The programs that are installed on hosts.
pub const PROGRAMS: [&str; 3] = ["guard", "guard-agent", "guard-console"];

/// A command for the stable toolchain's cargo.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::repo());
    command
}

/// The BPF object that the agent embeds.
pub fn object() -> PathBuf {
    // guard-agent/build.rs reads it from there.
    paths::repo().join("target/bpf/guard.bpf.o")
}

/// Builds the BPF object.
///
/// # Errors
/// When a tool is missing (the text says how to get it) or the code does not compile.
pub fn bpf() -> Result<PathBuf> {
    let linker = setup::linker(false)?;
    let target = paths::repo().join("target/bpf-build");
    run::progress("building the BPF object");
    let flags = [
        &format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf",
        "-Cdebuginfo=2",
    ];
    let mut command = Command::new(BPF_CARGO);
    command
        .args(["build", "--release", "--locked", "--target", BPF_TARGET, "--target-dir"])
        .arg(&target)
        .current_dir(paths::repo().join("guard-ebpf"))
        .env("RUSTC", BPF_RUSTC)
        // The target is tier 3; its core comes prebuilt with this very compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // What the calling cargo set for the other toolchain.
    for name in [
        "RUSTFLAGS",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
        "CARGO",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(name);
    }
    run::loud_or_quiet(&mut command).context("cannot build the BPF object")?;
    let built = target.join(BPF_TARGET).join("release/guard");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    if !bytes.starts_with(b"\x7fELF") {
        bail!("{} is no ELF object", built.display());
    }
    let object = object();
    if fs::read(&object).ok().as_deref() != Some(&bytes) {
        fs::create_dir_all(paths::repo().join("target/bpf"))?;
        let new = object.with_extension("new");
        fs::write(&new, &bytes)?;
        fs::rename(&new, &object)?;
    }
    Ok(object)
}

/// Whether the environment says that everything is built (`GUARD_BUILT=1`), so that nothing is to be built a second time.
pub fn is_built() -> bool {
    std::env::var_os("GUARD_BUILT").is_some_and(|value| value == "1")
}

/// Packages of a development build: with the features that the tests need too, so that no dependency is built twice.
const TESTED: [&str; 3] = ["--workspace", "--exclude", "xtask"];

/// Builds the program that holds by rules given on its command line, and puts it, without its symbols, into a folder.
///
/// # Errors
/// When the code does not compile.
pub(crate) fn hold_probe(folder: &Path) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--locked"]).args(TESTED);
    run::loud_or_quiet(command.args(["--example", "hold_probe"]))?;
    let mut strip = Command::new("strip");
    strip.args(["--strip-debug", "-o"]).arg(folder.join("hold_probe"));
    run::quiet(strip.arg(paths::target().join("debug/examples/hold_probe")))
}

/// Builds the BPF object and then the programs; returns the directory that they are in.
///
/// # Errors
/// When a tool is missing or the code does not compile.
pub fn all(profile: Profile) -> Result<PathBuf> {
    bpf()?;
    run::progress("building user space");
    let mut command = cargo();
    command.args(["build", "--locked"]);
    match profile {
        Profile::Dev => command.args(TESTED).args(["--bins", "--examples"]),
        Profile::Release => {
            let packages = ["-p", "guard-agent", "-p", "guard-console", "-p", "guard-cli"];
            command.arg("--release").args(packages).arg("--bins")
        }
    };
    if !run::shows_progress() {
        command.arg("--quiet");
    }
    run::loud_or_quiet(&mut command).context("cannot build user space")?;
    let dir = paths::target().join(profile.directory());
    for program in PROGRAMS {
        if !dir.join(program).is_file() {
            bail!("the build made no {}", dir.join(program).display());
        }
    }
    Ok(dir)
}
