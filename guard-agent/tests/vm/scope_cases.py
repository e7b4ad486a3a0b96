"""Who is labelled, who stays so, and what one label may use."""
import contextlib
import re
import socket
import sys
import tempfile

from harness import *

SCOPE = f"{FOLDER}/scope"
OUT = f"{CGROUPS}/out"
os.makedirs(OUT, exist_ok=True)


def members(cgroup):
    with open(f"{cgroup}/cgroup.procs") as file:
        return [int(line) for line in file]


def move(pid, cgroup):
    with open(f"{cgroup}/cgroup.procs", "w") as file:
        file.write(str(pid))


def go(process):
    process.stdin.write(b"\n")
    process.stdin.flush()


def ready(process):
    """Waits until a helper says that it is."""
    line = process.stdout.readline()
    check(line == b"ready\n", f"not ready: {line}")


def waiting(*argv, cgroup):
    """A helper that waits for a line, started in a cgroup."""
    process = start(SCOPE, *argv, cgroup=cgroup, stdin=subprocess.PIPE)
    ready(process)
    return process


@contextlib.contextmanager
def fresh():
    """A new cgroup below the labelled one. From 6.13 on, kernels kill a child that is cloned between two cgroups of which one was
    ever killed (`cgroup.kill`) and the other was not, as the box is after each case: their kill_seq differ."""
    inner = tempfile.mkdtemp(prefix="fresh-", dir=BOX)
    try:
        yield inner
    finally:
        until(lambda: not members(inner), "processes stay in it")
        os.rmdir(inner)


def usage():
    text = subprocess.run([PROBE, "--usage"], capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(\w+): (\d+)[,} ]", text.rpartition("]")[2] + " ")}
    labels = {}
    for found in re.finditer(r"LabelNumbers \{ label: LabelId\((\d+)\), ([^}]*)\}", text):
        labels[int(found[1])] = {name: int(value) for name, value in re.findall(r"(\w+): (\d+)", found[2])}
    return numbers, labels


def idle(cgroup=BOX):
    """Waits until nobody is left in a cgroup and what they used is given back; gives the numbers."""
    until(lambda: not members(cgroup), f"{cgroup} does not become empty")
    end = time.monotonic() + 10 * SLOW
    while time.monotonic() < end:
        numbers, labels = usage()
        if labels[1]["tasks"] == 0 and labels[1]["pending"] == 0:
            break
        time.sleep(0.2)
    return numbers, labels


# ---- nobody leaves ----

def left(text):
    return lambda: text.strip() == "ok"


@case
def leaving_by_path(probe):
    text = output(start(SCOPE, "write", f"{OUT}/cgroup.procs"))
    absent(left(text), "it moved itself")
    check("not permitted" in text, text)


@case
def leaving_by_a_descriptor_from_before(probe):
    process = waiting("later", f"{OUT}/cgroup.procs", cgroup=OUT)
    move(process.pid, BOX)
    go(process)
    text = output(process)
    absent(left(text), "it moved itself")
    check("not permitted" in text, text)


@case
def leaving_by_clone(probe):
    mark = marker("clone")
    with fresh() as inner:
        text = output(start(SCOPE, "clone", OUT, mark, cgroup=inner))
    absent(mark, f"its child was made elsewhere: {text}")
    check("not permitted" in text, text)


@case
def making_a_cgroup(probe):
    inner = f"{BOX}/made"
    text = output(start(SCOPE, "mkdir", inner))
    try:
        absent(inner, f"it made one: {text}")
    finally:
        if os.path.exists(inner):
            os.rmdir(inner)
    check("not permitted" in text, text)


@case
def taking_the_label_off_its_cgroup(probe):
    os.setxattr(BOX, "trusted.guard.label", b"coder")
    try:
        text = output(start(SCOPE, "rmattr", BOX))
        absent(lambda: "trusted.guard.label" not in os.listxattr(BOX), f"it took it: {text}")
        check("not permitted" in text, text)
    finally:
        if "trusted.guard.label" in os.listxattr(BOX):
            os.removexattr(BOX, "trusted.guard.label")


@case
def reading_cgroup_files_is_allowed(probe):
    text = output(start("/bin/cat", f"{BOX}/cgroup.procs"))
    check(text.strip().isdigit(), text)


# ---- the label stays with the task ----

@case
def moved_out_by_somebody_else(probe):
    touch, mark = program("fast-deny-out"), marker("out")
    process = start_moved(touch, mark, cgroup=OUT) if OFF else None
    if not OFF:
        process = waiting("thread", touch, mark, cgroup=BOX)
        move(process.pid, OUT)
        go(process)
    text = output(process)
    absent(mark, "it ran")
    check("not permitted" in text, text)


@case
def every_thread_that_moves_in_is_labelled(probe):
    """Moved in and out again: only a stamp of its own can still say so."""
    touch, mark = program("fast-deny-threads"), marker("threads")
    process = waiting("thread", touch, mark, cgroup=OUT)
    move(process.pid, BOX)
    move(process.pid, OUT)
    go(process)
    text = output(process)
    absent(mark, "a thread that was not the leader ran it")
    check("not permitted" in text, text)


@case
def every_thread_inside_is_labelled_at_once(probe):
    """Inside when the label comes, then moved out by somebody."""
    touch, mark = program("fast-deny-inside"), marker("inside")
    late = f"{CGROUPS}/late/deep"
    os.makedirs(late, exist_ok=True)
    process = waiting("thread", touch, mark, cgroup=late)
    if not OFF:
        probe.kill()
        PROBES.append(again("--label", f"{CGROUPS}/late=3"))
        PROBES[-1].expect(rf"^labelled {os.stat(f'{CGROUPS}/late').st_ino} Ok", 20)
    move(process.pid, OUT)
    go(process)
    text = output(process)
    absent(mark, "it ran")
    check("not permitted" in text, text)


@case
def a_clone_into_the_cgroup_is_labelled(probe):
    touch, mark = program("fast-deny-clone"), marker("into")
    with fresh() as inner:
        text = output(start(SCOPE, "exec-in", inner, touch, mark, cgroup=OUT))
    absent(mark, f"it ran: {text}")
    check("not permitted" in text, text)


@case
def a_removed_cgroup_takes_the_label_from_nobody(probe):
    touch, mark = program("fast-deny-removed"), marker("removed")
    gone = f"{CGROUPS}/gone"
    os.makedirs(gone, exist_ok=True)
    if not OFF:
        probe.kill()
        PROBES.append(again("--label", f"{gone}=4"))
        PROBES[-1].expect(rf"^labelled {os.stat(gone).st_ino} Ok", 20)
    process = waiting("thread", touch, mark, cgroup=gone)
    move(process.pid, OUT)
    os.rmdir(gone)
    PROBES[-1].expect(r"^cgroup gone ")
    origins = 0 if OFF else usage()[0]["origins"]
    time.sleep(0 if OFF else 4)
    go(process)
    text = output(process)
    absent(mark, "it ran")
    check("not permitted" in text, text)
    until(lambda: usage()[1][4]["tasks"] == 0, "its stamps are not given back")
    until(lambda: usage()[0]["origins"] == origins - 1, f"its origin is kept: {usage()}", 20)


# ---- nothing is left behind ----

@case
@limit(600 if FULL else 90)
def a_storm_of_forks_leaves_nothing(probe):
    before = idle()
    count = repeats(500, 20_000, "7.2")
    text = output(start("/bin/sh", "-c", f"{SCOPE} storm {count} & {SCOPE} storm {count} & wait"), 60 + count // 100)
    check(text.count("0 failed") == 2, text)
    after = idle()
    check(after[1][1]["tasks"] == 0, f"labelled tasks before {before}, after {after}")
    check(after[0]["filtered"] == after[0]["tasks"], f"the filter does not agree with the table: {after}")
    check(after[0]["tasks"] <= before[0]["tasks"], f"stamps before {before}, after {after}")


@case
def a_storm_of_cgroups_leaves_nothing(probe):
    before = usage()[0]
    for _ in range(5 if FULL else 1):
        for at in range(200):
            os.makedirs(f"{BOX}/storm{at}/deep")
        check(usage()[0]["cgroups"] == before["cgroups"] + 400, f"they are not labelled: {usage()[0]}")
        for at in range(200):
            os.rmdir(f"{BOX}/storm{at}/deep")
            os.rmdir(f"{BOX}/storm{at}")
    after = usage()[0]
    check(after["cgroups"] == before["cgroups"], f"before {before}, after {after}")


# ---- what one label may use ----

def afresh(*more):
    PROBES[-1].kill()
    PROBES.append(again(*more))
    return PROBES[-1]


@case
@one_kernel("6.1")
def one_label_cannot_take_the_questions_of_others(probe):
    idle()
    probe = afresh("--pending", "3")
    try:
        held = program("hold-wait-quota")
        processes = [start_moved(held, marker("q")) for _ in range(3)]
        until(lambda: usage()[1][1]["pending"] == 3, f"three do not wait: {usage()}")
        more = output(start_moved(held, marker("q")))
        check("not permitted" in more, f"the fourth was not refused: {more}")
        check(usage()[1][1]["refused_pending"] > 0, f"not counted: {usage()}")
        # Another label is asked about.
        touch, mark = program("fast-allow-other"), marker("other")
        BEFORE.stdin.write(f"{touch} {mark}; echo done\n".encode())
        BEFORE.stdin.flush()
        check(BEFORE.stdout.readline() == b"done\n" and os.path.exists(mark), "the other label was not asked about")
        for process in processes:
            process.kill()
            process.wait()
        numbers = idle()
        check(numbers[1][1]["pending"] == 0 and numbers[0]["pending"] == 0, f"not given back: {numbers}")
    finally:
        afresh()


@case
@one_kernel("6.1")
def one_label_cannot_take_the_sockets_of_others(probe):
    """Beyond its quota a socket that would have to be remembered is refused; closed ones give their place back."""
    until(lambda: idle()[1][1]["sockets"] == 0, f"sockets stay known: {usage()}")
    afresh("--sockets", "10")
    listener = socket.create_server(("127.0.0.1", 7101))
    try:
        process = start(sys.executable, "-c", """
import os, socket
def some(count, make):
    made, refused = [], 0
    for _ in range(count):
        try:
            made.append(make())
        except PermissionError:
            refused += 1
    return made, refused
unix, refused = some(14, lambda: socket.socket(socket.AF_UNIX))
print(len(unix), refused, flush=True)
connect = lambda: socket.create_connection(("127.0.0.1", 7101))
print(*(len(x) if isinstance(x, list) else x for x in some(2, connect)), flush=True)
del unix
made, refused = some(12, connect)
print(len(made), refused, flush=True)
input()
""", stdin=subprocess.PIPE)
        lines = [process.stdout.readline().decode().split() for _ in range(3)]
        check(lines == [["10", "4"], ["0", "2"], ["10", "2"]], f"made and refused: {lines}")
        numbers = usage()[1][1]
        check(numbers["sockets"] == 10 and numbers["refused_sockets"] >= 8, f"not counted: {numbers}")
        process.communicate(b"\n")
        until(lambda: idle()[1][1]["sockets"] == 0, f"not given back: {usage()}")
    finally:
        listener.close()
        afresh()


@case
@one_kernel("6.1")
def one_label_cannot_take_the_forks_of_others(probe):
    idle()
    afresh("--tasks", "20")
    try:
        bomb = start(SCOPE, "bomb", "60", stdin=subprocess.PIPE, process_group=0)
        line = bomb.stdout.readline().decode()
        found = re.match(r"(\d+) failed: Resource temporarily unavailable", line)
        check(found and 38 <= int(found[1]) <= 45, f"of 60 forks: {line}")
        check(usage()[1][1]["refused_tasks"] >= 38, f"not counted: {usage()}")
        touch, mark = program("fast-allow-fork"), marker("fork")
        BEFORE.stdin.write(f"{touch} {mark}; echo done\n".encode())
        BEFORE.stdin.flush()
        check(BEFORE.stdout.readline() == b"done\n" and os.path.exists(mark), "the other label cannot fork")
        ready(bomb)
        go(bomb)
        output(bomb)
        check(idle()[1][1]["tasks"] == 0, f"not given back: {usage()}")
    finally:
        afresh()
