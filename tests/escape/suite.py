"""What an attempt is, and what it is given.

An attempt is a function below `@attempt(CLASS)`. Its name is its own, its text says what it tries. It is given a Try and sets things up
outside the label, has the hostile part run inside it (`t.inside`), and then looks, from outside, whether something happened that
must not: it gives what it saw, or nothing. What the hostile part says of itself is no proof.

CLASS is what has to be enforced for it to fail: exec, egress, stay, theft, files, privilege; others: limits and priorities of processes
outside and times of files, which nothing of Guard claims to protect.
"""
import argparse
import contextlib
import ctypes
import errno
import json
import os
import re
import select
import signal
import subprocess
import tempfile
import time
import traceback

ARGUMENTS = argparse.ArgumentParser()
ARGUMENTS.add_argument("--off", action="store_true")
ARGUMENTS.add_argument("--list", action="store_true")
ARGUMENTS.add_argument("--exactly", action="store_true")
ARGUMENTS.add_argument("folder")
ARGUMENTS.add_argument("words", nargs="*")
ASKED = ARGUMENTS.parse_args()

# The classes that Guard enforces. An attempt of another class is run with enforcement off only, and skipped with enforcement on.
ENFORCED = ("exec", "egress", "stay", "theft", "files", "privilege")
CLASSES = ("exec", "egress", "stay", "theft", "files", "privilege", "others")

OFF = ASKED.off
FOLDER = os.path.abspath(ASKED.folder)
SLOW = float(os.environ.get("SLOW", "1"))
CGROUPS = "/sys/fs/cgroup"
BOX, OUT = f"{CGROUPS}/box", f"{CGROUPS}/outside"
# Below these: programs, what nobody may change, what the workload may.
PROGRAMS_FOLDER, OUTSIDE, FREE = "/srv/programs", "/srv/outside", "/srv/free"
SECRET = "the token of an approver"

# Of a port, what the policy says; any other one is denied.
ALLOW, HOLD, HOLD_DENY, WAIT, DENY = 7101, 7102, 7103, 7104, 7110
CONSOLE = 7443
# The first whose text is in the path of a program, or in the peer, counts. What is named "check-" is asked for, approved, and compared.
RULES = [
    "let-=allow", "check-=hold:700:check", "refuse-=hold:500:deny", "wait-=hold", f"{FREE}/=allow",
    f":{ALLOW}=allow", f":{HOLD}=hold:400:allow", f":{HOLD_DENY}=hold:400:deny", f":{WAIT}=hold",
    "=deny",
]

# C functions for what Python cannot do, in memory before anything is labelled: see tricks.c.
tricks = ctypes.CDLL(f"{FOLDER}/tricks.so", use_errno=True)
libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


class Attempt:
    def __init__(self, function, kind, race, ends):
        self.function, self.kind, self.race, self.ends = function, kind, race, ends
        self.name = function.__name__
        self.tries = " ".join((function.__doc__ or "").split())


ATTEMPTS, PROGRAMS = [], []


def attempt(kind, race=False, ends=()):
    """Adds an attempt. `race`: it uses io_uring, threads or timing. `ends`: how its hostile part may also end, beside EPERM, EACCES and
    being killed: names of errors, `done`, `stays`."""
    if kind not in CLASSES:
        raise Failed(f"no class is called {kind}")

    def add(function):
        made = Attempt(function, kind, race, ends)
        if not made.tries or any(other.name == made.name for other in ATTEMPTS):
            raise Failed(f"{made.name} has no text, or another one has its name")
        ATTEMPTS.append(made)
        return function

    return add


def program(function):
    """Adds a real program, which must work when everything that it does is approved."""
    PROGRAMS.append(Attempt(function, None, False, ()))
    return function


def asked_for(what):
    if ASKED.exactly:
        return what.name in ASKED.words
    return not ASKED.words or any(word in what.name for word in ASKED.words)


class Probe:
    """The one running hold_probe, and what it printed."""

    process = log = None

    @classmethod
    def start(cls, approves=False):
        cls.stop()
        cls.log = tempfile.NamedTemporaryFile("w+", dir="/run", prefix="probe-", delete=False)
        # Without a rule everything is asked, and approved as soon as it has been read.
        rules = [] if approves else RULES
        labels = ["--label", BOX, "--protect", f"127.0.0.1:{CONSOLE}"]
        if "files" in ENFORCED:
            labels += ["--ask-writes", "1"] if approves else ["--ask-writes", "1", "--free", f"1={FREE}"]
        if "privilege" in ENFORCED and approves:
            # For a container: what nobody is asked about.
            labels += ["--allow", "1=mount,namespaces,chroot,network"]
        patience = ["--park-after", str(int(500 * SLOW))]
        cls.process = subprocess.Popen([f"{FOLDER}/hold_probe", *patience, *labels, *rules], stdout=cls.log, stderr=cls.log)
        end = time.monotonic() + 200 * SLOW
        while not re.search(r"^ready$", cls.text(), re.M):
            if cls.ended() or time.monotonic() > end:
                raise Failed(f"the probe does not start: {cls.text()[-2000:]}")
            time.sleep(0.05)
        # It looks at what is to be protected twice a second.
        time.sleep(1 * SLOW)

    @classmethod
    def stop(cls):
        if cls.process:
            cls.process.kill()
            cls.process.wait()
            cls.process = None

    @classmethod
    def ended(cls):
        return cls.process is None or cls.process.poll() is not None

    @classmethod
    def text(cls, mark=0):
        """What it printed since a place."""
        if cls.log is None:
            return ""
        with open(cls.log.name, "rb") as file:
            file.seek(mark)
            return file.read().decode(errors="replace")

    @classmethod
    def mark(cls):
        return os.path.getsize(cls.log.name) if cls.log else 0


class Inside:
    """A process inside the label that runs a function; it stays until it is closed, so that others can look at it."""

    def __init__(self, tried, function, before, keep, uid, cgroup):
        self.how = self.value = None
        self.said = b""
        result, result_end = os.pipe()
        stay, self.stay = os.pipe()
        self.out, out_end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.child(function, before, {result_end, stay, *keep}, result_end, stay, out_end, uid, cgroup)
            finally:
                os._exit(99)
        self.result = result
        for fd in result_end, stay, out_end:
            os.close(fd)
        for fd in self.result, self.out:
            os.set_blocking(fd, False)

    def child(self, function, before, keep, result, stay, out, uid, cgroup):
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.setsid()
        os.dup2(out, 1)
        os.dup2(out, 2)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in keep:
                with contextlib.suppress(OSError):
                    os.close(fd)
        said = {"how": "broke", "value": "nothing was said"}
        try:
            given = [before()] if before else []
            with open(f"{cgroup}/cgroup.procs", "w") as file:
                file.write("0")
            if uid is not None:
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            value = function(*given)
            said = {"how": "done", "value": value if isinstance(value, (str, int, float, list, type(None))) else repr(value)}
        except OSError as error:
            said = {"how": errno.errorcode.get(error.errno, str(error.errno)), "value": str(error)}
        except BaseException:
            said = {"how": "broke", "value": traceback.format_exc()}
        os.write(result, json.dumps(said).encode() + b"\n")
        os.close(result)
        os.read(stay, 1)
        os._exit(0)

    def hear(self):
        """What it printed so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.out, 65536):
                self.said += data
        return self.said.decode(errors="replace")

    def wait(self, seconds=8):
        """Until its function has come back, it executed something or has ended; how: `done`, the name of an error, `killed`, `gone`
        when it executed or ended, `stays` when none of that happened in time."""
        end, heard = time.monotonic() + seconds * SLOW, b""
        while self.how is None:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.result], [], [], left)[0]:
                self.how = "stays"
                break
            data = os.read(self.result, 65536)
            heard += data
            # Children have the pipe's other end too: its end says nothing when they outlive the function.
            if data and not heard.endswith(b"\n"):
                continue
            if heard:
                said = json.loads(heard)
                self.how, self.value = said["how"], said["value"]
                break
            # An exec that succeeded, or an end.
            self.how = "gone"
            until = time.monotonic() + 2 * SLOW
            while time.monotonic() < until:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.ended = True
                    if os.WIFSIGNALED(status):
                        self.how = "killed" if os.WTERMSIG(status) == signal.SIGKILL else f"signal {os.WTERMSIG(status)}"
                    break
                time.sleep(0.01)
        return self.how

    ended = False

    def finish(self, seconds):
        """Waits until it has ended; gives its status, or None when it does not in time."""
        end = time.monotonic() + seconds * SLOW
        while time.monotonic() < end:
            self.hear()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.ended = True
                self.how = status = os.waitstatus_to_exitcode(status)
                return status
            time.sleep(0.01)
        return None

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self.stay)
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            end = time.monotonic() + 10 * SLOW
            while time.monotonic() < end:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    break
                time.sleep(0.005)
        for fd in self.result, self.out:
            os.close(fd)


NUMBER = iter(range(1, 1_000_000))


class Try:
    """What an attempt is given."""

    on, off = not OFF, OFF

    def __init__(self, attempt):
        self.attempt = attempt
        self.stack = contextlib.ExitStack()
        self.insides = []
        self.number = next(NUMBER)
        self.mark = Probe.mark()
        self.cgroup = f"{BOX}/a{self.number}"
        os.makedirs(self.cgroup, exist_ok=True)

    # ---- places ----

    def outside(self):
        """A fresh folder that the workload may not change."""
        return self.fresh(OUTSIDE)

    def free(self):
        """A fresh folder that the workload may change as it likes."""
        return self.fresh(FREE)

    def fresh(self, root):
        os.makedirs(root, exist_ok=True)
        path = tempfile.mkdtemp(prefix=f"{self.number}-", dir=root)
        os.chmod(path, 0o777)
        return path

    def program(self, prefix="", source="say", suffix=""):
        """A program of its own: its name begins with what the policy says of it, without one it is denied. It prints its arguments."""
        os.makedirs(PROGRAMS_FOLDER, exist_ok=True)
        path = f"{PROGRAMS_FOLDER}/{prefix}{source}-{next(NUMBER)}{suffix}"
        with open(f"{FOLDER}/{source}" if "/" not in source else source, "rb") as file:
            content = file.read()
        return self.file(path, content, 0o755)

    def script(self, prefix, interpreter, *more):
        path = f"{PROGRAMS_FOLDER}/{prefix}script-{next(NUMBER)}"
        return self.file(path, f"#!{interpreter}\n{''.join(more)}".encode(), 0o755)

    def file(self, path, content=b"original\n", mode=0o644):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
        os.chmod(path, mode)
        return path

    # ---- inside ----

    def start(self, function, before=None, keep=(), uid=None, cgroup=None):
        """Starts the hostile part: `before` runs in the same process before it is labelled, and what it gives is given to the function."""
        made = Inside(self, function, before, [fd if isinstance(fd, int) else fd.fileno() for fd in keep], uid, cgroup or self.cgroup)
        self.insides.append(made)
        return made

    def inside(self, function, seconds=8, **more):
        """Has the hostile part run, and waits until it has said how it went."""
        made = self.start(function, **more)
        made.wait(seconds)
        return made

    def held_then(self, pattern, hostile, **more):
        """Has the hostile part run; it is given what its own `once_held` waits for: that the probe says that somebody is held."""
        gate, end = os.pipe()
        made = self.start(lambda *given: hostile(gate, *given), keep=[gate], **more)
        self.must(pattern)
        os.write(end, b"x")
        made.wait()
        os.close(gate)
        os.close(end)
        return made

    def odd_end(self):
        """Why a hostile part did not end as one that was refused."""
        fine = {"EPERM", "EACCES", "killed", *self.attempt.ends}
        for made in self.insides:
            if made.how not in fine:
                return f"{made.how} {made.value or ''}"
        return None

    # ---- outside: proofs ----

    def said(self, text="ran"):
        """What a hostile part's programs printed, when the text is in it."""
        for _ in self.patience(0.2, 5):
            for made in self.insides:
                if text in made.hear():
                    return f"printed: {made.hear().strip()[:200]}"
        return None

    def patience(self, on, off):
        """Turns, for as long as something that must not happen may take to happen; with enforcement off it must, and soon does."""
        end = time.monotonic() + (off * SLOW if OFF else on)
        while True:
            yield
            if time.monotonic() >= end:
                return
            time.sleep(0.01)

    def happens(self, what, text):
        """The text, once `what` gives true."""
        for _ in self.patience(0.2, 5):
            if what():
                return text
        return None

    def later(self, undo):
        """To be done at the end."""
        self.stack.callback(undo)

    def victim(self, **more):
        """A process outside the label that does nothing."""
        ready, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.alarm(0)
            try:
                os.setsid()
                more.get("prepare", lambda: None)()
                os.write(end, b"x")
                os.close(end)
                while True:
                    signal.pause()
            finally:
                os._exit(9)
        os.close(end)
        os.read(ready, 1)
        os.close(ready)

        def end_it():
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)

        self.later(end_it)
        return pid

    def skip(self, why):
        raise Skipped(why)

    # ---- the probe ----

    def log(self):
        return Probe.text(self.mark)

    def asked(self, pattern=""):
        """How often the policy was asked for something."""
        return len(re.findall(rf"^asked .*{pattern}", self.log(), re.M))

    def must(self, pattern):
        """With enforcement on the probe must have said so: else nothing was tried."""
        for _ in self.patience(5 * SLOW, 0):
            if OFF or re.search(pattern, self.log(), re.M):
                return
        raise Failed(f"no line of the probe matches {pattern!r}")

    def story(self):
        """What is known of one that did not go well."""
        said = [f"{made.how} {made.value or ''} {made.hear()[-300:]}" for made in self.insides]
        with contextlib.suppress(OSError), open(f"{self.cgroup}/cgroup.procs") as file:
            for pid in file.read().split():
                with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/wchan") as place:
                    said.append(f"{' '.join(stat.read().split()[:4])} {place.read()}")
        return "; ".join(said) + "\n" + self.log()[-1500:]

    closed = False

    def close_quietly(self):
        """Ends what is left of one that has failed already."""
        with contextlib.suppress(Exception):
            self.close()

    def close(self):
        if self.closed:
            return
        self.closed = True
        for made in self.insides:
            with contextlib.suppress(OSError):
                made.close()
        with contextlib.suppress(OSError), open(f"{self.cgroup}/cgroup.kill", "w") as file:
            file.write("1")
        self.stack.close()
        end = time.monotonic() + 20 * SLOW
        while time.monotonic() < end:
            try:
                os.rmdir(self.cgroup)
                break
            except OSError:
                time.sleep(0.02)
        # Until the probe has worked off what this one gave it to do: the next one is not to wait for that.
        while not OFF and not Probe.ended() and time.monotonic() < end:
            log = self.log()
            made = re.search(rf"^cgroup made (\d+) /box/{os.path.basename(self.cgroup)}$", log, re.M)
            if made and re.search(rf"^cgroup gone {made[1]}$", log, re.M):
                return
            time.sleep(0.02)
        if time.monotonic() >= end:
            raise Failed("it keeps the probe busy, or its processes do not end")


def once_held(gate, change):
    """Changes something once the probe has read what a held thread is about to do: by a process of its own, which is not stopped with
    it. With enforcement off nobody is held, and it is changed at once."""
    if OFF:
        change()
        return
    if os.fork() == 0:
        try:
            os.read(gate, 1)
            change()
        finally:
            os._exit(0)


def call(function, *arguments):
    """A function of libc or of tricks.c that sets errno."""
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def system(number, *arguments):
    """A system call; bytes are passed by pointer."""
    return call(libc.syscall, *(ctypes.c_long(value) if isinstance(value, int) else value for value in (number, *arguments)))


libc.syscall.restype = ctypes.c_long


def write_file(path, text):
    with open(path, "w") as file:
        file.write(text)


for folder in BOX, OUT:
    os.makedirs(folder, exist_ok=True)
for folder in PROGRAMS_FOLDER, OUTSIDE, FREE:
    os.makedirs(folder, exist_ok=True)
os.chmod(FREE, 0o777)
