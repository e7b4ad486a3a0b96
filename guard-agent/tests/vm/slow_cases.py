"""Programs on a file system that answers late or never: what of the agent waits for it, and what must not."""
from awkward_cases import AWKWARD, LIBC, copy, folder, runs_once_approved
from harness import *

# A file system of one program, which lives as long as its standard input is open. It does not answer requests of one kind:
# those of the workload, or those of everybody else, until a byte comes; then it answers all.
FUSE = '''
import ctypes, errno, os, select, struct, sys
where, name, mine, hang, hangs_workload = sys.argv[1], sys.argv[2].encode(), sys.argv[3], int(sys.argv[4]), sys.argv[5] == "workload"
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH, INIT, ACCESS, INTERRUPT, MANY = 1, 2, 3, 14, 15, 18, 25, 26, 34, 36, 42
with open("/usr/bin/touch", "rb") as file:
    content = file.read()
device = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={device},rootmode=40755,user_id=0,group_id=0,allow_other"
if ctypes.CDLL(None).mount(b"none", where.encode(), b"fuse", 0, options.encode()) != 0:
    sys.exit("cannot mount")

def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100755, len(content))
    return struct.pack("<6Q10I", node, size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

def answer(unique, body=b"", error=0):
    try:
        os.write(device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)
    except FileNotFoundError:
        # Whoever asked is gone.
        pass

def is_workload(pid):
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            return mine in file.read()
    except OSError:
        return False

def serve(request):
    _, what, unique, node, _, _, pid = struct.unpack_from("<IIQQIII", request)
    rest = request[40:]
    if what in (FORGET, MANY, INTERRUPT):
        return
    if what == hang and is_workload(pid) == hangs_workload:
        hung.append(request)
        print("hangs", pid, flush=True)
    elif what == INIT:
        answer(unique, struct.pack("<IIIIHHIIHHI7I", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 0, 0, 0, *[0] * 7))
    elif what == LOOKUP and node == 1 and rest.rstrip(bytes(1)) == name:
        answer(unique, struct.pack("<4Q2I", 2, 0, 0, 0, 0, 0) + attributes(2))
    elif what == LOOKUP:
        answer(unique, error=errno.ENOENT)
    elif what == GETATTR:
        answer(unique, struct.pack("<QII", 0, 0, 0) + attributes(node))
    elif what == OPEN:
        # Whose reads may hang reads past the page cache: each read is asked for, and nothing but the answer ends it.
        answer(unique, struct.pack("<QII", 1, is_workload(pid) == hangs_workload, 0))
    elif what == READ:
        _, offset, size = struct.unpack_from("<QQI", rest)
        answer(unique, content[offset : offset + size])
    elif what in (RELEASE, FLUSH, ACCESS):
        answer(unique)
    else:
        answer(unique, error=errno.ENOSYS)

hung = []
print("mounted", flush=True)
while True:
    ready, _, _ = select.select([device, 0], [], [])
    if 0 in ready:
        if not os.read(0, 1):
            break
        hang, waiting, hung = None, hung, []
        for request in waiting:
            serve(request)
    if device in ready:
        serve(os.read(device, 1 << 20))
'''
OPEN, READ = 14, 15


class Slow:
    """A mounted file system whose one program is `path`."""

    def __init__(self, name, hang, whom):
        subprocess.run(["modprobe", "-q", "fuse"], check=False)
        self.where = folder("fuse")
        self.path = f"{self.where}/{name}"
        mine = BOX.removeprefix("/sys/fs/cgroup")
        argv = [sys.executable, "-c", FUSE, self.where, name, mine, str(hang), whom]
        self.server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.server.stdout.readline() != b"mounted\n":
            raise Skipped("fuse cannot be mounted")

    def __enter__(self):
        return self

    def hangs(self):
        """Waits until a request is not answered."""
        check(self.server.stdout.readline().startswith(b"hangs"), "nobody asked for what is not answered")

    def answers(self):
        self.server.stdin.write(b".")
        self.server.stdin.flush()

    def __exit__(self, *_):
        self.server.stdin.close()
        self.server.wait(timeout=20)
        LIBC.umount2(self.where.encode(), 2)


@case
def on_a_file_system_that_never_answers(probe):
    """Served by the workload's friend: whoever else opens the program waits for ever. Nobody else's answer waits with it."""
    with Slow("hold-second-hang", OPEN, "others") as slow:
        marks = [marker(f"fuse{number}") for number in range(3)]
        hanging = [start_moved(slow.path, mark) for mark in marks]
        if not OFF:
            slow.hangs()
        probe.expect(r"^asked .*path=\S*hold-second-hang")
        # The agent's workers wait for the file; this one is asked, read, answered and compared meanwhile.
        name, mark = "hold-second-beside", marker("beside")
        beside = start_moved(copy(name, "/usr/bin/touch"), mark)
        runs_once_approved(probe, name, mark, beside)
        for mark in marks:
            absent(mark, "a program that nobody could look at ran")
    for process in hanging:
        process.wait(timeout=30 * SLOW)
    for mark in marks:
        absent(mark, "a program that nobody could look at ran afterwards")


# ---- an exec of one thread, while another thread of the process has to be held ----

SYS_PTRACE = "101"


def waits_in_ptrace(probe):
    with open(f"/proc/{holder(probe)}/syscall") as file:
        return file.read().split()[0] == SYS_PTRACE


def answered(probe, name):
    """Seconds that another process takes to be asked, traced, read, answered and compared."""
    mark, began = marker(name), time.monotonic()
    text = output(start_moved(program(f"checked-{name}"), mark), 60)
    check(os.path.exists(mark), f"it did not run: {text}\n{probe.since()}")
    return time.monotonic() - began


def beside_an_exec(probe, slow):
    """A process of which one thread is held and traced, the leader has asked and is to be traced, and a third is in an exec that
    reads its program from `slow`: tracing waits for that exec. Gives the process, the numbers of the first two questions, and the files of the three."""
    for attempt in range(5):
        mark = marker("beside")
        held, late = program(f"hold-wait-beside{attempt}"), program(f"hold-late-beside{attempt}")
        process = start(AWKWARD, "turns", mark, held, late, slow.path, stdin=subprocess.PIPE)

        def next_turn():
            process.stdin.write(b".")
            process.stdin.flush()

        next_turn()
        first = probe.expect(rf"^held seq=(\d+) .*path={held} how=Traced").group(1)
        absent(f"{mark}-0", "a thread ran that is held")
        next_turn()
        asked = probe.expect(rf"^asked seq=(\d+) .*path={late} ").group(1)
        next_turn()
        # Not before it is in its exec, and not so late that the thread that asks has stopped the whole process by itself.
        ready, _, _ = select.select([slow.server.stdout], [], [], 1.2)
        if ready:
            slow.hangs()
            probe.expect(rf"^wanted seq={asked} ")
            until(lambda: waits_in_ptrace(probe), "the holder does not have to wait for the exec")
            return process, [first, asked], [f"{mark}-{number}" for number in range(3)]
        process.kill()
        process.wait()
    raise Failed(f"the exec never began in time\n{probe.since()}")


def others_are_answered(probe, usual):
    took = [answered(probe, f"meanwhile{number}") for number in range(3)]
    print(f"   another process was answered in {usual:.2f} s before, three beside it in", ", ".join(f"{one:.2f} s" for one in took))
    check(max(took) < usual + 2 * SLOW, f"another process waited for it\n{probe.since()}")


@case
def an_exec_that_goes_on_beside_a_held_thread(probe):
    """It waits until the agent has taken the end of the held thread, and the agent, tracing another thread, for that exec."""
    usual = 0 if OFF else answered(probe, "usual")
    with Slow("fast-allow-slow", READ, "workload") as slow:
        process, questions, marks = beside_an_exec(probe, slow)
        slow.answers()
        others_are_answered(probe, usual)
        output(process, 30)
    check([os.path.exists(mark) for mark in marks] == [False, False, True], f"ran: {marks} {process.returncode}\n{probe.since()}")
    for number in questions:
        probe.expect(rf"^withdrawn seq={number} .*why=Died")


@case
def an_exec_that_never_goes_on_beside_a_held_thread(probe):
    """Not even SIGKILL would end it. The thread that could not be traced is held as soon as it has failed."""
    usual = 0 if OFF else answered(probe, "usual")
    with Slow("fast-allow-slow", READ, "workload") as slow:
        process, questions, marks = beside_an_exec(probe, slow)
        others_are_answered(probe, usual)
        check(process.poll() is None and not any(os.path.exists(mark) for mark in marks), f"it went on\n{probe.since()}")
    probe.expect(rf"^held seq={questions[1]} ")
    check(not any(os.path.exists(mark) for mark in marks), f"one ran\n{probe.since()}")
    process.kill()
    process.wait()
    for number in questions:
        probe.expect(rf"^withdrawn seq={number} .*why=Died")
