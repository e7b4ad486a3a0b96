"""Writes and connections in loops while agents die and are upgraded: not one lands that nobody approved."""
import random
import socket

from egress_cases import ALLOW, DENY, Witness
from file_cases import ASKED_BOX, ground
from harness import *
from load_cases import away, of_version, versions

WRITES = """
import os, sys
no, yes = sys.argv[1:]
number = 0
while True:
    number += 1
    for path in (f"{no}/{number}", yes):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError:
            continue
        os.write(fd, b"x")
        os.close(fd)
"""

CONNECTS = """
import socket, sys
no, yes = map(int, sys.argv[1:])
while True:
    for port in (no, yes):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as s:
                try:
                    s.connect(("127.0.0.1", port))
                    s.send(b"x")
                except OSError:
                    pass
"""


def approved(said, pattern):
    """How many times it was asked and allowed, over all agents: each counts its questions from one."""
    count = 0
    for text in said.split("\nready\n"):
        asked = set(re.findall(rf"^asked seq=(\d+) .*{pattern}", text, re.M))
        count += len(asked & set(re.findall(r"^released seq=(\d+) .*verdict=Allow", text, re.M)))
    return count


@case
@one_kernel("6.12")
@limit(3600 if FULL else 400)
def writes_and_connects_under_load(probe):
    """A process that writes and one that connects, without a pause, while the agent is killed, stopped, started and upgraded."""
    asks = ("--ask-writes", "6")
    no, yes = ground("files-deny-load"), ground("files-allow-load")
    before, counted = set(os.listdir(no)), f"{yes}/counted"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cgroup": ASKED_BOX}
    first = len(PROBES)
    if not OFF:
        away("stopped")
        PROBES.append(again(*asks))
    address = lambda port: [(socket.AF_INET, kind, ("127.0.0.1", port)) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    with Witness(*address(DENY)) as denied, Witness(*address(ALLOW)) as allowed:
        landed = lambda: set(os.listdir(no)) - before or denied.accepted or denied.arrived
        written = lambda: os.path.getsize(counted) if os.path.exists(counted) else 0
        loops = [start("/usr/bin/python3", "-S", "-c", WRITES, no, counted, **quiet),
                 start("/usr/bin/python3", "-S", "-c", CONNECTS, str(DENY), str(ALLOW), **quiet)]

        def goes_on():
            files, packets = written(), len(allowed.arrived)
            until(lambda: written() > files + 2 and len(allowed.arrived) > packets + 2, "the loops do not go on", 60)

        try:
            goes_on()
            for number in range(repeats(3, 100, "7.2")):
                away(random.choice(["killed", "stopped"]))
                time.sleep(random.choice([0, 0, 0.5]))
                absent(landed, "something landed without an agent")
                PROBES.append(NoProbe() if OFF else of_version(None, *asks))
                goes_on()
            for number in range(repeats(2, 20, "7.2")):
                away("killed" if number % 4 == 3 else "stopped")
                time.sleep(random.choice([0, 0.5, 3.5]) if FULL else 0)
                version = (0, None, None)[number % 3]
                PROBES.append(NoProbe() if OFF else of_version(version, *asks, build=f"upgrade-{number}"))
                until(lambda: len(versions()) == (0 if OFF else 1), f"{versions()} are in force", 60)
                goes_on()
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        time.sleep(1)
        absent(landed, f"landed: {set(os.listdir(no)) - before}, {denied.accepted} connections, {denied.arrived} packets")
        if not OFF:
            said = "\n".join(other.text() for other in PROBES[first:])
            files, reached = approved(said, "change=.*files-allow-load"), approved(said, rf"reach=127\.0\.0\.1:{ALLOW}")
            check(written() <= files, f"{written()} writes landed, {files} were approved")
            check(allowed.accepted + len(allowed.arrived) <= 2 * reached, f"{allowed.accepted} connections, {reached} approved")
            print(f"   {written()} writes of {files} approved, {allowed.accepted} connections of {reached}")
        if versions() == ["v0"]:
            away("stopped")
            PROBES.append(of_version(None, *asks))
