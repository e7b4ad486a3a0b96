"""Execs of odd processes: traced by others, in namespaces, supervised, frozen, 32-bit, on odd file systems."""
import ctypes
import struct

from harness import *

AWKWARD = f"{FOLDER}/awkward"
LIBC = ctypes.CDLL(None, use_errno=True)


def folder(name, mode=0o777):
    path = f"{WORK}/{name}"
    os.makedirs(path, exist_ok=True)
    os.chmod(path, mode)
    return path


def big(path, size):
    """The same program, but hashing it takes time."""
    with open(path, "r+b") as file:
        file.truncate(size)
    return path


def copy(name, source=AWKWARD):
    path = f"{WORK}/{name}"
    shutil.copy(source, path)
    os.chmod(path, 0o755)
    return path


def mount(kind, where, options="", source="none"):
    if LIBC.mount(source.encode(), where.encode(), kind.encode(), 0, options.encode()) != 0:
        code = ctypes.get_errno()
        raise Skipped(f"cannot mount {kind}: {os.strerror(code)}")


def asked_times(probe, name):
    return len(re.findall(rf"^asked .*path=\S*{name}", probe.since(), re.M))


def runs_once_approved(probe, name, mark, process, held="how="):
    """Held under `name` (a rule that holds for a second, then compares), absent until then, run after it."""
    probe.expect(rf"^held .*path=\S*{name} .*{held}")
    absent(mark, "it ran before it was approved")
    text = output(process, 60)
    check(os.path.exists(mark), f"it did not run: {text}\n{probe.since()}")
    probe.expect(r"^enforced .*outcome=Ran")
    return text


# ---- traced by somebody else ----

def traced(*argv):
    if not shutil.which("strace"):
        raise Skipped("no strace in the guest")
    return start("strace", "-f", "-o", f"{WORK}/strace", *argv)


@case
def traced_exec_is_compared(probe):
    """An approved exec that the agent cannot trace runs, compared while the kernel side keeps it stopped."""
    mark = marker("tc")
    process = traced(program("hold-second-traced"), mark)
    runs_once_approved(probe, "hold-second-traced", mark, process, r"how=Parked\(AlreadyTraced\)")
    probe.expect(r"^tracer tid=\d+ pid=\d+ comm=strace")
    probe.never(r"Mismatch")


@case
def traced_exec_that_changed_is_killed(probe):
    mark = marker("tk")
    script = program("hold-second-traced-script", "#!/bin/sh\ntrue\n")
    process = traced(script)
    probe.expect(r"^held .*how=Parked\(AlreadyTraced\)")
    with open(script, "a") as file:
        file.write(f"touch {mark}\n")
    output(process)
    absent(mark, "it ran")
    probe.expect(r"^enforced .*outcome=Killed\(Mismatch { what: Content")


def committed(pid):
    return not OFF and os.path.exists(f"/proc/{pid}/exe") and os.readlink(f"/proc/{pid}/exe").endswith(("dash", "/sh"))


def traced_and_being_compared(probe, mark):
    """Stopped by the kernel side after its exec, while the agent hashes it."""
    script = big(program("checked-traced-big", f'#!/bin/sh\n: > "{mark}"\nexit 0\n'), 40 << 20)
    process = traced(script)
    line = probe.expect(r"^held .*tid=(\d+) path=\S*checked-traced-big", 60)
    pid = process.pid if OFF else int(line.group(1))
    until(lambda: committed(pid), "its exec is not committed", 60)
    return process, pid


@case
def nobody_else_continues_what_is_not_compared(probe):
    mark = marker("nc")
    process, pid = traced_and_being_compared(probe, mark)
    refused = False
    try:
        os.kill(pid, signal.SIGCONT)
    except PermissionError:
        refused = True
    absent(mark, "it ran before it was compared")
    check(refused, "somebody else's SIGCONT was not refused")
    output(process, 60)
    check(os.path.exists(mark), f"it did not run\n{probe.since()}")
    probe.expect(r"^enforced .*outcome=Ran")


@case
@one_kernel("7.2")
def killed_agent_while_a_traced_exec_waits(probe):
    """What was approved died with the agent: the next one kills the new image."""
    mark = marker("ka")
    process, pid = traced_and_being_compared(probe, mark)
    probe.kill()
    time.sleep(1)
    absent(mark, "it ran before it was compared")
    PROBES.append(again())
    output(process, 30)
    absent(mark, "it ran")
    check("killed by SIGKILL" in open(f"{WORK}/strace").read(), "it was not killed")


@case
def a_tracer_that_swallows_the_stop_gains_nothing(probe):
    """The tracer lets the new image run before it is compared: nothing gated works, forks neither."""
    for mode in "swallow", "seized":
        probe.start_case()
        mark = marker("sw")
        image = big(copy(f"checked-{mode}"), 40 << 20)
        process = start(AWKWARD, mode, image, "then", program("fast-allow-then"), mark)
        text = output(process, 60)
        absent(mark, f"a gated action of an image that was not compared: {text}")
        check("fork: Operation not permitted" in text and "fast-allow-then: Operation not permitted" in text, f"{mode}: {text}")


# ---- one agent ----

@case
def a_second_agent_is_refused(probe):
    if OFF:
        return
    second = subprocess.run([PROBE, *LABELS, "--run", "1"], capture_output=True, text=True)
    said = second.stdout + second.stderr
    check(second.returncode != 0 and f"another guard-agent (process {probe.process.pid}) is running" in said.replace("\\", ""), said)
    mark = marker("sa")
    output(start_moved(program("checked-still"), mark))
    check(os.path.exists(mark), "the first one does not answer any more")


# ---- namespaces and identities ----

@case
def init_of_a_pid_namespace(probe):
    mark = marker("in")
    text = runs_once_approved(probe, "hold-second-init", mark, start(AWKWARD, "init", program("hold-second-init"), mark, cgroup=FREE))
    check("child 0" in text, text)
    probe.start_case()
    mark = marker("in")
    text = output(start(AWKWARD, "init", program("hold-deny-init"), mark, cgroup=FREE))
    check("not permitted" in text and not os.path.exists(mark), text)


@case
def root_of_a_user_namespace(probe):
    mark = f"{folder('open')}/user-{time.monotonic_ns()}"
    runs_once_approved(probe, "hold-second-user", mark, start(AWKWARD, "user", program("hold-second-user"), mark, cgroup=FREE))


@case
def a_setuid_program(probe):
    """Approved, compared, and still setuid: the holder's tracing does not take that away."""
    mark = f"{folder('root', 0o755)}/setuid-{time.monotonic_ns()}"
    path = program("hold-second-setuid")
    os.chmod(path, 0o4755)
    runs_once_approved(probe, "hold-second-setuid", mark, start(AWKWARD, "nobody", path, mark, cgroup=FREE))


@case
def a_supervisor_of_seccomp(probe):
    """It sees every round of the hold, lets them all go on, and the exec happens once."""
    mark = marker("se")
    text = runs_once_approved(probe, "hold-second-seccomp", mark, start(AWKWARD, "supervised", program("hold-second-seccomp"), mark))
    check("supervised 0 after" in text, text)
    check(asked_times(probe, "hold-second-seccomp") == 1, probe.since())


# ---- stopped by others ----

@case
def frozen_while_held(probe):
    """A frozen cgroup does not run what was approved meanwhile; thawed, it does."""
    below = f"{BOX}/frozen-{time.monotonic_ns()}"
    os.makedirs(below)
    mark = marker("fr")
    process = start_moved(program("hold-second-frozen"), mark, cgroup=below)
    probe.expect(r"^held .*path=\S*hold-second-frozen")
    absent(mark, "it ran")
    with open(f"{below}/cgroup.freeze", "w") as file:
        file.write("1")
    time.sleep(2.5)
    check(not os.path.exists(mark), "it ran while it was frozen")
    with open(f"{below}/cgroup.freeze", "w") as file:
        file.write("0")
    output(process)
    check(os.path.exists(mark), f"it did not run\n{probe.since()}")
    probe.expect(r"^enforced .*outcome=Ran")
    until(lambda: not os.rmdir(below), "its cgroup is busy")


@case
def signals_without_end(probe):
    """A process that sends SIGCONT and others in a loop: no round of it lets anything through."""
    mark = marker("si")
    process = start(AWKWARD, "siblings", program("hold-second-siblings"), mark)
    runs_once_approved(probe, "hold-second-siblings", mark, process)
    check(asked_times(probe, "hold-second-siblings") == 1, probe.since())


# ---- programs ----

def exec32():
    """A 32-bit program: execve(argv[1], argv + 1, environment) by int 0x80; ends with the error."""
    code = bytes.fromhex("8b5c2408 8d4c2408 8b0424 8d548408 b80b000000 cd80 f7d8 89c3 b801000000 cd80")
    base, head = 0x08048000, 52 + 32
    elf = b"\x7fELF\1\1\1" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + head, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    elf += struct.pack("<IIIIIIII", 1, 0, base, base, head + len(code), head + len(code), 5, 0x1000)
    return elf + code


@case
def programs_of_32_bits(probe):
    """Asked and compared both as what is run and as what calls exec, by the other entry."""
    path = f"{WORK}/hold-second-narrow"
    with open(path, "wb") as file:
        file.write(exec32())
    os.chmod(path, 0o755)
    mark = marker("32")
    process = start(path, program("hold-second-wide"), mark)
    probe.expect(r"^held .*path=\S*hold-second-narrow .*argc=3")
    line = probe.expect(r"^held .*path=\S*hold-second-wide .*").group(0)
    absent(mark, "it ran before it was approved")
    check("argc=2" in line and mark in line, f"read wrongly: {line}")
    text = output(process)
    if process.returncode == 126 and "Exec format" in text:
        raise Skipped("this kernel runs no 32-bit programs")
    check(os.path.exists(mark), f"it did not run: {text}\n{probe.since()}")
    for number in re.findall(r"^held seq=(\d+) .*path=\S*hold-second-(?:narrow|wide) ", probe.since(), re.M):
        probe.expect(rf"^enforced seq={number} .*outcome=Ran")
    probe.start_case()
    mark = marker("32")
    process = start(path, program("fast-deny-wide"), mark)
    output(process)
    check(process.returncode == errno.EPERM and not os.path.exists(mark), f"{process.returncode}")


@case
def execveat_in_a_folder_and_of_a_deleted_file(probe):
    mark = marker("at")
    path = program("hold-second-at")
    runs_once_approved(probe, "hold-second-at", mark, start(AWKWARD, "at", WORK, os.path.basename(path), mark))
    probe.start_case()
    mark = marker("de")
    process = start(AWKWARD, "deleted", program("hold-second-deleted"), mark)
    line = probe.expect(r"^asked .*hold-second-deleted.*").group(0)
    check("unlinked=true" in line, line)
    output(process)
    check(os.path.exists(mark), f"it did not run\n{probe.since()}")


@case
def a_program_given_to_the_loader(probe):
    """`ld.so FILE`: asked as the loader with its argument, which people see; the file itself is not an exec."""
    loader = "/lib64/ld-linux-x86-64.so.2"
    mark = marker("ld")
    path = program("given")
    process = start(copy("hold-second-loader", os.path.realpath(loader)), path, mark)
    line = probe.expect(r"^held .*path=\S*hold-second-loader .*").group(0)
    absent(mark, "it ran before it was approved")
    check(path in line, f"the argument is not shown: {line}")
    output(process)
    check(os.path.exists(mark), f"it did not run\n{probe.since()}")


@case
def on_tmpfs(probe):
    where = folder("tmpfs")
    mount("tmpfs", where)
    try:
        path = f"{where}/hold-second-tmpfs"
        shutil.copy("/usr/bin/touch", path)
        mark = marker("tm")
        process = start_moved(path, mark)
        runs_once_approved(probe, "hold-second-tmpfs", mark, process, "file=true")
    finally:
        LIBC.umount2(where.encode(), 2)


@case
def on_overlayfs(probe):
    """Its file numbers are its own; a copy-up while held is a change of content like any other."""
    base = folder("overlay")
    mount("tmpfs", base)
    try:
        for name in "lower", "upper", "work", "merged":
            os.makedirs(f"{base}/{name}")
        shutil.copy("/usr/bin/touch", f"{base}/lower/hold-second-overlay")
        shutil.copy("/usr/bin/touch", f"{base}/lower/hold-second-upped")
        mount("overlay", f"{base}/merged", f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work")
        mark = marker("ov")
        process = start_moved(f"{base}/merged/hold-second-overlay", mark)
        runs_once_approved(probe, "hold-second-overlay", mark, process, "file=true")
        probe.start_case()
        mark = marker("up")
        process = start_moved(f"{base}/merged/hold-second-upped", mark)
        probe.expect(r"^held .*path=\S*hold-second-upped")
        with open(f"{base}/merged/hold-second-upped", "ab") as file:
            file.write(b"more")
        output(process)
        check(process.returncode == -signal.SIGKILL and not os.path.exists(mark), f"it ran: {process.returncode}")
        probe.expect(r"^enforced .*outcome=Killed\(Mismatch { what: (Content|File)")
    finally:
        LIBC.umount2(f"{base}/merged".encode(), 2)
        LIBC.umount2(base.encode(), 2)


@case
def on_btrfs(probe):
    """Whose st_dev is not the kernel's device number."""
    if not shutil.which("mkfs.btrfs"):
        raise Skipped("no mkfs.btrfs in the guest")
    image, where = f"{WORK}/btrfs.img", folder("btrfs")
    with open(image, "wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(["modprobe", "-a", "-q", "loop", "btrfs"], check=False)
    mounted = subprocess.run(["mount", "-o", "loop", image, where], capture_output=True, text=True)
    if mounted.returncode != 0:
        kernel = subprocess.run(["dmesg"], capture_output=True, text=True).stdout[-300:]
        raise Skipped(f"btrfs cannot be mounted: {mounted.stderr.strip()} {' '.join(kernel.splitlines())}")
    try:
        path = f"{where}/hold-second-btrfs"
        shutil.copy("/usr/bin/touch", path)
        mark = marker("bt")
        runs_once_approved(probe, "hold-second-btrfs", mark, start_moved(path, mark), "file=true")
    finally:
        subprocess.run(["umount", "-l", where])
