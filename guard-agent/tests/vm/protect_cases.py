"""Thefts: each must fail for a labelled process, root or not, and succeed with enforcement off.

A group of thefts runs in one labelled Python. With enforcement off every single one of a group must succeed, else the group fails:
a theft that never works proves nothing.
"""
import socket

from harness import *

HOMES = "/home"
SECRET = "the token of an approver"
# The console is "at" this port of this host.
LABELS.extend(["--protect", "127.0.0.1:7443"])

PRELUDE = '''
import ctypes, errno, fcntl, mmap, os, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def call(function, *arguments):
    """A function of libc that sets errno."""
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def system(number, *arguments):
    return call(libc.syscall, ctypes.c_long(number), *arguments)

def read(path, **more):
    with open(path, "rb", **more) as file:
        data = file.read(4096)
    assert data, "nothing"
    return True

def write(path, data=b"x"):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, data)
    os.close(fd)
    return True

def theft(name, attempt):
    try:
        stolen = attempt()
    except OSError as error:
        print("refused", name, errno.errorcode.get(error.errno, error.errno), flush=True)
        return
    print("stolen" if stolen is not False else "refused", name, flush=True)
'''


def home(name, token=True):
    """A fresh home below /home, with a saved sign-in."""
    path = f"{HOMES}/{name}-{time.monotonic_ns()}"
    os.makedirs(f"{path}/.config/guard" if token else path, mode=0o755)
    if token:
        with open(f"{path}/.config/guard/credentials.json", "w") as file:
            file.write(SECRET)
    for root, _, files in os.walk(path):
        for part in [root, *(f"{root}/{file}" for file in files)]:
            os.chown(part, 1000, 1000)
    return path


def seen():
    """Until the probe has looked at what was made just now: it looks twice a second."""
    if not OFF:
        time.sleep(1.5 * SLOW)


def thefts(probe, kinds, body, allowed=(), pass_fds=(), uid=None, cgroup=BOX, label=1, **values):
    """Runs thefts in one labelled process; `kinds` are the kinds that must be counted."""
    prelude = PRELUDE + "".join(f"{name} = {value!r}\n" for name, value in values.items())
    if uid is not None:
        prelude += f"os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})\n"
    text = output(start(sys.executable, "-c", prelude + body, pass_fds=pass_fds, cgroup=cgroup), 60)
    lines = [line.split() for line in text.splitlines() if line.startswith(("stolen ", "refused "))]
    done = {line[1]: line for line in lines}
    wanted = set(re.findall(r"^\s*theft\(\"([^\"]+)\"", body, re.M))
    missing = wanted - set(done)
    if missing:
        raise Failed(f"not attempted: {missing}: {text[-1500:]}")
    for name in allowed:
        if done[name][0] != "stolen":
            raise Failed(f"refused although it is nobody's: {done[name]}")
    wanted -= set(allowed)
    stolen = {name for name in wanted if done[name][0] == "stolen"}
    other = {name for name in wanted - stolen if done[name][-1] not in ("EPERM", "EACCES")}
    check(not other, f"failed for a reason of their own: {[done[name] for name in other]}: {text[-800:]}")
    if OFF and wanted - stolen:
        raise Failed(f"prove nothing, for with enforcement off they fail too: {[done[name] for name in wanted - stolen]}: {text[-800:]}")
    absent(lambda: bool(stolen), f"stolen: {stolen}")
    for kind in kinds:
        probe.expect(rf"^refused label={label} kind={kind} ")


# ---- files ----

@case
def theft_of_a_sign_in(probe):
    victim, moved, other, taken, before = home("sign-in"), home("moved"), home("other"), home("taken"), f"{HOMES}/link-{time.monotonic_ns()}"
    os.link(f"{victim}/.config/guard/credentials.json", before)
    os.symlink(f"{victim}/.config", f"{other}/elsewhere")
    holder = subprocess.Popen([sys.executable, "-c", "import sys, time; f = open(sys.argv[1]); time.sleep(1000)",
                               f"{victim}/.config/guard/credentials.json"], cwd=f"{victim}/.config/guard")
    token = f"{victim}/.config/guard/credentials.json"
    number, end = None, time.monotonic() + 60
    while number is None and time.monotonic() < end:
        time.sleep(0.05)
        number = next((fd for fd in os.listdir(f"/proc/{holder.pid}/fd") if os.path.realpath(f"/proc/{holder.pid}/fd/{fd}") == token), None)
    check(number is not None, "the holder does not hold it")
    seen()
    try:
        thefts(probe, [1], '''
token = f"{victim}/.config/guard/credentials.json"
theft("path", lambda: read(token))
theft("list", lambda: os.listdir(f"{victim}/.config/guard"))
theft("earlier-link", lambda: read(before))
theft("link", lambda: (os.link(token, f"{other}/hard"), read(f"{other}/hard")))
theft("symlink", lambda: (os.symlink(token, f"{other}/soft"), read(f"{other}/soft")))
theft("folder-link", lambda: read(f"{other}/elsewhere/guard/credentials.json"))
def folder():
    os.chdir(f"{victim}/.config/guard")
    return read("credentials.json")
theft("chdir", folder)
os.chdir("/")
theft("path-descriptor", lambda: read("credentials.json", opener=lambda name, flags: os.open(
    name, flags, dir_fd=os.open(f"{victim}/.config/guard", os.O_PATH))))
theft("other-root", lambda: read(f"/proc/{holder}/root{token}"))
theft("other-cwd", lambda: read(f"/proc/{holder}/cwd/credentials.json"))
theft("other-descriptor", lambda: read(f"/proc/{holder}/fd/{number}"))
theft("rename-folder", lambda: os.rename(f"{moved}/.config/guard", f"{moved}/free") or read(f"{moved}/free/credentials.json"))
theft("rename-parent", lambda: os.rename(f"{taken}/.config", f"{taken}/free") or read(f"{taken}/free/guard/credentials.json"))
theft("chmod", lambda: os.chmod(f"{victim}/.config/guard", 0o777))
theft("remove", lambda: os.unlink(f"{other}/.config/guard/credentials.json"))
theft("truncate", lambda: os.truncate(token, 3))
theft("ordinary", lambda: os.mkdir(f"{other}/.config/mine"))
''', allowed=["ordinary"], victim=victim, moved=moved, other=other, taken=taken, before=before, holder=holder.pid, number=number)
    finally:
        holder.kill()
        holder.wait()


@case
def theft_by_the_same_user(probe):
    victim = home("same")
    seen()
    thefts(probe, [1], '''
theft("path", lambda: read(f"{victim}/.config/guard/credentials.json"))
theft("list", lambda: os.listdir(f"{victim}/.config/guard"))
theft("write", lambda: write(f"{victim}/.config/guard/credentials.json"))
theft("ordinary", lambda: os.mkdir(f"{victim}/project"))
''', allowed=["ordinary"], uid=1000, victim=victim)


@case
def theft_through_mounts(probe):
    victim = home("mounts")
    place = f"{WORK}/mounted-{time.monotonic_ns()}"
    for folder in place, f"{place}-tree":
        os.mkdir(folder)
    seen()
    thefts(probe, [1], '''
call(libc.unshare, 0x00020000)
def mount(source, target, kind, flags, data=None):
    call(libc.mount, source.encode(), target.encode(), kind and kind.encode(), flags, data and data.encode())
mount("none", "/", None, 0x4000 | 0x40000)
theft("bind", lambda: (mount(f"{victim}/.config/guard", place, None, 0x1000), read(f"{place}/credentials.json")))
theft("bind-above", lambda: (mount(f"{victim}/.config", f"{place}-tree", None, 0x1000), read(f"{place}-tree/guard/credentials.json")))
def namespace():
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise OSError(code, "")
        return True
    try:
        call(libc.unshare, 0x10000000 | 0x00020000)
        read(f"{victim}/.config/guard/credentials.json")
        os._exit(0)
    except OSError as error:
        os._exit(error.errno)
    finally:
        os._exit(255)
theft("user-namespace", namespace)
''', victim=victim, place=place, cgroup=FREE, label=8)


@case
def theft_by_descriptors_from_before(probe):
    victim = home("descriptors")
    token = f"{victim}/.config/guard/credentials.json"
    fds = [os.open(token, os.O_RDWR), os.open(token, os.O_RDWR), os.open(f"{victim}/.config/guard", os.O_RDONLY), os.open(token, os.O_PATH)]
    seen()
    try:
        thefts(probe, [1], '''
theft("read", lambda: os.read(fds[0], 100))
theft("map", lambda: mmap.mmap(fds[1], 10, prot=mmap.PROT_READ)[:5])
theft("below", lambda: os.read(os.open("credentials.json", os.O_RDONLY, dir_fd=fds[2]), 100))
theft("entries", lambda: os.listdir(fds[2]))
theft("open-again", lambda: read(f"/proc/self/fd/{fds[3]}"))
theft("send", lambda: os.sendfile(os.memfd_create("x"), fds[1], 0, 10))
theft("write", lambda: os.write(fds[1], b"x"))
''', pass_fds=fds, fds=fds)
    finally:
        for fd in fds:
            os.close(fd)


@case
@one_kernel("7.2")
def theft_as_it_comes_into_being(probe):
    """Names count before anything has them: neither first in making it nor first in opening it helps."""
    new, early, links, profile, plain = home("new", False), home("early", False), home("links", False), home("profile", False), home("plain", False)
    os.mkdir(f"{early}/.config")
    seen()
    writer = subprocess.Popen([sys.executable, "-c", f"""
import os, time
time.sleep({1.5 * SLOW})
os.makedirs("{new}/.config/guard")
open("{new}/.config/guard/credentials.json", "w").write("secret")
time.sleep(1000)
"""])
    try:
        thefts(probe, [1, 2], '''
def watch():
    end = time.monotonic() + wait
    while time.monotonic() < end:
        try:
            return os.open(f"{new}/.config/guard/credentials.json", os.O_RDONLY)
        except OSError as error:
            last = error
    raise last
theft("quick", watch)
theft("make-it-first", lambda: os.mkdir(f"{early}/.config/guard"))
theft("link-above-it", lambda: os.symlink(work, f"{links}/.config"))
theft("move-above-it", lambda: os.rename(f"{early}/.config", f"{early}/c2"))
theft("profile", lambda: os.mkdir(f"{profile}/.mozilla"))
theft("second-profile", lambda: (os.mkdir(f"{profile}/.config"), os.mkdir(f"{profile}/.config/chromium")))
theft("config", lambda: os.mkdir(f"{plain}/.config"))
theft("elsewhere", lambda: (os.mkdir(f"{work}/.mozilla"), os.rmdir(f"{work}/.mozilla")))
''',
               allowed=["config", "elsewhere"], new=new, early=early, links=links, profile=profile, plain=plain, work=WORK, wait=5 * SLOW)
    finally:
        writer.kill()
        writer.wait()


@case
def theft_of_guards_own_files(probe):
    files = {"/etc/guard/policy.cedar": SECRET, "/var/lib/guard-agent/identity/evidence.key": SECRET, "/var/lib/guard-console/ca.key": SECRET,
             "/usr/bin/guard-agent": "program", "/etc/systemd/system/guard-agent.service": "unit"}
    for path, text in files.items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
    os.makedirs("/sys/fs/bpf/guard", exist_ok=True)
    seen()
    thefts(probe, [3, 4, 5], '''
theft("policy", lambda: read("/etc/guard/policy.cedar"))
theft("change-policy", lambda: write("/etc/guard/policy.cedar"))
theft("new-configuration", lambda: open("/etc/guard/agent.toml", "w").close())
theft("key", lambda: read("/var/lib/guard-agent/identity/evidence.key"))
theft("console", lambda: read("/var/lib/guard-console/ca.key"))
theft("pins", lambda: os.listdir("/sys/fs/bpf/guard"))
theft("run-program", lambda: read("/usr/bin/guard-agent"))
theft("read-unit", lambda: read("/etc/systemd/system/guard-agent.service"))
theft("program", lambda: write("/usr/bin/guard-agent"))
theft("unit", lambda: write("/etc/systemd/system/guard-agent.service"))
theft("chmod-program", lambda: os.chmod("/usr/bin/guard-agent", 0o777))
theft("replace-program", lambda: (open("/usr/bin/other", "w").close(), os.rename("/usr/bin/other", "/usr/bin/guard-agent")))
theft("remove-unit", lambda: os.unlink("/etc/systemd/system/guard-agent.service"))
theft("move-state", lambda: os.rename("/var/lib/guard-agent", "/var/lib/mine"))
''', allowed=["run-program", "read-unit"])


# ---- addresses and sockets ----

@case
def theft_over_the_network(probe):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    listeners = []
    for port in 7443, 7444:
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        listeners.append(listener)
    with open("/proc/sys/net/ipv4/tcp_fastopen", "w") as file:
        file.write("519")
    seen()
    try:
        thefts(probe, [7], '''
def reach(family, address, port=7443):
    with socket.socket(family, socket.SOCK_STREAM) as it:
        it.settimeout(5)
        it.connect((address, port))
    return True
four, six = socket.AF_INET, socket.AF_INET6
theft("v4", lambda: reach(four, "127.0.0.1"))
theft("v4-other-loopback", lambda: reach(four, "127.8.9.10"))
theft("v4-any", lambda: reach(four, "0.0.0.0"))
theft("v6", lambda: reach(six, "::1"))
theft("v6-any", lambda: reach(six, "::"))
theft("mapped", lambda: reach(six, "::ffff:127.0.0.1"))
theft("mapped-any", lambda: reach(six, "::ffff:0.0.0.0"))
def fast():
    with socket.socket(four, socket.SOCK_STREAM) as it:
        return it.sendto(b"x", 0x20000000, ("127.0.0.1", 7443)) == 1
theft("fast-open", fast)
def fast6():
    with socket.socket(six, socket.SOCK_STREAM) as it:
        return it.sendmsg([b"x"], [], 0x20000000, ("::1", 7443)) == 1
theft("fast-open-v6", fast6)
def later():
    with socket.socket(four, socket.SOCK_STREAM) as it:
        it.setblocking(False)
        code = it.connect_ex(("127.0.0.1", 7443))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "")
theft("nonblocking", later)
theft("another-port", lambda: reach(four, "127.0.0.1", 7444))
theft("another-port-v6", lambda: reach(six, "::1", 7444))
''', allowed=["another-port", "another-port-v6"])
    finally:
        for listener in listeners:
            listener.close()


@case
def theft_through_unix_sockets(probe):
    os.makedirs("/run/guard", exist_ok=True)
    links = f"{WORK}/sockets-{time.monotonic_ns()}"
    os.mkdir(links)
    sockets = []
    try:
        for name, kind in ("agent.sock", socket.SOCK_STREAM), ("datagram.sock", socket.SOCK_DGRAM), ("mine", socket.SOCK_STREAM):
            path = f"{links}/mine" if name == "mine" else f"/run/guard/{name}"
            if os.path.exists(path):
                os.unlink(path)
            it = socket.socket(socket.AF_UNIX, kind)
            it.bind(path)
            if kind == socket.SOCK_STREAM:
                it.listen(50)
            sockets.append(it)
        # Another name in another place, and another way into the directory.
        link = f"/run/other-{time.monotonic_ns()}"
        os.link("/run/guard/agent.sock", link)
        os.link("/run/guard/datagram.sock", f"{link}-datagram")
        seen()
        thefts(probe, [3], '''
def reach(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as it:
        it.connect(path)
        return True
theft("name", lambda: reach("/run/guard/agent.sock"))
theft("other-name", lambda: reach(link))
theft("datagram", lambda: reach(f"{link}-datagram", socket.SOCK_DGRAM))
def send():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as it:
        return it.sendto(b"x", f"{link}-datagram") == 1
theft("send", send)
theft("mine", lambda: reach(f"{links}/mine"))
''', allowed=["mine"], link=link, links=links)
    finally:
        for it in sockets:
            it.close()


# ---- processes ----

@case
def theft_from_processes(probe):
    read_end, write_end = os.pipe()
    victim = subprocess.Popen([sys.executable, "-c", "import time, os; secret = bytearray(b'secret'); print('ready', flush=True); time.sleep(1000)"],
                              env={"TOKEN": SECRET}, stdout=subprocess.PIPE, pass_fds=[read_end])
    victim.stdout.readline()
    with open(f"/proc/{victim.pid}/maps") as file:
        address = int(file.readline().split("-")[0], 16)
    try:
        thefts(probe, [8, 14], '''
theft("memory", lambda: os.pread(os.open(f"/proc/{pid}/mem", os.O_RDONLY), 8, address))
theft("environment", lambda: read(f"/proc/{pid}/environ"))
theft("map", lambda: read(f"/proc/{pid}/maps"))
theft("folder", lambda: os.readlink(f"/proc/{pid}/cwd"))
theft("descriptors", lambda: os.readlink(f"/proc/{pid}/fd/{descriptor}"))
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
def vm():
    buffer = ctypes.create_string_buffer(8)
    local, remote = Vector(ctypes.addressof(buffer), 8), Vector(address, 8)
    return call(libc.process_vm_readv, pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) == 8
theft("vm-read", vm)
theft("descriptor", lambda: system(438, system(434, pid, 0), descriptor, 0))
theft("priority-of-killing", lambda: write(f"/proc/{pid}/oom_score_adj", b"1000"))
theft("trace", lambda: call(libc.ptrace, 0x4206, pid, 0, 0))
theft("own-memory", lambda: read("/proc/self/maps"))
theft("own-environment", lambda: read("/proc/self/auxv"))
def child():
    pid = os.fork()
    if pid == 0:
        time.sleep(100)
    call(libc.ptrace, 0x4206, pid, 0, 0)
    os.kill(pid, 9)
    return True
theft("own-child", child)
theft("signal-an-ordinary-one", lambda: os.kill(pid, 0))
''', allowed=["own-memory", "own-environment", "own-child", "signal-an-ordinary-one"], pid=victim.pid, address=address, descriptor=read_end)
    finally:
        os.close(read_end)
        os.close(write_end)
        victim.kill()
        victim.wait()


@case
def signals_to_guard(probe):
    shutil.copy("/usr/bin/sleep", "/usr/bin/guard-console")
    seen()
    victim = subprocess.Popen(["/usr/bin/guard-console", "1000"])
    until(lambda: os.path.realpath(f"/proc/{victim.pid}/exe") == "/usr/bin/guard-console", "it does not run")
    try:
        thefts(probe, [9], '''
theft("ask", lambda: os.kill(pid, 0))
theft("priority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
theft("scheduler", lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)))
def limit():
    import resource
    return resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1))
theft("limit", limit)
theft("pidfd", lambda: system(424, system(434, pid, 0), signal.SIGSTOP, 0, 0))
theft("all-its-threads", lambda: system(234, pid, pid, signal.SIGCONT))
theft("end", lambda: os.kill(pid, signal.SIGTERM))
''', pid=victim.pid)
        check(victim.poll() is None, "it ended")
    finally:
        victim.kill()
        victim.wait()
        os.unlink("/usr/bin/guard-console")


def has_content(block):
    """Whether there is something to read: a loop device without a file has nothing."""
    with open(f"/sys/block/{block}/size") as file:
        return int(file.read()) > 0 and os.path.exists(f"/dev/{block}")


@case
def theft_past_the_file_system(probe):
    disk = next((f"/dev/{name}" for name in sorted(os.listdir("/sys/block")) if has_content(name)), None)
    if not disk:
        raise Skipped("no disk in the guest")
    old = "/proc/sys/dev/tty/legacy_tiocsti"
    if os.path.exists(old):
        with open(old, "w") as file:
            file.write("1")
    other, terminal = os.openpty()
    inherited = os.open(disk, os.O_RDONLY)
    try:
        thefts(probe, [10, 11, 12], '''
theft("disk", lambda: read(disk))
theft("disk-from-before", lambda: os.read(inherited, 512))
theft("memory", lambda: os.close(os.open("/dev/mem", os.O_RDONLY)))
theft("kernel-memory", lambda: os.close(os.open("/proc/kcore", os.O_RDONLY)))
theft("bpf", lambda: system(321, 0, ctypes.create_string_buffer(struct.pack("5I", 2, 4, 8, 1, 0), 120), 120))
theft("typing", lambda: fcntl.ioctl(terminal, 0x5412, b"x"))
theft("size", lambda: fcntl.ioctl(terminal, 0x5413, bytes(8)))
''', allowed=["size"], pass_fds=[terminal, inherited], disk=disk, terminal=terminal, inherited=inherited)
    finally:
        for fd in other, terminal, inherited:
            os.close(fd)
