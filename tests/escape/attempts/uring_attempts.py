"""io_uring: operations that the kernel does on behalf of a ring. Rings are made inside the label, or before it, with and without a
kernel thread of their own (SQPOLL) and with files that were registered."""
import socket
import struct

import uring
from egress import LO4, UDP, TCP, V4, on, sockaddr, unix
from stay import OUT, left
from suite import *
from theft import TOKEN
from uring import Ring

WAYS = {
    "": ("a ring of its own", None, 0),
    "_before": ("a ring from before the label", Ring, 0),
    "_polled": ("a ring from before the label, whose kernel thread polls (SQPOLL)", lambda: Ring(uring.SQPOLL), uring.SQPOLL),
}


def in_every_way(of, tries, make):
    """An attempt of a class and name for each way to have a ring; `make` gives, for a Try, what is done with a ring and what is then to be seen."""
    kind, name = of
    for suffix, (ring_text, before, flags) in WAYS.items():
        def function(t, before=before, flags=flags):
            hostile, seen = make(t)
            if before:
                made = t.inside(hostile, before=before)
            else:
                made = t.inside(lambda: hostile(Ring(flags)))
            return seen(made)

        function.__name__, function.__doc__ = f"uring_{name}{suffix}", f"{tries}, by {ring_text}."
        # A thread of the ring that has to be asked about sees an error of its own.
        attempt(kind, race=True, ends=("EINTR", "ECANCELED"))(function)


def connects(tried):
    witness = on(tried)

    def hostile(ring):
        s = socket.socket(V4, TCP)
        ring.connect(s.fileno(), sockaddr(DENY))
        ring.send(s.fileno(), b"hello")

    return hostile, lambda made: witness.seen()


def sends(tried):
    witness = on(tried)

    def hostile(ring):
        s = socket.socket(V4, UDP)
        name, data = ring.at(sockaddr(DENY)), ring.at(b"hello")
        vector = ring.at(struct.pack("=QQ", data, 5))
        ring.submit(uring.SENDMSG, s.fileno(), ring.at(struct.pack("=QIIQQQQI4x", name, 16, 0, vector, 1, 0, 0, 0)), 1)

    return hostile, lambda made: witness.seen()


def reaches_unix(tried):
    path, witness = unix(tried)

    def hostile(ring):
        s = socket.socket(socket.AF_UNIX, TCP)
        ring.connect(s.fileno(), struct.pack("=H", 1) + path.encode() + b"\0")

    return hostile, lambda made: witness.seen()


def leaves(tried):
    def hostile(ring):
        ring.write(ring.open(f"{OUT}/cgroup.procs", os.O_WRONLY), str(os.getpid()).encode())

    return hostile, lambda made: left(tried, made.pid)


def steals(tried):
    def hostile(ring):
        return os.read(ring.open(TOKEN, os.O_RDONLY), 100).decode()

    return hostile, lambda made: f"it has {SECRET!r}" if SECRET in str(made.value) else None


in_every_way(("egress", "connect"), "Connects", connects)
in_every_way(("egress", "sendmsg"), "Sends a datagram", sends)
in_every_way(("egress", "unix"), "Connects to a unix socket", reaches_unix)
in_every_way(("stay", "leave"), "Opens cgroup.procs of another cgroup and writes itself there", leaves)
in_every_way(("theft", "token"), "Opens an approver's saved sign-in", steals)


@attempt("egress", race=True, ends=("EINTR",))
def uring_registered_socket(t):
    """Sends on a connection from before the label that is registered with a ring, and has no descriptor any more."""
    witness = on(t)

    def before():
        s = socket.socket(V4, TCP)
        s.connect(LO4)
        ring = Ring(files=[s.fileno()])
        s.close()
        return ring

    # IOSQE_FIXED_FILE
    t.inside(lambda ring: ring.send(0, b"hello", entry_flags=1), before=before)
    return witness.seen(b"hello")


@attempt("egress", race=True, ends=("EINTR",))
def uring_worker_thread(t):
    """Sends on a connection from before the label by a worker thread of the ring (IOSQE_ASYNC)."""
    witness = on(t)

    def before():
        s = socket.socket(V4, TCP)
        s.connect(LO4)
        return Ring(), s

    t.inside(lambda given: given[0].send(given[1].fileno(), b"hello", entry_flags=16), before=before)
    return witness.seen(b"hello")


@attempt("files", race=True, ends=("EINTR", "ETIME"))
def uring_of_a_process_outside(t):
    """Uses a ring that a process outside made, whose kernel thread polls and works in that process's name: it opens a new file."""
    ring = Ring(uring.SQPOLL)
    t.later(lambda: os.close(ring.fd))
    mine = f"{t.outside()}/mine"
    # Memory is that of the process that made the ring: the path was there before.
    path = ring.at(mine.encode())
    t.inside(lambda: ring.submit(uring.OPENAT, -100, path, 0o644, flags=os.O_CREAT | os.O_WRONLY), keep=[ring.fd])
    return t.happens(lambda: os.path.exists(mine), "the file is there")
