"""Egress: what a labelled process reaches over sockets, and who reaches it.

Ports and names say what a rule answers (PORTS, RULES). A listener outside the workload is the witness: with enforcement off every
way must reach it, else the case proves nothing; with enforcement on none does, unless it was allowed.
"""
import socket
import threading

from harness import *

ALLOW, DENY, HOLD, HOLD_DENY, WAIT = 7101, 7102, 7103, 7104, 7105
RULES.extend([
    f":{ALLOW}=allow", ":53=allow", f":{DENY}=deny", f":{HOLD}=hold:1000:allow", f":{HOLD_DENY}=hold:300:deny", f":{WAIT}=hold",
])

PRELUDE = '''
import array, ctypes, errno, os, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
V4, V6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX

def way(name, attempt):
    """What is sent is the name, so that the witness knows which way was open."""
    try:
        attempt(name.encode())
        print("done", name, flush=True)
    except OSError as error:
        print("failed", name, errno.errorcode.get(error.errno, error.errno), flush=True)

def connect(family, kind, address, data):
    with socket.socket(family, kind) as s:
        s.connect(address)
        s.send(data)
'''


def code(body, **values):
    return PRELUDE + "".join(f"{name} = {value!r}\n" for name, value in values.items()) + body


class Witness:
    """Listens outside the workload, on a port or at a name, and keeps the first bytes of everything that arrives."""

    def __init__(self, *addresses):
        self.arrived, self.accepted, self.ends = [], 0, []
        for family, kind, address in addresses:
            end = socket.socket(family, kind)
            if family != socket.AF_UNIX:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            end.bind(address)
            if kind != socket.SOCK_DGRAM:
                if family != socket.AF_UNIX:
                    end.setsockopt(socket.IPPROTO_TCP, 23, 16)  # TCP_FASTOPEN
                end.listen(64)
            self.ends.append(end)
            threading.Thread(target=self.serve, args=(end, kind), daemon=True).start()

    def serve(self, end, kind):
        try:
            while True:
                if kind == socket.SOCK_DGRAM:
                    self.arrived.append(end.recv(200).decode())
                    continue
                peer = end.accept()[0]
                self.accepted += 1
                threading.Thread(target=self.read, args=(peer,), daemon=True).start()
        except OSError:
            return

    def read(self, peer):
        try:
            data = peer.recv(200)
            if data:
                self.arrived.append(data.decode())
                peer.send(b"reply")
        except OSError:
            pass

    def close(self):
        for end in self.ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def on(port, *more):
    """TCP and UDP on both loopbacks."""
    kinds = [(family, kind) for family in (socket.AF_INET, socket.AF_INET6) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
    addresses = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
    return Witness(*((family, kind, (addresses[family], port)) for family, kind in kinds), *more)


def ways(probe, witness, process, names, reasons=("EPERM",)):
    """None of the ways may reach the witness; with enforcement off each one must."""
    text = output(process, 60)
    done = dict(re.findall(r"^(?:done|failed) (\S+) ?(.*)$", text, re.M))
    if set(names) - set(done):
        raise Failed(f"not attempted: {set(names) - set(done)}: {text[-1500:]}")
    time.sleep(0.3)
    arrived = set(witness.arrived) & set(names)
    if OFF and set(names) - arrived:
        raise Failed(f"prove nothing, for with enforcement off they do not arrive either: {set(names) - arrived}: {text[-1500:]}")
    absent(lambda: bool(arrived), f"arrived: {arrived}")
    other = {name: done[name] for name in names if done[name] not in reasons}
    check(not other, f"failed for a reason of their own: {other}: {text[-800:]}")


def client(body, pass_fds=(), **values):
    return start(sys.executable, "-c", code(body, **values), pass_fds=pass_fds)


def names_in(body):
    return re.findall(r"^way\(\"([^\"]+)\"", body, re.M)


# ---- the main path ----

@case
def connect_is_held_then_goes_on(probe):
    with on(HOLD) as witness:
        process = client('''
began = time.monotonic()
s = socket.create_connection(("127.0.0.1", port))
s.send(b"hello")
print("got", s.recv(10).decode(), "after", time.monotonic() - began)
''', port=HOLD)
        probe.expect(rf"^held .*reach=127\.0\.0\.1:{HOLD} how=")
        absent(lambda: witness.accepted, "it was connected before it was approved")
        text = output(process)
        check("got reply after" in text and float(text.split()[-1]) >= 1, text)
        probe.expect(r"^enforced .*outcome=Ran")
        asked = len(re.findall(r"^asked .*reach=", probe.since(), re.M))
        check(asked == 1, f"asked {asked} times for one connection")


@case
def connect_is_denied(probe):
    with on(DENY) as witness:
        body = '''
way("tcp", lambda data: connect(V4, TCP, ("127.0.0.1", port), data))
way("tcp-v6", lambda data: connect(V6, TCP, ("::1", port), data))
way("tcp-mapped", lambda data: connect(V6, TCP, ("::ffff:127.0.0.1", port), data))
way("tcp-any", lambda data: connect(V4, TCP, ("0.0.0.0", port), data))
def nonblocking(data):
    with socket.socket(V4, TCP) as s:
        s.setblocking(False)
        result = s.connect_ex(("127.0.0.1", port))
        if result not in (0, errno.EINPROGRESS):
            raise OSError(result, "")
        s.setblocking(True)
        s.send(data)
way("tcp-nonblocking", nonblocking)
way("tcp-again", lambda data: connect(V4, TCP, ("127.0.0.1", port), data))
'''
        ways(probe, witness, client(body, port=DENY), names_in(body))
        probe.expect(rf"^asked .*reach=127\.0\.0\.1:{DENY} how=Connect family=10")
        probe.expect(r"^enforced .*outcome=Denied")


@case
def nonblocking_connect_is_held_then_goes_on(probe):
    with on(HOLD) as witness:
        process = client('''
import select
s = socket.socket(V4, TCP)
s.setblocking(False)
began = time.monotonic()
result = s.connect_ex(("127.0.0.1", port))
took = time.monotonic() - began
select.select([], [s], [], 10)
print("result", result in (0, errno.EINPROGRESS), "error", s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), flush=True)
s.send(b"hello")
select.select([s], [], [], 10)
print("got", s.recv(10).decode(), "after", took)
''', port=HOLD)
        probe.expect(rf"^held .*reach=127\.0\.0\.1:{HOLD}")
        absent(lambda: witness.accepted, "it was connected before it was approved")
        text = output(process)
        check("result True error 0" in text and "got reply after" in text and float(text.split()[-1]) >= 1, text)


@case
def connect_is_held_then_denied(probe):
    with on(HOLD_DENY) as witness:
        body = 'way("held", lambda data: connect(V4, TCP, ("127.0.0.1", port), data))\n'
        ways(probe, witness, client(body, port=HOLD_DENY), ["held"])
        probe.expect(rf"^held .*reach=127\.0\.0\.1:{HOLD_DENY}")


@case
def killed_while_it_waits_to_connect(probe):
    with on(WAIT) as witness:
        process = client('connect(V4, TCP, ("127.0.0.1", port), b"late")\n', port=WAIT)
        probe.expect(rf"^held .*reach=127\.0\.0\.1:{WAIT}")
        absent(lambda: witness.accepted, "it was connected")
        process.kill()
        process.wait()
        probe.expect(r"^withdrawn .*why=Died")
        check(not witness.accepted, "it was connected")


@case
def signal_handler_runs_while_a_connect_is_held(probe):
    """As with any held call: the handler runs, the connect starts again, the question stays one."""
    with on(HOLD) as witness:
        process = client('''
import signal
read, write = os.pipe()
os.set_blocking(write, False)
# The handler itself writes a byte each time; what Python calls is put off until connect returns.
signal.set_wakeup_fd(write)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
s = socket.create_connection(("127.0.0.1", port))
signal.setitimer(signal.ITIMER_REAL, 0)
s.send(b"hello")
print("got", s.recv(10).decode(), "ticks", len(os.read(read, 1000)))
''', port=HOLD)
        probe.expect(rf"^held .*reach=127\.0\.0\.1:{HOLD}")
        absent(lambda: witness.accepted, "it was connected before it was approved")
        text = output(process)
        check("got reply ticks" in text and int(text.split()[-1]) >= 2, text)


# ---- messages ----

@case
def threads_that_share_a_socket_go_on_by_one_answer(probe):
    """The kernel remembers what the socket may reach; a thread that still waits with the same question goes on, and its question is over."""
    with on(HOLD) as witness:
        process = client('''
import threading
s = socket.socket(V4, UDP)
threads = [threading.Thread(target=s.sendto, args=(b"shared", ("127.0.0.1", port))) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
s.sendto(b"after", ("127.0.0.1", port))
print("sent", flush=True)
time.sleep(2)
''', port=HOLD)
        probe.expect(rf"^held .*reach=127\.0\.0\.1:{HOLD}")
        absent(lambda: "shared" in witness.arrived, "it was sent before it was approved")
        check(process.stdout.readline() == b"sent\n", "it was not sent")
        if not OFF:
            asked = re.findall(r"^asked seq=(\d+) .*reach=", probe.since(), re.M)
            for sequence in asked:
                probe.expect(rf"^(enforced seq={sequence} .*outcome=Ran|withdrawn seq={sequence} )")
        output(process)
        check(witness.arrived == ["shared"] * 4 + ["after"], f"arrived: {witness.arrived}")

@case
def datagrams_are_denied(probe):
    with on(DENY) as witness:
        body = '''
way("connect", lambda data: connect(V4, UDP, ("127.0.0.1", port), data))
way("connect-v6", lambda data: connect(V6, UDP, ("::1", port), data))
way("connect-mapped", lambda data: connect(V6, UDP, ("::ffff:127.0.0.1", port), data))
u4, u6 = socket.socket(V4, UDP), socket.socket(V6, UDP)
way("sendto", lambda data: u4.sendto(data, ("127.0.0.1", port)))
way("sendto-v6", lambda data: u6.sendto(data, ("::1", port)))
way("sendto-mapped", lambda data: u6.sendto(data, ("::ffff:127.0.0.1", port)))
way("sendmsg", lambda data: u4.sendmsg([data], [], 0, ("127.0.0.1", port)))

class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]
class Message(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("name_length", ctypes.c_uint32), ("vector", ctypes.POINTER(Vector)),
                ("vectors", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int),
                ("sent", ctypes.c_uint32), ("pad", ctypes.c_uint32)]
def address(number):
    return struct.pack("=H", V4) + struct.pack(">H", number) + bytes([127, 0, 0, 1]) + bytes(8)
def sendmmsg(*messages):
    """How many were sent."""
    all = (Message * len(messages))()
    for entry, (number, data) in zip(all, messages):
        entry.name, entry.name_length = address(number), 16
        entry.vector, entry.vectors = ctypes.pointer(Vector(data, len(data))), 1
    sent = libc.sendmmsg(u4.fileno(), all, len(messages), 0)
    if sent < 0:
        raise OSError(ctypes.get_errno(), "")
    return sent
way("sendmmsg", lambda data: sendmmsg((port, data)))
def half(data):
    if sendmmsg((free, b"first"), (port, data)) == 1:
        raise OSError(errno.EPERM, "the second was not sent")
way("sendmmsg-half", half)
def other(data):
    with socket.socket(V4, UDP) as s:
        s.connect(("127.0.0.1", free))
        s.send(b"allowed")
        s.sendto(data, ("127.0.0.1", port))
way("another-address", other)
def again(data):
    with socket.socket(V4, UDP) as s:
        s.connect(("127.0.0.1", free))
        s.send(b"allowed")
        libc.connect(s.fileno(), bytes(16), 16)
        s.connect(("127.0.0.1", port))
        s.send(data)
way("connect-again", again)
'''
        with on(ALLOW) as other:
            ways(probe, witness, client(body, port=DENY, free=ALLOW), names_in(body))
            check(other.arrived.count("allowed") == 2 and "first" in other.arrived, f"what was allowed did not arrive: {other.arrived}")
        probe.expect(rf"^asked .*reach=127\.0\.0\.1:{DENY} how=Message")


@case
def datagram_is_held_then_goes_on(probe):
    """One answer for a socket and a peer: what follows is not asked again."""
    with on(HOLD) as witness:
        process = client('''
s = socket.socket(V4, UDP)
s.sendto(b"one", ("127.0.0.1", port))
for text in b"two", b"three":
    s.sendto(text, ("127.0.0.1", port))
s.connect(("127.0.0.1", port))
s.send(b"four")
print("sent")
''', port=HOLD)
        probe.expect(rf"^held .*reach=127\.0\.0\.1:{HOLD}")
        absent(lambda: "one" in witness.arrived, "it was sent before it was approved")
        check("sent" in output(process), "it was not sent")
        until(lambda: witness.arrived == ["one", "two", "three", "four"], f"arrived: {witness.arrived}")
        asked = len(re.findall(r"^asked .*reach=", probe.since(), re.M))
        check(asked == 1, f"asked {asked} times")


@case
def fast_open_is_denied(probe):
    with open("/proc/sys/net/ipv4/tcp_fastopen", "w") as file:
        file.write("3")
    with on(DENY) as witness:
        body = '''
def fast(family, address, data):
    with socket.socket(family, TCP) as s:
        s.sendto(data, socket.MSG_FASTOPEN, address)
way("fast-open", lambda data: fast(V4, ("127.0.0.1", port), data))
way("fast-open-v6", lambda data: fast(V6, ("::1", port), data))
way("fast-open-mapped", lambda data: fast(V6, ("::ffff:127.0.0.1", port), data))
def later(data):
    with socket.socket(V4, TCP) as s:
        s.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
        s.connect(("127.0.0.1", port))
        s.send(data)
way("fast-open-connect", later)
'''
        ways(probe, witness, client(body, port=DENY), names_in(body))


@case
def what_a_resolver_answers_is_told(probe):
    """So that people can be told a name with the address. Only what comes from where the socket was allowed to ask."""
    ends = []
    for family, address in (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"):
        end = socket.socket(family, socket.SOCK_DGRAM)
        end.bind((address, 53))
        ends.append(end)
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def serve(end):
        try:
            while True:
                data, sender = end.recvfrom(200)
                other.sendto(b"forged-" + data, ("127.0.0.1", sender[1])) if data == b"two" else None
                end.sendto(b"answer-" + data, sender)
        except OSError:
            return

    for end in ends:
        threading.Thread(target=serve, args=(end,), daemon=True).start()
    try:
        process = client('''
s = socket.socket(V4, UDP)
s.connect(("127.0.0.1", 53))
s.send(b"one")
print(s.recv(100).decode())
s = socket.socket(V4, UDP)
s.sendto(b"two", ("127.0.0.1", 53))
print(*sorted(s.recv(100).decode() for _ in range(2)))
s = socket.socket(V6, UDP)
s.connect(("::1", 53))
s.send(b"three")
print(s.recv(100).decode())
s = socket.socket(V6, UDP)
s.connect(("::ffff:127.0.0.1", 53))
s.send(b"x" * 199)
print(len(s.recv(1000)))
''')
        check(output(process).split() == ["answer-one", "answer-two", "forged-two", "answer-three", "206"], "not answered")
        namespace = os.stat("/proc/self/ns/net").st_ino
        for resolver, text in ("127.0.0.1", "answer-one"), ("127.0.0.1", "answer-two"), ("::1", "answer-three"), ("127.0.0.1", "answer-x{199}"):
            probe.expect(rf"^resolved label=1 resolver={re.escape(resolver)} namespace={namespace} reply={text}$")
        probe.never(r"^resolved .*forged")
    finally:
        for end in [*ends, other]:
            end.close()


# ---- sockets from elsewhere ----

@case
def sockets_from_outside_are_asked_about(probe):
    """Connected by somebody else: inherited, sent by SCM_RIGHTS; none of them sends unasked, in whatever way."""
    def connected():
        s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        s.connect(("127.0.0.1", DENY))
        return s
    with on(DENY) as witness:
        inherited = [connected() for _ in range(4)]
        datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagram.connect(("127.0.0.1", DENY))
        ours, theirs = socket.socketpair()
        sent = connected()
        socket.send_fds(ours, [b"x"], [sent.fileno()])
        numbers = [s.fileno() for s in inherited]
        body = '''
way("inherited", lambda data: os.write(numbers[0], data))
way("inherited-datagram", lambda data: socket.socket(fileno=os.dup(datagram)).send(data))
def received(data):
    [descriptor] = socket.recv_fds(socket.socket(fileno=channel), 1, 1)[1]
    os.write(descriptor, data)
way("by-scm-rights", received)
def sendfile(data):
    with open("/tmp/egress-content", "wb") as file:
        file.write(data)
    with open("/tmp/egress-content", "rb") as file:
        os.sendfile(numbers[1], file.fileno(), 0, len(data))
way("sendfile", sendfile)
def splice(data):
    read, write = os.pipe()
    os.write(write, data)
    os.splice(read, numbers[2], len(data))
way("splice", splice)
way("by-proc", lambda data: socket.socket(fileno=os.dup(numbers[3])).sendmsg([data]))
'''
        process = client(body, pass_fds=[*numbers, datagram.fileno(), theirs.fileno()], numbers=numbers, datagram=datagram.fileno(),
                         channel=theirs.fileno())
        ways(probe, witness, process, names_in(body))
        probe.expect(rf"^asked .*reach=127\.0\.0\.1:{DENY} how=ConnectedBefore")


@case
def sockets_from_before_the_label_are_asked_about(probe):
    with on(DENY) as witness:
        body = '''
s = socket.create_connection(("127.0.0.1", port))
print("ready", flush=True)
sys.stdin.readline()
way("before-the-label", s.send)
'''
        process = subprocess.Popen([sys.executable, "-c", code(body, port=DENY)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        if process.stdout.readline() != b"ready\n":
            raise Failed("not ready")
        with open(f"{BOX}/cgroup.procs", "w") as file:
            file.write(str(process.pid))
        process.stdin.write(b"\n")
        process.stdin.flush()
        ways(probe, witness, process, ["before-the-label"])


# ---- unix sockets ----

@case
def unix_sockets_are_denied(probe):
    folder = tempfile.mkdtemp(dir=WORK)
    path, datagram, packets = (f"{folder}/fast-deny-{name}" for name in ("stream", "dgram", "packets"))
    name = f"\0fast-deny-{time.monotonic_ns()}"
    with Witness((socket.AF_UNIX, socket.SOCK_STREAM, path), (socket.AF_UNIX, socket.SOCK_DGRAM, datagram),
                 (socket.AF_UNIX, socket.SOCK_SEQPACKET, packets), (socket.AF_UNIX, socket.SOCK_STREAM, name),
                 (socket.AF_UNIX, socket.SOCK_DGRAM, name + "-d")) as witness:
        os.symlink(path, f"{folder}/fast-allow-link")
        os.link(path, f"{folder}/fast-allow-hard")
        body = '''
way("stream", lambda data: connect(UNIX, TCP, path, data))
way("datagram-connect", lambda data: connect(UNIX, UDP, datagram, data))
way("datagram-sendto", lambda data: socket.socket(UNIX, UDP).sendto(data, datagram))
way("packets", lambda data: connect(UNIX, socket.SOCK_SEQPACKET, packets, data))
way("abstract", lambda data: connect(UNIX, TCP, name, data))
way("abstract-datagram", lambda data: connect(UNIX, UDP, name + "-d", data))
way("by-symlink", lambda data: connect(UNIX, TCP, folder + "/fast-allow-link", data))
way("by-hard-link", lambda data: connect(UNIX, TCP, folder + "/fast-allow-hard", data))
def relative(data):
    os.chdir(folder)
    connect(UNIX, TCP, "fast-deny-stream", data)
way("relative", relative)
'''
        process = client(body, path=path, datagram=datagram, packets=packets, name=name, folder=folder)
        ways(probe, witness, process, names_in(body))
        probe.expect(rf"^asked .*reach=unix:{re.escape(path)} how=Connect family=1 kind=1 ")
        probe.expect(r"^asked .*reach=unix:@fast-deny-\d+ ")
        probe.expect(rf"^asked .*reach=unix:{re.escape(datagram)} how=Message")


@case
def unix_socket_is_held_then_goes_on(probe):
    path = f"{tempfile.mkdtemp(dir=WORK)}/hold-second-stream"
    with Witness((socket.AF_UNIX, socket.SOCK_STREAM, path)) as witness:
        process = client('''
s = socket.socket(UNIX, TCP)
s.connect(path)
s.send(b"hello")
print("got", s.recv(10).decode())
''', path=path)
        probe.expect(r"^held .*reach=unix:\S*hold-second-stream")
        absent(lambda: witness.accepted, "it was connected before it was approved")
        check("got reply" in output(process), "it did not work")
        asked = len(re.findall(r"^asked .*reach=", probe.since(), re.M))
        check(asked == 1, f"asked {asked} times")


@case
def inside_the_workload_nobody_is_asked(probe):
    """Its own unix sockets, pairs, pipes; its own listener on loopback, and replies to who came in."""
    process = client('''
import threading
a, b = socket.socketpair()
a.send(b"x"); b.recv(1); b.send(b"x"); a.recv(1)
path = os.path.join(folder, "fast-deny-own")
l = socket.socket(UNIX, TCP); l.bind(path); l.listen()
c = socket.socket(UNIX, TCP); c.connect(path); s, _ = l.accept()
c.send(b"x"); s.recv(1); s.send(b"y"); c.recv(1)
d = socket.socket(UNIX, UDP); d.bind(path + "-d")
e = socket.socket(UNIX, UDP); e.sendto(b"x", path + "-d"); d.recv(1)
t = socket.socket(V4, TCP); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
t.bind(("127.0.0.1", 0)); t.listen()
print("port", t.getsockname()[1], flush=True)
peer, _ = t.accept()
peer.recv(10)
peer.send(b"reply")
print("fine", flush=True)
''', folder=tempfile.mkdtemp(dir=WORK))
    port = int(process.stdout.readline().split()[1])
    with socket.create_connection(("127.0.0.1", port)) as outside:
        outside.send(b"hello")
        check(outside.recv(10) == b"reply", "no reply came")
    check("fine" in output(process), "it did not end well")
    probe.never(r"^asked .*reach=")


# ---- what is listened on, what cannot be asked about ----

@case
def listening_for_other_hosts_is_denied(probe):
    body = '''
def listen(family, address, data):
    s = socket.socket(family, TCP)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(address)
    s.listen()
    print("listening", data.decode(), flush=True)
way("any", lambda data: listen(V4, ("0.0.0.0", port), data))
way("any-v6", lambda data: listen(V6, ("::", port), data))
way("broad-mapped", lambda data: listen(V6, ("::ffff:0.0.0.0", port), data))
def moved(data):
    s = socket.socket(V4, TCP)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", 0))
    s.listen()
    s.shutdown(socket.SHUT_RDWR)
    s.bind(("0.0.0.0", port))
    s.listen()
    print("listening", data.decode(), flush=True)
way("from-loopback", moved)
def hear(family, address, data):
    s = socket.socket(family, UDP)
    s.bind(address)
    print("listening", data.decode(), flush=True)
way("datagram", lambda data: hear(V4, ("0.0.0.0", port), data))
way("datagram-v6", lambda data: hear(V6, ("::", port), data))
way("datagram-mapped", lambda data: hear(V6, ("::ffff:0.0.0.0", port), data))
socket.socket(V4, UDP).bind(("0.0.0.0", 0))
socket.socket(V4, UDP).bind(("127.0.0.1", port))
socket.socket(V6, UDP).bind(("::1", port))
socket.socket(V4, UDP).bind(("127.0.0.9", 53))
print("the rest fine", flush=True)
'''
    text = output(client(body, port=DENY))
    names = names_in(body)
    listening = set(re.findall(r"^listening (\S+)", text, re.M))
    if OFF and set(names) != listening:
        raise Failed(f"prove nothing: {text}")
    absent(lambda: bool(listening), f"they listen: {listening}")
    check(text.count("EPERM") == len(names) and "the rest fine" in text, text)
    probe.expect(rf"^asked .*reach=0\.0\.0\.0:{DENY} how=Listen family=2 kind=1 ")
    probe.expect(rf"^asked .*reach=0\.0\.0\.0:{DENY} how=Listen family=2 kind=2 ")
    probe.expect(r"^asked .*reach=127\.0\.0\.9:53 how=Listen family=2 kind=2 ")
    text = output(client(body.replace("way(\"any\"", "way(\"allowed\""), port=ALLOW))
    check("listening allowed" in text, text)


@case
def sockets_that_nobody_can_be_asked_about(probe):
    body = '''
made = []
def make(*arguments):
    made.append(socket.socket(*arguments))
way("raw", lambda data: make(V4, socket.SOCK_RAW, socket.IPPROTO_RAW))
way("raw-icmp", lambda data: make(V4, socket.SOCK_RAW, socket.IPPROTO_ICMP))
way("raw-v6", lambda data: make(V6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6))
way("packet", lambda data: make(socket.AF_PACKET, socket.SOCK_RAW, 0))
way("packet-cooked", lambda data: make(socket.AF_PACKET, socket.SOCK_DGRAM, 0))
way("netlink-audit", lambda data: make(socket.AF_NETLINK, socket.SOCK_RAW, 9))
way("netlink-netfilter", lambda data: make(socket.AF_NETLINK, socket.SOCK_RAW, 12))
way("netlink-uevent", lambda data: make(socket.AF_NETLINK, socket.SOCK_RAW, 15))
way("mptcp", lambda data: make(V4, TCP, 262))
way("udplite", lambda data: make(V4, UDP, 136))
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
print("route fine")
'''
    text = output(client(body))
    # Where the kernel has no such sockets, nothing is proved of them.
    done = {name: word for word, name in re.findall(r"^(done|failed) (\S+)", text, re.M)}
    made = {name for name, word in done.items() if word == "done"}
    if len(done) != len(names_in(body)):
        raise Failed(text)
    if OFF and not {"raw", "packet", "netlink-netfilter"} <= made:
        raise Failed(f"proves nothing: {text}")
    absent(lambda: bool(made), f"made: {made}: {text}")
    check("route fine" in text, text)
    probe.expect(r"^refused label=1 kind=16 ")


@case
def packets_go_where_was_asked(probe):
    """A source route would take an allowed connection elsewhere; a changed route, address or link the same for everybody."""
    body = '''
import array
LOOSE = bytes([131, 7, 4, 127, 0, 0, 2, 0])
s4, s6 = socket.socket(V4, UDP), socket.socket(V6, UDP)
way("options", lambda data: s4.setsockopt(socket.IPPROTO_IP, 4, LOOSE))
way("options-empty", lambda data: s4.setsockopt(socket.IPPROTO_IP, 4, b""))
way("message-options", lambda data: s4.sendmsg([data], [(socket.IPPROTO_IP, 7, LOOSE)], 0, ("127.0.0.1", port)))
way("message-options-second", lambda data: s4.sendmsg(
    [data], [(socket.IPPROTO_IP, 1, struct.pack("i", 0)), (socket.IPPROTO_IP, 7, LOOSE)], 0, ("127.0.0.1", port)))
way("header", lambda data: s6.setsockopt(socket.IPPROTO_IPV6, 57, b""))
ONE = struct.pack("i", 1)
way("membership", lambda data: s4.setsockopt(socket.IPPROTO_IP, 35, socket.inet_aton("239.1.2.3") + bytes([127, 0, 0, 1])))
way("membership-v6", lambda data: s6.setsockopt(socket.IPPROTO_IPV6, 20, socket.inet_pton(V6, "ff02::1:2") + ONE))
# One that a process outside hears.
way("netlink-to-process", lambda data: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).sendto(
    struct.pack("=IHHII", 16, 2, 0, 1, 0), (heard, 0)))
def netlink(kind, flags, payload):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.send(struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload)
    answer = s.recv(65536)
    code = struct.unpack_from("=i", answer, 16)[0]
    if struct.unpack_from("=H", answer, 4)[0] == 2 and code:
        raise OSError(-code, "")
# The loopback, up.
way("link", lambda data: netlink(16, 5, struct.pack("=BxHiII", 0, 0, 1, 1, 1)))
way("address", lambda data: netlink(20, 0x605, struct.pack("=BBBBI", 2, 32, 0, 254, 1) + struct.pack("=HH4sHH4s", 8, 2, bytes(
    [192, 0, 2, 99]), 8, 1, bytes([192, 0, 2, 99]))))
netlink(18, 0x301, struct.pack("=BxHiII", 0, 0, 0, 0, 0))
s4.sendmsg([b"x"], [(socket.IPPROTO_IP, 1, struct.pack("i", 7))], 0, ("127.0.0.1", port))
print("the rest fine")
'''
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as hears:
        hears.bind((0, 0))
        text = output(client(body, port=ALLOW, heard=hears.getsockname()[0]))
    done = {name: word for word, name in re.findall(r"^(done|failed) (\S+)", text, re.M)}
    made = {name for name, word in done.items() if word == "done"}
    if len(done) != len(names_in(body)) or OFF and set(done) != made:
        raise Failed(text)
    absent(lambda: bool(made), f"done: {made}: {text}")
    check(text.count("EPERM") == len(done) and "the rest fine" in text, text)
    probe.expect(r"^refused label=1 kind=17 ")
