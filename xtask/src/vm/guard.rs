//! A guest with Guard installed as on a real host: console, agent, an administrator and an approver.
//! Given the built programs and packaging/. Never weakens what is installed: the units are the ones that are shipped.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::{Prepare, Vm, VmOptions};
use crate::build::{self, Profile};
use crate::{install, paths, run};

const PROVISION: &str = include_str!("../../guest/provision.sh");

/// Certificates of hosts are short-lived, and a sign-in ends after two hours without use.
const MAX_AGE: Duration = Duration::from_secs(90 * 60);

/// Images of what is installed that stay: so many, used within a day.
const IMAGES: usize = 12;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Builds what changed, then boots or restores a guest with Guard enforcing. `change` sees the options first: kernel,
/// copied files, network. Root's `guard` is signed in as the approver, who owns no label; `guard --as admin` as the administrator.
///
/// # Errors
/// When something does not build, or the guest does not come as far as enforcing; the text says at which step.
pub fn boot(change: impl FnOnce(&mut VmOptions<'_>)) -> Result<Vm> {
    boot_with(change, &|vm| provision(vm, "whole"), "whole")
}

/// Like [`boot`], and a third person is there and signed in: one who may approve but owns the label `coder`.
///
/// # Errors
/// As [`boot`].
pub fn boot_with_owner(change: impl FnOnce(&mut VmOptions<'_>)) -> Result<Vm> {
    boot_with(change, &|vm| provision(vm, "people"), "people")
}

/// Like [`boot`] without the start of the agent, for hosts where it cannot.
///
/// # Errors
/// As [`boot`].
pub fn boot_without_agent(change: impl FnOnce(&mut VmOptions<'_>)) -> Result<Vm> {
    boot_with(change, &|vm| provision(vm, "console"), "console")
}

/// Boots a guest whose agent belongs to a console elsewhere: `address` is HOST:PORT of its API for hosts as the guest
/// reaches it (10.0.2.2 is this machine), `token` an enrolment token of it.
///
/// # Errors
/// When the token is for another address, and as [`boot`].
pub fn boot_for_console(change: impl FnOnce(&mut VmOptions<'_>), address: &str, token: &str) -> Result<Vm> {
    check_token(address, token)?;
    let change = |options: &mut VmOptions<'_>| {
        change(options);
        options.network = true;
    };
    let vm = boot_with(change, &|vm| provision(vm, "install"), "install")?;
    vm.write(token.trim().as_bytes(), "/root/guard-vm/token", 0o600)?;
    // Not before the snapshot: a token and a host's identity are good for one guest.
    provision(&vm, "join")?;
    Ok(vm)
}

fn check_token(address: &str, token: &str) -> Result<()> {
    // guard1.<host:port>.<digest>.<secret>: the address may have dots itself.
    let told = token
        .trim()
        .strip_prefix("guard1.")
        .and_then(|rest| rest.rsplitn(3, '.').nth(2));
    match told {
        Some(told) if told == address => Ok(()),
        Some(told) => bail!(
            "the token is for a console at {told}, not at {address}: start the console with --advertise {address} and make a new token"
        ),
        None => bail!("this is no enrolment token: make one with `guard tokens create --out FILE`"),
    }
}

fn boot_with(change: impl FnOnce(&mut VmOptions<'_>), step: &dyn Fn(&Vm) -> Result<()>, name: &str) -> Result<Vm> {
    let programs = if build::is_built() {
        paths::target().join(Profile::Dev.directory())
    } else {
        build::all(Profile::Dev)?
    };
    let image = image(&paths::cache()?, &programs)?;
    let mut options = VmOptions::systemd();
    if let Some(series) = std::env::var_os("GUARD_VM_KERNEL") {
        options.kernel = series.to_string_lossy().parse()?;
    }
    change(&mut options);
    options.prepare = Some(Prepare {
        key: run::key([PROVISION, name]),
        max_age: MAX_AGE,
        step,
    });
    options.extra = Some(image);
    Vm::boot(&options)
}

fn provision(vm: &Vm, what: &str) -> Result<()> {
    run::progress("installing Guard in the guest");
    vm.write(PROVISION.as_bytes(), "/run/guard-vm/provision.sh", 0o700)?;
    let output = vm.run(&["/run/guard-vm/provision.sh", what])?;
    output.success().context("cannot install Guard in the guest")?;
    Ok(())
}

/// The image of everything that is installed; kept until one of the files changes.
fn image(cache: &Path, programs: &Path) -> Result<PathBuf> {
    let programs = build::PROGRAMS.map(|name| (programs.join(name), format!("usr/bin/{name}")));
    let files = install::FILES.map(|(from, to)| (paths::repo().join(from), to.to_owned()));
    let mut parts: Vec<OsString> = Vec::new();
    for (from, to) in programs.iter().chain(&files) {
        let meta = from
            .metadata()
            .with_context(|| format!("cannot read {}", from.display()))?;
        // The programs are large, and cargo writes them only when they change.
        parts.push(
            format!(
                "{} {to} {} {}.{}",
                from.display(),
                meta.len(),
                meta.mtime(),
                meta.mtime_nsec()
            )
            .into(),
        );
    }
    let path = cache.join("images").join(format!("guard-{}.erofs", run::key(parts)));
    let _lock = run::lock(&cache.join("images/guard.lock"))?;
    if let Ok(image) = fs::File::open(&path) {
        // Says that it is in use: see below.
        let _ = image.set_modified(SystemTime::now());
        return Ok(path);
    }
    let stage = cache.join("images/guard.stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    for (from, to) in &files {
        let to = stage.join(to);
        fs::create_dir_all(to.parent().context("a file has a directory")?)?;
        fs::copy(from, to)?;
    }
    fs::create_dir_all(stage.join("usr/bin"))?;
    for (from, to) in &programs {
        run::quiet(
            Command::new("strip")
                .arg("--strip-debug")
                .arg("-o")
                .arg(stage.join(to))
                .arg(from),
        )?;
    }
    let new = path.with_extension("new");
    run::quiet(
        Command::new("mkfs.erofs")
            .args(["-T0", "--all-root"])
            .arg(&new)
            .arg(&stage),
    )?;
    fs::remove_dir_all(&stage)?;
    forget_older(cache);
    fs::rename(new, &path)?;
    Ok(path)
}

/// Every change of a program makes another image. Those used lately are kept, but not all of a day: another checkout may be
/// about to start a guest from one. A running guest keeps the one that it opened.
fn forget_older(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache.join("images")) else {
        return;
    };
    let mut images: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("guard-") && name.ends_with(".erofs")
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    images.sort();
    for (number, (used, path)) in images.iter().rev().enumerate() {
        if number >= IMAGES || used.elapsed().is_ok_and(|ago| ago > DAY) {
            // What cannot be removed now is tried again at the next change.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_used_lately_stay() {
        let cache = std::env::temp_dir().join(format!("guard-images-{}", std::process::id()));
        fs::create_dir_all(cache.join("images")).unwrap();
        let make = |name: &str, hours: u64| {
            let file = fs::File::create(cache.join("images").join(name)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours))
                .unwrap();
        };
        make("guard-old.erofs", 30);
        make("guard.lock", 30);
        make("initramfs-x.cpio", 30);
        for number in 0..IMAGES + 2 {
            make(&format!("guard-{number}.erofs"), number as u64);
        }
        forget_older(&cache);
        let there = |name: String| cache.join("images").join(name).exists();
        assert!(!there("guard-old.erofs".into()));
        assert!(there("guard.lock".into()) && there("initramfs-x.cpio".into()));
        for number in 0..IMAGES + 2 {
            assert_eq!(there(format!("guard-{number}.erofs")), number < IMAGES, "{number}");
        }
        fs::remove_dir_all(&cache).unwrap();
    }

    #[test]
    fn a_token_for_another_console_is_told() {
        assert!(check_token("10.0.2.2:8444", "guard1.10.0.2.2:8444.ab12.secret\n").is_ok());
        let error = check_token("10.0.2.2:8444", "guard1.localhost:8444.ab12.secret")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("localhost:8444") && error.contains("--advertise 10.0.2.2:8444"),
            "{error}"
        );
        for nonsense in ["", "guard1.", "guard1.a.b", "x.localhost:8444.ab12.secret"] {
            assert!(check_token("localhost:8444", nonsense).is_err(), "{nonsense:?}");
        }
    }
}
