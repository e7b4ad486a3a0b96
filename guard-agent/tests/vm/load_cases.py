"""Many at once, for long, and while agents die: short forms in every run, long ones with --full."""
import random

from harness import *

AWKWARD = f"{FOLDER}/awkward"



@case
@one_kernel
@limit(3600 if FULL else 240)
def restarts_under_load(probe):
    """Execs in loops while the agent is killed, stopped and started: never one more ran than was approved."""
    mark, lines = marker("load"), f"{WORK}/load-{time.monotonic_ns()}"
    denied = program("fast-deny-load")
    loops = [start("/bin/sh", "-c", f"while :; do {denied} {mark}; done", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]
    names = {"fast-allow-load": "x", "checked-load": "y", "hold-allow-load": "z"}
    for name, letter in names.items():
        script = program(name, f'#!/bin/sh\necho {letter} >> "$1"\n')
        loops.append(start("/bin/sh", "-c", f"while :; do {script} {lines}-{letter}; done", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    first = len(PROBES) - 1
    try:
        # An agent that dies before it has compared the shells themselves would have them killed.
        for name in names:
            probe.expect(rf"^asked .*{name}", 60)
        for _ in range(100 if FULL else 6):
            time.sleep(random.uniform(0.2, 1.0))
            absent(mark, "what is denied ran")
            last = PROBES[-1]
            if random.random() < 0.5:
                last.kill()
            else:
                last.process.terminate()
                last.process.wait(20)
            time.sleep(random.choice([0, 0, 0.5]))
            absent(mark, "what is denied ran without an agent")
            PROBES.append(again())
            PROBES[-1].expect(r"^enforced .*outcome=Denied", 60)
        for letter in names.values():
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
    for name, letter in names.items():
        ran = os.path.getsize(f"{lines}-{letter}") // 2
        sequences = [re.findall(rf"^asked seq=(\d+) .*{name}", text, re.M) for text in said.split("\nready\n")]
        approved = 0
        for text, mine in zip(said.split("\nready\n"), sequences):
            allowed = set(re.findall(r"^released seq=(\d+) .*verdict=(?:Allow|Check)", text, re.M))
            approved += len(allowed & set(mine))
        check(0 < ran <= approved, f"{name}: {ran} ran, {approved} were approved")
        print(f"   {name}: {ran} ran, {approved} were approved")


def crash_points():
    if OFF:
        return ["question-seen"]
    return subprocess.run([PROBE, "--crash-points"], capture_output=True, text=True, check=True).stdout.split()


@case
@one_kernel
@limit(600)
def killed_at_every_point_of_a_decision(probe):
    """kill -9 at each named point: what runs afterwards was approved, and was compared if it had to be."""
    compared = {"comparison-written"}
    points = crash_points()
    check(len(points) >= 10 or OFF, f"{points}")
    if not FULL:
        # Starting an agent takes seconds in an emulated guest: those where another agent finds another state.
        points = [point for point in points if point in ("question-seen", "thread-stopped", "verdict-written", "comparison-written")]
    for point in points:
        mark, no = marker(point), marker(f"{point}-no")
        if not OFF:
            PROBES[-1].kill()
            os.environ["GUARD_TEST_CRASH"] = point
            crashing = again()
            del os.environ["GUARD_TEST_CRASH"]
        process = start_moved(program(f"hold-allow-not-checked-{point}".replace("hold-allow", "hold-second")), mark)
        if not OFF:
            until(lambda: crashing.process.poll() is not None, f"{point} was not reached\n{crashing.text()}", 30)
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
@one_kernel
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
    holder = holder_ticks(probe)
    time.sleep(2)
    check(holder_ticks(probe) - holder <= 2, "the holder is busy")
    check(not any(os.path.exists(f"{mark}-{number}") for number in range(count)), "one ran")
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()
    until(lambda: len(re.findall(r"^withdrawn .*why=Died", probe.since(), re.M)) >= count, "not all were withdrawn", 30)


def holder_ticks(probe):
    for task in os.listdir(f"/proc/{probe.process.pid}/task"):
        with open(f"/proc/{probe.process.pid}/task/{task}/comm") as file:
            if file.read().strip() == "guard-holder":
                return ticks(f"{probe.process.pid}/task/{task}")
    raise Failed("no thread is called guard-holder")


@case
@one_kernel
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
    probe.start_case()
    mark = marker("threads")
    process = start(AWKWARD, "threads", str(count), program("hold-second-threads"), mark)
    output(process, 60 + count)
    check(os.path.exists(mark), f"none ran\n{probe.since()[-3000:]}")
