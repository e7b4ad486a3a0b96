"""Files: each attempt changes a folder outside the free ones. The proof is the folder itself: names, kinds, modes, owners, sizes, contents,
attributes, as somebody outside sees them before and after."""
import fcntl
import mmap
import socket
import stat
import struct
import threading

import uring
from suite import *
from uring import Ring
from uring_attempts import in_every_way

AT_EMPTY_PATH, AT_FDCWD = 0x1000, -100


def look(folder):
    """What a folder is like."""
    found = {}
    for root, folders, names in os.walk(os.fsencode(folder)):
        for path in [root, *(os.path.join(root, name) for name in names), *(os.path.join(root, name) for name in folders)]:
            status = os.lstat(path)
            content = ""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read(100_000)
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
            found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size, status.st_rdev,
                           int(status.st_mtime), content, attributes, status.st_blocks)
    return found


class Target:
    """A folder with a file in it that nobody inside may change."""

    def __init__(self, t):
        self.t, self.folder = t, t.outside()
        self.file = t.file(f"{self.folder}/file")
        self.other = t.file(f"{self.folder}/other", b"the other one\n")
        os.mkdir(f"{self.folder}/sub")
        os.setxattr(self.file, "user.kept", b"1") if has_user_attributes(self.file) else None
        past = time.time() - 1000
        for path in self.file, self.other, self.folder:
            os.utime(path, (past, past))
        self.before = look(self.folder)

    def changed(self):
        def differs():
            now = look(self.folder)
            return [path for path in self.before.keys() | now.keys() if self.before.get(path) != now.get(path)]

        for _ in self.t.patience(0.05, 5):
            if differs():
                return f"changed: {[os.path.basename(path) for path in differs()]}"
        return None


def has_user_attributes(path):
    try:
        os.setxattr(path, "user.probe", b"1")
        os.removexattr(path, "user.probe")
        return True
    except OSError:
        return False


def changes(name, tries, change, before=None, kind="files", **more):
    """An attempt that is one change: `change` is given the target, and what `before` gave."""

    def function(t):
        target = Target(t)
        if before:
            t.inside(lambda given: change(target, given), before=lambda: before(target))
        else:
            t.inside(lambda: change(target))
        return target.changed()

    function.__name__, function.__doc__ = name, tries
    attempt(kind, **more)(function)


def write(path, flags=os.O_WRONLY):
    fd = os.open(path, flags, 0o644)
    os.write(fd, b"hostile")
    os.close(fd)


# ---- by path ----

changes("file_write", "Opens a file for writing and writes.", lambda o: write(o.file))
changes("file_append", "Appends to a file.", lambda o: write(o.file, os.O_WRONLY | os.O_APPEND))
changes("file_truncate_by_open", "Opens a file with O_TRUNC.", lambda o: os.close(os.open(o.file, os.O_WRONLY | os.O_TRUNC)))
changes("file_truncate_read_only", "Opens a file with O_TRUNC for reading only.", lambda o: os.close(os.open(o.file, os.O_RDONLY | os.O_TRUNC)))
changes("file_truncate", "Truncates a file by path.", lambda o: os.truncate(o.file, 3))
changes("file_create", "Makes a new file.", lambda o: write(f"{o.folder}/new", os.O_CREAT | os.O_WRONLY))
changes("file_create_exclusive", "Makes a new file with O_EXCL.", lambda o: write(f"{o.folder}/new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
changes("file_create_read_only", "Makes a new file, open for reading only.", lambda o: os.open(f"{o.folder}/new", os.O_CREAT | os.O_RDONLY))
changes("file_unlink", "Removes a file.", lambda o: os.unlink(o.file))
changes("file_rename", "Renames a file.", lambda o: os.rename(o.file, f"{o.folder}/moved"))
changes("file_rename_over", "Renames a file over another one.", lambda o: os.rename(o.file, o.other))
changes("file_rename_exchange", "Exchanges two files.",
        lambda o: call(libc.renameat2, AT_FDCWD, o.file.encode(), AT_FDCWD, o.other.encode(), 2))
changes("file_link", "Makes a hard link.", lambda o: os.link(o.file, f"{o.folder}/link"))
changes("file_symlink", "Makes a symbolic link.", lambda o: os.symlink("/etc", f"{o.folder}/link"))
changes("file_mkdir", "Makes a folder.", lambda o: os.mkdir(f"{o.folder}/new"))
changes("file_rmdir", "Removes a folder.", lambda o: os.rmdir(f"{o.folder}/sub"))
changes("file_mkfifo", "Makes a named pipe.", lambda o: os.mkfifo(f"{o.folder}/pipe"))
changes("file_mknod", "Makes a regular file by mknod.", lambda o: os.mknod(f"{o.folder}/node", 0o644 | stat.S_IFREG))
changes("file_unix_socket", "Binds a unix socket in the folder.", lambda o: socket.socket(socket.AF_UNIX).bind(f"{o.folder}/socket"))
changes("file_chmod", "Changes a mode.", lambda o: os.chmod(o.file, 0o4777))
changes("file_chown", "Changes an owner.", lambda o: os.chown(o.file, 1000, 1000))
changes("file_lchown", "Changes the owner of a folder.", lambda o: os.lchown(f"{o.folder}/sub", 1000, 1000))
changes("file_utimes", "Changes a time.", lambda o: os.utime(o.file, (1, 1)), kind="others")
changes("file_acl", "Gives somebody rights by an access control list.", lambda o: os.setxattr(
    o.file, "system.posix_acl_access", struct.pack("=I", 2) + b"".join(
        struct.pack("=HHI", *entry) for entry in ((1, 6, 2**32 - 1), (2, 7, 1000), (4, 4, 2**32 - 1), (16, 7, 2**32 - 1), (32, 4, 2**32 - 1)))))
changes("file_capability", "Gives a file capabilities.", lambda o: os.setxattr(
    o.file, "security.capability", struct.pack("=5I", 0x02000001, 0xffffffff, 0, 0xff, 0)))
changes("file_trusted_attribute", "Sets an attribute.", lambda o: os.setxattr(o.file, "trusted.hostile", b"1"))
changes("file_by_dots", "Writes by a path with .. in it.", lambda o: write(f"{FREE}/../..{o.file}"))
changes("file_by_root_of_init", "Writes by /proc/1/root.", lambda o: write(f"/proc/1/root{o.file}"))
changes("file_by_own_root", "Writes by /proc/self/root.", lambda o: write(f"/proc/self/root{o.file}"))
changes("file_relative", "Writes by a relative name from its folder.", lambda o: (os.chdir(o.folder), write("file")))
changes("file_odd_name", "Makes a file whose name has a newline, an escape sequence and invalid UTF-8.",
        lambda o: write(os.fsencode(o.folder) + b"/a\nb\x1b[31m\xff", os.O_CREAT | os.O_WRONLY))


@attempt("files")
def file_by_symlink(t):
    """Writes by a symbolic link in a free folder."""
    target, link = Target(t), f"{t.free()}/link"
    t.inside(lambda: (os.symlink(target.file, link), write(link)))
    return target.changed()


@attempt("files")
def file_by_hard_link(t):
    """Makes a hard link of it in a free folder and writes by that."""
    target, link = Target(t), f"{t.free()}/link"
    t.inside(lambda: (os.link(target.file, link), write(link)))
    return target.changed()


@attempt("files")
def file_by_folder_link(t):
    """Makes a file below a symbolic link to the folder, through O_PATH."""
    target, link = Target(t), f"{t.free()}/link"

    def hostile():
        os.symlink(target.folder, link)
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=os.open(link, os.O_PATH)))

    t.inside(hostile)
    return target.changed()


@attempt("files")
def file_by_moving_in(t):
    """Moves a file of its own over it."""
    target, free = Target(t), t.free()

    def hostile():
        write(f"{free}/mine", os.O_CREAT | os.O_WRONLY)
        os.rename(f"{free}/mine", target.file)

    t.inside(hostile)
    return target.changed()


@attempt("files")
def file_by_unnamed(t):
    """Makes a file without a name (O_TMPFILE) and gives it one (linkat with AT_EMPTY_PATH)."""
    target = Target(t)

    def hostile():
        fd = os.open(target.folder, os.O_TMPFILE | os.O_RDWR, 0o644)
        os.write(fd, b"hostile")
        call(libc.linkat, fd, b"", AT_FDCWD, f"{target.folder}/new".encode(), AT_EMPTY_PATH)

    t.inside(hostile)
    return target.changed()


@attempt("files")
def file_by_linking_an_unnamed_from_before(t):
    """Gives a name to a file without one from before the label, as /proc/self/fd/N."""
    target = Target(t)
    t.inside(lambda fd: call(libc.linkat, AT_FDCWD, f"/proc/self/fd/{fd}".encode(), AT_FDCWD, f"{target.folder}/new".encode(), 0x400),
             before=lambda: os.open(target.folder, os.O_TMPFILE | os.O_RDWR, 0o644))
    return target.changed()


@attempt("files")
def file_beyond_path_max(t):
    """Makes a file below folders whose names together are longer than a path may be."""
    root, name = t.outside(), "x" * 250
    at = os.open(root, os.O_PATH)
    for _ in range(20):
        os.mkdir(name, dir_fd=at)
        at, old = os.open(name, os.O_PATH, dir_fd=at), at
        os.close(old)
    t.inside(lambda: os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=at)), keep=[at])

    def there():
        with contextlib.suppress(FileNotFoundError):
            return os.stat("new", dir_fd=at)

    seen = t.happens(there, "it is there")
    os.close(at)
    return seen


@attempt("files")
def file_by_a_bind_mount(t):
    """Binds the folder to a free one, in a mount namespace of its own, and writes there."""
    target, place = Target(t), t.free()

    def hostile():
        private_mounts()
        call(libc.mount, target.folder.encode(), place.encode(), None, 0x1000, None)
        write(f"{place}/file")

    t.inside(hostile)
    return target.changed()


def private_mounts():
    call(libc.unshare, 0x00020000)
    call(libc.mount, b"none", b"/", None, 0x4000 | 0x40000, None)


@attempt("files")
def file_by_an_overlay(t):
    """Makes a folder the upper layer of an overlay, mounts that to a free one, and writes there."""
    big, place = t.outside(), t.free()
    # An upper layer is no overlay itself.
    subprocess.run(["mount", "-t", "tmpfs", "none", big], check=True)
    t.later(lambda: subprocess.run(["umount", "-l", big], check=True))
    for folder in "upper", "work", "lower":
        os.mkdir(f"{big}/{folder}")
    file = t.file(f"{big}/upper/file")

    def hostile():
        private_mounts()
        call(libc.mount, b"overlay", place.encode(), b"overlay", 0, f"lowerdir={big}/lower,upperdir={big}/upper,workdir={big}/work".encode())
        write(f"{place}/file")

    t.inside(hostile)
    return t.happens(lambda: open(file).read() != "original\n", "the file of the layer is changed")


@attempt("files")
def file_after_chroot(t):
    """Makes the folder its root, and writes what is /file then."""
    target = Target(t)
    t.inside(lambda: (os.chroot(target.folder), os.chdir("/"), write("/file")))
    return target.changed()


# ---- by descriptors from before the label ----

def opened(flags):
    return lambda o: os.open(o.file, flags)


def mapped(_o, fd):
    memory = mmap.mmap(fd, 8, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    memory[:7] = b"hostile"
    memory.flush()


def mapped_later(_o, fd):
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_long(0))
    if address in (None, 2**64 - 1):
        raise OSError(ctypes.get_errno(), "mmap")
    call(libc.mprotect, ctypes.c_void_p(address), ctypes.c_size_t(4096), 3)
    ctypes.memmove(address, b"hostile", 7)


def copied(o, fd):
    os.copy_file_range(os.open(o.other, os.O_RDONLY), fd, 7, 0, 0)


def content():
    memory = os.memfd_create("content")
    os.write(memory, b"hostile")
    os.lseek(memory, 0, 0)
    return memory


def spliced(_o, fd):
    read, end = os.pipe()
    os.write(end, b"hostile")
    os.splice(read, fd, 7)


def vmspliced(_o, fd):
    read, end = os.pipe()
    text = ctypes.create_string_buffer(b"hostile")
    call(libc.vmsplice, end, (ctypes.c_size_t * 2)(ctypes.addressof(text), 7), 1, 0)
    os.splice(read, fd, 7)


def by_aio(_o, fd):
    context = ctypes.c_ulong(0)
    system(206, 1, ctypes.byref(context))
    text = ctypes.create_string_buffer(b"hostile")
    block = ctypes.create_string_buffer(struct.pack("=QIIHhIQQqQII", 1, 0, 0, 1, 0, fd, ctypes.addressof(text), 7, 0, 0, 0, 0))
    system(209, context.value, 1, ctypes.byref(ctypes.c_void_p(ctypes.addressof(block))))
    time.sleep(0.1)


RW, RO, PATH = os.O_RDWR, os.O_RDONLY, os.O_PATH
changes("fd_write", "Writes to a descriptor from before the label.", lambda o, fd: os.write(fd, b"hostile"), opened(RW))
changes("fd_pwritev", "Writes to it by pwritev2.", lambda o, fd: os.pwritev(fd, [b"hostile"], 0), opened(RW))
changes("fd_sendfile", "Sends another file into it.", lambda o, fd: os.sendfile(fd, content(), 0, 7), opened(RW))
changes("fd_copy_file_range", "Copies a range of another file into it.", copied, opened(RW))
changes("fd_splice", "Splices a pipe into it.", spliced, opened(RW))
changes("fd_vmsplice", "Splices pages of its memory into it.", vmspliced, opened(RW))
changes("fd_aio", "Writes to it by the old asynchronous interface (io_submit).", by_aio, opened(RW))
changes("fd_mmap", "Maps it, shared and writable.", mapped, opened(RW))
changes("fd_mprotect", "Maps it for reading, and makes the memory writable.", mapped_later, opened(RW))
changes("fd_ftruncate", "Truncates it.", lambda o, fd: os.ftruncate(fd, 2), opened(RW))
changes("fd_fallocate", "Allocates space for it.", lambda o, fd: os.posix_fallocate(fd, 0, 100_000), opened(RW))
changes("fd_punch_hole", "Punches a hole into it.", lambda o, fd: call(libc.fallocate, fd, 3, ctypes.c_long(0), ctypes.c_long(4)), opened(RW))
changes("fd_fchmod", "Changes its mode.", lambda o, fd: os.fchmod(fd, 0o777), opened(RO))
changes("fd_fchown", "Changes its owner.", lambda o, fd: os.fchown(fd, 1000, 1000), opened(RO))
changes("fd_fsetxattr", "Sets an attribute of it.", lambda o, fd: os.setxattr(fd, "trusted.hostile", b"1"), opened(RO))
changes("fd_futimens", "Changes its times.", lambda o, fd: os.utime(fd, (1, 1)), opened(RO))
changes("fd_open_again", "Opens /proc/self/fd/N of a read-only descriptor for writing.", lambda o, fd: write(f"/proc/self/fd/{fd}"), opened(RO))
changes("fd_path_open_again", "Opens /proc/self/fd/N of an O_PATH descriptor for writing.", lambda o, fd: write(f"/proc/self/fd/{fd}"), opened(PATH))
changes("fd_chmod_by_path", "Changes its mode as /proc/self/fd/N.", lambda o, fd: os.chmod(f"/proc/self/fd/{fd}", 0o777), opened(PATH))
changes("fd_link", "Gives it another name (linkat with AT_EMPTY_PATH).",
        lambda o, fd: call(libc.linkat, fd, b"", AT_FDCWD, f"{o.folder}/new".encode(), AT_EMPTY_PATH), opened(PATH))
changes("fd_below_folder", "Makes a file below a folder's descriptor.",
        lambda o, fd: os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)), lambda o: os.open(o.folder, os.O_PATH))
changes("fd_unlink_below_folder", "Removes a file below a folder's descriptor.",
        lambda o, fd: os.unlink("file", dir_fd=fd), lambda o: os.open(o.folder, os.O_PATH))
changes("fd_in_a_child", "Has a grandchild write to it.", lambda o, fd: in_a_child(lambda: os.write(fd, b"hostile")), opened(RW))


def in_a_child(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "in a child")


@attempt("files")
def fd_by_scm_rights(t):
    """Writes to a descriptor that lay in a unix socket, in transit, when the process was labelled."""
    target = Target(t)

    def before():
        ours, theirs = socket.socketpair()
        fd = os.open(target.file, os.O_RDWR)
        socket.send_fds(ours, [b"x"], [fd])
        os.close(fd)
        return theirs, ours

    t.inside(lambda pair: os.write(socket.recv_fds(pair[0], 1, 1)[1][0], b"hostile"), before=before)
    return target.changed()


@attempt("files")
def fd_of_a_sibling(t):
    """Takes the descriptor from a process of the workload that has it from before the label (pidfd_getfd), and writes."""
    target = Target(t)

    def hostile(fd):
        pid = os.fork()
        if pid == 0:
            time.sleep(20)
            os._exit(0)
        os.close(fd)
        os.write(system(438, system(434, pid, 0), fd, 0), b"hostile")

    t.inside(hostile, before=lambda: os.open(target.file, os.O_RDWR))
    return target.changed()


@attempt("files")
def file_by_handle_for_writing(t):
    """Opens a file by its handle for writing, without any path."""
    folder = t.outside()
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    t.later(lambda: subprocess.run(["umount", "-l", folder], check=True))
    path = t.file(f"{folder}/file")

    def before():
        handle = ctypes.create_string_buffer(struct.pack("=II", 128, 0) + bytes(128))
        mount = ctypes.c_int()
        call(libc.name_to_handle_at, -100, path.encode(), handle, ctypes.byref(mount), 0)
        return handle, os.open(folder, os.O_RDONLY)

    t.inside(lambda given: os.write(call(libc.open_by_handle_at, given[1], given[0], os.O_RDWR), b"hostile"), before=before)
    return t.happens(lambda: open(path).read() != "original\n", "it is changed")


@attempt("theft")
def memory_of_another_process_is_changed(t):
    """Writes into the memory of a process outside by /proc/PID/mem."""
    memory = mmap.mmap(-1, 4096)
    memory[:8] = b"original"
    place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    victim = t.victim()

    def hostile():
        # Its own view of it is gone: what changes is the other process's.
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(4096))
        os.pwrite(os.open(f"/proc/{victim}/mem", os.O_WRONLY), b"hostile!", place)

    t.inside(hostile)
    return t.happens(lambda: memory[:8] == b"hostile!", "its memory is changed")


# ---- what starts something outside ----

def dropped(name, tries, path):
    def function(t):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        t.later(lambda: os.path.lexists(path) and os.unlink(path))
        t.inside(lambda: write(path, os.O_CREAT | os.O_WRONLY))
        return t.happens(lambda: os.path.exists(path), "it is there")

    function.__name__, function.__doc__ = name, tries
    attempt("files")(function)


dropped("drop_crontab", "Puts a file into /etc/cron.d.", "/etc/cron.d/hostile")
dropped("drop_user_crontab", "Puts root's crontab into its spool.", "/var/spool/cron/crontabs/root")
dropped("drop_at_job", "Puts a job into the spool of at.", "/var/spool/cron/atjobs/a0000101")
dropped("drop_unit", "Puts a unit into /etc/systemd/system.", "/etc/systemd/system/hostile.service")
dropped("drop_runtime_unit", "Puts a unit into /run/systemd/system.", "/run/systemd/system/hostile.service")
dropped("drop_profile", "Puts a file into /etc/profile.d.", "/etc/profile.d/hostile.sh")
dropped("drop_authorized_keys", "Puts a key into root's authorized_keys.", "/root/.ssh/authorized_keys")
dropped("drop_preload", "Makes /etc/ld.so.preload.", "/etc/ld.so.preload")
dropped("drop_udev_rule", "Puts a rule into /etc/udev/rules.d.", "/etc/udev/rules.d/99-hostile.rules")
dropped("drop_modprobe_rule", "Puts a rule into /etc/modprobe.d.", "/etc/modprobe.d/hostile.conf")


# ---- threads, time and io_uring ----

def uring_on_file(act):
    def make(t):
        target = Target(t)
        return (lambda ring: act(ring, target)), (lambda made: target.changed())

    return make


def uring_writes(ring, o):
    ring.write(ring.open(o.file, os.O_WRONLY), b"hostile")


def uring_creates(ring, o):
    ring.open(f"{o.folder}/new", os.O_CREAT | os.O_WRONLY)


in_every_way(("files", "write"), "Opens a file and writes", uring_on_file(uring_writes))
in_every_way(("files", "create"), "Makes a file", uring_on_file(uring_creates))
in_every_way(("files", "unlink"), "Removes a file",
             uring_on_file(lambda ring, o: ring.submit(uring.UNLINKAT, AT_FDCWD, ring.at(o.file.encode()))))
in_every_way(("files", "rename"), "Renames a file over another one", uring_on_file(lambda ring, o: ring.two_paths(uring.RENAMEAT, o.file, o.other)))


def with_ring(name, tries, act):
    """With a ring and a descriptor from before the label."""
    changes(name, tries, lambda o, given: act(*given, o), lambda o: (Ring(), os.open(o.file, os.O_RDWR)), race=True, ends=("EINTR",))


with_ring("uring_fd_write", "Writes to a descriptor from before, by a ring from before.", lambda ring, fd, o: ring.write(fd, b"hostile"))
with_ring("uring_fd_fallocate", "Allocates space for it, by a ring from before.",
          lambda ring, fd, o: ring.submit(uring.FALLOCATE, fd, 100_000, 0))
with_ring("uring_mkdir", "Makes a folder, by a ring from before.",
          lambda ring, fd, o: ring.submit(uring.MKDIRAT, AT_FDCWD, ring.at(f"{o.folder}/new".encode()), 0o755))
with_ring("uring_symlink", "Makes a symbolic link, by a ring from before.",
          lambda ring, fd, o: ring.submit(uring.SYMLINKAT, AT_FDCWD, ring.at(b"/etc"), 0, offset=ring.at(f"{o.folder}/link".encode())))
with_ring("uring_link", "Makes a hard link, by a ring from before.", lambda ring, fd, o: ring.two_paths(uring.LINKAT, o.file, f"{o.folder}/link"))


@attempt("files", race=True, ends=("EINTR",))
def uring_registered_file(t):
    """Writes to a file that is registered with a ring from before the label, and has no descriptor any more."""
    target = Target(t)

    def before():
        fd = os.open(target.file, os.O_RDWR)
        ring = Ring(files=[fd])
        os.close(fd)
        return ring

    t.inside(lambda ring: ring.write(0, b"hostile", entry_flags=1), before=before)
    return target.changed()


def races_link(name, tries, act):
    def function(t):
        target, free = Target(t), t.free()
        t.file(f"{free}/mine", b"mine", 0o666)

        def hostile():
            tricks.links_for_ever(f"{free}/link".encode(), f"{free}/mine".encode(), target.file.encode())
            time.sleep(0.02)
            act(f"{free}/link")

        t.inside(hostile)
        return target.changed()

    function.__name__, function.__doc__ = name, tries
    attempt("files", race=True, ends=("done",))(function)


def over_and_over(act):
    def run(path):
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                act(path)

    return run


races_link("race_write_by_link", "Writes over and over by a link that another process turns between a free file and this one.",
           lambda path: tricks.race_write(path.encode(), b"hostile", 800))
races_link("race_truncate_by_link", "Truncates over and over by such a link.", over_and_over(lambda path: os.truncate(path, 2)))
races_link("race_chmod_by_link", "Changes the mode over and over by such a link.", over_and_over(lambda path: os.chmod(path, 0o777)))


@attempt("files", race=True, ends=("done",))
def race_folder_by_exchange(t):
    """Makes files over and over in a free folder that another process exchanges with a link to this one."""
    target, free = Target(t), t.free()
    os.mkdir(f"{free}/mine")
    os.symlink(target.folder, f"{free}/link")

    def hostile():
        tricks.exchange_for_ever(f"{free}/mine".encode(), f"{free}/link".encode())
        over_and_over(lambda path: os.close(os.open(f"{path}/new", os.O_CREAT | os.O_WRONLY)))(f"{free}/mine")

    t.inside(hostile)
    return target.changed()


@attempt("files", race=True, ends=("done",))
def race_path_in_memory(t):
    """Opens a path for writing over and over while a thread changes it between a free file and this one."""
    target = Target(t)
    length = len(target.file)
    free = f"{FREE}/".ljust(length, "m")
    t.file(free, b"mine", 0o666)
    t.later(lambda: os.unlink(free))

    def hostile():
        place = ctypes.create_string_buffer(free.encode(), length + 1)
        stop = []

        def changes_it():
            while not stop:
                ctypes.memmove(place, target.file.encode(), length)
                ctypes.memmove(place, free.encode(), length)

        thread = threading.Thread(target=changes_it)
        thread.start()
        end = time.monotonic() + 0.8
        while time.monotonic() < end:
            fd = libc.open(place, os.O_WRONLY | os.O_TRUNC)
            if fd >= 0:
                os.close(fd)
        stop.append(1)
        thread.join()

    t.inside(hostile)
    return target.changed()


@attempt("files", race=True, ends=("done",))
def race_descriptors(t):
    """A thread puts a descriptor from before the label in the place of a free file's, over and over, while another one writes."""
    target, free = Target(t), t.free()

    def hostile(fd):
        mine = os.open(f"{free}/mine", os.O_CREAT | os.O_RDWR)
        place = os.dup(mine)
        stop = []

        def exchanges():
            while not stop:
                os.dup2(fd, place)
                os.dup2(mine, place)

        thread = threading.Thread(target=exchanges)
        thread.start()
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                os.pwrite(place, b"hostile", 0)
        stop.append(1)
        thread.join()

    t.inside(hostile, before=lambda: os.open(target.file, os.O_RDWR))
    return target.changed()


@attempt("files", race=True, ends=("done",))
def race_many_writers(t):
    """Twenty processes with two threads each open it for writing at the same moment, over and over."""
    target = Target(t)

    def hostile():
        for _ in range(20):
            if os.fork() == 0:
                threads = [threading.Thread(target=lambda: tricks.race_write(target.file.encode(), b"hostile", 200)) for _ in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                os._exit(0)
        time.sleep(0.6)

    t.inside(hostile)
    return target.changed()


@attempt("files")
def file_flags(t):
    """Makes a file immutable by its flags (FS_IOC_SETFLAGS)."""
    big = t.outside()
    subprocess.run(["mount", "-t", "tmpfs", "none", big], check=True)
    t.later(lambda: subprocess.run(["umount", "-l", big], check=True))
    path = t.file(f"{big}/file")

    def flags():
        with open(path) as file:
            return struct.unpack("=l", fcntl.ioctl(file, 0x80086601, struct.pack("=l", 0)))[0]

    try:
        before = flags()
    except OSError as error:
        t.skip(f"the file system has no flags: {error}")
    t.inside(lambda: fcntl.ioctl(os.open(path, os.O_RDONLY), 0x40086602, struct.pack("=l", 0x40)))
    return t.happens(lambda: flags() != before, "its flags are changed")
