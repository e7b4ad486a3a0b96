"""Programs: each attempt executes one that the policy denies, or another one than was approved. The proof is what it prints into a pipe."""
import mmap
import signal
import threading

from suite import *
from suite import NUMBER

AT_EMPTY_PATH, AT_FDCWD, EXECVE, EXECVEAT = 0x1000, -100, 59, 322
MFD_CLOEXEC = 1


def argv_of(*strings):
    return (ctypes.c_char_p * (len(strings) + 1))(*(s.encode() if isinstance(s, str) else s for s in strings), None)


def execve(path, argv=None):
    """As the system call: returns only when it was refused."""
    system(EXECVE, path if not isinstance(path, str) else path.encode(), argv or argv_of(path, "by-execve"), argv_of())


def in_children(*paths):
    """Executes each in a child; fails as the last one did."""
    last = None
    for path in paths:
        pid = os.fork()
        if pid == 0:
            try:
                execve(path)
            except OSError as error:
                os._exit(error.errno)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        last = code or last
    if last:
        raise OSError(last if last > 0 else errno.EPERM, "a child was refused")


def state(pid, tid=None):
    with open(f"/proc/{pid}/task/{tid or pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def shared(text):
    """Memory that children share, with a string in it; its address as an argument."""
    memory = mmap.mmap(-1, 8192)
    memory[: len(text) + 1] = text.encode() + b"\0"
    return memory, ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))


def put(memory, text):
    memory[: len(text) + 1] = text.encode() + b"\0"


# ---- ways to execute ----

@attempt("exec")
def exec_plain(t):
    """Executes a program that is denied."""
    path = t.program()
    t.inside(lambda: execve(path))
    return t.said()


@attempt("exec")
def exec_by_descriptor(t):
    """Executes it by execveat with AT_EMPTY_PATH and a descriptor from before the label."""
    path = t.program()
    t.inside(lambda fd: system(EXECVEAT, fd, b"", argv_of("x"), argv_of(), AT_EMPTY_PATH), before=lambda: os.open(path, os.O_PATH))
    return t.said()


@attempt("exec")
def exec_by_proc_fd(t):
    """Executes it as /proc/self/fd/N."""
    path = t.program()
    t.inside(lambda fd: execve(f"/proc/self/fd/{fd}"), before=lambda: os.open(path, os.O_RDONLY))
    return t.said()


@attempt("exec")
def exec_of_memfd(t):
    """Executes a copy in memory that has no name."""
    path = t.program()

    def hostile():
        fd = os.memfd_create("hostile")
        with open(path, "rb") as file:
            os.write(fd, file.read())
        system(EXECVEAT, fd, b"", argv_of("x"), argv_of(), AT_EMPTY_PATH)

    t.inside(hostile)
    return t.said()


@attempt("exec")
def exec_of_unnamed_file(t):
    """Executes a file made by O_TMPFILE."""
    path, folder = t.program(), t.outside()

    def hostile():
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o755)
        with open(path, "rb") as file:
            os.write(fd, file.read())
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        os.close(fd)
        system(EXECVEAT, again, b"", argv_of("x"), argv_of(), AT_EMPTY_PATH)

    t.inside(hostile)
    return t.said()


@attempt("exec")
def exec_of_itself(t):
    """Executes /proc/self/exe: what it already is, with a program of its own as argument."""
    t.inside(lambda: execve("/proc/self/exe", argv_of("python3", "-c", "print('ran')")), seconds=15)
    return t.said()


@attempt("exec")
def exec_by_the_loader(t):
    """Has ld.so run it: the loader is the program that is executed."""
    path = t.program(source="/usr/bin/echo")
    t.inside(lambda: execve("/lib64/ld-linux-x86-64.so.2", argv_of("ld.so", path, "ran")))
    return t.said()


@attempt("exec")
def exec_of_script(t):
    """Executes a script that is denied; its interpreter is allowed."""
    path = t.script("", t.program("let-"))
    t.inside(lambda: execve(path))
    return t.said()


@attempt("exec")
def exec_of_nested_script(t):
    """Executes a script that is denied, whose interpreter is an allowed script of an allowed program."""
    path = t.script("", t.script("let-", t.program("let-")))
    t.inside(lambda: execve(path))
    return t.said()


@attempt("exec", ends=("ENOSYS",))
def exec_by_int80(t):
    """Calls execve by the kernel's 32-bit entry."""
    path = t.program()
    made = t.inside(lambda: call(tricks.int80_execve, path.encode()))
    seen = t.said()
    if t.off and not seen and made.how in ("ENOSYS", "signal 11"):
        t.skip("the kernel has no 32-bit entry")
    return seen


@attempt("exec", ends=("ENOSYS",))
def exec_by_x32(t):
    """Calls the execve of the x32 table."""
    path = t.program()
    made = t.inside(lambda: call(tricks.x32_execve, path.encode()))
    seen = t.said()
    if not seen and made.how == "ENOSYS":
        t.skip("the kernel has no x32")
    return seen


@attempt("exec")
def exec_after_vfork(t):
    """Executes it in a child of vfork, while the parent sleeps in its memory."""
    path = t.program()
    t.inside(lambda: call(tricks.vfork_exec, path.encode()))
    return t.said()


@attempt("exec")
def exec_by_posix_spawn(t):
    """Has the C library start it."""
    path = t.program()
    t.inside(lambda: call(tricks.spawn_exec, path.encode()))
    return t.said()


@attempt("exec", race=True)
def exec_in_shared_memory(t):
    """Executes it in a child that shares memory, files, directory and signal handlers, but is no thread (CLONE_VM without CLONE_THREAD)."""
    path = t.program()
    t.inside(lambda: call(tricks.clone_exec, path.encode(), 0x200 | 0x400 | 0x800))
    return t.said()


@attempt("exec", ends=("done",))
def exec_of_somebody_elses_child(t):
    """Executes it in a child that is made its own parent's (CLONE_PARENT)."""
    path = t.program()

    def hostile():
        pid = os.fork()
        if pid == 0:
            try:
                call(tricks.clone_exec, path.encode(), 0x8000)
            except OSError as error:
                os._exit(error.errno)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise OSError(code, "the child was refused")

    t.inside(hostile)
    return t.said()


@attempt("exec")
def exec_as_nobody(t):
    """Executes it after giving up every right, with memory that nobody may read (PR_SET_DUMPABLE 0)."""
    path = t.program()

    def hostile():
        libc.prctl(4, 0, 0, 0, 0)
        execve(path)

    t.inside(hostile, uid=65534)
    return t.said()


@attempt("exec")
def exec_with_another_personality(t):
    """Executes it under another personality: no address randomisation, read implies exec, Linux 2.6 as version."""
    path = t.program()

    def hostile():
        libc.personality(0x0040000 | 0x0400000 | 0x0020000)
        execve(path)

    t.inside(hostile)
    return t.said()


@attempt("exec")
def exec_beyond_path_max(t):
    """Executes it below folders whose names together are longer than a path may be."""
    root, name = t.outside(), "let-" + "x" * 240
    at = os.open(root, os.O_PATH)
    for _ in range(20):
        os.mkdir(name, dir_fd=at)
        at, old = os.open(name, os.O_PATH, dir_fd=at), at
        os.close(old)
    with open(t.program(), "rb") as file:
        fd = os.open("deep", os.O_WRONLY | os.O_CREAT, 0o755, dir_fd=at)
        os.write(fd, file.read())
        os.close(fd)

    def hostile():
        os.fchdir(at)
        execve("./deep")

    t.inside(hostile, keep=[at])
    os.close(at)
    return t.said()


@attempt("exec")
def exec_of_odd_name(t):
    """Executes a file whose name has a newline, an escape sequence, invalid UTF-8 and the text of an answer in it."""
    path = os.fsencode(t.program()) + b"\nreleased verdict=Allow\x1b[2J\xff\xfe"
    with open(t.program(), "rb") as file, open(path, "wb") as copy:
        copy.write(file.read())
    os.chmod(path, 0o755)
    t.inside(lambda: execve(path, argv_of(b"x")))
    return t.said()


@attempt("exec")
def exec_with_huge_arguments(t):
    """Executes it with a megabyte of arguments, more than anybody reads."""
    path = t.program()
    t.inside(lambda: execve(path, argv_of(path, *["x" * 100_000] * 10)))
    return t.said()


@attempt("exec")
def exec_by_a_folders_descriptor(t):
    """Executes it by execveat with a folder's descriptor and a relative name, from another working directory."""
    path = t.program()
    t.inside(lambda fd: (os.chdir("/proc"), system(EXECVEAT, fd, os.path.basename(path).encode(), argv_of("x"), argv_of(), 0)),
             before=lambda: os.open(os.path.dirname(path), os.O_PATH))
    return t.said()


@attempt("exec")
def exec_of_removed_file(t):
    """Executes, by descriptor, a file that is removed, with another file of an allowed name in its place."""
    path, allowed = t.program(), t.program("let-")
    fd = os.open(path, os.O_PATH)
    os.rename(allowed, path)
    t.inside(lambda: system(EXECVEAT, fd, b"", argv_of("x"), argv_of(), AT_EMPTY_PATH), keep=[fd])
    os.close(fd)
    return t.said()


# ---- threads and time ----

@attempt("exec", race=True)
def exec_from_another_thread(t):
    """Executes it from a thread that is not the first one."""
    path = t.program()

    def hostile():
        ends = []

        def other():
            try:
                execve(path)
            except OSError as error:
                ends.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        raise ends[0]

    t.inside(hostile)
    return t.said()


@attempt("exec", race=True)
def exec_from_threads_at_once(t):
    """Four threads execute four denied programs at the same moment."""
    paths = [t.program() for _ in range(4)]
    t.inside(lambda: call(tricks.threads_exec, (ctypes.c_char_p * 4)(*(path.encode() for path in paths)), 4))
    return t.said()


@attempt("exec", race=True, ends=("stays",))
def exec_twice_at_once(t):
    """Two threads execute at once, one a program that is asked about and denied, one a program that nobody ever answers about."""
    paths = [t.program("refuse-"), t.program("wait-")]
    t.inside(lambda: call(tricks.threads_exec, (ctypes.c_char_p * 2)(*(path.encode() for path in paths)), 2), seconds=2)
    t.must("^asked .*wait-")
    return t.said()


def held(path):
    """A child that is held for ever while it executes something; gives its pid once it is held."""
    pid = os.fork()
    if pid == 0:
        execve(path)
    end = time.monotonic() + (0 if OFF else 3 * SLOW)
    while time.monotonic() < end and state(pid) not in "tT":
        time.sleep(0.005)
    return pid


@attempt("exec", race=True)
def exec_while_a_sibling_is_held(t):
    """Executes a denied program while a sibling process is held over another one."""
    waits, path = t.program("wait-"), t.program()
    t.inside(lambda: (held(waits), execve(path)))
    t.must("^held .*wait-")
    return t.said()


@attempt("exec", race=True, ends=("stays",))
def exec_while_a_thread_is_held(t):
    """A second thread executes a denied program while the first one is held over another one."""
    waits, path = t.program("wait-"), t.program()

    def hostile():
        def other():
            time.sleep(0.5)
            execve(path)

        threading.Thread(target=other, daemon=True).start()
        execve(waits)

    t.inside(hostile, seconds=2)
    return t.said()


@attempt("exec", race=True, ends=("done",))
def exec_by_a_flood_of_sigcont(t):
    """Sends SIGCONT and SIGUSR1 without end to a process that is held, so that it may run on."""
    waits = t.program("wait-")

    def hostile():
        pid = held(waits)
        tricks.signals_for_ever(pid, signal.SIGCONT, signal.SIGURG)
        tricks.signals_for_ever(pid, signal.SIGCONT, signal.SIGWINCH)
        time.sleep(1.5)

    t.inside(hostile)
    t.must("^held .*wait-")
    return t.said()


@attempt("exec", race=True, ends=("done",))
def exec_by_a_sigcont_handler(t):
    """Has a handler for SIGCONT and floods itself with it from threads while it executes."""
    waits = t.program("wait-")

    def hostile():
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCONT, lambda *_: None)
            signal.signal(signal.SIGURG, lambda *_: None)
            while True:
                with contextlib.suppress(OSError):
                    execve(waits)
        tricks.signals_for_ever(pid, signal.SIGCONT, signal.SIGURG)
        time.sleep(1.5)

    t.inside(hostile)
    t.must("^asked .*wait-")
    return t.said()


@attempt("exec", race=True, ends=("done",))
def exec_by_tracing_the_held(t):
    """A sibling attaches to the held process, lets it go on, and detaches."""
    waits = t.program("wait-")

    def hostile():
        pid = held(waits)
        for request, signal_number in ((16, 0), (0x4206, 0), (7, 0), (17, 0), (7, signal.SIGCONT), (17, signal.SIGCONT)):
            libc.ptrace(request, pid, None, ctypes.c_void_p(signal_number))
            time.sleep(0.1)

    t.inside(hostile)
    t.must("^held .*wait-")
    return t.said()


@attempt("exec", race=True, ends=("done",))
def exec_by_a_storm_of_forks(t):
    """Forks children without end while a sibling is held, each of which executes a denied program."""
    waits, path = t.program("wait-"), t.program()

    def hostile():
        held(waits)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(OSError):
                    execve(path)
                os._exit(0)
            os.waitpid(pid, 0)

    t.inside(hostile)
    t.must("^held .*wait-")
    return t.said()


@attempt("exec", race=True, ends=("done", "stays"))
def exec_with_a_path_that_changes(t):
    """Executes a path that another thread changes, without end, between an allowed program and a denied one of as many letters."""
    number = next(NUMBER)
    allowed, path = f"{PROGRAMS_FOLDER}/let-{number:06}", f"{PROGRAMS_FOLDER}/not-{number:06}"
    os.rename(t.program("let-"), allowed)
    os.rename(t.program(source="denied"), path)
    t.inside(lambda: tricks.race_path(allowed.encode(), path.encode(), 600), seconds=3)
    return t.said("denied-ran")


@attempt("exec", race=True, ends=("gone", "EPERM"))
def exec_of_a_path_that_changes_while_held(t):
    """Changes the string of the path to a denied program's while the exec of another one is held."""
    first, path = t.program("check-", suffix="a"), t.program("not-", source="denied")

    def hostile(gate):
        memory, address = shared(first)
        once_held(gate, lambda: put(memory, path))
        system(EXECVE, address, argv_of("x"), argv_of())

    t.held_then("^held .*check-", hostile)
    return t.said("denied-ran")


@attempt("exec", race=True, ends=("gone",))
def exec_of_arguments_that_change_while_held(t):
    """Changes an argument while the exec is held, after it was read and before it is approved."""
    path = t.program("check-")

    def hostile(gate):
        memory, address = shared("harmless")
        argv = (ctypes.c_void_p * 3)(ctypes.cast(ctypes.c_char_p(b"x"), ctypes.c_void_p), address, None)
        once_held(gate, lambda: put(memory, "hostile!"))
        system(EXECVE, path.encode(), argv, argv_of())

    t.held_then("^held .*check-", hostile)
    return None if t.on and t.asked("check-") > 1 else t.said("hostile!")


@attempt("exec", race=True, ends=("gone",))
def exec_of_an_environment_that_changes_while_held(t):
    """Changes the environment while the exec is held."""
    path = t.program("check-")

    def hostile(gate):
        memory, address = shared("SAY=good")
        once_held(gate, lambda: put(memory, "SAY=evil"))
        system(EXECVE, path.encode(), argv_of("x"), (ctypes.c_void_p * 2)(address, None))

    t.held_then("^held .*check-", hostile)
    return None if t.on and t.asked("check-") > 1 else t.said("told evil")


@attempt("exec", race=True, ends=("gone",))
def exec_of_a_link_that_changes_while_held(t):
    """Turns a symbolic link to a denied program while the exec of what it was a link to is held."""
    first, path, free = t.program("check-"), t.program("not-", source="denied"), t.free()
    link = f"{free}/link"
    os.symlink(first, link)

    def turn():
        os.symlink(path, f"{free}/next")
        os.rename(f"{free}/next", link)

    t.held_then("^held .*check-", lambda gate: (once_held(gate, turn), execve(link)))
    return t.said("denied-ran")


@attempt("exec", race=True, ends=("gone",))
def exec_of_a_file_that_changes_while_held(t):
    """Writes another program into the file while its exec is held."""
    free = t.free()
    path = t.file(f"{free}/check-me", open(t.program(), "rb").read(), 0o755)
    other = open(t.program(source="denied"), "rb").read()

    def change():
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, other)
        os.close(fd)

    t.held_then("^held .*check-", lambda gate: (once_held(gate, change), execve(path)))
    return None if t.on and t.asked("check-") > 1 else t.said("denied-ran")


@attempt("exec", race=True, ends=("gone",))
def exec_of_a_script_that_changes_while_held(t):
    """Writes other content into a script while its exec is held."""
    free = t.free()
    path = t.file(f"{free}/check-script", b"#!/bin/sh\necho harmless\n", 0o755)

    def change():
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, b"#!/bin/sh\necho denied-ran\n")
        os.close(fd)

    t.held_then("^held .*check-", lambda gate: (once_held(gate, change), execve(path)))
    return None if t.on and t.asked("check-") > 1 else t.said("denied-ran")


@attempt("exec", race=True, ends=("gone", "stays"))
def exec_in_a_folder_that_changes_while_held(t):
    """A process that shares the directory (CLONE_FS) changes it while the exec of ./check-me is held: there it is another program."""
    one, other = t.free(), t.free()
    t.file(f"{one}/check-me", open(t.program(), "rb").read(), 0o755)
    t.file(f"{other}/check-me", open(t.program(source="denied"), "rb").read(), 0o755)

    def hostile(gate):
        os.chdir(one)

        def elsewhere():
            if t.on:
                os.read(gate, 1)
            os.chdir(other)

        thread = threading.Thread(target=elsewhere, daemon=True)
        thread.start()
        if t.off:
            thread.join()
        execve("./check-me")

    t.held_then("^asked .*check-", hostile)
    return None if t.on and t.asked("check-") > 1 else t.said("denied-ran")


@attempt("exec", race=True, ends=("gone", "stays"))
def exec_of_a_slow_path(t):
    """The path lies in a page that userfaultfd serves: whoever reads it first sees another one than the kernel does later."""
    first, path = t.program("check-"), t.program("not-", source="denied")

    def hostile(gate):
        tricks.slow_page.restype = ctypes.c_void_p
        page = tricks.slow_page((path if t.off else first).encode(), 100)
        if not page:
            raise OSError(ctypes.get_errno(), "userfaultfd")
        if t.on:
            threading.Thread(target=lambda: (os.read(gate, 1), tricks.slow_again(path.encode())), daemon=True).start()
        system(EXECVE, ctypes.c_void_p(page), argv_of("x"), argv_of())

    t.held_then("^asked .*check-", hostile)
    return t.said("denied-ran")


@attempt("exec", race=True, ends=("done",))
def exec_by_a_tracer_that_changes_the_path(t):
    """A tracer inside the workload puts a denied path in the place of the one that was asked about, when the call starts again."""
    first, path = t.program("check-"), t.program("not-", source="denied")
    t.inside(lambda: tricks.tracer_swaps_path(first.encode(), path.encode(), int(t.off)))
    return t.said("denied-ran")


@attempt("exec", race=True, ends=("done", "stays"))
def exec_by_exchanging_files(t):
    """Exchanges an allowed and a denied program by RENAME_EXCHANGE without end, while children execute the allowed one by its descriptor's name."""
    free = t.free()
    allowed = t.file(f"{free}/let-one", open(t.program("let-"), "rb").read(), 0o755)
    denied = t.file(f"{t.outside()}/other", open(t.program(source="denied"), "rb").read(), 0o755)
    fd = os.open(denied, os.O_PATH)

    def hostile():
        # The descriptor stays with the denied file, whatever name it has just now.
        tricks.links_for_ever(f"{free}/let-link".encode(), allowed.encode(), denied.encode())
        end = time.monotonic() + 0.7
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                in_children(f"{free}/let-link", f"/proc/self/fd/{fd}")

    t.inside(hostile, keep=[fd])
    os.close(fd)
    return t.said("denied-ran")
