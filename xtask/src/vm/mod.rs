//! Virtual machines for tests and demonstrations: boot or restore, run commands, put files in.
//! Given options; images and kernels come from the cache. Never touches the machine outside the cache and its own run directory.

pub mod channel;
pub mod guard;
mod image;
pub mod kernel;
mod qemu;

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};

pub use channel::{Event, Running};
pub use kernel::Kernel;

use crate::{paths, run};
use channel::Channel;
use qemu::Qemu;

/// What PID 1 of the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// A small script: up in about four seconds, no services.
    Plain,
    /// Debian's systemd.
    Systemd,
}

/// What to do in a freshly booted guest before its snapshot is taken.
pub struct Prepare<'a> {
    /// Names everything that the step depends on; part of the snapshot's key.
    pub key: String,
    /// A snapshot older than this is taken anew (certificates run out).
    pub max_age: Duration,
    /// The step.
    pub step: &'a dyn Fn(&Vm) -> Result<()>,
}

impl fmt::Debug for Prepare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepare")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// How a guest is built and started.
#[derive(Debug)]
pub struct VmOptions<'a> {
    /// The kernel.
    pub kernel: Kernel,
    /// PID 1.
    pub init: Init,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// Guest time counts instructions (one CPU); for measuring.
    pub icount: bool,
    /// Every emulated CPU is a thread of the host's, as real CPUs are; for measuring. A kernel that patches its own text while
    /// several such CPUs run may panic, so all but the first stay offline until [`Vm::bring_up_cpus`].
    pub parallel: bool,
    /// Whether a saved state may be restored or written.
    pub snapshot: bool,
    /// Whether the guest may reach the machine's loopback as 10.0.2.2 and the outside.
    pub network: bool,
    /// Active security modules, as on the kernel's command line; empty: those that the kernel was built to have.
    pub lsm: String,
    /// Files and directories of the host that appear in /mnt/copy.
    pub copy: Vec<PathBuf>,
    /// A read-only erofs image that the guest sees as /dev/vdc.
    pub extra: Option<PathBuf>,
    /// A step before the snapshot.
    pub prepare: Option<Prepare<'a>>,
}

impl VmOptions<'_> {
    /// A guest without Guard and without systemd.
    pub fn bare() -> Self {
        Self {
            kernel: Kernel::DEFAULT,
            init: Init::Plain,
            cpus: 2,
            memory: 1024,
            icount: false,
            parallel: false,
            snapshot: true,
            network: false,
            lsm: "landlock,lockdown,yama,apparmor,bpf".into(),
            copy: Vec::new(),
            extra: None,
            prepare: None,
        }
    }

    /// A guest without Guard, with systemd and room for containers.
    pub fn systemd() -> Self {
        Self {
            init: Init::Systemd,
            memory: 1536,
            ..Self::bare()
        }
    }
}

/// What a command in the guest gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 + signal number when a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text, without the last newline.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// The output of a command that must succeed.
    ///
    /// # Errors
    /// When the status is not 0; the text has both outputs.
    pub fn success(self) -> Result<Self> {
        if self.status == 0 {
            Ok(self)
        } else {
            Err(anyhow!("{self}"))
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        for (name, bytes) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !bytes.is_empty() {
                write!(f, "\n--- {name}\n{}", String::from_utf8_lossy(bytes).trim_end())?;
            }
        }
        Ok(())
    }
}

/// The copy image's size: fixed, so that a restored guest and the device agree.
const COPY_SIZE: u64 = 4 << 30;

/// A running guest. Dropping it ends the guest.
#[derive(Debug)]
pub struct Vm {
    channel: Channel,
    qemu: Qemu,
    dir: RunDir,
    /// Whether it came from a saved state.
    pub restored: bool,
}

impl Vm {
    /// Boots a guest, or restores its saved state, and waits until it takes commands.
    ///
    /// # Errors
    /// When an image or kernel cannot be made, or the guest does not come up; the text has the end of its console.
    pub fn boot(options: &VmOptions<'_>) -> Result<Self> {
        let begun = Instant::now();
        let cache = paths::cache()?;
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        let kernel = kernel::fetch(&cache, options.kernel)?;
        let root = image::root(&cache)?;
        let initramfs = image::initramfs(&cache, &kernel, &root)?;
        let accel = if options.icount {
            qemu::Accel::Tcg
        } else {
            qemu::accel(&cache, &kernel)?
        };
        let machine = qemu::Machine {
            options,
            kernel: &kernel,
            root: &root.image,
            initramfs: &initramfs,
            accel,
        };
        // Instruction counting wants the same history every time, not a state saved at some moment.
        let state = if options.snapshot && !options.icount {
            Some(machine.state_path(&cache)?)
        } else {
            None
        };

        let vm = match &state {
            None => {
                let vm = Self::start_anew(&machine)?;
                vm.prepare(options)?;
                vm
            }
            Some(path) => {
                let max_age = options.prepare.as_ref().map(|prepare| prepare.max_age);
                if is_fresh(path, max_age) {
                    Self::start(&machine, Some(path)).context("cannot restore the saved guest; try --no-snapshot")?
                } else {
                    let _lock = run::lock(&path.with_extension("lock"))?;
                    if is_fresh(path, max_age) {
                        Self::start(&machine, Some(path))?
                    } else {
                        let vm = Self::start_anew(&machine)?;
                        vm.prepare(options)?;
                        vm.qemu.save(path)?;
                        prune(path);
                        vm
                    }
                }
            }
        };
        if !options.copy.is_empty() {
            vm.script(
                "set -e; mkdir -p /run/guard-vm/copy /mnt/copy; mount -t tmpfs -o mode=755,size=90% copy /mnt/copy; \
                 blockdev --flushbufs /dev/vdd; mount -t erofs -o ro /dev/vdd /run/guard-vm/copy; \
                 cp -a /run/guard-vm/copy/. /mnt/copy/; umount /run/guard-vm/copy",
            )
            .context("cannot copy the files into the guest")?;
        }
        run::progress(format!(
            "guest with kernel {} {} after {:.1} s",
            kernel.release,
            if vm.restored { "restored" } else { "up" },
            begun.elapsed().as_secs_f64()
        ));
        Ok(vm)
    }

    /// Boots. An emulated kernel with several CPUs now and then panics while it patches its own text (jump labels): as long as
    /// nothing of ours has run in the guest, that says nothing about us, and it is booted again.
    fn start_anew(machine: &qemu::Machine<'_>) -> Result<Self> {
        const AGAIN: usize = 2;
        for _ in 0..AGAIN {
            match Self::start(machine, None) {
                Err(error) if machine.accel == qemu::Accel::Tcg && panicked(&format!("{error:#}")) => {
                    run::say(format!(
                        "the emulated kernel {} panicked while it booted; booting it again",
                        machine.kernel.release
                    ));
                }
                other => return other,
            }
        }
        Self::start(machine, None)
    }

    fn start(machine: &qemu::Machine<'_>, state: Option<&Path>) -> Result<Self> {
        let dir = RunDir::new()?;
        image::copies(&machine.options.copy, &dir.path, COPY_SIZE)?;
        let commands = UnixListener::bind(dir.path.join("cmd"))?;
        let control = UnixListener::bind(dir.path.join("qmp"))?;
        let (qemu, stream) = Qemu::start(machine, &dir.path, state, &control, &commands)?;
        let channel = Channel::new(stream)?;
        let vm = Self {
            channel,
            qemu,
            dir,
            restored: state.is_some(),
        };
        if state.is_some() {
            vm.qemu.resume()?;
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64();
            let mut seed = [0u8; 32];
            fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
            let refreshed = vm.channel.refresh(now, &run::hex(&seed)).and_then(Running::wait);
            refreshed.with_context(|| vm.last_words())?;
        } else {
            // Software emulation on a busy machine is slow; a guest that hangs is not.
            vm.channel
                .hello(Duration::from_secs(180))
                .with_context(|| vm.last_words())?;
        }
        Ok(vm)
    }

    fn prepare(&self, options: &VmOptions<'_>) -> Result<()> {
        match &options.prepare {
            Some(prepare) => (prepare.step)(self),
            None => Ok(()),
        }
    }

    /// Starts a command (program and arguments, no shell).
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn start_command(&self, argv: &[&str]) -> Result<Running> {
        self.channel.start(argv, &[], None)
    }

    /// Starts a command with more environment and a working directory.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn start_with(&self, argv: &[&str], env: &[(&str, &str)], cwd: Option<&str>) -> Result<Running> {
        self.channel.start(argv, env, cwd)
    }

    /// Runs a command (program and arguments, no shell) to its end.
    ///
    /// # Errors
    /// When the guest ends before the status arrives. A status other than 0 is no error: see [`Output::success`].
    pub fn run(&self, argv: &[&str]) -> Result<Output> {
        self.start_command(argv)?.wait().with_context(|| self.last_words())
    }

    /// Runs a line for `bash -c` to its end.
    ///
    /// # Errors
    /// As [`Vm::run`].
    pub fn sh(&self, line: &str) -> Result<Output> {
        self.run(&["bash", "-c", line])
    }

    /// Runs a shell script that must succeed.
    ///
    /// # Errors
    /// As [`Vm::run`], and when the status is not 0.
    pub fn script(&self, script: &str) -> Result<Output> {
        self.sh(script)?.success()
    }

    /// Writes a file in the guest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, content: &[u8], path: &str, mode: u32) -> Result<()> {
        let line = r#"set -e; mkdir -p "$(dirname "$1")"; cat >"$1"; chmod "$2" "$1""#;
        let mut running = self.start_command(&["bash", "-c", line, "write", path, &format!("{mode:o}")])?;
        running.input(content)?;
        running.close_input()?;
        running
            .wait()?
            .success()
            .with_context(|| format!("cannot write {path} in the guest"))?;
        Ok(())
    }

    /// Copies one file of the host, with its mode, into the guest.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn put(&self, host: impl AsRef<Path>, guest: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let host = host.as_ref();
        let content = fs::read(host).with_context(|| format!("cannot read {}", host.display()))?;
        let mode = host.metadata()?.permissions().mode() & 0o7777;
        self.write(&content, guest, mode)
    }

    /// Brings up the CPUs that [`VmOptions::parallel`] left offline. From then on nothing may patch the kernel's text: no BPF
    /// program is to be attached.
    ///
    /// # Errors
    /// When one of them does not come.
    pub fn bring_up_cpus(&self) -> Result<()> {
        self.script(
            "set -e; for cpu in /sys/devices/system/cpu/cpu[0-9]*/online; do [ \"$(cat $cpu)\" = 1 ] || echo 1 >$cpu; done; \
             [ \"$(nproc)\" = \"$(grep -c . <(ls -d /sys/devices/system/cpu/cpu[0-9]*))\" ]",
        )
        .context("cannot bring up the guest's other CPUs")
        .map(drop)
    }

    /// Makes a port of the guest reachable at `127.0.0.1:host` of the machine.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn forward(&self, host: u16, guest: u16) -> Result<()> {
        self.qemu.forward(host, guest)
    }

    /// What the kernel and PID 1 wrote to the serial console so far.
    pub fn console_log(&self) -> String {
        let bytes = fs::read(self.dir.path.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the guest ends.
    pub fn wait(&self) {
        self.qemu.wait();
    }

    fn last_words(&self) -> String {
        let log = self.console_log();
        if log.trim().is_empty() {
            "the guest is gone or silent; its console is empty".into()
        } else {
            format!(
                "the guest is gone or silent; its console ends with:\n{}",
                run::last_lines(&log, 40)
            )
        }
    }
}

/// A directory of one run: sockets, console log, copy image.
#[derive(Debug)]
struct RunDir {
    path: PathBuf,
    /// Held for as long as the run lasts, so that others see what was left behind by one that was killed.
    _lock: fs::File,
}

impl RunDir {
    fn new() -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        sweep();
        // Unix socket paths are short, so not in the cache.
        let unique = RandomState::new().build_hasher().finish();
        let path = std::env::temp_dir().join(format!("{RUN_PREFIX}{unique:016x}"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let lock = fs::File::create(path.join("lock"))?;
        lock.lock()?;
        Ok(Self { path, _lock: lock })
    }
}

/// Whether a console's text has a kernel's last words.
fn panicked(console: &str) -> bool {
    console.contains("Kernel panic - not syncing") || console.contains("---[ end trace")
}

const RUN_PREFIX: &str = "guard-vm-";

/// Removes directories of runs that were killed.
fn sweep() {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(RUN_PREFIX)
            && let Ok(lock) = fs::File::open(entry.path().join("lock"))
            && lock.try_lock().is_ok()
        {
            // Another run may sweep it at the same time.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        // A leftover is swept by the next run.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn is_fresh(path: &Path, max_age: Option<Duration>) -> bool {
    let Ok(meta) = path.metadata() else { return false };
    let Some(max_age) = max_age else { return true };
    meta.modified()
        .ok()
        .and_then(|time| time.elapsed().ok())
        .is_some_and(|age| age < max_age)
}

/// Keeps the newest saved states: each change of a binary makes another one.
fn prune(newest: &Path) {
    const KEPT: usize = 12;
    let Some(dir) = newest.parent() else { return };
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut states: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.path().extension() == Some(OsStr::new("state")))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    states.sort();
    for (_, path) in states.iter().rev().skip(KEPT) {
        // Somebody restoring from it right now keeps reading the unlinked file.
        let _ = fs::remove_file(path);
        let _ = fs::remove_file(path.with_extension("lock"));
    }
}

/// Runs one command in a guest as `cargo xtask vm` does: its outputs become ours; the status is returned.
///
/// # Errors
/// When the guest ends before the status arrives.
pub fn relay(vm: &Vm, argv: &[&str], env: &[(&str, &str)], forward_input: bool) -> Result<i32> {
    let mut running = vm.start_with(argv, env, None)?;
    if forward_input {
        let mut writer = running.input_writer();
        std::thread::spawn(move || {
            // A closed standard input or a finished command ends this; the exit status says the rest.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut writer);
            let _ = writer.close();
        });
    } else {
        running.close_input()?;
    }
    loop {
        match running.next() {
            Some(Event::Stdout(bytes)) => write_out(&mut std::io::stdout().lock(), &bytes)?,
            Some(Event::Stderr(bytes)) => write_out(&mut std::io::stderr().lock(), &bytes)?,
            Some(Event::Exit(status)) => return Ok(status),
            None => bail!("no status of the command arrived: {}", vm.last_words()),
        }
    }
}

fn write_out(out: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot pass on the command's output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_panic_is_told_from_a_guest_that_hangs() {
        assert!(panicked(
            "[    5.2] ---[ end trace 0000000000000000 ]---\n[    5.3] Kernel panic - not syncing: Fatal exception"
        ));
        assert!(!panicked(
            "the guest took no commands within 180 s: the guest is gone or silent; its console is empty"
        ));
    }
}
