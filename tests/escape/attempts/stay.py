"""Leaving the cgroup, and what takes a label away. The proof is where the kernel says, to somebody outside, that the process is."""
import struct
import threading

from suite import *
from suite import OUT, BOX


def where(pid):
    with open(f"/proc/{pid}/cgroup") as file:
        return file.read().strip().rpartition("::")[2]


def left(t, pid):
    """What is seen when a process is not below the label's cgroup any more."""
    return t.happens(lambda: not where(pid).startswith("/box"), f"it is in {where(pid)}")


def write(path, text=b"0"):
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, text)


@attempt("stay")
def leave_by_path(t):
    """Writes itself into cgroup.procs of another cgroup."""
    made = t.inside(lambda: write(f"{OUT}/cgroup.procs"))
    return left(t, made.pid)


@attempt("stay")
def leave_to_the_root(t):
    """Writes itself into cgroup.procs of the root cgroup."""
    made = t.inside(lambda: write(f"{CGROUPS}/cgroup.procs"))
    return left(t, made.pid)


@attempt("stay")
def leave_by_a_descriptor_from_before(t):
    """Writes to a cgroup.procs that it opened before the label."""
    made = t.inside(lambda fd: os.write(fd, b"0"), before=lambda: os.open(f"{OUT}/cgroup.procs", os.O_WRONLY))
    return left(t, made.pid)


@attempt("stay")
def leave_by_pwritev(t):
    """The same by pwritev2."""
    made = t.inside(lambda fd: os.pwritev(fd, [b"0"], 0), before=lambda: os.open(f"{OUT}/cgroup.procs", os.O_WRONLY))
    return left(t, made.pid)


@attempt("stay")
def leave_by_splice(t):
    """Splices a pipe into a cgroup.procs from before the label."""
    def hostile(fd):
        read, end = os.pipe()
        os.write(end, b"0\n")
        os.splice(read, fd, 2)

    made = t.inside(hostile, before=lambda: os.open(f"{OUT}/cgroup.procs", os.O_WRONLY))
    return left(t, made.pid)


@attempt("stay")
def leave_by_sendfile(t):
    """Sends a file into a cgroup.procs from before the label."""
    def hostile(fd):
        memory = os.memfd_create("zero")
        os.write(memory, b"0")
        os.sendfile(fd, memory, 0, 1)

    made = t.inside(hostile, before=lambda: os.open(f"{OUT}/cgroup.procs", os.O_WRONLY))
    return left(t, made.pid)


@attempt("stay")
def leave_by_opening_it_again(t):
    """Opens /proc/self/fd/N of a read-only descriptor of cgroup.procs for writing."""
    made = t.inside(lambda fd: write(f"/proc/self/fd/{fd}"), before=lambda: os.open(f"{OUT}/cgroup.procs", os.O_RDONLY))
    return left(t, made.pid)


@attempt("stay")
def leave_by_another_mount(t):
    """Mounts the cgroup file system a second time, in a mount namespace of its own, and writes there."""
    place = t.free()

    def hostile():
        call(libc.unshare, 0x00020000)
        call(libc.mount, b"none", b"/", None, 0x4000 | 0x40000, None)
        call(libc.mount, b"cgroup2", place.encode(), b"cgroup2", 0, None)
        write(f"{place}/outside/cgroup.procs")

    made = t.inside(hostile)
    return left(t, made.pid)


@attempt("stay")
def leave_by_a_bind_mount(t):
    """Binds the folder of another cgroup into a free folder and writes there."""
    place = t.free()

    def hostile():
        call(libc.unshare, 0x00020000)
        call(libc.mount, b"none", b"/", None, 0x4000 | 0x40000, None)
        call(libc.mount, OUT.encode(), place.encode(), None, 0x1000, None)
        write(f"{place}/cgroup.procs")

    made = t.inside(hostile)
    return left(t, made.pid)


@attempt("stay")
def leave_by_a_cgroup_namespace(t):
    """Makes a cgroup namespace, and uses a descriptor of another cgroup's folder from before it."""
    def hostile(fd):
        call(libc.unshare, 0x02000000)
        procs = os.open("cgroup.procs", os.O_WRONLY, dir_fd=fd)
        os.write(procs, b"0")

    made = t.inside(hostile, before=lambda: os.open(OUT, os.O_PATH))
    return left(t, made.pid)


@attempt("stay")
def leave_by_handle(t):
    """Opens cgroup.procs by a file handle from before the label (open_by_handle_at)."""
    def before():
        handle = ctypes.create_string_buffer(struct.pack("=II", 128, 0) + bytes(128))
        mount = ctypes.c_int()
        call(libc.name_to_handle_at, -100, f"{OUT}/cgroup.procs".encode(), handle, ctypes.byref(mount), 0)
        return handle, os.open(CGROUPS, os.O_RDONLY)

    def hostile(given):
        handle, mount = given
        fd = call(libc.open_by_handle_at, mount, handle, os.O_WRONLY)
        os.write(fd, b"0")

    made = t.inside(hostile, before=before)
    return left(t, made.pid)


def clone_into(fd):
    """A child in another cgroup, which only sleeps; gives its pid."""
    args = struct.pack("=11Q", 0x200000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, fd)
    pid = system(435, ctypes.create_string_buffer(args, 88), 88)
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    return pid


@attempt("stay")
def leave_by_clone(t):
    """Makes a child in another cgroup (CLONE_INTO_CGROUP)."""
    before = set(open(f"{OUT}/cgroup.procs").read().split())
    t.inside(lambda: clone_into(os.open(OUT, os.O_PATH)))
    return t.happens(lambda: set(open(f"{OUT}/cgroup.procs").read().split()) - before, "somebody new is there")


@attempt("stay")
def leave_by_clone_from_before(t):
    """The same with a descriptor from before the label."""
    before = set(open(f"{OUT}/cgroup.procs").read().split())
    t.inside(clone_into, before=lambda: os.open(OUT, os.O_PATH))
    return t.happens(lambda: set(open(f"{OUT}/cgroup.procs").read().split()) - before, "somebody new is there")


@attempt("stay", race=True)
def leave_by_a_thread(t):
    """A thread that is not the first one writes the process away, while another one forks without end."""
    def hostile():
        done, failed = [], []

        def forks():
            while not done:
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)

        def leaves():
            try:
                write(f"{OUT}/cgroup.procs", str(os.getpid()).encode())
            except OSError as error:
                failed.append(error)
            done.append(1)

        threads = [threading.Thread(target=forks), threading.Thread(target=leaves)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    made = t.inside(hostile)
    return left(t, made.pid)


@attempt("stay")
def take_the_label_off(t):
    """Removes the attribute that keeps the label on its cgroup."""
    os.setxattr(BOX, "trusted.guard.label", b"coder")
    t.later(lambda: "trusted.guard.label" in os.listxattr(BOX) and os.removexattr(BOX, "trusted.guard.label"))
    t.inside(lambda: os.removexattr(BOX, "trusted.guard.label"))
    return t.happens(lambda: "trusted.guard.label" not in os.listxattr(BOX), "the attribute is gone")


@attempt("stay")
def change_the_label(t):
    """Writes another label's name into the attribute, by a descriptor from before."""
    os.setxattr(BOX, "trusted.guard.label", b"coder")
    t.later(lambda: "trusted.guard.label" in os.listxattr(BOX) and os.removexattr(BOX, "trusted.guard.label"))
    t.inside(lambda fd: os.setxattr(fd, "trusted.guard.label", b"other"), before=lambda: os.open(BOX, os.O_RDONLY))
    return t.happens(lambda: os.getxattr(BOX, "trusted.guard.label") == b"other", "it is another one")


@attempt("stay")
def make_a_cgroup(t):
    """Makes a cgroup beside the labelled one."""
    place = f"{CGROUPS}/made-{t.number}"
    t.later(lambda: os.path.isdir(place) and os.rmdir(place))
    t.inside(lambda: os.mkdir(place))
    return t.happens(lambda: os.path.isdir(place), "it is there")


@attempt("stay")
def kill_a_cgroup(t):
    """Kills everybody in another cgroup (cgroup.kill)."""
    place = f"{CGROUPS}/victims-{t.number}"
    os.mkdir(place)
    t.later(lambda: os.rmdir(place))
    pid = t.victim(prepare=lambda: write(f"{place}/cgroup.procs"))
    t.inside(lambda: write(f"{place}/cgroup.kill", b"1"))
    return t.happens(lambda: dead(pid), "its victim is dead")


def dead(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@attempt("stay")
def freeze_a_cgroup(t):
    """Freezes another cgroup."""
    place = f"{CGROUPS}/victims-{t.number}"
    os.mkdir(place)
    t.later(lambda: (write_file(f"{place}/cgroup.freeze", "0"), os.rmdir(place)))
    t.inside(lambda: write(f"{place}/cgroup.freeze", b"1"))
    return t.happens(lambda: open(f"{place}/cgroup.freeze").read().strip() == "1", "it is frozen")
