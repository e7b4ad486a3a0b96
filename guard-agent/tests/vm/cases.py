#!/usr/bin/env python3
"""Kernel tests of the hold, run as root in a VM; see harness.py for how."""
from harness import *

# ---- the main path ----

@case
def allowed_at_once(probe):
    touch, mark = program("fast-allow"), marker("a")
    process = start(touch, mark)
    check(output(process) == "" and process.returncode == 0 and os.path.exists(mark), "it did not run")
    probe.expect(r"^enforced .*outcome=Ran")
    probe.never(r"^held")


@case
def denied_at_once(probe):
    touch, mark = program("fast-deny"), marker("d")
    process = start("/bin/sh", "-c", f"{touch} {mark}; echo rc=$?")
    text = output(process)
    check("not permitted" in text and "rc=126" in text, f"unexpected output: {text}")
    absent(mark, "it ran")
    probe.expect(r"^enforced .*outcome=Denied")


@case
def held_then_runs(probe):
    touch, mark = program("hold-second-a"), marker("h")
    began = time.monotonic()
    process = start_moved(touch, mark)
    line = probe.expect(r"^held seq=(\d+) tid=(\d+) path=\S+ how=Traced rounds=(\d+) took_us=(\d+) argc=2 .*").group(0)
    check(f'"{mark}"' in line, f"argv is not shown: {line}")
    check(f"cwd={os.getcwd()}" in line, f"cwd is not shown: {line}")
    check("file=true" in line, f"the file was not opened: {line}")
    absent(mark, "it ran before it was approved")
    check(output(process) == "" and process.returncode == 0 and os.path.exists(mark), "it did not run")
    check(time.monotonic() - began >= 1, "it was not held for a second")
    probe.expect(r"^enforced .*outcome=Ran")


@case
def held_then_denied(probe):
    touch, mark = program("hold-deny-a"), marker("hd")
    text = output(start("/bin/sh", "-c", f"{touch} {mark}; echo rc=$?; echo goes on"))
    check("not permitted" in text and "rc=126" in text and "goes on" in text, text)
    absent(mark, "it ran")
    probe.expect(r"^enforced .*outcome=Denied")


@case
def invisible_to_the_parent(probe):
    touch, mark = program("hold-second-b"), marker("p")
    process = start_moved(touch, mark)
    probe.expect(r"^held")
    seen = []
    while True:
        pid, status = os.waitpid(process.pid, os.WUNTRACED | os.WCONTINUED)
        seen.append(status)
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            break
    check(len(seen) == 1 and seen[0] == 0, f"the parent saw {seen}")


@case
def costs_nothing_while_held(probe):
    process = start_moved(program("hold-long-a"), marker("c"))
    probe.expect(r"^held")
    before = ticks(process.pid)
    time.sleep(2)
    check(ticks(process.pid) == before, "the held thread used CPU")
    # The test agent itself looks for messages every millisecond; the holder's thread is what counts.
    idle(probe)
    check(output(process) == "", "it failed")


@case
def unlabelled_is_untouched(probe):
    touch, mark = program("fast-deny-b"), marker("u")
    subprocess.run([touch, mark], check=True)
    check(os.path.exists(mark), "it did not run")
    probe.never(r"^asked")


# ---- what was approved is what runs ----

def changed(probe, mode, *argv, marks, what):
    go = marker("go")
    process = start(ODD, mode, go, *argv)
    probe.expect(r"^held .*path=\S*hold-second")
    open(go, "w").close()
    text = output(process)
    probe.expect(rf"^enforced .*outcome=Killed\(Mismatch {{ what: {what}")
    check(process.returncode == -signal.SIGKILL, f"it ended with {process.returncode}: {text}")
    absent(lambda: any(os.path.exists(mark) for mark in marks), f"one of {marks} is there: the new image ran")


@case
def argument_changed_after_approval(probe):
    one, two = marker("one"), marker("two")
    changed(probe, "argument", one, two, program("hold-second-c"), marks=[one, two], what="Argv")


@case
def argument_of_a_script_changed(probe):
    one, two = marker("one"), marker("two")
    script = program("hold-second-script-a", '#!/bin/sh\ntouch "$1"\n')
    changed(probe, "argument", one, two, script, marks=[one, two], what="Argv")


@case
def environment_changed_after_approval(probe):
    mark = marker("e")
    changed(probe, "environment", "A=1", "A=2", program("hold-second-d"), mark, marks=[mark], what="Environment")


@case
def working_directory_changed_after_approval(probe):
    mark = marker("w")
    changed(probe, "chdir", "/usr", program("hold-second-e"), mark, marks=[mark], what="Cwd")


@case
def content_of_a_script_changed(probe):
    mark = marker("cs")
    script = program("hold-second-script-b", "#!/bin/sh\ntrue\n")
    process = start_moved(script)
    probe.expect(r"^held")
    with open(script, "a") as file:
        file.write(f"touch {mark}\n")
    output(process)
    probe.expect(r"^enforced .*outcome=Killed\(Mismatch { what: Content")
    check(process.returncode == -signal.SIGKILL and not os.path.exists(mark), "it ran")


@case
def content_of_a_program_changed(probe):
    touch, mark = program("hold-second-f"), marker("cp")
    process = start_moved(touch, mark)
    probe.expect(r"^held")
    if not OFF:
        # Without a hold it is being executed: it cannot be written to, or it fails with ETXTBSY.
        with open(touch, "ab") as file:
            file.write(b"more")
    output(process)
    probe.expect(r"^enforced .*outcome=Killed\(Mismatch { what: Content")
    absent(mark, "it ran")
    check(process.returncode == -signal.SIGKILL, f"it ended with {process.returncode}")


@case
def file_replaced_while_held(probe):
    """Another file under the same name is another action: it is asked anew."""
    touch, mark = program("hold-second-g"), marker("r")
    process = start_moved(touch, mark)
    probe.expect(r"^held seq=(\d+)")
    other = program("other")
    os.rename(other, touch)
    output(process)
    probe.expect(r"^withdrawn .*why=Changed")
    check(len(re.findall(r"^asked .*hold-second-g", probe.since(), re.M)) == 2, "it was not asked again")


# ---- scripts and interpreters ----

@case
def a_script_asks_once(probe):
    mark = marker("s")
    output(start(program("hold-allow-script", '#!/bin/sh\n: > "$1"\n'), mark))
    check(os.path.exists(mark), "it did not run")
    check(len(re.findall(r"^asked", probe.since(), re.M)) == 1, probe.since())


@case
def nested_interpreters_ask_once_and_are_compared(probe):
    mark = marker("n")
    one = program("one.sh", "#!/bin/sh -e\n. $1\n")
    two = program("two.sh", f"#!{one}\n. $2\n")
    script = program("three.sh", f'#!{two} x\n: > {mark}\n')
    process = start(script, "first", "second")
    text = output(process)
    check(len(re.findall(r"^asked", probe.since(), re.M)) == 1, probe.since())
    probe.expect(r"^enforced .*outcome=Ran")
    check("Mismatch" not in probe.since(), f"{text} {probe.since()}")


@case
def fails_for_a_reason_of_its_own(probe):
    for name, content, code in [("fast-allow-nothing", "", errno.ENOEXEC), ("fast-allow-lost", "#!/no/such\n", errno.ENOENT),
                                ("nothing", "", errno.ENOEXEC)]:
        text = output(start(ODD, "blocked", "10", program(name, content)))
        check(text.startswith("exec "), text)
        probe.expect(rf"^enforced .*outcome=Failed\({code}\)")
        probe.start_case()


# ---- ways to call exec ----

@case
def exec_from_a_thread_that_is_not_the_leader(probe):
    mark = marker("nl")
    process = start(ODD, "nonleader", program("hold-allow-b"), mark)
    output(process)
    check(process.returncode == 0 and os.path.exists(mark), "it did not run")
    mark = marker("nl")
    process = start(ODD, "nonleader", program("checked-b"), mark)
    output(process)
    check(process.returncode == 0 and os.path.exists(mark), f"checked: it did not run\n{probe.since()}")
    probe.expect(r"^held .*path=\S*checked-b")
    check(len(re.findall(r"^enforced .*Ran", probe.since(), re.M)) >= 2, probe.since())


@case
def vfork_and_posix_spawn(probe):
    for mode in "vfork", "spawn":
        mark = marker(mode)
        text = output(start(ODD, mode, program(f"checked-{mode}"), mark))
        check("child 0" in text and os.path.exists(mark), f"{mode}: {text}")
        text = output(start(ODD, mode, program(f"hold-deny-{mode}"), marker("no")))
        check("child 1" in text or "not permitted" in text, f"{mode}: {text}")


@case
def a_file_without_a_name(probe):
    mark = marker("m")
    text = output(start(ODD, "memfd", "/usr/bin/touch", mark))
    check(os.path.exists(mark), f"it did not run: {text}\n{probe.since()}")
    line = probe.expect(r"^asked .*memfd.*").group(0)
    check("unlinked=true" in line, line)
    probe.expect(r"^held .*file=true")


@case
def no_arguments(probe):
    output(start(ODD, "noargs", program("checked-noargs")))
    line = probe.expect(r"^held .*path=\S*checked-noargs.*").group(0)
    check("argc=1" in line, line)
    probe.expect(r"^enforced .*outcome=Ran")


@case
def long_arguments(probe):
    mark = marker("l")
    arguments = ["x" * 100_000] * 10 + [str(number) for number in range(5000)]
    process = start(program("checked-long", f'#!/bin/sh\n: > "{mark}"\n'), *arguments)
    output(process)
    check(os.path.exists(mark), f"it did not run\n{probe.since()[:2000]}")


@case
def two_threads_of_one_process(probe):
    process = start(ODD, "two", program("hold-second-h"), program("hold-second-i"))
    until(lambda: len(re.findall(r"^held .*path=\S*hold-second-[hi]", probe.since(), re.M)) == 2, f"not both were held\n{probe.since()}")
    output(process)
    probe.expect(r"^enforced .*outcome=Ran")
    # The other thread died with the exec: before or after its own verdict, or in the middle of its exec, which then fails
    # with E2BIG, for want of a page for its arguments.
    probe.expect(r"^(withdrawn .*why=Died|enforced .*outcome=(Died|Failed\(7\)))")


@case
def an_exec_with_a_shared_directory_is_refused(probe):
    """A process that is no thread of it could change the directory after it was compared."""
    body = """import ctypes, os, sys, time
CLONE_FS, SIGCHLD = 0x200, 17
if ctypes.CDLL(None).syscall(56, CLONE_FS | SIGCHLD, 0, 0, 0, 0) == 0:
    time.sleep(3)
    os._exit(0)
try:
    os.execv(sys.argv[1], sys.argv[1:])
except OSError as error:
    print(error.errno, flush=True)
"""
    mark = marker("shared")
    text = output(start(sys.executable, "-c", body, program("fast-allow-shared"), mark))
    absent(mark, "it ran")
    check(text == "1\n", text)
    probe.expect(r"^refused label=1 kind=23 ")


# ---- signals ----

def held_process(probe, *argv):
    process = start_moved(*argv) if argv[0] != ODD else start_async(*argv)
    if OFF:
        # Nobody holds it: signals that come later hit nobody.
        until(lambda: state(process.pid) == "Z", "")
        return process, process.pid
    return process, int(probe.expect(r"^held .*tid=(\d+) path=\S*hold-").group(1))


def start_async(*argv):
    """odd itself is allowed by the default rule, then it is held at its own exec."""
    return start(*argv)


@case
def handled_signal_while_held(probe):
    mark = marker("hs")
    process, pid = held_process(probe, ODD, "handler", "10", program("hold-long-b"), mark)
    os.kill(pid, signal.SIGUSR1)
    ready, _, _ = select.select([process.stdout], [], [], 3)
    check(ready and process.stdout.readline() == b"handled 10\n", "the handler did not run while held")
    absent(mark, "it ran")
    output(process)
    check(os.path.exists(mark), f"it did not run\n{probe.since()}")
    probe.never(r"^withdrawn")
    check(len(re.findall(r"^asked .*hold-long-b", probe.since(), re.M)) == 1, probe.since())


@case
def deadly_signals_while_held(probe):
    for number in signal.SIGTERM, signal.SIGKILL, signal.SIGINT:
        probe.start_case()
        mark = marker("ds")
        process, pid = held_process(probe, program("hold-wait-a"), mark)
        os.kill(pid, number)
        output(process, 5)
        check(process.returncode == -number, f"it ended with {process.returncode}")
        probe.expect(r"^withdrawn .*why=Died", 5)
        absent(mark, "it ran")


@case
def ignored_and_blocked_signals_while_held(probe):
    mark = marker("is")
    process, pid = held_process(probe, ODD, "blocked", "10", program("hold-long-c"), mark)
    for _ in range(5):
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGCHLD)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.1)
    absent(mark, "it ran")
    # SIGUSR1 stays pending for the new image, whose mask blocks it too.
    output(process)
    check(os.path.exists(mark), f"it did not run\n{probe.since()}")
    probe.never(r"^withdrawn")


@case
def interval_timer_while_held(probe):
    mark = marker("it")
    process = start(ODD, "timer", program("hold-second-j"), mark)
    text = output(process)
    # The timer outlives the exec, its handler does not: the program itself may be ended by it.
    check(text.count("handled 14") >= 10, f"{text}\n{probe.since()}")
    probe.expect(r"^enforced .*outcome=Ran")
    check(len(re.findall(r"^asked .*hold-second-j", probe.since(), re.M)) == 1, probe.since())


@case
def stopped_and_continued_by_the_user(probe):
    """Ctrl-Z while held: the parent sees it, fg brings it back, the request stays."""
    for number in signal.SIGTSTP, signal.SIGSTOP:
        probe.start_case()
        mark = marker("z")
        process, pid = held_process(probe, program("hold-long-k"), mark)
        os.kill(pid, number)
        until(lambda: os.waitpid(process.pid, os.WUNTRACED | os.WNOHANG)[1] != 0, f"{number}: the parent saw no stop\n{probe.since()}", 5)
        time.sleep(4.5)
        check(not os.path.exists(mark), "it ran although it was stopped")
        os.kill(pid, signal.SIGCONT)
        until(lambda: os.path.exists(mark), f"it did not run after SIGCONT: state {state(pid)}\n{probe.since()}", 10)
        process.wait()
        check(len(re.findall(r"^asked", probe.since(), re.M)) == 1, probe.since())


@case
def sigcont_handled_or_blocked(probe):
    for argv in [("handler", "18"), ("blocked", "18")]:
        probe.start_case()
        mark = marker("sc")
        process = start(ODD, *argv, program("hold-second-l"), mark)
        until(lambda: "hold-second-l" in probe.since(), "not asked")
        probe.expect(r"^held .*path=\S*hold-second-l")
        absent(mark, "it ran")
        output(process)
        check(os.path.exists(mark), f"{argv}: it did not run\n{probe.since()}")
        probe.expect(r"^enforced .*outcome=Ran")


# ---- many ----

@case
def fifty_at_once(probe):
    mark = marker("f")
    touch = program("hold-second-m")
    processes = [start_moved(touch, f"{mark}-{number}") for number in range(50)]
    until(lambda: len(re.findall(r"^held .*path=\S*hold-second-m", probe.since(), re.M)) == 50, "not all were held", 60)
    for process in processes:
        output(process, 60)
    check(all(os.path.exists(f"{mark}-{number}") for number in range(50)), "not all ran")
    # Said after it has happened.
    until(lambda: len(re.findall(r"^enforced .*outcome=Ran", probe.since(), re.M)) >= 50, "not all were enforced", 20)
    rounds = [int(text) for text in re.findall(r"^held .*path=\S*hold-second-m .*rounds=(\d+)", probe.since(), re.M)]
    took = [int(text) for text in re.findall(r"^held .*path=\S*hold-second-m .*took_us=(\d+)", probe.since(), re.M)]
    parked = len(re.findall(r"^held .*how=Parked", probe.since(), re.M))
    print(f"   rounds {min(rounds)}..{max(rounds)}, to hold {min(took) // 1000}..{max(took) // 1000} ms, parked {parked}")


# ---- scope ----

@case
def children_are_covered_wherever_they_go(probe):
    mark = marker("ch")
    text = output(start("/bin/sh", "-c", f"echo $$ > {CGROUPS}/cgroup.procs; (({program('fast-deny-c')} {mark})); echo rc=$?"))
    absent(mark, text)
    check("rc=126" in text, text)
    line = probe.expect(r"^asked .*path=\S*fast-deny-c").group(0)
    check("label=1" in line, line)


@case
def moved_out_from_outside_is_still_covered(probe):
    mark = marker("mo")
    process = start("/bin/sh", "-c", f"read line; {program('fast-deny-d')} {mark}; echo rc=$?", stdin=subprocess.PIPE)
    probe.expect(r"^enforced .*Ran")
    with open(f"{CGROUPS}/cgroup.procs", "w") as file:
        file.write(str(process.pid))
    process.stdin.write(b"\n")
    process.stdin.flush()
    text = output(process)
    absent(mark, "it was let out")
    check("rc=126" in text, text)


@case
def cgroups_below_are_covered(probe):
    below = f"{BOX}/made-{time.monotonic_ns()}"
    os.makedirs(f"{below}/deeper")
    probe.expect(rf"^cgroup made \d+ /box/{os.path.basename(below)}/deeper$")
    mark = marker("cb")
    process = start_moved(program("fast-deny-e"), mark, cgroup=f"{below}/deeper")
    text = output(process)
    absent(mark, "it ran")
    check("not permitted" in text, text)
    os.rmdir(f"{below}/deeper")
    os.rmdir(below)
    probe.expect(r"^cgroup gone")


@case
def what_was_there_before_the_label_is_covered(probe):
    # Made, with a process inside, before the probe of this run labelled it.
    check("label=7" not in probe.since(), "")
    mark = marker("wb")
    BEFORE.stdin.write(f"{program('fast-deny-f')} {mark}; echo rc=$?\n".encode())
    BEFORE.stdin.flush()
    text = BEFORE.stdout.readline()
    while not text.splitlines()[-1].startswith(b"rc="):
        text += BEFORE.stdout.readline()
    absent(mark, "it ran")
    check(b"rc=126" in text, text)
    line = probe.expect(r"^asked .*path=\S*fast-deny-f").group(0)
    check("label=7" in line, line)


# ---- somebody else traces ----

@case
def traced_by_somebody_else(probe):
    if not shutil.which("strace"):
        raise Skipped("no strace in the guest")
    mark = marker("st")
    process = start("strace", "-f", "-o", f"{WORK}/strace", program("hold-allow-t"), mark)
    output(process, 30)
    probe.expect(r"^held .*how=Parked\(AlreadyTraced\)")
    check(os.path.exists(mark), f"it did not run\n{probe.since()}")


# ---- hostile ----

@case
def a_page_that_never_comes(probe):
    """The argument's page waits for ever for whoever reads it: the holder must not."""
    process = start(ODD, "fault", program("hold-second-n"))
    time.sleep(1)
    mark = marker("af")
    other = start_moved(program("checked-after-fault"), mark)
    output(other, 10)
    check(os.path.exists(mark), f"others wait\n{probe.since()}")
    process.kill()
    process.wait()


@case
def a_flood_of_sigcont(probe):
    mark = marker("sf")
    process = start_moved(program("hold-long-d"), mark)
    end = time.monotonic() + 3
    while time.monotonic() < end:
        os.kill(process.pid, signal.SIGCONT)
    absent(mark, "it ran")
    output(process)
    check(os.path.exists(mark), f"it did not run\n{probe.since()}")


# ---- without the agent ----

@case
def unanswered_is_parked(probe):
    mark = marker("un")
    process = start_moved(program("unanswered-a"), mark)
    until(lambda: state(process.pid) == "T", f"state {state(process.pid)}", 5)
    before = ticks(process.pid)
    for _ in range(20):
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.01)
    absent(mark, "it ran")
    until(lambda: state(process.pid) == "T", f"state {state(process.pid)}", 5)
    check(ticks(process.pid) - before < 20, "it uses CPU")
    process.kill()
    process.wait()
    probe.expect(r"^withdrawn .*why=Died")


@case
def killed_agent_lets_nobody_through(probe):
    """kill -9 while one is held and one asks: nobody runs, a new agent asks again."""
    mark, other = marker("k1"), marker("k2")
    held = start_moved(program("hold-wait-b"), mark)
    probe.expect(r"^held .*path=\S*hold-wait-b")
    probe.kill()
    late = start_moved(program("checked-late"), other)
    time.sleep(5)
    check(state(held.pid) == "T" and state(late.pid) == "T", f"states {state(held.pid)} {state(late.pid)}")
    for _ in range(50):
        os.kill(held.pid, signal.SIGCONT)
        os.kill(late.pid, signal.SIGCONT)
        time.sleep(0.01)
    absent(lambda: os.path.exists(mark) or os.path.exists(other), "it ran without an agent")
    new = again()
    PROBES.append(new)
    took = re.search(r"took_over=true kept=\w+ questions=(\d+)", new.text())
    check(took and int(took.group(1)) >= 2, new.text())
    new.expect(r"^asked .*checked-late")
    output(late)
    check(os.path.exists(other), f"it did not run with the new agent\n{new.since()}")
    new.expect(r"^held .*path=\S*hold-wait-b")
    held.kill()
    held.wait()
    absent(mark, "it ran")


@case
@one_kernel("6.1")
def killed_agent_between_approval_and_comparison(probe):
    """The exec event has come, the agent dies while it hashes: the kernel side stops the new image."""
    mark = marker("kb")
    script = program("hold-allow-not", f'#!/bin/sh\n: > "{mark}"\nexit 0\n')
    big = script.replace("hold-allow-not", "checked-big")
    shutil.copy(script, big)
    os.chmod(big, 0o755)
    with open(big, "r+b") as file:
        file.truncate(200 << 20)
    process = start_moved(big)
    probe.expect(r"^held .*path=\S*checked-big", 60)
    # The probe hashes it once, then releases; the comparison hashes it again.
    until(lambda: os.path.exists(f"/proc/{process.pid}/exe") and os.readlink(f"/proc/{process.pid}/exe").endswith(("dash", "/sh")),
          "no exec event", 60)
    absent(mark, "it ran before it was compared")
    probe.kill()
    output(process)
    check(process.returncode == -signal.SIGKILL, f"it ended with {process.returncode}")
    absent(mark, "it ran")
    os.remove(big)
    PROBES.append(again())


@case
@one_kernel("7.2")
def killed_agent_after_release(probe):
    """Execs in a loop while agents are killed and started: not one unapproved exec."""
    mark = marker("loop")
    deny = program("fast-deny-g")
    loop = start("/bin/sh", "-c", f"while :; do {deny} {mark}; {program('fast-allow-g')} {mark}-ok; done", stdout=subprocess.DEVNULL,
                 stderr=subprocess.DEVNULL)
    # An agent that dies before it has compared the shell itself would have it killed.
    probe.expect(r"^enforced .*outcome=Denied")
    for _ in range(3):
        PROBES[-1].kill()
        time.sleep(0.3)
        absent(mark, "it ran without an agent")
        PROBES.append(again())
        PROBES[-1].expect(r"^enforced .*outcome=Denied")
        absent(mark, "it ran")
    loop.kill()
    loop.wait()


@case
@one_kernel("6.1")
def replaced_agent(probe):
    """The old agent ends, a new one starts: its programs are there before the old ones go, nothing slips through."""
    mark = marker("up")
    loop = start("/bin/sh", "-c", f"while :; do {program('fast-deny-h')} {mark}; done", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    old = PROBES[-1]
    old.expect(r"^enforced .*outcome=Denied")
    old.kill()
    new = again()
    PROBES.append(new)
    new.expect(r"^enforced .*outcome=Denied")
    absent(mark, "it ran")
    loop.kill()
    loop.wait()


@case
@one_kernel("6.18")
def stopped_agent_parks(probe):
    probe.kill()
    short = Probe(*LABELS, "--run", "1", *RULES)
    PROBES.append(short)
    short.process.wait()
    mark = marker("sp")
    process = start_moved(program("checked-stopped"), mark)
    until(lambda: state(process.pid) == "T", f"state {state(process.pid)}", 5)
    check(not os.path.exists(mark), "it ran")
    PROBES.append(again())
    output(process)
    check(os.path.exists(mark), "it did not run with the new agent")


if __name__ == "__main__":
    main()
