"""Many at once, for long, and while agents die: short forms in every run, long ones with --full."""
import ctypes
import random
import struct

from harness import *

AWKWARD = f"{FOLDER}/awkward"
PINS = "/sys/fs/bpf/guard"
NR_BPF = 280 if os.uname().machine == "aarch64" else 321
BPF_OBJ_GET = 7


def of_version(number, *more, crash=None, build=None):
    """Another probe, whose programs and maps are pinned as those of that version, of its own without one; of another build, whose
    programs take the place of the pinned ones, if one is named."""
    wanted = {"GUARD_TEST_PINS_VERSION": number, "GUARD_TEST_CRASH": crash, "GUARD_TEST_BUILD": build}
    for name, value in wanted.items():
        if value is not None:
            os.environ[name] = str(value)
    try:
        return again(*more)
    finally:
        for name in wanted:
            os.environ.pop(name, None)


def versions():
    return sorted(os.listdir(PINS)) if os.path.isdir(PINS) else []


def under_load(probe, name, rounds, replace):
    """Execs in loops while `replace` puts another agent in the place of the last one: never one more ran than was approved."""
    mark, lines = marker(name), f"{WORK}/{name}-{time.monotonic_ns()}"
    denied = program(f"fast-deny-{name}")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    loops = [start("/bin/sh", "-c", f"while :; do {denied} {mark}; done", **quiet)]
    scripts = {f"fast-allow-{name}": "x", f"checked-{name}": "y", f"hold-allow-{name}": "z"}
    for script, letter in scripts.items():
        path = program(script, f'#!/bin/sh\necho {letter} >> "$1"\n')
        loops.append(start("/bin/sh", "-c", f"while :; do {path} {lines}-{letter}; done", **quiet))
    first = len(PROBES) - 1
    try:
        # An agent that dies before it has compared the shells themselves would have them killed.
        for script in scripts:
            probe.expect(rf"^asked .*{script}", 60)
        for number in range(rounds):
            time.sleep(random.uniform(0.2, 1.0))
            absent(mark, "what is denied ran")
            replace(number, lambda: absent(mark, "what is denied ran without an agent"))
            PROBES[-1].expect(r"^enforced .*outcome=Denied", 60)
        for letter in scripts.values():
            path = f"{lines}-{letter}"
            before = os.path.getsize(path) if os.path.exists(path) else 0
            until(lambda: os.path.exists(path) and os.path.getsize(path) > before, f"the loop of {letter} does not go on", 30)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    # One that is about to run has been counted.
    time.sleep(1)
    absent(mark, "what is denied ran")
    said = "\n".join([probe.since()] + [other.text() for other in PROBES[first + 1:]])
    for script, letter in scripts.items():
        ran = os.path.getsize(f"{lines}-{letter}") // 2
        approved = 0
        for text in said.split("\nready\n"):
            mine = set(re.findall(rf"^asked seq=(\d+) .*{script}", text, re.M))
            approved += len(mine & set(re.findall(r"^released seq=(\d+) .*verdict=(?:Allow|Check)", text, re.M)))
        check(0 < ran <= approved, f"{script}: {ran} ran, {approved} were approved")
        print(f"   {script}: {ran} ran, {approved} were approved")


def away(how):
    """Ends the last probe: killed, or in order."""
    last = PROBES[-1]
    if how == "killed":
        last.kill()
    elif not OFF:
        last.process.terminate()
        last.process.wait(20)


@case
@one_kernel("6.12")
@limit(3600 if FULL else 240)
def restarts_under_load(probe):
    """Execs in loops while the agent is killed, stopped and started."""
    def replace(number, look):
        away(random.choice(["killed", "stopped"]))
        time.sleep(random.choice([0, 0, 0.5]))
        look()
        # Every fifth finds programs that are not its own and puts its own in their place.
        PROBES.append(of_version(None, build=f"{number // 5}" if FULL else None))

    under_load(probe, "load", repeats(3, 100, "6.12"), replace)


@case
@one_kernel("6.18")
@limit(1800 if FULL else 300)
def upgrades_under_load(probe):
    """Execs in loops while the agent is upgraded: by one of the same version, of another version, and back."""
    others = [None, 0, None, 7, 0, None]

    def replace(number, look):
        version = others[number % len(others)]
        before = versions()
        away("killed" if number % 4 == 3 else "stopped")
        time.sleep(random.choice([0, 0.5, 3.5]) if FULL else 0)
        look()
        PROBES.append(of_version(version, build=f"upgrade-{number}"))
        look()
        until(lambda: len(versions()) == 1, f"{versions()} are in force, {before} were\n{PROBES[-1].text()[-2000:]}", 60)

    under_load(probe, "upgrade", repeats(3, 20, "6.18"), replace)
    if versions() == ["v0"]:
        away("stopped")
        PROBES.append(again())


def links():
    """Where the links of the one version in force are pinned."""
    until(lambda: len(versions()) == 1, f"{versions()} are in force", 60)
    return f"{PINS}/{versions()[0]}/links"


def pinned_links():
    """Name to the program that is attached by it. A link that was replaced has another one."""
    libc, found = ctypes.CDLL(None, use_errno=True), {}
    folder = links()
    for name in os.listdir(folder):
        path = ctypes.create_string_buffer(f"{folder}/{name}".encode())
        get = struct.pack("QIIii", ctypes.addressof(path), 0, 0, 0, 0)
        descriptor = libc.syscall(NR_BPF, BPF_OBJ_GET, get, len(get))
        check(descriptor >= 0, f"{name}: {os.strerror(ctypes.get_errno())}")
        try:
            with open(f"/proc/self/fdinfo/{descriptor}") as file:
                found[name] = re.search(r"^prog_id:\s*(\d+)", file.read(), re.M).group(1)
        finally:
            os.close(descriptor)
    return found


@case
@limit(240)
def a_restart_keeps_the_programs(probe):
    """An agent of the same build leaves the attached programs as they are, all of them; one of another build replaces each."""
    mark, denied = marker("kept"), program("fast-deny-kept")
    # The case before may have left an agent of another build.
    away("killed")
    PROBES.append(again())
    before = {} if OFF else pinned_links()
    for build, kept in ((None, "true"), ("other", "false"), (None, "false")):
        away("killed")
        PROBES.append(of_version(None, build=build))
        if OFF:
            continue
        check(f"kept={kept}" in PROBES[-1].text(), f"{build}: {PROBES[-1].text()[:500]}")
        after = pinned_links()
        check(after.keys() == before.keys(), f"{build}: {after.keys() ^ before.keys()}")
        same = {name for name in after if after[name] == before[name]}
        check(same == (set(after) if kept == "true" else set()), f"{build}: {len(same)} of {len(after)} are the same")
        before = after
    # A link that is gone is not one that is kept.
    if not OFF:
        away("killed")
        os.unlink(f"{links()}/guard_exec")
        PROBES.append(again())
        check("kept=false" in PROBES[-1].text() and pinned_links().keys() == before.keys(), PROBES[-1].text()[:500])
    process = start_moved(denied, mark)
    output(process)
    absent(mark, "what is denied ran")


@case
@one_kernel("6.18")
@limit(240)
def upgrade_keeps_every_label(probe):
    """Programs whose maps the new agent does not share: everybody whom they labelled stays labelled, wherever it is now; what they
    parked goes on; then they go."""
    outside, gone = f"{CGROUPS}/outside", f"{CGROUPS}/gone"
    os.makedirs(outside, exist_ok=True)
    os.makedirs(gone, exist_ok=True)
    if not OFF:
        away("stopped")
        # A label that no later agent of this case asks for.
        os.environ["GUARD_TEST_PINS_VERSION"] = "0"
        PROBES.append(again("--label", f"{gone}=9"))
        del os.environ["GUARD_TEST_PINS_VERSION"]
        until(lambda: versions() == ["v0"], f"{versions()} are in force", 60)
    old = PROBES[-1]
    denied, allowed, parked = program("fast-deny-carried"), program("fast-allow-carried"), program("checked-carried")
    marks = {name: marker(f"carried-{name}") for name in ("moved", "gone", "child", "yes", "parked", "traced")}

    def shell(cgroup):
        child = start("/bin/sh", cgroup=cgroup, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        run(child, "echo there")
        return child

    def run(child, line):
        child.stdin.write(f"{line}; echo done $?\n".encode())
        child.stdin.flush()
        said = ""
        while not said.startswith("done"):
            said = child.stdout.readline().decode()
            check(said, "the shell ended")
        return int(said.split()[1])

    moved, left = shell(BOX), shell(gone)
    for child in (moved, left):
        with open(f"{outside}/cgroup.procs", "w") as file:
            file.write(str(child.pid))
    until(lambda: not open(f"{gone}/cgroup.procs").read(), "it is not empty")
    os.rmdir(gone)
    away("killed")
    time.sleep(0 if OFF else 3.5)
    waits = start_moved(parked, marks["parked"])
    # The same in the hands of a tracer: it is in no stop that one sees.
    tracer = subprocess.Popen(["strace", "-f", "-o", f"{WORK}/strace", ODD, "moved", parked, marks["traced"]],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    tracer.stdout.readline()
    with open(f"/proc/{tracer.pid}/task/{tracer.pid}/children") as file:
        child = file.read().strip()
    with open(f"{BOX}/cgroup.procs", "w") as file:
        file.write(child)
    tracer.stdin.write(b"\n")
    tracer.stdin.flush()
    if not OFF:
        until(lambda: state(waits.pid) == "T", f"without an agent it is in state {state(waits.pid)}", 10)
        PROBES.append(again())
        new = PROBES[-1]
        until(lambda: "v0" not in versions(), f"the old programs stay\n{new.text()}", 60)
        until(lambda: re.search(r"continued=[1-9]", new.text()), f"nothing was continued\n{new.text()}")
        output(waits)
        output(tracer)
        for name in ("parked", "traced"):
            check(os.path.exists(marks[name]), f"{name}: what the old programs had parked did not run\n{new.text()[-3000:]}")
    run(moved, f"{denied} {marks['moved']}")
    run(left, f"{denied} {marks['gone']}")
    run(moved, f"/bin/sh -c '{denied} {marks['child']}; true'")
    absent(lambda: all(os.path.exists(marks[name]) for name in ("moved", "gone", "child")), "all of it ran")
    for name in ("moved", "gone", "child"):
        check(not os.path.exists(marks[name]), f"{name}: it lost its label\n{PROBES[-1].text()[-3000:]}")
    run(left, f"{allowed} {marks['yes']}")
    check(os.path.exists(marks["yes"]), "what is allowed did not run")
    check(re.search(r"^asked .*label=9 .*fast-allow-carried", PROBES[-1].text(), re.M), f"not asked by its label\n{PROBES[-1].text()[-3000:]}")
    for child in (moved, left):
        child.kill()
        child.wait()


@case
@one_kernel("6.18")
@limit(400)
def killed_while_it_replaces_another_version(probe):
    """kill -9 at each point of the removal of old programs: the next agent ends it; an image that nobody compared is killed."""
    points = crash_points("OtherVersion")
    check(len(points) >= 2 or OFF, f"{points}")
    for point in points if FULL else points[:1]:
        mark, no = marker(point), marker(f"{point}-no")
        if not OFF:
            away("stopped")
            # An approved image that its agent could not trace waits to be compared when that agent dies.
            PROBES.append(of_version(0, crash="comparison-done"))
        process = start("strace", "-f", "-o", f"{WORK}/strace", program(f"hold-second-{point}"), mark)
        if not OFF:
            until(lambda: PROBES[-1].process.poll() is not None, f"it was not compared\n{PROBES[-1].text()[-3000:]}", 40)
            PROBES.append(of_version(None, crash=point))
            until(lambda: PROBES[-1].process.poll() is not None, f"{point} was not reached\n{PROBES[-1].text()[-3000:]}", 60)
            check(len(versions()) == 2, f"{versions()}")
        late = start_moved(program("hold-deny-late"), no)
        time.sleep(0.7)
        absent(lambda: os.path.exists(no) and os.path.exists(mark), "it ran without an agent")
        PROBES.append(again())
        until(lambda: len(versions()) == 1, f"{versions()} are in force\n{PROBES[-1].text()[-3000:]}", 60)
        output(process, 30)
        output(late, 30)
        check(not os.path.exists(mark), f"{point}: what nobody compared ran")
        check(not os.path.exists(no), f"{point}: what was denied ran")


@case
@one_kernel("6.18")
@limit(200)
def old_programs_that_cannot_be_read_stay(probe):
    """Nobody knows whom programs of another layout label: they stay in force, until root takes them away."""
    mark, denied = marker("unreadable"), program("fast-deny-unreadable")
    if not OFF:
        away("stopped")
        PROBES.append(of_version(9))
        until(lambda: versions() == ["v9"], f"{versions()} are in force", 60)
        away("killed")
        os.unlink(f"{PINS}/v9/maps/ORIGINS")
        PROBES.append(again())
        check("stay in force" in PROBES[-1].text(), f"it does not say so\n{PROBES[-1].text()}")
    process = start_moved(denied, mark)
    time.sleep(0 if OFF else 7)
    absent(mark, "what is denied ran")
    check(len(versions()) == 2, f"{versions()} are in force")
    waits = start_moved(program("checked-unreadable"), mark)
    time.sleep(1)
    check(not os.path.exists(mark), "the old programs let it through, whom nobody answers")
    shutil.rmtree(f"{PINS}/v9")
    os.kill(waits.pid, signal.SIGCONT)
    output(process)
    output(waits)
    check(os.path.exists(mark), f"it did not run\n{PROBES[-1].text()[-3000:]}")


@case
@one_kernel("6.12")
def the_number_of_a_dead_agent_is_worth_nothing(probe):
    """Whoever gets the process id of an agent that died is not the agent."""
    mark, denied = marker("number"), program("fast-deny-number")
    number = 0 if OFF else probe.process.pid
    away("killed")
    forker = f"""
import os, sys
try:
    open("/proc/sys/kernel/ns_last_pid", "r+").close()
except OSError:
    sys.exit(3)
for attempt in range(200):
    if {number}:
        open("/proc/sys/kernel/ns_last_pid", "w").write("{number - 1}")
    child = os.fork()
    if child == 0:
        if not {number} or os.getpid() == {number}:
            try:
                open("{BOX}/cgroup.procs", "w").write(str(os.getpid()))
                os.execv("{denied}", ["{denied}", "{mark}"])
            except OSError:
                pass
        os._exit(0)
    if child == {number} or not {number}:
        print("got", child, flush=True)
        os.waitpid(child, 0)
        sys.exit(0)
    os.waitpid(child, 0)
sys.exit(4)
"""
    process = subprocess.Popen([sys.executable, "-c", forker], stdout=subprocess.PIPE)
    time.sleep(1)
    absent(mark, "it ran without an agent")
    said = process.stdout.readline()
    if process.poll() == 3:
        raise Skipped("this kernel does not let one choose the next process id")
    check(said.startswith(b"got"), f"nobody got that number: {process.poll()}")
    PROBES.append(again())
    output(process, 30)
    check(not os.path.exists(mark), "it ran")
    PROBES[-1].expect(r"^enforced .*outcome=Denied")


def crash_points(needs):
    if OFF:
        return ["question-seen"]
    said = subprocess.run([PROBE, "--crash-points"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in said.splitlines() if line.split()[1] == needs]


@case
@one_kernel("7.2")
@limit(600)
def killed_at_every_point_of_a_decision(probe):
    """kill -9 at each named point: what runs afterwards was approved, and was compared if it had to be."""
    compared = {"comparison-written"}
    points = crash_points("Kernel")
    check(len(points) >= 10 or OFF, f"{points}")
    if not FULL:
        # Starting an agent takes seconds in an emulated guest: those where another agent finds another state.
        points = [point for point in points if point in ("question-seen", "stop-not-taken", "verdict-written", "comparison-written")]
    for point in points:
        no = marker(f"{point}-no")
        if not OFF:
            PROBES[-1].kill()
            os.environ["GUARD_TEST_CRASH"] = point
            crashing = again()
            del os.environ["GUARD_TEST_CRASH"]
        # A busy machine parks a thread before the agent can trace it: then the points of tracing are not on its way, and it runs.
        for attempt in range(10):
            mark = marker(f"{point}-{attempt}")
            process = start_moved(program(f"hold-second-not-checked-{point}"), mark)
            if OFF:
                break
            until(lambda: crashing.process.poll() is not None or process.poll() is not None, "nothing happens", 30)
            # The process may be seen to end before the agent that was killed earlier.
            time.sleep(0 if crashing.process.poll() is not None else 2)
            if crashing.process.poll() is not None:
                break
        else:
            crashing.kill()
            raise Failed(f"{point} was not reached\n{crashing.text()}")
        late = start_moved(program("hold-deny-late"), no)
        time.sleep(0.7)
        absent(lambda: os.path.exists(no) or os.path.exists(mark) and point not in compared, f"{point}: it ran without an agent")
        PROBES.append(again())
        new = PROBES[-1]
        output(process, 30)
        output(late, 30)
        ran = os.path.exists(mark)
        check(ran or process.returncode == -signal.SIGKILL, f"{point}: it ended with {process.returncode}\n{new.text()}")
        if ran and point not in compared:
            check(re.search(r"^released .*verdict=Check", new.text(), re.M), f"{point}: nobody approved it again\n{new.text()}")
        check(not os.path.exists(no), f"{point}: what was denied ran")
        print(f"   {point}: {'ran' if ran else 'killed'}")


def many_processes(probe, count):
    mark, touch = marker("many"), program("hold-wait-many")
    processes = [start_moved(touch, f"{mark}-{number}") for number in range(count)]
    until(lambda: len(re.findall(r"^held .*path=\S*hold-wait-many", probe.since(), re.M)) == count, "not all were held", 10 + count)
    took = [int(text) for text in re.findall(r"^held .*path=\S*hold-wait-many .*took_us=(\d+)", probe.since(), re.M)]
    parked = len(re.findall(r"^held .*path=\S*hold-wait-many .*how=Parked", probe.since(), re.M))
    print(f"   {count} processes: held after {min(took) // 1000}..{max(took) // 1000} ms, {parked} of them parked")
    return processes, mark


@case
@one_kernel("6.12")
@limit(600)
def many_processes_held_cost_nothing(probe):
    """200 processes held at once (40 in short), a minute (10 s) without CPU for them or the agent."""
    count, seconds = (200, 60) if FULL else (40, 10)
    processes, mark = many_processes(probe, count)
    time.sleep(1)
    before, agent = [ticks(process.pid) for process in processes], ticks(probe.process.pid)
    time.sleep(seconds)
    after, used = [ticks(process.pid) for process in processes], ticks(probe.process.pid) - agent
    check(before == after, "held threads used CPU")
    # The test agent itself looks for messages every millisecond; the holder's thread is what counts.
    print(f"   in {seconds} s: 0 ticks of {count} held threads, {used} of the test agent")
    idle(probe)
    check(not any(os.path.exists(f"{mark}-{number}") for number in range(count)), "one ran")
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    until(lambda: len(re.findall(r"^withdrawn .*why=Died", probe.since(), re.M)) >= count, "not all were withdrawn", 30)


@case
@one_kernel("6.12")
@limit(600)
def many_threads_of_one_process(probe):
    """100 threads (20 in short) call exec at once: few loop, beyond them the whole process is parked; one runs, the others die with it.

    A parked process is stopped as a whole, so its other threads ask when an answer lets it go on."""
    count = 100 if FULL else 20
    mark, touch = marker("threads"), program("hold-wait-threads")
    process = start(AWKWARD, "threads", str(count), touch, mark)
    until(lambda: "ManyThreads" in probe.since(), "it was not parked", 30 + count)
    absent(mark, "one ran")
    time.sleep(2)
    took = [int(text) for text in re.findall(r"^held .*path=\S*hold-wait-threads .*took_us=(\d+)", probe.since(), re.M)]
    parked = len(re.findall(r"^held .*path=\S*hold-wait-threads .*how=Parked", probe.since(), re.M))
    before = ticks(process.pid)
    time.sleep(3)
    check(ticks(process.pid) - before <= 3, f"they use CPU: {ticks(process.pid) - before} ticks")
    print(f"   {count} threads: {len(took)} held after {min(took) // 1000}..{max(took) // 1000} ms, {parked} of them parked")
    process.kill()
    process.wait()
    asked = set(re.findall(r"^asked seq=(\d+) .*path=\S*hold-wait-threads", probe.since(), re.M))
    until(lambda: asked <= set(re.findall(r"^withdrawn seq=(\d+) ", probe.since(), re.M)), "not all were withdrawn", 30)
    # An exec that goes on waits until all other threads are reaped, the traced ones by the agent, while the agent cannot
    # trace another of them: neither may wait for the other for ever.
    for _ in range(20 if FULL else 4):
        probe.start_case()
        mark = marker("threads")
        process = start(AWKWARD, "threads", str(count), program("hold-second-threads"), mark)
        output(process, 60 + count)
        check(os.path.exists(mark), f"none ran\n{probe.since()[-3000:]}")
    # Denied, each of the others asks in its turn, those too that the parked process hid.
    probe.start_case()
    no = marker("threads-no")
    process = start(AWKWARD, "threads", str(count), program("hold-deny-threads"), no)
    denied = lambda: len(re.findall(r"^enforced .*outcome=Denied", probe.since(), re.M))
    until(lambda: "ManyThreads" in probe.since(), "it was not parked", 30 + count)
    asked = len(re.findall(r"^asked .*path=\S*hold-deny-threads", probe.since(), re.M))
    print(f"   {count} threads: {asked} had asked when the process was parked")
    until(lambda: denied() >= count, f"only {denied()} of {count} were asked and denied", 60 + 2 * count)
    check(not os.path.exists(no), "one ran")
    process.kill()
    process.wait()
