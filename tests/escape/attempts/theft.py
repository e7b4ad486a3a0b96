"""Thefts: what would let a workload approve itself, or work in somebody else's name. Denied whatever the policy says. The proof is the
secret itself in the hands of somebody outside, or what became of the victim."""
import fcntl
import socket
import struct

from suite import *
from suite import BOX

HOME = "/home/approver"
TOKEN = f"{HOME}/.config/guard/credentials.json"
AGENT = "/run/guard/agent.sock"

# The root file system, an overlay, has no handles of files.
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "home", "/home"], check=True)
for path in TOKEN, "/etc/guard/policy.cedar", "/var/lib/guard-agent/identity/evidence.key", "/home/moved/.config/guard/credentials.json":
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as made_file:
        made_file.write(SECRET)
os.makedirs("/run/guard", exist_ok=True)


def read(path):
    with open(path, "rb") as file:
        return file.read(4096).decode(errors="replace")


def steals(name, tries, get, **more):
    """An attempt whose hostile part gives what it got hold of."""

    def function(t):
        made = t.inside(get, before=more.get("before"))
        return f"it has {SECRET!r}" if SECRET in str(made.value) else None

    function.__name__, function.__doc__ = name, tries
    attempt("theft")(function)


steals("token_by_path", "Reads an approver's saved sign-in.", lambda: read(TOKEN))
steals("token_by_descriptor_from_before", "Reads it by a descriptor from before the label.", lambda fd: os.pread(fd, 100, 0).decode(),
       before=lambda: os.open(TOKEN, os.O_RDONLY))
steals("token_by_folder_from_before", "Reads it below a folder's descriptor from before the label.",
       lambda fd: os.read(os.open("credentials.json", os.O_RDONLY, dir_fd=fd), 100).decode(),
       before=lambda: os.open(os.path.dirname(TOKEN), os.O_PATH))
steals("token_by_opening_it_again", "Opens /proc/self/fd/N of an O_PATH descriptor of it from before.", lambda fd: read(f"/proc/self/fd/{fd}"),
       before=lambda: os.open(TOKEN, os.O_PATH))
steals("token_by_another_root", "Reads it as /proc/1/root/….", lambda: read(f"/proc/1/root{TOKEN}"))
steals("key_of_the_agent", "Reads the key that the agent signs with.", lambda: read("/var/lib/guard-agent/identity/evidence.key"))


def moved():
    os.rename("/home/moved/.config", "/home/moved/free")
    return read("/home/moved/free/guard/credentials.json")


steals("token_by_moving_the_folder", "Moves the folder above it away, and reads it there.", moved)


@attempt("theft")
def token_by_a_bind_mount(t):
    """Binds its folder to another place, in a mount namespace of its own, and reads it there."""
    place = t.free()

    def hostile():
        call(libc.unshare, 0x00020000)
        call(libc.mount, b"none", b"/", None, 0x4000 | 0x40000, None)
        call(libc.mount, os.path.dirname(TOKEN).encode(), place.encode(), None, 0x1000, None)
        return read(f"{place}/credentials.json")

    made = t.inside(hostile)
    return f"it has {SECRET!r}" if SECRET in str(made.value) else None


@attempt("theft")
def token_by_an_overlay(t):
    """Makes its folder the lower layer of an overlay, and reads it there."""
    place, work = t.free(), t.free()
    for folder in "upper", "work":
        os.mkdir(f"{work}/{folder}")
    # An overlay's upper layer is no overlay itself.
    subprocess.run(["mount", "-t", "tmpfs", "none", work], check=True)
    t.later(lambda: subprocess.run(["umount", "-l", work], check=True))
    for folder in "upper", "work":
        os.mkdir(f"{work}/{folder}")

    def hostile():
        call(libc.unshare, 0x00020000)
        call(libc.mount, b"none", b"/", None, 0x4000 | 0x40000, None)
        options = f"lowerdir={os.path.dirname(TOKEN)},upperdir={work}/upper,workdir={work}/work"
        call(libc.mount, b"overlay", place.encode(), b"overlay", 0, options.encode())
        return read(f"{place}/credentials.json")

    made = t.inside(hostile)
    return f"it has {SECRET!r}" if SECRET in str(made.value) else None


@attempt("theft")
def policy_is_changed(t):
    """Writes into the policy of this host."""
    def hostile():
        with open("/etc/guard/policy.cedar", "a") as file:
            file.write("permit(principal, action, resource);")

    t.inside(hostile)
    t.later(lambda: write_file("/etc/guard/policy.cedar", SECRET))
    return t.happens(lambda: "permit" in open("/etc/guard/policy.cedar").read(), "it is changed")


# ---- the console and the agent ----

@attempt("theft")
def console_over_tcp(t):
    """Connects to the console's address."""
    server = socket.create_server(("127.0.0.1", CONSOLE))
    server.settimeout(5 if t.off else 0.3)
    t.later(server.close)

    def hostile():
        with socket.create_connection(("127.0.0.1", CONSOLE)) as s:
            s.send(b"approve")

    t.inside(hostile)
    try:
        server.accept()[0].close()
        return "connected"
    except TimeoutError:
        return None


@attempt("theft")
def agents_socket_by_another_name(t):
    """Connects to the agent's control socket by a hard link."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(AGENT)
    server = socket.socket(socket.AF_UNIX)
    server.bind(AGENT)
    server.listen()
    server.settimeout(5 if t.off else 0.3)
    link = f"/run/let-link-{t.number}"
    os.link(AGENT, link)
    t.later(lambda: (server.close(), os.unlink(link), os.unlink(AGENT)))

    def hostile():
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(link)

    t.inside(hostile)
    try:
        server.accept()[0].close()
        return "connected"
    except TimeoutError:
        return None


# ---- other processes ----

def with_secret(tried):
    """A process outside that has the secret in its memory; gives its pid and the address."""
    memory = ctypes.create_string_buffer(SECRET.encode())
    return tried.victim(prepare=lambda: libc.prctl(0x59616d61, ctypes.c_ulong(-1 & (2**64 - 1)), 0, 0, 0)), ctypes.addressof(memory), memory


def of_process(name, tries, get):
    def function(t):
        pid, address, _kept = with_secret(t)

        def hostile():
            # It has the same memory from before: what counts is what it reads from the other one.
            ctypes.memset(address, 0, len(SECRET))
            return get(pid, address)

        made = t.inside(hostile)
        return f"it has {SECRET!r}" if SECRET in str(made.value) else None

    function.__name__, function.__doc__ = name, tries
    attempt("theft")(function)


def by_vm(pid, address):
    buffer = ctypes.create_string_buffer(len(SECRET))
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), len(SECRET))
    remote = (ctypes.c_size_t * 2)(address, len(SECRET))
    call(libc.process_vm_readv, pid, local, ctypes.c_ulong(1), remote, ctypes.c_ulong(1), ctypes.c_ulong(0))
    return buffer.value.decode()


def by_ptrace(pid, address):
    call(libc.ptrace, 16, pid, None, None)
    os.waitpid(pid, 0x40000000)
    words = b""
    libc.ptrace.restype = ctypes.c_long
    for at in range(0, len(SECRET), 8):
        words += struct.pack("=q", libc.ptrace(1, pid, ctypes.c_void_p(address + at), None))
    libc.ptrace(17, pid, None, None)
    return words.decode(errors="replace")


of_process("memory_by_proc", "Reads the memory of a process outside from /proc/PID/mem.",
           lambda pid, address: os.pread(os.open(f"/proc/{pid}/mem", os.O_RDONLY), len(SECRET), address).decode())
of_process("memory_by_process_vm", "Reads it by process_vm_readv.", by_vm)
of_process("memory_by_ptrace", "Reads it as a tracer.", by_ptrace)


@attempt("theft")
def descriptor_of_somebody_else(t):
    """Takes an open file from a process outside (pidfd_getfd)."""
    kept = os.open("/etc/guard/policy.cedar", os.O_RDONLY)
    pid = t.victim()

    def hostile():
        fd = system(438, system(434, pid, 0), kept, 0)
        return os.pread(fd, 100, 0).decode()

    made = t.inside(hostile)
    os.close(kept)
    return f"it has {SECRET!r}" if SECRET in str(made.value) else None


@attempt("theft")
def environment_of_somebody_else(t):
    """Reads the environment of a process outside."""
    victim = subprocess.Popen(["/usr/bin/sleep", "100"], env={"TOKEN": SECRET})
    t.later(lambda: (victim.kill(), victim.wait()))
    made = t.inside(lambda: read(f"/proc/{victim.pid}/environ"))
    return f"it has {SECRET!r}" if SECRET in str(made.value) else None


# ---- past everything ----

@attempt("theft")
def bpf_map(t):
    """Makes a BPF map."""
    made = t.inside(lambda: system(321, 0, ctypes.create_string_buffer(struct.pack("5I", 2, 4, 8, 1, 0), 120), 120))
    return t.happens(lambda: has_open(made.pid, "bpf-map"), "it holds one")


def has_open(pid, text):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if text in os.readlink(f"/proc/{pid}/fd/{fd}"):
                return True
    return False


@attempt("theft")
def disk_as_a_file(t):
    """Reads a disk of this host as a file."""
    made = t.inside(lambda: os.read(os.open("/dev/vda", os.O_RDONLY), 4096).hex())
    with open("/dev/vda", "rb") as disk:
        content = disk.read(4096).hex()
    return "it has the first block" if made.value == content else None


@attempt("theft")
def disk_as_a_node_of_its_own(t):
    """Makes a device node of the disk in a free folder and reads that."""
    node = f"{t.free()}/disk"
    number = os.stat("/dev/vda").st_rdev

    def hostile():
        os.mknod(node, 0o600 | 0o060000, number)
        return os.read(os.open(node, os.O_RDONLY), 4096).hex()

    made = t.inside(hostile)
    with open("/dev/vda", "rb") as disk:
        content = disk.read(4096).hex()
    return "it has the first block" if made.value == content else None


@attempt("theft")
def file_by_handle(t):
    """Opens the saved sign-in by its handle (open_by_handle_at), without any path."""
    def before():
        handle = ctypes.create_string_buffer(struct.pack("=II", 128, 0) + bytes(128))
        mount = ctypes.c_int()
        call(libc.name_to_handle_at, -100, TOKEN.encode(), handle, ctypes.byref(mount), 0)
        return handle, os.open("/home", os.O_RDONLY)

    def hostile(given):
        return os.read(call(libc.open_by_handle_at, given[1], given[0], os.O_RDONLY), 100).decode()

    made = t.inside(hostile, before=before)
    return f"it has {SECRET!r}" if SECRET in str(made.value) else None


@attempt("theft")
def typing_into_a_terminal(t):
    """Types into a terminal of somebody outside (TIOCSTI)."""
    old = "/proc/sys/dev/tty/legacy_tiocsti"
    if os.path.exists(old):
        write_file(old, "1")
    master, terminal = os.openpty()
    t.later(lambda: (os.close(master), os.close(terminal)))
    os.set_blocking(master, False)
    t.inside(lambda: fcntl.ioctl(terminal, 0x5412, b"x"), keep=[terminal])

    def echoed():
        with contextlib.suppress(BlockingIOError):
            return b"x" in os.read(master, 10)

    return t.happens(echoed, "the terminal echoes it")


@attempt("theft", race=True, ends=("done",))
def token_by_a_link_that_changes(t):
    """Reads a name over and over that another process turns between a free file and the sign-in."""
    free = t.free()
    t.file(f"{free}/mine", b"nothing")

    def hostile():
        tricks.links_for_ever(f"{free}/link".encode(), f"{free}/mine".encode(), TOKEN.encode())
        end = time.monotonic() + 1
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                got = read(f"{free}/link")
                if SECRET in got:
                    return got

    made = t.inside(hostile)
    return f"it has {SECRET!r}" if SECRET in str(made.value) else None
