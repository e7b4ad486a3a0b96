"""What the cases of the kernel side share: the probe, ways to start programs, and the run itself.

cases.py [--off] [--full] FOLDER [CASE...] runs cases as root in a VM. FOLDER holds hold_probe and the helpers (odd, see odd.c).
One line per case: `ok NAME SECONDS`, `FAILED NAME: why`, `skipped NAME: why`; the last line counts them. Exit status 1 if one failed.

With --off nothing is enforced: no probe, no programs, no labels. Each case that says by `absent` what enforcement prevents is run
up to there, and what it prevents must happen: else the case proves nothing. Its line is `proven NAME SECONDS` or `FAILED NAME: why`.
"""
import argparse
import errno
import glob
import importlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types

ARGUMENTS = argparse.ArgumentParser()
ARGUMENTS.add_argument("--off", action="store_true")
ARGUMENTS.add_argument("--full", action="store_true")
ARGUMENTS.add_argument("folder")
ARGUMENTS.add_argument("cases", nargs="*")
ASKED = ARGUMENTS.parse_args()

OFF, FULL = ASKED.off, ASKED.full
FOLDER = os.path.abspath(ASKED.folder)
PROBE, ODD = f"{FOLDER}/hold_probe", f"{FOLDER}/odd"
CGROUPS = "/sys/fs/cgroup"
BOX = f"{CGROUPS}/box"
# Another label, which is allowed what some cases are about: namespaces, mounts, setuid programs.
FREE = f"{CGROUPS}/free"
WORK = tempfile.mkdtemp(prefix="kernel-")
os.chmod(WORK, 0o755)
SLOW = float(os.environ.get("SLOW", "1"))


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


class Proven(Exception):
    """Without enforcement it happens."""


def check(condition, text):
    if not condition and not OFF:
        raise Failed(text)


def absent(what, text):
    """What enforcement prevents: a path that must not exist, or a function that gives true when it has happened.

    With enforcement off it must happen, within seconds, and the case ends here."""
    happened = what if callable(what) else lambda: os.path.exists(what)
    if not OFF:
        check(not happened(), text)
        return
    end = time.monotonic() + 10 * SLOW
    while not happened():
        if time.monotonic() > end:
            raise Failed(f"proves nothing: with enforcement off it does not happen either ({text})")
        time.sleep(0.02)
    raise Proven


class Nothing:
    """Stands for a line that nobody printed."""

    def group(self, *_):
        return ""


class NoProbe:
    """What a case is given when nothing is enforced."""

    def since(self):
        return ""

    text = since

    def start_case(self):
        pass

    never = kill = expect = lambda self, *_: Nothing()


class Probe:
    """A running hold_probe and what it printed."""

    def __init__(self, *arguments):
        if OFF:
            raise Failed("no probe is to run with enforcement off")
        self.arguments = arguments
        self.log = tempfile.NamedTemporaryFile("w+", dir=WORK, prefix="probe-", delete=False)
        # A slow guest needs longer to be traced; the default is 500 ms.
        patience = ["--park-after", str(int(500 * SLOW))]
        self.process = subprocess.Popen([PROBE, *patience, *arguments], stdout=self.log, stderr=self.log)
        self.mark = 0
        self.expect(r"^ready$", 120)

    def text(self):
        with open(self.log.name, errors="replace") as file:
            return file.read()

    def start_case(self):
        self.mark = len(self.text())

    def since(self):
        return self.text()[self.mark:]

    def expect(self, pattern, seconds=20):
        """The first line since the case began that matches."""
        end = time.monotonic() + seconds * SLOW
        while True:
            found = re.search(pattern, self.since(), re.M)
            if found:
                return found
            check(self.process.poll() is None, f"the probe ended: {self.text()[-2000:]}")
            check(time.monotonic() < end, f"no line matches {pattern!r}; there are:\n{self.since()}")
            time.sleep(0.02)

    def never(self, pattern):
        found = re.search(pattern, self.since(), re.M)
        check(not found, f"unexpected line: {found and found.group(0)}\n{self.since()}")

    def kill(self):
        self.process.kill()
        self.process.wait()


def enter(cgroup=BOX):
    with open(f"{cgroup}/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))


def start(*argv, cgroup=BOX, **more):
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.STDOUT)
    return subprocess.Popen(argv, preexec_fn=lambda: enter(cgroup), **more)


def start_moved(*argv, cgroup=BOX, **more):
    """Like start, but with the process already there: Popen would wait for the held exec."""
    more.setdefault("stdout", subprocess.PIPE)
    more.setdefault("stderr", subprocess.STDOUT)
    # A process group of its own, whose parent is in another one: else SIGTSTP means nothing to it.
    process = subprocess.Popen([ODD, "moved", *argv], stdin=subprocess.PIPE, process_group=0, **more)
    process.stdout.readline()
    with open(f"{cgroup}/cgroup.procs", "w") as file:
        file.write(str(process.pid))
    process.stdin.write(b"\n")
    process.stdin.flush()
    return process


def output(process, seconds=20):
    try:
        return process.communicate(timeout=seconds * SLOW)[0].decode()
    except subprocess.TimeoutExpired:
        process.kill()
        raise Failed("it did not end")


def state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def ticks(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def holder(probe):
    """The holder's thread, as a folder below /proc."""
    for task in os.listdir(f"/proc/{probe.process.pid}/task"):
        with open(f"/proc/{probe.process.pid}/task/{task}/comm") as file:
            if file.read().strip() == "guard-holder":
                return f"{probe.process.pid}/task/{task}"
    raise Failed("no thread is called guard-holder")


def idle(probe):
    """The holder uses next to no CPU. Ticks also count what a busy machine takes from its guest: one calm window of some is enough,
    and a holder that is busy has none."""
    used = []
    for _ in range(5):
        before = ticks(holder(probe))
        time.sleep(2)
        used.append(ticks(holder(probe)) - before)
        if used[-1] <= 2:
            return
    raise Failed(f"the holder is busy: {used} ticks in two seconds each")


def until(what, text, seconds=10):
    # Without a probe most of what is waited for never comes; what is attempted after it still must be.
    end = time.monotonic() + (1 if OFF else seconds * SLOW)
    while not what():
        if time.monotonic() >= end:
            check(False, text)
            return
        time.sleep(0.02)


def program(name, content=None):
    """A program of its own name, so that a rule can mean it: a copy of odd's shell-less `true`, or a script."""
    path = f"{WORK}/{name}"
    if content is None:
        shutil.copy("/usr/bin/touch", path)
    else:
        with open(path, "w") as file:
            file.write(content)
    os.chmod(path, 0o755)
    return path


def marker(name):
    return f"{WORK}/marker-{name}-{time.monotonic_ns()}"


RULES = [
    "fast-allow=allow", "fast-deny=deny", "hold-deny=hold:300:deny", "hold-second=hold:1000:check",
    "hold-allow=hold:300:allow", "hold-wait=hold", "unanswered=ignore", "hold-long=hold:4000:check",
    "hold-late=late:1500",
]

CASES = []
PROBES = []


def case(function):
    """Adds a case: it is given the running probe."""
    CASES.append(function)
    return function


def full(function):
    """Below @case: only in full runs, with an hour's time."""
    function.full = True
    function.limit = 3600
    return function


def repeats(short, long, series):
    """How often a long case repeats: `short`; in full runs `long` on that kernel series, and a fifth of it on the others."""
    if not FULL:
        return short
    return long if os.uname().release.startswith(f"{series}.") else max(short, long // 5)


def one_kernel(_series):
    """Below @case: takes minutes; ordinary runs of all kernels have it on this one only (xtask reads this line)."""
    return lambda function: function


def limit(seconds):
    """Below @case: its time, when 90 seconds are not enough."""

    def set_limit(function):
        function.limit = seconds
        return function

    return set_limit


def says_absent(function):
    """Whether it, or a function that it calls, says what enforcement prevents."""
    seen, todo = set(), [function]
    while todo:
        function = todo.pop()
        codes = [function.__code__]
        for code in codes:
            codes.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
            for name in code.co_names:
                if name == "absent":
                    return True
                called = function.__globals__.get(name)
                if isinstance(called, types.FunctionType) and called not in seen and called is not absent:
                    seen.add(called)
                    todo.append(called)
    return False


LABELS = ["--label", BOX, "--label", f"{CGROUPS}/before=7", "--label", f"{FREE}=8", "--allow", "8=mount,namespaces,setuid"]


def again(*more):
    """Another probe with the labels and rules of all cases."""
    if OFF:
        return NoProbe()
    return Probe(*LABELS, *more, *RULES)


class Before:
    """A shell in a cgroup that the first probe found with a process in it."""

    def __init__(self):
        os.makedirs(f"{CGROUPS}/before/deep", exist_ok=True)
        self.shell = subprocess.Popen(["/bin/sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                      preexec_fn=lambda: enter(f"{CGROUPS}/before/deep"))
        self.stdin, self.stdout = self.shell.stdin, self.shell.stdout


os.makedirs(BOX, exist_ok=True)
os.makedirs(FREE, exist_ok=True)
BEFORE = Before()


def too_late(_number, _frame):
    raise Failed(f"it took too long\n{PROBES[-1].since()[-3000:]}")


signal.signal(signal.SIGALRM, too_late)
# Not ignored, whoever started this: programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def tripwire():
    """Packets that were dropped because no hook had let them through, since the programs were loaded."""
    text = subprocess.run([PROBE, "--usage"], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"tripwire: (\d+)", text)[1])


def stacks():
    """Where the threads of all programs stand."""
    said = ""
    for folder in glob.glob("/proc/[0-9]*/task/*"):
        try:
            os.readlink(f"{folder}/exe")
            read = lambda name: open(f"{folder}/{name}").read().strip()
            said += f"{folder} {read('comm')} {read('syscall')} {read('stack').replace(chr(10), ' < ')}\n"
        except OSError:
            pass
    return said


def run(function):
    """Runs one case; gives the first word of its line and the line."""
    name, began = function.__name__, time.monotonic()
    probe = PROBES[-1]
    probe.start_case()
    seconds = lambda: f"{time.monotonic() - began:.1f}s"
    signal.alarm(int(getattr(function, "limit", 90) * SLOW))
    try:
        watched = function.__module__ == "egress_cases" and not OFF
        before = tripwire() if watched else 0
        function(probe)
        if watched:
            check(tripwire() == before, "packets that no hook had let through were dropped")
        if OFF:
            return "FAILED", f"{name}: with enforcement off it does not come to what it prevents"
        return "ok", f"{name} {seconds()}"
    except Proven:
        return "proven", f"{name} {seconds()}"
    except Skipped as why:
        return "skipped", f"{name}: {why}"
    except Failed as why:
        log = "\n   | ".join((stacks() + probe.since()[-4000:]).splitlines())
        return "FAILED", f"{name}: {why}\n   | {log}"
    except Exception:
        return "FAILED", f"{name}: {traceback.format_exc()}"
    finally:
        signal.alarm(0)


def main():
    sys.path.insert(0, FOLDER)
    for path in sorted(glob.glob(f"{FOLDER}/*_cases.py")):
        importlib.import_module(os.path.basename(path)[:-3])
    PROBES.append(again())
    for line in PROBES[-1].text().splitlines():
        if line.startswith(("started ", "offsets ")):
            print("fact:", line)
    counts = {"proven": 0} if OFF else {"ok": 0}
    counts.update({"FAILED": 0, "skipped": 0})
    for function in CASES:
        if ASKED.cases and function.__name__ not in ASKED.cases:
            continue
        if getattr(function, "full", False) and not FULL or OFF and not says_absent(function):
            continue
        word, line = run(function)
        # What a case that failed left behind is not the next one's.
        if OFF or word == "FAILED":
            for cgroup in BOX, FREE:
                with open(f"{cgroup}/cgroup.kill", "w") as file:
                    file.write("1")
        counts[word] += 1
        print(word, line, flush=True)
        if not OFF and PROBES[-1].process.poll() is not None:
            print(f"   the probe ended: {PROBES[-1].text()[-1500:]}", flush=True)
            PROBES.append(again())
    PROBES[-1].kill()
    print("end:", ", ".join(f"{count} {word}" for word, count in counts.items()))
    sys.exit(1 if counts["FAILED"] else 0)
