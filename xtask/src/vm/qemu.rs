//! QEMU: its command line, its control socket, saved states.
//! Given images and sockets. Never leaves a QEMU behind: it dies with the thread that started it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use super::kernel::Fetched;
use super::{Init, VmOptions};
use crate::run;

const QEMU: &str = "qemu-system-x86_64";

/// Units that cost boot time and do nothing in a guest that lives for seconds.
const MASKED: &[&str] = &[
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-journal-flush.service",
    "apparmor.service",
    "containerd.service",
    "podman.service",
    "podman.socket",
    "podman-auto-update.service",
    "podman-restart.service",
    "e2scrub_reap.service",
    "systemd-random-seed.service",
    "systemd-sysctl.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "getty.target",
    "timers.target",
];

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accel {
    Kvm,
    Tcg,
}

/// Chooses how to run guests: `$GUARD_VM_ACCEL` (kvm or tcg), else KVM where a kernel really starts under it, else emulation.
pub(super) fn accel(cache: &Path, kernel: &Fetched) -> Result<Accel> {
    match std::env::var("GUARD_VM_ACCEL").as_deref() {
        Ok("kvm") => return Ok(Accel::Kvm),
        Ok("tcg") => return Ok(Accel::Tcg),
        Ok("") | Err(_) => {}
        Ok(other) => bail!("GUARD_VM_ACCEL is {other:?}: it must be kvm or tcg"),
    }
    if fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accel::Tcg);
    }
    // A nested or cut-down KVM may open and then fail: only a started kernel proves it. Asked once per boot of the machine.
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let answer = cache.join(format!("kvm-{}", run::key([boot.trim(), &version()?])));
    let accel = match fs::read_to_string(&answer).as_deref() {
        Ok("kvm") => Accel::Kvm,
        Ok("tcg") => Accel::Tcg,
        _ => {
            let works = kvm_starts(kernel)?;
            fs::write(&answer, if works { "kvm" } else { "tcg" })?;
            if works { Accel::Kvm } else { Accel::Tcg }
        }
    };
    Ok(accel)
}

fn kvm_starts(kernel: &Fetched) -> Result<bool> {
    run::progress("trying KVM");
    let mut child = Command::new(QEMU)
        .args([
            "-M",
            "q35,accel=kvm",
            "-cpu",
            "host",
            "-m",
            "512",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ])
        .args([
            "-serial",
            "stdio",
            "-append",
            "console=ttyS0 earlyprintk=ttyS0 panic=-1",
            "-kernel",
        ])
        .arg(&kernel.vmlinuz)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start QEMU")?;
    let stdout = child.stdout.take();
    let (tell, started) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout?).split(b'\n') {
            // Without a root file system it panics, which is far enough.
            if String::from_utf8_lossy(&line.ok()?).contains("Kernel panic") {
                tell.send(()).ok()?;
            }
        }
        Some(())
    });
    let works = started.recv_timeout(Duration::from_secs(10)).is_ok();
    // It may have ended by itself.
    let _ = child.kill();
    child.wait()?;
    Ok(works)
}

fn version() -> Result<String> {
    let text = run::output(Command::new(QEMU).arg("--version")).context("QEMU is missing: run `cargo xtask setup`")?;
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// A path as a value inside a QEMU option, where commas end values.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Everything that makes a guest what it is.
pub(super) struct Machine<'a> {
    pub(super) options: &'a VmOptions<'a>,
    pub(super) kernel: &'a Fetched,
    pub(super) root: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) accel: Accel,
}

impl Machine<'_> {
    fn kernel_line(&self) -> String {
        let mut line = "console=ttyS0 loglevel=4 panic=-1 oops=panic net.ifnames=0 random.trust_cpu=on".to_owned();
        if !self.options.lsm.is_empty() {
            line.push_str(" lsm=");
            line.push_str(&self.options.lsm);
        }
        if self.options.parallel {
            line.push_str(" maxcpus=1");
        }
        line.push_str(" guard.init=");
        match self.options.init {
            Init::Plain => line.push_str("/usr/lib/guard-vm/plain-init.sh"),
            Init::Systemd => {
                line.push_str("/usr/lib/systemd/systemd systemd.show_status=0 systemd.log_level=warning");
                for unit in MASKED {
                    line.push_str(" systemd.mask=");
                    line.push_str(unit);
                }
            }
        }
        line
    }

    /// Arguments that a restored guest must have exactly as the saved one; images by path, which the cache names by key.
    fn fixed_args(&self) -> Vec<String> {
        let options = self.options;
        let (accel, cpu) = match self.accel {
            Accel::Kvm => ("kvm".to_owned(), "host"),
            // Without "fast string" features: each turn of a `rep` counts, and the kernel would clear pages by bytes.
            Accel::Tcg if options.icount => ("tcg,thread=single".to_owned(), "max,la57=off,-erms,-fsrm"),
            Accel::Tcg if options.parallel => ("tcg,thread=multi,tb-size=512".to_owned(), "max,la57=off"),
            // One thread: with one for each CPU a CPU may still run text that the kernel has patched meanwhile, and panic.
            Accel::Tcg => ("tcg,thread=single,tb-size=512".to_owned(), "max,la57=off"),
        };
        let mut args: Vec<String> = Vec::new();
        let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
        add("-M", "q35".into());
        add("-accel", accel);
        add("-cpu", cpu.into());
        if options.icount {
            add("-icount", "shift=0,sleep=off".into());
        }
        add("-smp", if options.icount { 1 } else { options.cpus }.to_string());
        add("-m", options.memory.to_string());
        add("-kernel", self.kernel.vmlinuz.display().to_string());
        add("-initrd", self.initramfs.display().to_string());
        add("-append", self.kernel_line());
        add("-rtc", "base=utc".into());
        add("-device", "vmgenid,guid=auto".into());
        add("-device", "virtio-rng-pci".into());
        add("-device", "virtio-serial-pci".into());
        add("-device", "virtserialport,chardev=cmd,name=guard.cmd".into());
        add(
            "-device",
            "virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:00:00:0f".into(),
        );
        let drive = |path: &Path| {
            format!(
                "file={},format=raw,if=virtio,read-only=on,file.locking=off",
                escaped(path)
            )
        };
        add("-drive", drive(self.root));
        add("-drive", drive(&self.kernel.modules_image));
        add(
            "-drive",
            drive(options.extra.as_deref().unwrap_or(Path::new("/dev/null"))),
        );
        args
    }

    /// Where the state of this guest, booted and prepared, is saved.
    pub(super) fn state_path(&self, cache: &Path) -> Result<PathBuf> {
        let dir = cache.join("states");
        fs::create_dir_all(&dir)?;
        let mut parts = vec![version()?, format!("network {}", self.options.network)];
        parts.extend(self.fixed_args());
        parts.push(fs::read_to_string(self.kernel.modules_image.with_file_name("release"))?);
        if let Some(extra) = &self.options.extra {
            parts.push(run::file_key(extra)?);
        }
        if let Some(prepare) = &self.options.prepare {
            parts.push(prepare.key.clone());
        }
        Ok(dir.join(format!("{}-{}.state", self.kernel.release, run::key(parts))))
    }
}

/// A running QEMU.
#[derive(Debug)]
pub(super) struct Qemu {
    control: Mutex<Control>,
    end: Sender<()>,
    ended: Mutex<Receiver<()>>,
}

#[derive(Debug)]
struct Control {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Qemu {
    /// Starts QEMU and waits until it has connected both sockets.
    pub(super) fn start(
        machine: &Machine<'_>,
        dir: &Path,
        state: Option<&Path>,
        control: &UnixListener,
        commands: &UnixListener,
    ) -> Result<(Self, UnixStream)> {
        // setpriv: when we are killed, QEMU is too.
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            QEMU,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        command.args(machine.fixed_args());
        let user = if machine.options.network {
            "user,id=net0"
        } else {
            "user,id=net0,restrict=on"
        };
        command.args(["-netdev", user]);
        // Relative to the run directory: socket paths are short and no character in them means something to QEMU.
        command.current_dir(dir);
        command.args(["-drive", "file=copy,format=raw,if=virtio,read-only=on,file.locking=off"]);
        command.args([
            "-chardev",
            "socket,id=cmd,path=cmd",
            "-chardev",
            "socket,id=qmp,path=qmp",
        ]);
        command.args(["-mon", "chardev=qmp,mode=control", "-serial", "file:console"]);
        if let Some(state) = state {
            command.arg("-incoming").arg(format!("exec:cat '{}'", state.display()));
        }
        let errors = dir.join("qemu-errors");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&errors)?);

        let (end, end_asked) = channel();
        let (ended_tell, ended) = channel();
        // The parent-death signal follows the thread, so one thread stays for as long as QEMU does.
        std::thread::spawn(move || keep(command, &end_asked, &ended_tell));
        let failed = || {
            let text = fs::read_to_string(&errors).unwrap_or_default();
            anyhow!("QEMU did not start: {}", text.trim())
        };
        let control = accept(control, &ended).ok_or_else(failed)?;
        let commands = accept(commands, &ended).ok_or_else(failed)?;
        let mut control = Control {
            reader: BufReader::new(control.try_clone()?),
            writer: control,
        };
        control.line().with_context(|| failed().to_string())?;
        control.ask("qmp_capabilities", &json!({}))?;
        Ok((
            Self {
                control: Mutex::new(control),
                end,
                ended: Mutex::new(ended),
            },
            commands,
        ))
    }

    fn ask(&self, name: &str, arguments: &Value) -> Result<Value> {
        self.control
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .ask(name, arguments)
    }

    /// Waits until a restored guest is loaded, and lets it go on.
    pub(super) fn resume(&self) -> Result<()> {
        let begun = Instant::now();
        while self.ask("query-status", &json!({}))?["status"] == "inmigrate" {
            if begun.elapsed() > Duration::from_secs(60) {
                bail!("the saved guest did not load within a minute");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.ask("cont", &json!({})).map(drop)
    }

    /// Saves the guest's state to a file; the guest goes on.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        self.ask("stop", &json!({}))?;
        self.ask("migrate-set-parameters", &json!({"max-bandwidth": 100_u64 << 30}))?;
        self.ask("migrate", &json!({"uri": format!("exec:cat >'{}'", new.display())}))?;
        loop {
            let status = self.ask("query-migrate", &json!({}))?;
            match status["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => bail!("cannot save the guest's state: {status}"),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        fs::rename(new, path)?;
        self.ask("cont", &json!({})).map(drop)
    }

    pub(super) fn forward(&self, host: u16, guest: u16) -> Result<()> {
        let line = format!("hostfwd_add net0 tcp:127.0.0.1:{host}-:{guest}");
        let answer = self.ask("human-monitor-command", &json!({"command-line": line}))?;
        match answer.as_str().unwrap_or_default().trim() {
            "" => Ok(()),
            error => bail!("cannot forward port {host} to the guest's {guest}: {error}"),
        }
    }

    /// Waits until QEMU has ended.
    pub(super) fn wait(&self) {
        // An error means that its keeper is gone, so it has ended too.
        let _ = self.ended.lock().unwrap_or_else(PoisonError::into_inner).recv();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // When nobody listens any more it has ended already.
        let _ = self.end.send(());
        self.wait();
    }
}

/// Starts QEMU and stays until it ends or is asked to end it.
fn keep(mut command: Command, end: &Receiver<()>, ended: &Sender<()>) {
    let Ok(mut child) = command.spawn() else { return };
    let _ = watch(&mut child, end);
    // Whoever dropped the receiver does not care.
    let _ = ended.send(());
}

fn watch(child: &mut Child, end: &Receiver<()>) -> std::io::Result<()> {
    while child.try_wait()?.is_none() {
        match end.recv_timeout(Duration::from_millis(50)) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                child.kill()?;
                child.wait()?;
            }
        }
    }
    Ok(())
}

/// Waits for QEMU's connection, or for QEMU's end.
fn accept(listener: &UnixListener, ended: &Receiver<()>) -> Option<UnixStream> {
    listener.set_nonblocking(true).ok()?;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).ok()?;
                return Some(stream);
            }
            Err(_) => match ended.recv_timeout(Duration::from_millis(5)) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return None,
            },
        }
    }
}

impl Control {
    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            bail!("QEMU ended");
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, name: &str, arguments: &Value) -> Result<Value> {
        writeln!(self.writer, "{}", json!({"execute": name, "arguments": arguments}))?;
        loop {
            let mut answer = self.line()?;
            if let Some(error) = answer.get("error") {
                bail!(
                    "QEMU refuses {name}: {}",
                    error["desc"].as_str().unwrap_or("no reason given")
                );
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
        }
    }
}
