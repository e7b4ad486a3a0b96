#!/usr/bin/python3 -I
"""The guest's end of the command channel: one virtio-serial port, many commands at once.

Frames both ways: u32 session, u8 kind, u32 length (little endian), payload.
From the host: R run (JSON {argv, env, cwd}), I input (empty: end of input), K kill, T set the clock and reseed (JSON {seconds, seed}).
To the host: H hello, O standard output, E standard error, X exit (decimal status; the last frame of its session).
"""
import fcntl, glob, json, os, select, signal, struct, subprocess, sys, time

NAME = "guard.cmd"
HEAD = struct.Struct("<IBI")
CHUNK = 65536
RNDRESEEDCRNG = 0x5207


def find_port():
    while True:
        for path in glob.glob("/sys/class/virtio-ports/*/name"):
            with open(path) as f:
                if f.read().strip() == NAME:
                    return "/dev/" + path.split("/")[-2]
        time.sleep(0.05)


class Session:
    def __init__(self, proc):
        self.proc = proc
        self.pidfd = os.pidfd_open(proc.pid)
        self.input = []
        self.closing = False


port = os.open(find_port(), os.O_RDWR | os.O_CLOEXEC)
poller = select.poll()
poller.register(port, select.POLLIN)
sessions = {}
actions = {}
buffer = bytearray()


def send(session, kind, data=b""):
    frame = HEAD.pack(session, ord(kind), len(data)) + data
    while frame:
        frame = frame[os.write(port, frame):]


def nonblocking(fd):
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)


def watch(fd, events, action):
    actions[fd] = action
    poller.register(fd, events)


def unwatch(fd):
    if actions.pop(fd, None):
        poller.unregister(fd)


def defaults():
    # Python ignores some signals; commands start as from a login shell.
    for name in ("SIGPIPE", "SIGXFSZ"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("0")
    except OSError:
        pass


def start(ident, payload):
    request = json.loads(payload)
    env = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", "LANG": "C.UTF-8", "TERM": "dumb",
    }
    env.update(request.get("env") or {})
    try:
        proc = subprocess.Popen(
            request["argv"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
            cwd=request.get("cwd") or "/root", start_new_session=True, preexec_fn=defaults, bufsize=0)
    except OSError as error:
        name = request["argv"][0]
        send(ident, "E", f"{name}: {error.strerror}\n".encode())
        send(ident, "X", b"127" if isinstance(error, FileNotFoundError) else b"126")
        return
    session = sessions[ident] = Session(proc)
    for pipe, kind in ((proc.stdout, "O"), (proc.stderr, "E")):
        nonblocking(pipe.fileno())
        watch(pipe.fileno(), select.POLLIN, lambda pipe=pipe, kind=kind: forward(ident, pipe, kind))
    nonblocking(proc.stdin.fileno())
    watch(session.pidfd, select.POLLIN, lambda: finish(ident))


def forward(ident, pipe, kind):
    """Sends what can be read now; false at the end or when nothing is left."""
    try:
        data = os.read(pipe.fileno(), CHUNK)
    except BlockingIOError:
        return False
    if not data:
        unwatch(pipe.fileno())
        return False
    send(ident, kind, data)
    return True


def feed(ident):
    session = sessions[ident]
    fd = session.proc.stdin.fileno()
    while session.input:
        try:
            sent = os.write(fd, session.input[0])
        except BlockingIOError:
            if fd not in actions:
                watch(fd, select.POLLOUT, lambda: feed(ident))
            return
        except BrokenPipeError:
            session.input, session.closing = [], True
            break
        session.input[0] = session.input[0][sent:]
        if not session.input[0]:
            session.input.pop(0)
    unwatch(fd)
    if session.closing:
        session.proc.stdin.close()


def finish(ident):
    # What the command wrote before it ended is sent; what children that outlive it write later is not.
    session = sessions.pop(ident)
    proc = session.proc
    for pipe, kind in ((proc.stdout, "O"), (proc.stderr, "E")):
        while pipe.fileno() in actions and forward(ident, pipe, kind):
            pass
    status = proc.wait()
    for pipe in (proc.stdout, proc.stderr, proc.stdin):
        if not pipe.closed:
            unwatch(pipe.fileno())
            pipe.close()
    unwatch(session.pidfd)
    os.close(session.pidfd)
    send(ident, "X", str(status if status >= 0 else 128 - status).encode())


def handle(ident, kind, payload):
    session = sessions.get(ident)
    if kind == "R":
        start(ident, payload)
    elif kind == "T":
        # A restored guest has an old clock and the randomness of all its siblings.
        fresh = json.loads(payload)
        time.clock_settime(time.CLOCK_REALTIME, fresh["seconds"])
        with open("/dev/urandom", "wb", buffering=0) as f:
            f.write(bytes.fromhex(fresh["seed"]))
            fcntl.ioctl(f, RNDRESEEDCRNG)
        send(ident, "X", b"0")
    elif session and kind == "I" and not session.proc.stdin.closed:
        if payload:
            session.input.append(bytes(payload))
        else:
            session.closing = True
        feed(ident)
    elif session and kind == "K":
        try:
            os.killpg(session.proc.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def receive():
    data = os.read(port, CHUNK)
    if not data:
        time.sleep(0.02)
    buffer.extend(data)
    while len(buffer) >= HEAD.size:
        ident, kind, length = HEAD.unpack_from(buffer)
        if len(buffer) < HEAD.size + length:
            return
        payload = bytes(buffer[HEAD.size:HEAD.size + length])
        del buffer[:HEAD.size + length]
        handle(ident, chr(kind), payload)


try:
    with open("/proc/self/oom_score_adj", "w") as f:
        f.write("-1000")
except OSError:
    pass
send(0, "H")
while True:
    for fd, events in poller.poll():
        if fd == port:
            if events & select.POLLIN:
                receive()
            else:
                time.sleep(0.02)  # the host is not connected
        elif fd in actions:
            actions[fd]()
