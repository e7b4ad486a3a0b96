//! The guest's images: root file system, initramfs, and the files copied in.
//! Given package lists, scripts and paths. Never rebuilds what the cache has under the same key.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::kernel::{self, Fetched};
use crate::{paths, run};

/// What the guest has beyond Debian's minimal system.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "libpam-systemd",
    "dbus",
    "udev",
    "kmod",
    "python3",
    "curl",
    "ca-certificates",
    "git",
    "openssh-client",
    "iproute2",
    "iptables",
    "strace",
    "podman",
    "crun",
    "netavark",
    "aardvark-dns",
    "containerd",
    "apparmor",
    "procps",
    "iputils-ping",
    "busybox-static",
    "btrfs-progs",
    "attr",
    "jq",
];

/// Modules that must be loaded before the root file system is there; those built in are skipped.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "erofs",
    "overlay",
];

const INITRAMFS: &str = include_str!("../../guest/initramfs.sh");
const PLAIN_INIT: &str = include_str!("../../guest/plain-init.sh");
const CHANNEL: &str = include_str!("../../guest/channel.py");
const CHANNEL_UNIT: &str = include_str!("../../guest/guard-vm-channel.service");

/// The root file system.
#[derive(Debug)]
pub(super) struct Root {
    /// As an erofs image.
    pub(super) image: PathBuf,
    /// Its static busybox, for the initramfs.
    busybox: PathBuf,
}

/// The Debian suite of the machine: what is built here must run in the guest.
fn suite() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim_matches('"').to_owned())
    };
    match (field("ID=").as_deref(), field("VERSION_CODENAME=")) {
        (Some("debian"), Some(codename)) => codename,
        _ => "bookworm".into(),
    }
}

pub(super) fn root(cache: &Path) -> Result<Root> {
    let suite = suite();
    let key = run::key([suite.as_str(), "1"].into_iter().chain(PACKAGES.iter().copied()));
    let dir = cache.join("images").join(format!("root-{suite}-{key}"));
    let root = Root {
        image: dir.join("root.erofs"),
        busybox: dir.join("busybox"),
    };
    if root.image.exists() {
        return Ok(root);
    }
    let _lock = run::lock(&cache.join("images").join(format!("root-{suite}-{key}.lock")))?;
    if root.image.exists() {
        return Ok(root);
    }
    if !paths::is_root() {
        bail!("the guest's root file system can only be made by root: run this command once as root (sudo -E)");
    }
    run::progress("making the guest's root file system (a minute, once)");
    fs::create_dir_all(&dir)?;
    let tree = dir.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    let sources = dir.join("sources.list");
    fs::write(&sources, kernel::system_sources(&suite)?)?;
    run::quiet(
        Command::new("mmdebstrap")
            .args(["--mode=root", "--variant=minbase", "--skip=check/qemu"])
            .arg(format!("--include={}", PACKAGES.join(",")))
            .arg("--dpkgopt=path-exclude=/usr/share/man/*")
            .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
            .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
            .args([&suite].map(String::as_str))
            .arg(&tree)
            .arg(&sources),
    )?;
    fs::write(tree.join("etc/machine-id"), "")?;
    fs::write(tree.join("etc/hostname"), "guest\n")?;
    fs::write(
        tree.join("etc/hosts"),
        "127.0.0.1 localhost guest\n::1 localhost guest\n",
    )?;
    fs::copy(tree.join("bin/busybox"), &root.busybox)?;
    let image = dir.join("root.erofs.new");
    run::quiet(Command::new("mkfs.erofs").args(["-zlz4", "-T0"]).arg(&image).arg(&tree))?;
    fs::remove_dir_all(&tree)?;
    fs::rename(image, &root.image)?;
    Ok(root)
}

pub(super) fn initramfs(cache: &Path, kernel: &Fetched, root: &Root) -> Result<PathBuf> {
    let parts = [&kernel.release, INITRAMFS, PLAIN_INIT, CHANNEL, CHANNEL_UNIT];
    let key = run::key(parts.into_iter().chain(MODULES.iter().copied()));
    let path = cache.join("images").join(format!("initramfs-{key}.cpio"));
    if path.exists() {
        return Ok(path);
    }
    let _lock = run::lock(&path.with_extension("lock"))?;
    if path.exists() {
        return Ok(path);
    }
    let stage = path.with_extension("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    for dir in [
        "bin",
        "dev",
        "proc",
        "sys",
        "modules",
        "support/usr/lib/guard-vm",
        "support/etc/systemd/system/multi-user.target.wants",
    ] {
        fs::create_dir_all(stage.join(dir))?;
    }
    fs::copy(&root.busybox, stage.join("bin/busybox"))?;
    script(&stage.join("init"), INITRAMFS)?;
    script(&stage.join("support/usr/lib/guard-vm/plain-init.sh"), PLAIN_INIT)?;
    script(&stage.join("support/usr/lib/guard-vm/channel.py"), CHANNEL)?;
    let units = stage.join("support/etc/systemd/system");
    fs::write(units.join("guard-vm-channel.service"), CHANNEL_UNIT)?;
    std::os::unix::fs::symlink(
        "../guard-vm-channel.service",
        units.join("multi-user.target.wants/guard-vm-channel.service"),
    )?;
    let mut order = String::new();
    for (number, module) in module_order(&kernel.modules)?.iter().enumerate() {
        let name = format!("{number:02}.ko");
        unpack_module(&kernel.modules.join(module), &stage.join("modules").join(&name))?;
        order.push_str(&name);
        order.push('\n');
    }
    fs::write(stage.join("modules/order"), order)?;
    let new = path.with_extension("new");
    let line =
        "set -e; cd \"$1\"; find . -print0 | sort -z | cpio --quiet --null --create --format=newc --owner=0:0 >\"$2\"";
    run::quiet(Command::new("sh").args(["-c", line, "sh"]).arg(&stage).arg(&new))?;
    fs::remove_dir_all(&stage)?;
    fs::rename(new, &path)?;
    Ok(path)
}

fn script(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The paths of the needed modules below the module directory, each after what it depends on.
fn module_order(modules: &Path) -> Result<Vec<String>> {
    let dep = fs::read_to_string(modules.join("modules.dep")).context("the kernel's module list is missing")?;
    let builtin = fs::read_to_string(modules.join("modules.builtin"))
        .context("the kernel's list of built-in modules is missing")?;
    order(&dep, &builtin, MODULES)
}

fn order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    fn name(path: &str) -> String {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.split(".ko").next().unwrap_or(file).replace('-', "_")
    }
    let lines: BTreeMap<String, (&str, &str)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (name(path), (path, needs)))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for module in wanted {
        let Some((path, needs)) = lines.get(*module) else {
            if builtin.lines().any(|path| name(path) == *module) {
                continue;
            }
            return Err(anyhow!("the kernel has no module {module}"));
        };
        // The list has the direct dependencies first.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|known| known == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

fn unpack_module(from: &Path, to: &Path) -> Result<()> {
    let bytes = match from.extension().and_then(|ext| ext.to_str()) {
        Some("xz") => run::output(Command::new("xz").arg("-dc").arg(from))?,
        Some("zst") => run::output(Command::new("zstd").args(["-q", "-dc"]).arg(from))?,
        _ => fs::read(from).with_context(|| format!("cannot read {}", from.display()))?,
    };
    fs::write(to, bytes)?;
    Ok(())
}

/// Makes an erofs image, owned by root, of files and directories under their own names.
///
/// # Errors
/// When a path is missing, two have the same name, or the image cannot be made.
pub(super) fn of_paths(paths: &[PathBuf], stage: &Path, image: &Path) -> Result<()> {
    fs::create_dir_all(stage)?;
    for path in paths {
        let path = fs::canonicalize(path).with_context(|| format!("cannot copy {}", path.display()))?;
        let name = path
            .file_name()
            .ok_or_else(|| anyhow!("{} has no name of its own", path.display()))?;
        let target = stage.join(name);
        if target.symlink_metadata().is_ok() {
            bail!("two paths to copy are called {}", name.to_string_lossy());
        }
        run::quiet(
            Command::new("cp")
                .args(["-a", "--reflink=auto", "--"])
                .arg(&path)
                .arg(&target),
        )?;
    }
    run::quiet(Command::new("mkfs.erofs").arg("--all-root").arg(image).arg(stage))?;
    fs::remove_dir_all(stage)?;
    Ok(())
}

/// Makes the image of files to copy in, `size` bytes long (a file with holes), in `dir`/copy.
pub(super) fn copies(paths: &[PathBuf], dir: &Path, size: u64) -> Result<()> {
    let image = dir.join("copy");
    if !paths.is_empty() {
        of_paths(paths, &dir.join("stage"), &image)?;
    }
    let file = fs::OpenOptions::new().create(true).append(true).open(&image)?;
    if file.metadata()?.len() > size {
        bail!("the files to copy are more than {} GiB", size >> 30);
    }
    file.set_len(size)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let dep = "kernel/a/virtio-rng.ko.xz:\nkernel/a/virtio_net.ko: kernel/b/net_failover.ko kernel/b/failover.ko\n\
                   kernel/b/net_failover.ko: kernel/b/failover.ko\nkernel/b/failover.ko:\n";
        let order = order(
            dep,
            "kernel/c/virtio_pci.ko\n",
            &["virtio_pci", "virtio_net", "virtio_rng"],
        )
        .unwrap();
        assert_eq!(
            order,
            [
                "kernel/b/failover.ko",
                "kernel/b/net_failover.ko",
                "kernel/a/virtio_net.ko",
                "kernel/a/virtio-rng.ko.xz"
            ]
        );
    }

    #[test]
    fn a_missing_module_is_named() {
        assert_eq!(
            order("", "", &["erofs"]).unwrap_err().to_string(),
            "the kernel has no module erofs"
        );
    }
}
