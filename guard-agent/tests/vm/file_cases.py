"""Files: what a labelled process changes outside its free space is asked about, each way to change it.

The label 6 (the cgroup `files`) is asked, the others of these cases are not. Each change is tried in a directory whose name says what
the rule answers: `files-allow`, `files-deny`, `files-hold`. With enforcement off every way must change something, else the case proves
nothing.
"""
import socket
import stat

from harness import *

RULES[:0] = ["files-allow=allow", "files-deny=deny", "files-hold-deny=hold:300:deny", "files-hold=hold:300:allow", "files-wait=hold"]
ASKED_BOX = f"{CGROUPS}/files"
SPACE = f"{WORK}/free-space"
# Of every label.
COMMON = f"{WORK}/common-space"
os.makedirs(ASKED_BOX, exist_ok=True)
os.makedirs(SPACE, exist_ok=True)
os.makedirs(COMMON, exist_ok=True)
# Attributes that every file system of a guest has are trusted ones.
LABELS.extend(["--label", f"{ASKED_BOX}=6", "--allow", "6=machine"])

PRELUDE = '''
import ctypes, errno, json, mmap, os, socket, stat, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def c(result):
    """What a call of libc gave; its error raised."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def way(name, attempt):
    try:
        attempt()
        print("done", name, flush=True)
    except OSError as error:
        print("failed", name, errno.errorcode.get(error.errno, error.errno), flush=True)

def write(path, flags, data=b"new", mode=0o644):
    fd = os.open(path, flags, mode)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)

'''

# Name, what is done in the directory D.
WAYS = r'''
def tmpfile():
    fd = os.open(D, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"new")
    c(libc.linkat(-100, f"/proc/self/fd/{fd}".encode(), -100, b"linked-tmpfile", 0x400))

def bound():
    s = socket.socket(socket.AF_UNIX)
    s.bind("bound")

def handle():
    buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    c(libc.name_to_handle_at(-100, b"by-handle", buffer, ctypes.byref(mount), 0))
    root = os.open(D, os.O_RDONLY)
    fd = c(libc.open_by_handle_at(root, buffer, os.O_WRONLY | os.O_TRUNC))
    os.write(fd, b"new")

def copied():
    out = os.open("copied-into", os.O_WRONLY)
    c(libc.copy_file_range(os.open("keep", os.O_RDONLY), None, out, None, 3, 0))

def mapped():
    fd = os.open("mapped", os.O_RDWR)
    with mmap.mmap(fd, 3) as m:
        m[0:3] = b"new"

def through_link():
    write("symlink-to-old/../by-link", os.O_WRONLY | os.O_TRUNC)

os.chdir(D)
way("create", lambda: write("created", os.O_WRONLY | os.O_CREAT))
way("create-exclusive", lambda: write("exclusive", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
way("create-read-only", lambda: os.close(os.open("read-only", os.O_RDONLY | os.O_CREAT)))
way("open", lambda: write("opened", os.O_WRONLY))
way("open-truncate", lambda: write("truncated-open", os.O_WRONLY | os.O_TRUNC))
way("open-read-truncate", lambda: os.close(os.open("truncated-read", os.O_RDONLY | os.O_TRUNC)))
way("append", lambda: write("appended", os.O_WRONLY | os.O_APPEND))
way("create-or-open", lambda: write("overwritten", os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
way("tmpfile", tmpfile)
way("mknod", lambda: os.mknod("node", 0o600 | stat.S_IFREG))
way("mkfifo", lambda: os.mkfifo("fifo"))
way("bind", bound)
way("unlink", lambda: os.unlink("unlinked"))
way("rename", lambda: os.rename("rename-from", "rename-to"))
way("rename-over", lambda: os.rename("over-from", "over-to"))
way("exchange", lambda: c(libc.renameat2(-100, b"exchange-a", -100, b"exchange-b", 2)))
way("link", lambda: os.link("keep", "linked"))
way("symlink", lambda: os.symlink("/etc/passwd", "symlinked"))
way("mkdir", lambda: os.mkdir("made"))
way("rmdir", lambda: os.rmdir("removed"))
way("truncate", lambda: os.truncate("truncated", 0))
way("chmod", lambda: os.chmod("chmodded", 0o777))
way("chown", lambda: os.chown("chowned", 12, 34))
way("setxattr", lambda: os.setxattr("attributed", "trusted.case", b"1"))
way("removexattr", lambda: os.removexattr("bare", "trusted.case"))
way("by-handle", handle)
way("copy-file-range", copied)
way("mmap", mapped)
way("through-link", through_link)
'''
NAMES = re.findall(r'^way\("([^"]+)"', WAYS, re.M)
OLD = ["opened", "truncated-open", "truncated-read", "appended", "overwritten", "unlinked", "rename-from", "over-from", "over-to",
       "exchange-a", "exchange-b", "keep", "truncated", "chmodded", "chowned", "attributed", "bare", "by-handle", "copied-into", "mapped",
       "by-link"]


def ground(name):
    """A directory with what every way needs."""
    where = f"{WORK}/{name}"
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(f"{where}/removed")
    os.makedirs(f"{where}/deep")
    for file in OLD:
        with open(f"{where}/{file}", "w") as out:
            out.write(file if file.startswith("exchange") else "old")
    os.symlink("deep", f"{where}/symlink-to-old")
    try:
        os.setxattr(f"{where}/bare", "trusted.case", b"1")
    except OSError as error:
        raise Skipped(f"no extended attributes here: {error}")
    return where


def seen(where):
    """Everything that a way could have changed."""
    found = {}
    for folder, directories, files in os.walk(where):
        for name in directories + files:
            path = f"{folder}/{name}"
            about = os.lstat(path)
            content = open(path, errors="replace").read() if stat.S_ISREG(about.st_mode) else None
            attributes = [] if os.path.islink(path) else os.listxattr(path)
            found[os.path.relpath(path, where)] = (about.st_mode, about.st_uid, about.st_gid, content, attributes)
    return found


def python(body, cgroup=ASKED_BOX, **values):
    code = PRELUDE + "".join(f"{name} = {value!r}\n" for name, value in values.items()) + body
    return start("/usr/bin/python3", "-S", "-c", code, cgroup=cgroup)


def outcomes(text):
    """Of each way `done`, or the name of its error."""
    lines = [line.split() for line in text.splitlines() if line.startswith(("done ", "failed "))]
    return {line[1]: "done" if line[0] == "done" else line[2] for line in lines}


@limit(240)
def asking(probe):
    """A probe with a label that is asked about changes of files: only its programs cost the time to load them."""
    if OFF:
        return probe
    if "--ask-writes" not in PROBES[-1].arguments:
        PROBES[-1].kill()
        PROBES.append(again("--ask-writes", "6", "--free", f"6={SPACE}", "--free", f"0={COMMON}"))
    PROBES[-1].start_case()
    return PROBES[-1]


@case
@one_kernel("6.12")
@limit(240)
def denied_changes_of_files_change_nothing(probe):
    probe = asking(probe)
    where = ground("files-deny")
    before = seen(where)
    said = outcomes(output(python(WAYS, D=where), 120))
    if OFF:
        check_off = [name for name in NAMES if said.get(name) != "done"]
        if check_off:
            raise Failed(f"with enforcement off these do not work: {check_off} {said}")
    check(seen(where) == before, f"something changed: {[k for k, v in seen(where).items() if before.get(k) != v]} {said}")
    check(all(said.get(name) == "EPERM" for name in NAMES), f"not every way was refused: {said}")
    absent(lambda: seen(where) != before, "nothing changed")


def expected(where):
    """What the ways leave when nobody is in their way, as an unlabelled process."""
    said = outcomes(output(python(WAYS, cgroup=CGROUPS, D=where), 120))
    return seen(where), said


@limit(300)
@case
@one_kernel("6.12")
@limit(240)
def approved_changes_of_files_happen_once_and_as_unheld(probe):
    probe = asking(probe)
    plain, plain_said = expected(ground("plain"))
    for name in ["files-allow", "files-hold"]:
        where = ground(name)
        said = outcomes(output(python(WAYS, D=where), 200))
        # By a handle nothing is opened under a label, whoever approves.
        check(OFF or said.pop("by-handle") == "EPERM", f"{name}: opened by handle")
        plain_said.pop("by-handle", None)
        check(said == plain_said, f"{name}: {said} instead of {plain_said}")
        left = seen(where)
        for everything in left, plain:
            everything.pop("by-handle", None)
        check(left == plain, f"{name}: it left something else: {[(k, v, plain.get(k)) for k, v in left.items() if plain.get(k) != v]}")
    # One question for each way, two where two things are done.
    asked = re.findall(r"^asked .* label=6 .* change=(\S+)(.*?) directory=", probe.since(), re.M)
    check(len([1 for _, rest in asked if "files-hold" in rest]) >= len(NAMES), f"{len(asked)} questions")
    probe.expect(r"asked .* change=Rename \{ exchanges: true, replaces: false \} \S+/exchange-a to=\S+/exchange-b")
    probe.expect(r"asked .* change=Open \{ truncates: true \} \S+/truncated-open ")
    probe.expect(r"asked .* change=Symlink \S+/symlinked .* text=/etc/passwd")
    probe.expect(r"asked .* change=Chown \S+/chowned .* owner=\[Some\(12\), Some\(34\)\]")


@case
@one_kernel("6.12")
@limit(240)
def held_changes_of_files_wait_and_are_denied(probe):
    probe = asking(probe)
    where = ground("files-hold-deny")
    before = seen(where)
    process = python('os.chdir(D)\nway("unlink", lambda: os.unlink("keep"))\nway("create", lambda: write("x", os.O_CREAT|os.O_WRONLY))',
                     D=where)
    probe.expect(r"held .* change=Unlink \S+files-hold-deny/keep how=Traced")
    said = outcomes(output(process))
    check(said == {"unlink": "EPERM", "create": "EPERM"}, f"{said}")
    absent(lambda: seen(where) != before, "nothing changed")


@case
@one_kernel("6.12")
@limit(240)
def an_approval_does_not_serve_another_name(probe):
    """The path is swapped in memory while the thread is held: the new one is asked about by itself."""
    probe = asking(probe)
    where = ground("files-wait")
    os.makedirs(f"{WORK}/files-deny-other", exist_ok=True)
    victim = f"{WORK}/files-deny-other/victim"
    with open(victim, "w") as out:
        out.write("old")
    body = '''
import threading, time
path = ctypes.create_string_buffer(A.encode(), 4096)
def swap():
    time.sleep(1.0)
    path.value = B.encode()
    time.sleep(0.3)
    os.kill(os.getpid(), 10)
import signal
signal.signal(10, lambda *_: None)
threading.Thread(target=swap, daemon=True).start()
way("unlink", lambda: c(libc.unlink(path)))
'''
    process = python(body, A=f"{where}/keep", B=victim)
    probe.expect(r"held .* change=Unlink \S+files-wait/keep")
    said = outcomes(output(process, 30))
    check(os.path.exists(f"{where}/keep"), "the first name is gone although nobody agreed")
    absent(lambda: not os.path.exists(victim) or not os.path.exists(f"{where}/keep"), f"one of the names is gone: {said}")


def python_given(code, *fds):
    """A labelled Python that has these descriptors as 3, 4 …, from before the label."""
    # Out of the way of those that they become.
    high = [os.dup2(fd, 60 + number) for number, fd in enumerate(fds)]

    def prepare():
        enter(ASKED_BOX)
        for number, fd in enumerate(high):
            os.dup2(fd, 3 + number)

    process = subprocess.Popen(["/usr/bin/python3", "-S", "-c", code], preexec_fn=prepare, close_fds=False,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    for fd in high:
        os.close(fd)
    return process


@case
@one_kernel("6.12")
@limit(240)
def descriptors_from_outside_are_asked_about(probe):
    """From before the label, and received over a socket: writing, mapping, cutting."""
    probe = asking(probe)
    where = ground("files-deny")
    before = seen(where)
    body = '''
fd = 3
way("write", lambda: os.write(fd, b"new"))
way("pwrite", lambda: os.pwrite(fd, b"new", 0))
way("ftruncate", lambda: os.ftruncate(fd, 0))
way("fallocate", lambda: os.posix_fallocate(fd, 0, 100))
def mapped():
    with mmap.mmap(fd, 3) as m:
        m[0:3] = b"new"
way("mmap", mapped)
way("fchmod", lambda: os.fchmod(fd, 0o777))
end = socket.socket(fileno=4)
message, fds, _, _ = socket.recv_fds(end, 16, 1)
fd = fds[0]
way("received", lambda: os.write(fd, b"new"))
way("sendfile", lambda: os.sendfile(fd, os.open("/etc/passwd", os.O_RDONLY), 0, 10))
'''
    ours, theirs = socket.socketpair()
    inherited = os.open(f"{where}/keep", os.O_RDWR)
    received = os.open(f"{where}/opened", os.O_WRONLY)
    socket.send_fds(ours, [b"x"], [received])
    said = outcomes(output(python_given(PRELUDE + body, inherited, theirs.fileno()), 60))
    for fd in inherited, received:
        os.close(fd)
    ours.close()
    theirs.close()
    check(set(said.values()) == {"EPERM"} and len(said) == 8, f"{said}")
    absent(lambda: seen(where) != before, f"something changed: {said}")


@case
@one_kernel("6.12")
@limit(240)
def an_answered_descriptor_is_asked_about_once(probe):
    probe = asking(probe)
    where = ground("files-allow")
    code = PRELUDE + 'for _ in range(50):\n    os.write(3, b"new")\nprint("written")\n'
    inherited = os.open(f"{where}/keep", os.O_WRONLY | os.O_APPEND)
    check("written" in output(python_given(code, inherited), 60), "it could not write")
    os.close(inherited)
    asked = re.findall(r"^asked .* change=Write .*files-allow/keep", probe.since(), re.M)
    check(len(asked) == 1, f"asked {len(asked)} times")


@case
@one_kernel("6.12")
@limit(240)
def what_changes_no_file_is_not_asked_about(probe):
    probe = asking(probe)
    body = '''
r, w = os.pipe(); os.write(w, b"x")
a, b = socket.socketpair(); a.send(b"x")
m = os.memfd_create("x"); os.write(m, b"x"); os.ftruncate(m, 100); mmap.mmap(m, 100)[0:1] = b"y"
again = os.open(f"/proc/self/fd/{m}", os.O_RDWR); os.write(again, b"z")
mmap.mmap(-1, 4096)[0:1] = b"y"
for path in ["/dev/null", "/dev/zero", "/dev/full", "/proc/self/comm", "/proc/self/oom_score_adj"]:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"100")
    except OSError as error:
        assert path == "/dev/full" and error.errno == errno.ENOSPC, (path, error)
open("/etc/passwd").read()
os.listdir("/etc")
os.openpty()
print("all fine")
'''
    said = output(python(body), 60)
    check("all fine" in said, said)
    probe.never(r"^asked .* label=6 .* change=")


@case
@one_kernel("6.12")
@limit(240)
def free_space_ends_at_its_edge(probe):
    asking(probe)
    for space in (SPACE, COMMON):
        ends_at_its_edge(space)


def ends_at_its_edge(space):
    outside = ground("files-deny")
    before = seen(outside)
    for name in os.listdir(space):
        shutil.rmtree(f"{space}/{name}", ignore_errors=True)
    os.makedirs(f"{space}/ground")
    inside = f"{space}/ground"
    body = '''
os.chdir(S)
way("mkdir", lambda: os.mkdir("d"))
way("create", lambda: write("d/f", os.O_WRONLY | os.O_CREAT))
way("overwrite", lambda: write("d/f", os.O_WRONLY | os.O_TRUNC))
way("rename", lambda: os.rename("d/f", "d/g"))
way("link", lambda: os.link("d/g", "d/h"))
way("symlink", lambda: os.symlink(O, "out"))
way("unlink", lambda: os.unlink("d/h"))
way("chmod", lambda: os.chmod("d/g", 0o600))
print("inside over")
way("through-symlink", lambda: write("out/keep", os.O_WRONLY | os.O_TRUNC))
way("through-dots", lambda: write("../../" + os.path.basename(O) + "/opened", os.O_WRONLY | os.O_TRUNC))
way("link-in", lambda: os.link(O + "/keep", "stolen"))
way("link-out", lambda: os.link("d/g", O + "/planted"))
way("move-out", lambda: os.rename("d/g", O + "/moved"))
way("move-in", lambda: os.rename(O + "/keep", "taken"))
way("space-itself", lambda: os.rmdir(ROOT))
way("mode-of-itself", lambda: os.chmod(ROOT, 0o700))
'''
    said = output(python(body, S=inside, O=outside, ROOT=space), 60)
    first, _, second = said.partition("inside over")
    check(set(outcomes(first).values()) == {"done"}, f"inside: {first}")
    absent(lambda: seen(outside) != before, f"something changed outside: {second}")
    refused = outcomes(second)
    check({refused[name] for name in refused if name != "space-itself" and name != "mode-of-itself"} == {"EPERM"}, second)


@case
@one_kernel("6.12")
@limit(240)
def odd_names_are_told_as_they_are(probe):
    probe = asking(probe)
    where = ground("files-allow")
    body = '''
os.chdir(D.encode())
way("newline", lambda: os.mkdir(b"a\\nb"))
way("escape", lambda: os.mkdir(b"a\\x1b[2Jb"))
way("invalid", lambda: os.mkdir(b"a\\xff\\xfeb"))
os.chdir(b"deep")
for depth in range(40):
    os.mkdir(b"n" * 200)
    os.chdir(b"n" * 200)
way("long", lambda: os.mkdir(b"end"))
'''
    # Whatever does not fit has no path, so that only the last rule, hold, answers.
    process = python(body, D=where)
    probe.expect(r"asked .* change=Mkdir \S+/a\\nb ")
    probe.expect(r"asked .* change=Mkdir \S+/a\\x1b\[2Jb ")
    probe.expect(r"asked .* change=Mkdir \S+/a\\xff\\xfeb ")
    probe.expect(r"asked .* change=Mkdir \? ", 60)
    process.kill()


@case
@one_kernel("6.12")
@limit(240)
def below_overlayfs_nobody_is_asked_again(probe):
    probe = asking(probe)
    base = f"{WORK}/overlay"
    shutil.rmtree(base, ignore_errors=True)
    for name in ["lower", "upper", "work", "files-allow-merged", "files-deny-merged"]:
        os.makedirs(f"{base}/{name}")
    subprocess.run(["mount", "-t", "tmpfs", "none", base], check=True)
    try:
        for name in ["lower", "upper", "work", "files-allow-merged", "lower/files-deny"]:
            os.makedirs(f"{base}/{name}")
        for name in ["lower/file", "lower/files-deny/file"]:
            with open(f"{base}/{name}", "w") as out:
                out.write("old")
        merged = f"{base}/files-allow-merged"
        mount = ["mount", "-t", "overlay", "overlay", "-o", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work", merged]
        if subprocess.run(mount).returncode:
            raise Skipped("no overlayfs here")
        try:
            body = '''
os.chdir(D)
way("copy-up", lambda: write("file", os.O_WRONLY))
way("create", lambda: write("created", os.O_WRONLY | os.O_CREAT))
way("mkdir", lambda: os.mkdir("made"))
way("unlink", lambda: os.unlink("file"))
'''
            process = python(body, D=merged)
            said = outcomes(output(process, 60))
            check(set(said.values()) == {"done"}, f"{said}")
            asked = re.findall(rf"^asked .* tgid={process.pid} .* label=6 .* change=(.*?) directory=", probe.since(), re.M)
            check(len(asked) == 4, f"{asked}")
            check(all("files-allow-merged" in line for line in asked), f"{asked}")
        finally:
            subprocess.run(["umount", merged])
    finally:
        subprocess.run(["umount", base])


@case
@one_kernel("6.12")
@limit(240)
def a_mapping_from_before_the_label_does_not_become_writable(probe):
    probe = asking(probe)
    where = ground("files-deny")
    before = seen(where)
    body = '''
fd = os.open(D + "/mapped", os.O_RDWR)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
at = libc.mmap(None, 4096, 1, 1, fd, 0)
open("/sys/fs/cgroup/files/cgroup.procs", "w").write(str(os.getpid()))
def change():
    c(libc.mprotect(at, 4096, 3))
    ctypes.memmove(at, b"new", 3)
way("mprotect", change)
'''
    said = outcomes(output(python(body, cgroup=CGROUPS, D=where), 30))
    check(said == {"mprotect": "EPERM"}, f"{said}")
    absent(lambda: seen(where) != before, f"something changed: {said}")


@case
@one_kernel("6.12")
@limit(240)
def a_core_dump_outside_free_space_is_refused(probe):
    probe = asking(probe)
    where = f"{WORK}/files-deny-core"
    shutil.rmtree(where, ignore_errors=True)
    os.makedirs(where)
    pattern = open("/proc/sys/kernel/core_pattern").read()
    with open("/proc/sys/kernel/core_pattern", "w") as out:
        out.write("core")
    try:
        body = '''
import resource
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
os.chdir(D)
os.abort()
'''
        output(python(body, D=where), 60)
        absent(lambda: bool(os.listdir(where)), f"there is {os.listdir(where)}")
    finally:
        with open("/proc/sys/kernel/core_pattern", "w") as out:
            out.write(pattern)
