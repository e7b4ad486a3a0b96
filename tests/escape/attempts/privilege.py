"""Privileges: what a workload, root or not, would use to get more than it was given, or to touch who is outside. The proof is the state of
the kernel or of the victim, as somebody outside sees it."""
import fcntl
import glob
import resource
import signal
import socket
import stat
import struct
import threading

from stay import dead
from suite import *
from theft import has_open

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME = (
    0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80)


def mounted(place):
    with open("/proc/self/mountinfo") as file:
        return any(line.split()[4] == place for line in file)


def unmount(place):
    while mounted(place):
        subprocess.run(["umount", "-l", place], check=True)


# ---- mounts and roots ----

def mounts(name, tries, mount, **more):
    """An attempt to mount something in the host's own mount namespace; `mount` is given the place and a folder of its own."""

    def function(t):
        place, mine = t.outside(), t.free()
        t.later(lambda: unmount(place))
        t.inside(lambda: mount(place, mine))
        return t.happens(lambda: mounted(place), "it is mounted")

    function.__name__, function.__doc__ = name, tries
    attempt("privilege", **more)(function)


def new_mount(place, _mine):
    file_system = system(430, b"tmpfs", 0)
    system(431, file_system, 6, None, None, 0)
    tree = system(432, file_system, 0, 0)
    system(429, tree, b"", -100, place.encode(), 4)


def moved_tree(place, mine):
    tree = system(428, -100, mine.encode(), 1)
    system(429, tree, b"", -100, place.encode(), 4)


mounts("mount_tmpfs", "Mounts a new file system over a folder of the host.",
       lambda place, mine: call(libc.mount, b"none", place.encode(), b"tmpfs", 0, None))
mounts("mount_bind", "Binds a folder of its own over one of the host.",
       lambda place, mine: call(libc.mount, mine.encode(), place.encode(), None, 0x1000, None))
mounts("mount_by_the_new_interface", "Mounts by fsopen, fsmount and move_mount.", new_mount)
mounts("mount_by_open_tree", "Clones a tree (open_tree) and puts it over a folder of the host.", moved_tree)
mounts("mount_proc", "Mounts another /proc over a folder of the host.",
       lambda place, mine: call(libc.mount, b"proc", place.encode(), b"proc", 0, None))


@attempt("privilege")
def mount_by_a_tree_from_before(t):
    """Puts a tree that was cloned before the label over a folder of the host."""
    place, mine = t.outside(), t.free()
    t.later(lambda: unmount(place))
    t.inside(lambda tree: system(429, tree, b"", -100, place.encode(), 4), before=lambda: system(428, -100, mine.encode(), 1))
    return t.happens(lambda: mounted(place), "it is mounted")


@attempt("privilege")
def unmount_something(t):
    """Unmounts a file system of the host."""
    place = t.outside()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    t.later(lambda: unmount(place))
    t.inside(lambda: call(libc.umount2, place.encode(), 2))
    return t.happens(lambda: not mounted(place), "it is not mounted any more")


@attempt("privilege")
def remount_something(t):
    """Makes a file system of the host read-only."""
    place = t.outside()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    t.later(lambda: unmount(place))
    t.inside(lambda: call(libc.mount, b"none", place.encode(), None, 0x20 | 1, None))
    return t.happens(lambda: os.statvfs(place).f_flag & os.ST_RDONLY, "it is read-only")


@attempt("privilege")
def change_mount_attributes(t):
    """Makes a mount of the host read-only by mount_setattr."""
    place = t.outside()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    t.later(lambda: unmount(place))
    t.inside(lambda: system(442, -100, place.encode(), 0, struct.pack("=4Q", 1, 0, 0, 0), 32))
    return t.happens(lambda: os.statvfs(place).f_flag & os.ST_RDONLY, "it is read-only")


@attempt("privilege")
def another_root_by_chroot(t):
    """Makes a folder of its own its root."""
    free = t.free()
    made = t.inside(lambda: os.chroot(free))
    return t.happens(lambda: os.readlink(f"/proc/{made.pid}/root") != "/", "it has another root")


@attempt("privilege")
def another_root_by_pivot(t):
    """Exchanges the root of a mount namespace of its own (pivot_root)."""
    place = t.free()

    def hostile():
        call(libc.unshare, NEWNS)
        call(libc.mount, b"none", b"/", None, 0x4000 | 0x40000, None)
        call(libc.mount, b"none", place.encode(), b"tmpfs", 0, None)
        os.mkdir(f"{place}/old")
        system(155, place.encode(), f"{place}/old".encode())

    made = t.inside(hostile)
    return t.happens(lambda: not os.path.exists(f"/proc/{made.pid}/root/etc/passwd"), "it has another root")


@attempt("privilege")
def another_name_for_a_program(t):
    """Binds a denied program over the name of an allowed one, in a mount namespace of its own, and executes that."""
    allowed, denied = t.program("let-"), t.program(source="denied")

    def hostile():
        call(libc.unshare, NEWNS)
        call(libc.mount, b"none", b"/", None, 0x4000 | 0x40000, None)
        call(libc.mount, denied.encode(), allowed.encode(), None, 0x1000, None)
        os.execv(allowed, ["x"])

    t.inside(hostile)
    return t.said("denied-ran")


@attempt("privilege")
def another_root_for_a_program(t):
    """Executes, below another root, a program that has there the name of an allowed one."""
    free = t.free()
    t.file(f"{free}{PROGRAMS_FOLDER}/let-me", open(t.program(source="denied"), "rb").read(), 0o755)
    t.inside(lambda: (os.chroot(free), os.chdir("/"), os.execv(f"{PROGRAMS_FOLDER}/let-me", ["x"])))
    return t.said("denied-ran")


# ---- namespaces ----

def of_namespace(pid, kind):
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except FileNotFoundError:
        # Of processes there is none before the first of them.
        return of_namespace("self", kind)


def unshares(name, tries, flag, kind, uid=None):
    def function(t):
        def hostile():
            call(libc.unshare, flag)
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)

        made = t.inside(hostile, uid=uid)
        return t.happens(lambda: of_namespace(made.pid, kind) != of_namespace("self", kind), "it has another one")

    function.__name__, function.__doc__ = name, tries
    attempt("privilege")(function)


unshares("namespace_of_mounts", "Makes a mount namespace.", NEWNS, "mnt")
unshares("namespace_of_users", "Makes a user namespace, as root.", NEWUSER, "user")
unshares("namespace_of_users_as_nobody", "Makes a user namespace without any right.", NEWUSER, "user", uid=65534)
unshares("namespace_of_the_network", "Makes a network namespace.", NEWNET, "net")
unshares("namespace_of_processes", "Makes a namespace of processes for its children.", NEWPID, "pid_for_children")
unshares("namespace_of_names", "Makes a namespace of host names.", NEWUTS, "uts")
unshares("namespace_of_ipc", "Makes a namespace of System V objects.", NEWIPC, "ipc")
unshares("namespace_of_time", "Makes a namespace of clocks for its children.", NEWTIME, "time_for_children")


@attempt("privilege")
def namespace_by_clone(t):
    """Makes a child in new namespaces (clone3)."""
    def hostile():
        args = struct.pack("=8Q", NEWUSER | NEWNS | NEWPID, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
        pid = system(435, ctypes.create_string_buffer(args, 64), 64)
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        return pid

    made = t.inside(hostile)
    return t.happens(lambda: isinstance(made.value, int) and of_namespace(made.value, "user") != of_namespace("self", "user"), "it has a child there")


def elsewhere(tried, flag):
    """A process outside in another namespace."""
    return tried.victim(prepare=lambda: call(libc.unshare, flag))


@attempt("privilege")
def enter_a_network(t):
    """Enters the network namespace of a process outside (setns)."""
    pid = elsewhere(t, NEWNET)
    made = t.inside(lambda fd: call(libc.setns, fd, 0), before=lambda: os.open(f"/proc/{pid}/ns/net", os.O_RDONLY))
    return t.happens(lambda: of_namespace(made.pid, "net") == of_namespace(pid, "net"), "it is there")


@attempt("privilege")
def enter_by_pidfd(t):
    """Enters the mounts and names of a process outside by its pidfd."""
    pid = elsewhere(t, NEWNS | NEWUTS)
    made = t.inside(lambda: call(libc.setns, system(434, pid, 0), NEWNS | NEWUTS))
    return t.happens(lambda: of_namespace(made.pid, "uts") == of_namespace(pid, "uts"), "it is there")


# ---- who is outside ----

def signals(name, tries, send, number=signal.SIGTERM, **more):
    def function(t):
        pid = t.victim()
        t.inside(lambda: send(pid, number))
        return t.happens(lambda: dead(pid), "its victim has ended")

    function.__name__, function.__doc__ = name, tries
    attempt("privilege", **more)(function)


def by_owner(pid, number):
    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, fcntl.F_SETOWN, pid)
    fcntl.fcntl(ours, 10, number)  # F_SETSIG
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    theirs.send(b"x")


def by_owner_ex(pid, number):
    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, 15, struct.pack("=ii", 1, pid))
    fcntl.fcntl(ours, 10, number)
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    theirs.send(b"x")


def by_ioctl(pid, number):
    ours, theirs = socket.socketpair()
    fcntl.ioctl(ours, 0x8901, struct.pack("=i", pid))  # FIOSETOWN
    fcntl.fcntl(ours, 10, number)
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    theirs.send(b"x")


signals("signal_by_kill", "Sends a signal to a process outside.", os.kill)
signals("signal_by_sigkill", "Kills a process outside.", lambda pid, _: os.kill(pid, signal.SIGKILL))
signals("signal_by_tgkill", "Sends a signal to a thread of a process outside.", lambda pid, number: system(234, pid, pid, number))
signals("signal_by_tkill", "Sends a signal to a thread by tkill.", lambda pid, number: system(200, pid, number))
signals("signal_by_pidfd", "Sends a signal by a pidfd.", lambda pid, number: system(424, system(434, pid, 0), number, 0, 0))
signals("signal_by_queue", "Queues a signal (rt_sigqueueinfo).",
        lambda pid, number: system(129, pid, number, ctypes.create_string_buffer(struct.pack("=iii", number, 0, -1), 128)))
signals("signal_by_group", "Sends a signal to the process group of a process outside.", lambda pid, number: os.killpg(pid, number))
signals("signal_by_owner", "Makes a process outside the owner of a socket (F_SETOWN) and has the kernel send it its signal.", by_owner)
signals("signal_by_owner_ex", "The same by F_SETOWN_EX.", by_owner_ex)
signals("signal_by_ioctl", "The same by FIOSETOWN.", by_ioctl)


@attempt("privilege")
def signal_by_pidfd_from_before(t):
    """Sends a signal by a pidfd from before the label."""
    pid = t.victim()
    t.inside(lambda fd: system(424, fd, signal.SIGTERM, 0, 0), before=lambda: os.pidfd_open(pid))
    return t.happens(lambda: dead(pid), "its victim has ended")


@attempt("privilege", ends=("done",))
def signal_to_everybody(t):
    """Sends a signal to everybody it may (kill -1): SIGURG, which does nothing but to who waits for it."""
    ready, end = os.pipe()

    def prepare():
        signal.signal(signal.SIGURG, lambda *_: os.write(end, b"u"))

    t.victim(prepare=prepare)
    os.set_blocking(ready, False)
    t.later(lambda: (os.close(ready), os.close(end)))
    old = signal.signal(signal.SIGURG, signal.SIG_IGN)
    t.later(lambda: signal.signal(signal.SIGURG, old))
    t.inside(lambda: os.kill(-1, signal.SIGURG))

    def arrived():
        with contextlib.suppress(BlockingIOError):
            return os.read(ready, 1) == b"u"

    return t.happens(arrived, "it arrived")


@attempt("privilege", race=True)
def signal_from_many_threads(t):
    """Eight threads send signals of every kind to a process outside, at the same moment, as it comes into being."""
    pid = t.victim()

    def hostile():
        ends = []

        def send(number):
            try:
                os.kill(pid, number)
            except OSError as error:
                ends.append(error)

        threads = [threading.Thread(target=send, args=(number,)) for number in (1, 2, 3, 10, 12, 15, 9, 14)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if ends:
            raise ends[0]

    t.inside(hostile)
    return t.happens(lambda: dead(pid), "its victim has ended")


@attempt("theft")
def memory_is_written_by_process_vm(t):
    """Writes into the memory of a process outside by process_vm_writev."""
    import mmap
    memory = mmap.mmap(-1, 4096)
    memory[:8] = b"original"
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    victim = t.victim()

    def hostile():
        text = ctypes.create_string_buffer(b"hostile!")
        local = (ctypes.c_size_t * 2)(ctypes.addressof(text), 8)
        remote = (ctypes.c_size_t * 2)(place, 8)
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(4096))
        call(libc.process_vm_writev, victim, local, ctypes.c_ulong(1), remote, ctypes.c_ulong(1), ctypes.c_ulong(0))

    t.inside(hostile)
    return t.happens(lambda: memory[:8] == b"hostile!", "its memory is changed")


@attempt("theft")
def stop_by_ptrace(t):
    """Stops a process outside as its tracer."""
    victim = t.victim()
    made = t.inside(lambda: (call(libc.ptrace, 0x4206, victim, None, None), call(libc.ptrace, 0x4207, victim, None, None)))

    def traced():
        with open(f"/proc/{victim}/status") as file:
            return f"TracerPid:\t{made.pid}\n" in file.read()

    return t.happens(traced, "it is traced")


def touches(name, tries, act, look, kind="others"):
    """An attempt that changes something of a process outside that can be looked at."""

    def function(t):
        pid = t.victim()
        before = look(pid)
        t.inside(lambda: act(pid))
        return t.happens(lambda: look(pid) != before, f"it was {before}")

    function.__name__, function.__doc__ = name, tries
    attempt(kind)(function)


touches("limits_of_somebody_else", "Changes a limit of a process outside (prlimit).",
        lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3)), lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE))
touches("processors_of_somebody_else", "Changes the processors of a process outside.",
        lambda pid: os.sched_setaffinity(pid, {0}), lambda pid: os.sched_getaffinity(pid))
touches("priority_of_somebody_else", "Changes the priority of a process outside.",
        lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 19), lambda pid: os.getpriority(os.PRIO_PROCESS, pid))
touches("scheduler_of_somebody_else", "Changes the scheduler of a process outside.",
        lambda pid: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)), lambda pid: os.sched_getscheduler(pid))
touches("io_priority_of_somebody_else", "Changes the priority of a process outside for disks.",
        lambda pid: system(251, 1, pid, 3 << 13), lambda pid: system(252, 1, pid))
touches("killing_first_of_somebody_else", "Makes a process outside the first to be killed when memory is short.",
        lambda pid: write_file(f"/proc/{pid}/oom_score_adj", "1000"), lambda pid: open(f"/proc/{pid}/oom_score_adj").read(), "theft")


# ---- the kernel's own ----

def tunable(name, tries, path, value):
    def function(t):
        if not os.path.exists(path):
            t.skip(f"there is no {path}")
        before = open(path).read()
        t.later(lambda: write_file(path, before) if open(path).read() != before else None)
        t.inside(lambda: write_file(path, value))
        return t.happens(lambda: open(path).read() != before, "it is changed")

    function.__name__, function.__doc__ = name, tries
    attempt("privilege")(function)


tunable("tunable_core_pattern", "Has a program run for every core dump (core_pattern).", "/proc/sys/kernel/core_pattern", "|/srv/programs/say %p")
tunable("tunable_modprobe", "Has another program load modules.", "/proc/sys/kernel/modprobe", "/srv/programs/say")
tunable("tunable_hotplug", "Has a program run for every device.", "/sys/kernel/uevent_helper", "/srv/programs/say")
tunable("tunable_host_name", "Changes the name of the host by /proc/sys.", "/proc/sys/kernel/hostname", "hostile")
tunable("tunable_addresses", "Switches the randomisation of addresses off.", "/proc/sys/kernel/randomize_va_space", "0")
tunable("tunable_ptrace", "Changes who may trace whom.", "/proc/sys/kernel/yama/ptrace_scope", "2")
tunable("tunable_forwarding", "Has the host forward packets.", "/proc/sys/net/ipv4/ip_forward", "1")
tunable("tunable_of_a_link", "Changes a link by /sys.", "/sys/class/net/lo/mtu", "9000")
tunable("tunable_of_a_disk", "Changes a disk's queue by /sys.", "/sys/block/vda/queue/read_ahead_kb", "64")


@attempt("privilege")
def tunable_from_before(t):
    """Writes to a file of /proc/sys that it opened before the label."""
    path = "/proc/sys/kernel/domainname"
    before = open(path).read()
    t.later(lambda: write_file(path, before))
    t.inside(lambda fd: os.write(fd, b"hostile"), before=lambda: os.open(path, os.O_WRONLY))
    return t.happens(lambda: open(path).read() != before, "it is changed")


@attempt("privilege")
def host_name(t):
    """Changes the name of the host by sethostname."""
    before = socket.gethostname()
    t.later(lambda: socket.sethostname(before))
    t.inside(lambda: socket.sethostname("hostile"))
    return t.happens(lambda: socket.gethostname() != before, "it is changed")


@attempt("privilege")
def clock(t):
    """Sets the clock."""
    moved = lambda: time.time() - time.monotonic()
    before = moved()
    t.later(lambda: abs(moved() - before) > 300 and time.clock_settime(time.CLOCK_REALTIME, before + time.monotonic()))
    t.inside(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time() + 1000))
    return t.happens(lambda: abs(moved() - before) > 300, "it is another time")


@attempt("privilege")
def restart_key(t):
    """Has Ctrl-Alt-Del restart the host at once (reboot)."""
    path = "/proc/sys/kernel/ctrl-alt-del"
    before = open(path).read().strip()
    t.later(lambda: write_file(path, before))
    wanted = 0 if before == "1" else 0x89abcdef
    t.inside(lambda: call(libc.reboot, ctypes.c_int(wanted)))
    return t.happens(lambda: open(path).read().strip() != before, "it is changed")


@attempt("privilege")
def swap_space(t):
    """Makes a disk swap space."""
    file = t.file(f"{t.outside()}/swap", bytes(4086) + b"SWAPSPACE2" + bytes(4096 * 20 - 4096))
    header = bytearray(open(file, "rb").read())
    struct.pack_into("=III", header, 1024, 1, 19, 0)
    with open(file, "wb") as out:
        out.write(header)
    device = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True)
    if device.returncode:
        t.skip(f"no loop device: {device.stderr.strip()}")
    device = device.stdout.strip()
    t.later(lambda: (libc.swapoff(device.encode()), subprocess.run(["losetup", "-d", device])))
    t.inside(lambda: call(libc.swapon, device.encode(), 0))
    return t.happens(lambda: device in open("/proc/swaps").read(), "it is used")


@attempt("privilege")
def accounting(t):
    """Has the kernel write a record of every process into a file (acct)."""
    file = t.file(f"{t.outside()}/records", b"")
    t.later(lambda: libc.acct(None))
    t.inside(lambda: call(libc.acct, file.encode()))

    def written():
        subprocess.run(["true"], check=True)
        return os.path.getsize(file) > 0

    return t.happens(written, "records are written")


@attempt("privilege")
def kernel_log(t):
    """Changes what of the kernel's log is shown (syslog)."""
    path = "/proc/sys/kernel/printk"
    before = open(path).read()
    t.later(lambda: write_file(path, before))
    t.inside(lambda: call(libc.klogctl, 8, None, 1 if before.split()[0] != "1" else 2))
    return t.happens(lambda: open(path).read() != before, "it is changed")


@attempt("privilege")
def ports(t):
    """Gets access to the machine's ports (ioperm)."""
    made = t.inside(lambda: call(libc.ioperm, ctypes.c_ulong(0x80), ctypes.c_ulong(1), 1) or (
        "it may" if call(libc.ioperm, ctypes.c_ulong(0x81), ctypes.c_ulong(1), 1) == 0 else None))
    # The kernel shows it to nobody else: the call itself is what is to be refused.
    return "it may use ports" if made.how == "done" else None


@attempt("privilege")
def module(t):
    """Loads a kernel module."""
    found = glob.glob(f"/usr/lib/modules/{os.uname().release}/kernel/drivers/net/dummy.ko*")
    if not found:
        t.skip("there is no module to load")
    subprocess.run(["modprobe", "-r", "dummy"], stderr=subprocess.DEVNULL)
    t.later(lambda: subprocess.run(["modprobe", "-r", "dummy"], stderr=subprocess.DEVNULL))
    path = unpacked(t, found[0])
    t.inside(lambda fd: system(313, fd, b"", 0), before=lambda: os.open(path, os.O_RDONLY))
    return t.happens(lambda: os.path.exists("/sys/module/dummy"), "it is loaded")


def unpacked(tried, path):
    if path.endswith(".ko"):
        return path
    import lzma
    with open(path, "rb") as file:
        content = file.read()
    if not path.endswith(".xz"):
        tried.skip(f"cannot unpack {path}")
    return tried.file(f"{tried.outside()}/dummy.ko", lzma.decompress(content))


@attempt("privilege")
def module_on_demand(t):
    """Has the kernel load a module for it, by asking for a kind of link that needs one."""
    subprocess.run(["modprobe", "-r", "ifb"], stderr=subprocess.DEVNULL)
    if os.path.exists("/sys/module/ifb") or not glob.glob(f"/usr/lib/modules/{os.uname().release}/kernel/drivers/net/ifb.ko*"):
        t.skip("there is no module to load")
    t.later(lambda: subprocess.run(["modprobe", "-r", "ifb"], stderr=subprocess.DEVNULL))
    kind = struct.pack("=HHHH4s", 12, 18, 8, 1, b"ifb\0")
    payload = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + kind

    def hostile():
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        s.send(struct.pack("=IHHII", 16 + len(payload), 16, 0x605, 1, 0) + payload)
        code = struct.unpack_from("=i", s.recv(65536), 16)[0]
        if code:
            raise OSError(-code, "netlink")

    t.inside(hostile)
    return t.happens(lambda: os.path.exists("/sys/module/ifb"), "it is loaded")


@attempt("privilege")
def other_kernel(t):
    """Prepares another kernel to be started (kexec_load)."""
    text = ctypes.create_string_buffer(b"\xf4" * 4096)
    segment = struct.pack("=QQQQ", ctypes.addressof(text), 4096, 0x10000000, 4096)
    t.later(lambda: libc.syscall(ctypes.c_long(246), ctypes.c_long(0), ctypes.c_long(0), None, ctypes.c_long(0)))
    made = t.inside(lambda: system(246, 0x10000000, 1, segment, 62 << 16))
    if t.off and made.how == "ENOSYS":
        t.skip("the kernel has no kexec")
    return t.happens(lambda: open("/sys/kernel/kexec_loaded").read().strip() == "1", "it is loaded")


@attempt("privilege")
def perf_events(t):
    """Opens a performance event of the whole machine."""
    attributes = struct.pack("=IIQQQQQ", 1, 64, 0, 0, 0, 0, 0)
    made = t.inside(lambda: system(298, ctypes.create_string_buffer(attributes, 64), -1, 0, -1, 0))
    return t.happens(lambda: has_open(made.pid, "perf_event"), "it has one")


@attempt("privilege", race=True)
def ring(t):
    """Makes a ring of io_uring."""
    made = t.inside(lambda: system(425, 4, ctypes.create_string_buffer(120)))
    return t.happens(lambda: has_open(made.pid, "io_uring"), "it has one")


@attempt("privilege", race=True)
def faults(t):
    """Makes a descriptor that serves page faults, those of the kernel too (userfaultfd)."""
    made = t.inside(lambda: system(323, 0))
    return t.happens(lambda: has_open(made.pid, "userfaultfd"), "it has one")


@attempt("privilege", ends=("ENOKEY",))
def key_of_the_user(t):
    """Adds a key to the keyring of its user, which others share."""
    name = f"hostile-{t.number}"
    made = t.inside(lambda: system(248, b"user", name.encode(), b"x", 1, -4))
    keys = lambda: open("/proc/keys").read()
    t.later(lambda: name in keys() and system(250, 9, made.value, -4))
    return t.happens(lambda: name in keys(), "it is there")


@attempt("privilege")
def key_of_the_session(t):
    """Joins another session keyring and takes over what is in it."""
    name = f"session-{t.number}"
    made = t.inside(lambda: system(250, 1, name.encode()))
    return t.happens(lambda: name in open("/proc/keys").read(), f"it is there: {made.how}")


@attempt("privilege")
def device_node(t):
    """Makes a device node of the machine's memory."""
    node = f"{t.free()}/mem"
    t.inside(lambda: os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 1)))
    return t.happens(lambda: os.path.lexists(node), "it is there")


@attempt("privilege")
def tunnel(t):
    """Makes a network device of its own (/dev/net/tun)."""
    os.makedirs("/dev/net", exist_ok=True)
    # The node may be there without what it is for.
    subprocess.run(["modprobe", "tun"], check=False)
    time.sleep(0.2)
    if not os.path.exists("/dev/net/tun"):
        t.skip("the kernel has no tunnels")
    made = t.inside(lambda: fcntl.ioctl(kept("/dev/net/tun"), 0x400454ca, struct.pack("=16sH22x", b"hostile0", 0x1002)))
    return t.happens(lambda: os.path.exists("/sys/class/net/hostile0"), f"it is there: {made.how}")


KEPT = []


def kept(path):
    KEPT.append(os.open(path, os.O_RDWR))
    return KEPT[-1]


@attempt("privilege")
def new_link(t):
    """Makes a link on the host by netlink."""
    payload = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + struct.pack("=HH8sHHHH8s", 12, 3, b"hostile\0", 16, 18, 10, 1, b"bridge\0\0")
    t.later(lambda: subprocess.run(["ip", "link", "del", "hostile"], stderr=subprocess.DEVNULL))

    def hostile():
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        s.send(struct.pack("=IHHII", 16 + len(payload), 16, 0x605, 1, 0) + payload)
        code = struct.unpack_from("=i", s.recv(65536), 16)[0]
        if code:
            raise OSError(-code, "netlink")

    made = t.inside(hostile)
    if t.off and made.how == "EOPNOTSUPP":
        t.skip("the kernel has no bridges")
    return t.happens(lambda: os.path.exists("/sys/class/net/hostile"), "it is there")


@attempt("privilege")
def binary_format(t):
    """Has a kind of file run by a program of its own (binfmt_misc)."""
    place = "/proc/sys/fs/binfmt_misc"
    subprocess.run(["mount", "-t", "binfmt_misc", "none", place], stderr=subprocess.DEVNULL)
    if not os.path.exists(f"{place}/register"):
        t.skip("the kernel has no binfmt_misc")
    entry = f"{place}/hostile"
    t.later(lambda: os.path.exists(entry) and write_file(entry, "-1"))
    t.inside(lambda: write_file(f"{place}/register", ":hostile:E::hostile::/srv/programs/say:"))
    return t.happens(lambda: os.path.exists(entry), "it is there")


# ---- more identity ----

def identity(pid):
    with open(f"/proc/{pid}/status") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


@attempt("privilege")
def gain_by_a_setuid_program(t):
    """Becomes root as nobody, by a setuid program that the policy allows."""
    path = t.program("let-", source="stay")
    os.chmod(path, 0o4755)
    made = t.inside(lambda: os.execv(path, ["x"]), uid=65534, seconds=3)
    return t.happens(lambda: identity(made.pid)["Uid"].split()[1] == "0", "it is root")


@attempt("privilege")
def gain_by_file_capabilities(t):
    """Gets a capability as nobody, by a program with file capabilities that the policy allows."""
    path = t.program("let-", source="stay")
    os.setxattr(path, "security.capability", struct.pack("=5I", 0x02000001, 1 << 21, 0, 0, 0))
    made = t.inside(lambda: os.execv(path, ["x"]), uid=65534, seconds=3)
    return t.happens(lambda: int(identity(made.pid)["CapEff"], 16) & 1 << 21, "it has it")


@attempt("privilege")
def gain_by_kept_capabilities(t):
    """Becomes another user than root or itself, as one that kept CAP_SETUID."""
    def hostile():
        libc.prctl(8, 1, 0, 0, 0)
        os.setresuid(1000, 1000, 1000)
        call(libc.capset, struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 1 << 7, 1 << 7, 0, 0, 0, 0))
        os.setresuid(1001, 1001, 1001)

    made = t.inside(hostile)
    return t.happens(lambda: identity(made.pid)["Uid"].split()[0] == "1001", "it is somebody else")


# ---- others who would start something ----

@attempt("egress", ends=("gone",))
def start_by_systemd_run(t):
    """Asks systemd, over D-Bus, to run a program."""
    run = t.program("let-", source="/usr/bin/systemd-run")
    mark = f"{t.outside()}/mark"
    t.inside(lambda: os.execv(run, ["x", "--quiet", "/usr/bin/touch", mark]), seconds=4)
    return t.happens(lambda: os.path.exists(mark), "it ran")


@attempt("egress", ends=("gone",))
def start_by_systemctl(t):
    """Asks systemd, by its private socket, to start a unit that is there."""
    mark = f"{t.outside()}/mark"
    unit = f"hostile-{t.number}.service"
    t.file(f"/run/systemd/system/{unit}", f"[Service]\nType=oneshot\nExecStart=/usr/bin/touch {mark}\n".encode())
    t.later(lambda: os.unlink(f"/run/systemd/system/{unit}"))
    run = t.program("let-", source="/usr/bin/systemctl")
    t.inside(lambda: os.execv(run, ["x", "start", unit]), seconds=4)
    return t.happens(lambda: os.path.exists(mark), "it ran")


@attempt("egress")
def start_by_the_bus(t):
    """Connects to the system bus and begins to speak."""
    def hostile():
        s = socket.socket(socket.AF_UNIX)
        s.connect("/run/dbus/system_bus_socket")
        s.send(b"\0AUTH EXTERNAL 30\r\n")
        return s.recv(100).decode()

    made = t.inside(hostile)
    return f"it says {made.value}" if str(made.value).startswith("OK ") else None
