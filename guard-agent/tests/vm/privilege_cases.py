"""Privileges and ways out: each must fail for a labelled process that is root, and succeed with enforcement off.

Every attempt runs in a process of its own, with a mount namespace of the case's own around it, so that what succeeds with
enforcement off leaves the guest as it was.
"""
import ctypes
import struct

from harness import *
from protect_cases import PRELUDE, seen

(MOUNT, NAMESPACE, GAIN, CHROOT, MODULE, MACHINE, NETWORK, DEVICE_NODE, PERF, KEYS, URING, FAULTS, TUNABLE, SIGNAL_OUT,
 LATER, STRAY) = range(24, 40)
NAMELESS = 13

HELP = PRELUDE + '''
def apart(attempt):
    """In a child: what it does to itself ends with it."""
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code > 0:
            raise OSError(code, "")
        return code == 0
    code = 255
    try:
        code = 0 if attempt() is not False else 254
    except OSError as error:
        code = error.errno
    finally:
        os._exit(code)

def attempt(name, what):
    theft(name, lambda: apart(what))

def mount(source, target, kind, flags, data=None):
    call(libc.mount, source.encode(), target.encode(), kind and kind.encode(), flags, data and data.encode())

pointer = ctypes.byref
'''


def attempts(probe, kinds, body, allowed=(), cgroup=BOX, label=1, pass_fds=(), before="", **values):
    """Runs attempts in one labelled process; `kinds` are the kinds that must be counted."""
    prelude = HELP + "".join(f"{name} = {value!r}\n" for name, value in values.items())
    script = f"{WORK}/attempts-{time.monotonic_ns()}.py"
    with open(script, "w") as file:
        file.write(prelude + body)
    argv = [sys.executable, script]
    if before:
        argv = ["/bin/sh", "-c", f"{before} exec \"$@\"", "sh", *argv]
    text = output(start_unshared(*argv, cgroup=cgroup, pass_fds=pass_fds), 60)
    lines = [line.split() for line in text.splitlines() if line.startswith(("stolen ", "refused "))]
    done = {line[1]: line for line in lines}
    missing = set(re.findall(r"^\s*attempt\(\"([^\"]+)\"", body, re.M)) - set(done)
    if missing:
        raise Failed(f"not attempted: {missing}: {text[-1500:]}")
    for name in allowed:
        if done[name][0] != "stolen":
            raise Failed(f"refused although it may: {done[name]}: {text[-800:]}")
    wanted = set(done) - set(allowed)
    happened = {name for name in wanted if done[name][0] == "stolen"}
    other = {name for name in wanted - happened if done[name][-1] not in ("EPERM", "EACCES")}
    check(not other, f"failed for a reason of their own: {[done[name] for name in other]}: {text[-800:]}")
    if OFF and wanted - happened:
        raise Failed(f"prove nothing, for with enforcement off they fail too: {[done[name] for name in wanted - happened]}: {text[-800:]}")
    if wanted:
        absent(lambda: bool(happened), f"happened: {happened}")
    for kind in kinds:
        probe.expect(rf"^refused label={label} kind={kind} ")


def start_unshared(*argv, cgroup=BOX, **more):
    """In a mount namespace of its own, made before the process is labelled."""
    def before():
        # CLONE_NEWNS, MS_REC | MS_PRIVATE
        if LIBC.unshare(0x20000) != 0 or LIBC.mount(b"none", b"/", None, 0x4000 | 0x40000, None) != 0:
            os._exit(99)
        enter(cgroup)
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.STDOUT)
    return subprocess.Popen(argv, preexec_fn=before, **more)


LIBC = ctypes.CDLL(None, use_errno=True)


# ---- what hangs on capabilities ----

@case
def privilege_mounts(probe):
    place = f"{WORK}/place-{time.monotonic_ns()}"
    os.mkdir(place)
    attempts(probe, [MOUNT], '''
attempt("mount", lambda: mount("tmpfs", place, "tmpfs", 0))
attempt("bind", lambda: mount("/etc", place, None, 0x1000))
attempt("remount", lambda: mount("none", "/proc", None, 0x20 | 0x1000 | 0x8))
attempt("propagation", lambda: mount("none", "/", None, 0x4000 | 0x40000))
attempt("open-tree", lambda: system(428, -100, b"/etc", 1))
attempt("fsopen", lambda: system(430, b"tmpfs", 0))
attempt("fspick", lambda: system(433, -100, b"/proc", 0))
class Attr(ctypes.Structure):
    _fields_ = [("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("ns", ctypes.c_uint64)]
attempt("mount-setattr", lambda: system(442, -100, b"/proc", 0, pointer(Attr(set=8)), 32))
attempt("move-mount", lambda: system(429, -100, b"/proc", -100, place.encode(), 0))
attempt("unmount", lambda: call(libc.umount2, b"/sys", 2))
''', place=place)


@case
def privilege_another_root(probe):
    place = f"{WORK}/root-{time.monotonic_ns()}"
    os.mkdir(place)
    attempts(probe, [CHROOT], '''
attempt("chroot", lambda: os.chroot(place))
''', place=place)


@case
def privilege_namespaces(probe):
    attempts(probe, [NAMESPACE], '''
def clone(flags):
    pid = system(56, flags | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
for name, flag in ("mount", 0x20000), ("uts", 0x4000000), ("ipc", 0x8000000), ("pid", 0x20000000), ("network", 0x40000000), \\
        ("cgroup", 0x2000000), ("user", 0x10000000), ("time", 0x80):
    attempt(f"unshare-{name}", lambda: call(libc.unshare, flag))
attempt("clone-mount", lambda: clone(0x20000))
attempt("clone-network", lambda: clone(0x40000000))
attempt("clone-user", lambda: clone(0x10000000))
attempt("clone-user-and-all", lambda: clone(0x10000000 | 0x20000 | 0x20000000 | 0x40000000))
def user_as_nobody():
    os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
    call(libc.unshare, 0x10000000)
attempt("user-as-nobody", user_as_nobody)
def enter(name, flag):
    call(libc.setns, os.open(f"/proc/self/ns/{name}", os.O_RDONLY), flag)
attempt("setns", lambda: enter("uts", 0x4000000))
attempt("setns-network", lambda: enter("net", 0x40000000))
def by_process():
    call(libc.setns, system(434, os.getppid(), 0), 0x4000000)
attempt("setns-of-a-process", by_process)
attempt("fork", lambda: clone(0))
''', allowed=["fork"])


@case
def privilege_of_the_machine(probe):
    swap = f"{WORK}/swap"
    with open(swap, "wb") as file:
        file.write(bytes(1 << 20))
    attempts(probe, [MACHINE, MODULE, NETWORK, DEVICE_NODE], '''
attempt("host-name", lambda: call(libc.sethostname, b"other", 5))
attempt("time", lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))
attempt("accounting", lambda: call(libc.acct, None))
attempt("kernel-log", lambda: system(103, 3, ctypes.create_string_buffer(100), 100))
def reboot():
    # CAD_OFF
    system(169, 0xfee1dead, 672274793, 0, None)
attempt("reboot", reboot)
def ports():
    system(172, 3)
attempt("ports", ports)
def unload():
    try:
        system(176, b"no_such_module", 0)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
attempt("unload-module", unload)
def load():
    try:
        system(175, ctypes.create_string_buffer(10), 10, b"")
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
attempt("load-module", load)
def kexec():
    try:
        system(246, 0, 0, None, 0)
    except OSError as error:
        raise
attempt("kexec", kexec)
attempt("character-device", lambda: os.mknod(f"{work}/null-{os.getpid()}", 0o20666, os.makedev(1, 3)))
attempt("block-device", lambda: os.mknod(f"{work}/loop-{os.getpid()}", 0o60666, os.makedev(7, 0)))
attempt("pipe", lambda: os.mkfifo(f"{work}/pipe-{os.getpid()}"))
def transparent():
    with socket.socket() as it:
        it.setsockopt(socket.SOL_IP, 19, 1)
attempt("any-source-address", transparent)
def mark():
    with socket.socket() as it:
        it.setsockopt(socket.SOL_SOCKET, 36, 7)
attempt("mark", mark)
def drop():
    os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
attempt("becoming-less", drop)
def filtered():
    # A filter of its own system calls that lets everything through, as root needs no PR_SET_NO_NEW_PRIVS for.
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7fff0000))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))
    system(317, 1, 0, program)
attempt("filter", filtered)
''', allowed=["pipe", "becoming-less", "filter"], work=WORK)


@case
def privilege_files_by_number(probe):
    """Opened by handle, past every directory."""
    attempts(probe, [NAMELESS], '''
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128)]
handle, number = Handle(bytes=128), ctypes.c_int()
call(libc.name_to_handle_at, -100, b"/sys/fs/cgroup/cgroup.procs", pointer(handle), pointer(number), 0)
attempt("handle", lambda: call(libc.open_by_handle_at, os.open("/sys/fs/cgroup", os.O_RDONLY), pointer(handle), 0))
''')


# ---- what has a hook of its own ----

@case
def privilege_of_the_kernel(probe):
    # A key of root's that whoever is root may read.
    key = LIBC.syscall(248, b"user", f"one-{time.monotonic_ns()}".encode(), b"secret", 6, -4)
    LIBC.syscall(250, 5, key, 0x3f3f0000)
    attempts(probe, [PERF, KEYS, URING, FAULTS], '''
def counters():
    # A software counter of its own.
    system(298, ctypes.create_string_buffer(struct.pack("IIQQQQQ", 1, 112, 0, 0, 0, 0, 0), 112), 0, -1, -1, 0)
attempt("perf", counters)
attempt("new-key", lambda: system(248, b"user", b"some", b"secret", 6, -1))
attempt("new-keyring", lambda: system(250, 1, b"mine"))
# KEYCTL_DESCRIBE; reading it fails as well, with ENOKEY.
attempt("somebodys-key", lambda: system(250, 6, key, ctypes.create_string_buffer(100), 100))
attempt("ring", lambda: system(425, 8, ctypes.create_string_buffer(120)))
attempt("faults", lambda: system(323, 0))
''', key=key)


# ---- identity ----

@case
def privilege_gains(probe):
    folder = f"{WORK}/gains-{time.monotonic_ns()}"
    os.mkdir(folder)
    os.chmod(folder, 0o755)
    for name, mode in ("setuid", 0o4755), ("setgid", 0o2755), ("plain", 0o755), ("capable", 0o755):
        shutil.copy("/usr/bin/id", f"{folder}/{name}")
        os.chmod(f"{folder}/{name}", mode)
    # CAP_NET_RAW, permitted and effective.
    os.setxattr(f"{folder}/capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    attempts(probe, [GAIN], '''
def nobody():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
def run(name):
    nobody()
    os.execv(f"{folder}/{name}", [name])
attempt("setuid-program", lambda: run("setuid"))
attempt("setgid-program", lambda: run("setgid"))
attempt("program-with-capabilities", lambda: run("capable"))
attempt("program", lambda: run("plain"))
def keep():
    # CAP_SETUID and CAP_SETGID over a change of the user.
    call(libc.prctl, 8, 1, 0, 0, 0)
    os.setresuid(1000, 1000, 1000)
    head, data = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0)), ctypes.create_string_buffer(struct.pack("6I", 0xc0, 0xc0, 0, 0, 0, 0))
    system(126, head, data)
def another():
    keep()
    os.setresuid(1001, 1001, 1001)
attempt("another-user", another)
def root():
    keep()
    os.setresuid(0, 0, 0)
attempt("root-again", root)
def group():
    keep()
    os.setresgid(42, 42, 42)
attempt("another-group", group)
def groups():
    keep()
    os.setgroups([42])
attempt("more-groups", groups)
def back():
    os.seteuid(1000)
    os.seteuid(0)
attempt("back-to-what-it-was", back)
''', allowed=["program", "back-to-what-it-was"], folder=folder)


# ---- settings of the kernel ----

@case
def privilege_settings(probe):
    with open("/proc/sys/kernel/hostname") as file:
        name = file.read().strip()
    settings = ["/sys/kernel/mm/transparent_hugepage/defrag", "/sys/kernel/rcu_expedited", "/sys/module/kernel/parameters/panic"]
    setting = next(path for path in settings if os.path.exists(path))
    inherited = os.open(setting, os.O_WRONLY)
    try:
        attempts(probe, [TUNABLE], '''
attempt("sysctl", lambda: write("/proc/sys/kernel/hostname", name.encode()))
attempt("sysrq", lambda: os.close(os.open("/proc/sysrq-trigger", os.O_WRONLY)))
attempt("sysfs", lambda: os.close(os.open(setting, os.O_WRONLY)))
def before():
    try:
        os.write(inherited, b"never")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
attempt("descriptor-from-before", before)
attempt("read-sysctl", lambda: read("/proc/sys/kernel/hostname"))
attempt("own-score", lambda: write("/proc/self/oom_score_adj", b"500"))
''', allowed=["read-sysctl", "own-score"], name=name, setting=setting, inherited=inherited, pass_fds=[inherited])
    finally:
        os.close(inherited)


# ---- what others run later ----

@case
def privilege_later(probe):
    """Nothing is written where cron, at and systemd look for what to run."""
    for folder in "/etc/cron.d", "/var/spool/cron/crontabs", "/var/spool/cron/atjobs", "/etc/systemd/system", "/run/systemd/system":
        os.makedirs(folder, exist_ok=True)
    for path in "/etc/crontab", "/var/spool/cron/crontabs/root", "/etc/systemd/system/some.service":
        with open(path, "a") as file:
            file.write("# nothing\n")
    seen()
    attempts(probe, [LATER], '''
def append(path):
    with open(path, "a") as file:
        file.write("# more\\n")
attempt("crontab", lambda: append("/etc/crontab"))
attempt("cron-folder", lambda: append(f"/etc/cron.d/more-{os.getpid()}"))
attempt("table-of-root", lambda: append("/var/spool/cron/crontabs/root"))
attempt("new-table", lambda: append(f"/var/spool/cron/crontabs/nobody{os.getpid()}"))
attempt("job-for-at", lambda: append(f"/var/spool/cron/atjobs/a{os.getpid()}"))
attempt("unit", lambda: append(f"/etc/systemd/system/more{os.getpid()}.service"))
attempt("changed-unit", lambda: append("/etc/systemd/system/some.service"))
attempt("drop-in", lambda: os.mkdir(f"/etc/systemd/system/some{os.getpid()}.service.d"))
attempt("enabled-unit", lambda: os.symlink("some.service", f"/etc/systemd/system/again{os.getpid()}.service"))
attempt("unit-until-restart", lambda: append(f"/run/systemd/system/more{os.getpid()}.service"))
def moved():
    append("/etc/mine")
    os.rename("/etc/mine", f"/etc/cron.d/mine{os.getpid()}")
attempt("moved-there", moved)
attempt("linked-there", lambda: (append("/etc/mine2"), os.link("/etc/mine2", f"/etc/cron.d/linked{os.getpid()}")))
def folder():
    os.rename("/var/spool/cron/atjobs", "/var/spool/cron/mine")
    os.rename("/var/spool/cron/mine", "/var/spool/cron/atjobs")
attempt("folder-moved", folder)
attempt("read", lambda: read("/etc/crontab"))
''', allowed=["read"])


# ---- signals ----

@case
def privilege_signals(probe):
    """To whoever is outside: none, by whatever call. Inside the workload all of them, and between threads."""
    victims = [subprocess.Popen(["/usr/bin/sleep", "1000"], process_group=0) for _ in range(6)]
    pids = [victim.pid for victim in victims]
    try:
        attempts(probe, [SIGNAL_OUT], '''
end = signal.SIGTERM
attempt("kill", lambda: os.kill(pids[0], end))
attempt("thread", lambda: system(200, pids[1], end))
attempt("thread-of-process", lambda: system(234, pids[2], pids[2], end))
attempt("descriptor", lambda: system(424, system(434, pids[3], 0), end, 0, 0))
attempt("group", lambda: os.killpg(pids[4], end))
def owner():
    one, other = socket.socketpair()
    fcntl.fcntl(one, 8, pids[5])
    fcntl.fcntl(one, 10, end)
    fcntl.fcntl(one, 4, os.O_ASYNC)
    other.send(b"x")
attempt("owner-of-a-descriptor", owner)
def extended():
    one, other = socket.socketpair()
    fcntl.fcntl(one, 15, struct.pack("ii", 1, pids[5]))
attempt("owner-extended", extended)
def owner_by_ioctl():
    one, other = socket.socketpair()
    fcntl.ioctl(one, 0x8901, struct.pack("i", pids[5]))
attempt("owner-by-ioctl", owner_by_ioctl)
attempt("is-it-there", lambda: os.kill(pids[0], 0))
def child():
    pid = os.fork()
    if pid == 0:
        time.sleep(100)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
attempt("child", child)
def oneself():
    signal.signal(signal.SIGUSR1, lambda *_: None)
    os.kill(os.getpid(), signal.SIGUSR1)
    one, other = socket.socketpair()
    fcntl.fcntl(one, 8, os.getpid())
attempt("itself", oneself)
''', allowed=["is-it-there", "child", "itself"], pids=pids)
        for victim in victims:
            check(victim.poll() is None, f"one ended: {victim.returncode}")
    finally:
        for victim in victims:
            victim.kill()
            victim.wait()


# ---- what one label is allowed ----

@case
def privilege_exceptions(probe):
    """Of what is refused, a label has what it is allowed by name, and nothing beside it."""
    place = f"{WORK}/free-{time.monotonic_ns()}"
    os.mkdir(place)
    attempts(probe, [CHROOT, MACHINE], '''
attempt("mount", lambda: mount("tmpfs", place, "tmpfs", 0))
attempt("namespace", lambda: call(libc.unshare, 0x20000))
attempt("user-namespace", lambda: call(libc.unshare, 0x10000000))
attempt("host-name", lambda: call(libc.sethostname, b"other", 5))
attempt("chroot", lambda: os.chroot(place))
''', allowed=["mount", "namespace", "user-namespace"], cgroup=FREE, label=8, place=place)
