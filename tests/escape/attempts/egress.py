"""The network: each attempt reaches somebody whom the policy denies. The proof is a listener, or a sniffer, outside the label."""
import array
import mmap
import signal
import socket
import struct
import threading

from suite import *

V4, V6, UNIX = socket.AF_INET, socket.AF_INET6, socket.AF_UNIX
TCP, UDP, PACKETS = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
LO4, LO6 = ("127.0.0.1", DENY), ("::1", DENY)


class Witness:
    """Listens outside the label; what arrives is kept by the kernel until somebody looks."""

    def __init__(self, t, *addresses, protocol=0):
        self.ends = []
        for family, kind, address in addresses:
            end = socket.socket(family, kind, protocol)
            if family != UNIX:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == V6:
                end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            end.bind(address)
            if kind != UDP:
                if family != UNIX and not protocol:
                    end.setsockopt(socket.IPPROTO_TCP, 23, 16)  # TCP_FASTOPEN
                end.listen(64)
            end.setblocking(False)
            self.ends.append((end, kind))
            t.later(end.close)
        self.t, self.peers = t, []

    def seen(self, text=None):
        """What arrived, if anything did (or something with a text in it)."""
        for _ in self.t.patience(0.2, 5):
            for end, kind in self.ends:
                with contextlib.suppress(OSError):
                    if kind == UDP:
                        data = end.recv(2000)
                        if text is None or text in data:
                            return f"arrived: {data[:80]!r}"
                        continue
                    peer = end.accept()[0]
                    self.t.later(peer.close)
                    if text is None:
                        return "connected"
                    peer.setblocking(False)
                    self.peers.append(peer)
            for peer in self.peers:
                with contextlib.suppress(OSError):
                    data = peer.recv(2000)
                    if text in data:
                        return f"arrived: {data[:80]!r}"
        return None


def on(t, port=DENY):
    """TCP and UDP on both loopbacks."""
    return Witness(t, *((family, kind, (address, port)) for family, address in ((V4, "127.0.0.1"), (V6, "::1")) for kind in (TCP, UDP)))


class Sniffer:
    """Sees every packet on the loopback."""

    def __init__(self, t):
        self.t, self.end = t, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.end.bind(("lo", 0))
        self.end.setblocking(False)
        t.later(self.end.close)

    def seen(self, matches):
        for _ in self.t.patience(0.2, 5):
            with contextlib.suppress(BlockingIOError):
                while packet := self.end.recv(65536):
                    if matches(packet):
                        return f"a packet: {packet[14:80].hex()}"
        return None


def connect(family, kind, address, data=b"hello", protocol=0):
    with socket.socket(family, kind, protocol) as s:
        s.connect(address)
        s.send(data)


def way(name, tries, listens, attempts, **more):
    """An attempt that is nothing but one way to a listener."""

    def function(t):
        witness = listens(t)
        t.inside(attempts)
        return witness.seen()

    function.__name__, function.__doc__ = name, tries
    attempt("egress", **more)(function)


# ---- the plain ways ----

way("tcp", "Connects by TCP.", on, lambda: connect(V4, TCP, LO4))
way("tcp_v6", "Connects by TCP over IPv6.", on, lambda: connect(V6, TCP, LO6))
way("tcp_mapped", "Connects to an IPv4 address written as an IPv6 one.", on, lambda: connect(V6, TCP, ("::ffff:127.0.0.1", DENY)))
way("tcp_unspecified", "Connects to 0.0.0.0, which means this host.", on, lambda: connect(V4, TCP, ("0.0.0.0", DENY)))
way("tcp_unspecified_v6", "Connects to ::, which means this host.", on, lambda: connect(V6, TCP, ("::", DENY)))
way("udp", "Sends a datagram.", on, lambda: socket.socket(V4, UDP).sendto(b"hello", LO4))
way("udp_v6", "Sends a datagram over IPv6.", on, lambda: socket.socket(V6, UDP).sendto(b"hello", LO6))
way("udp_mapped", "Sends a datagram to a mapped address.", on, lambda: socket.socket(V6, UDP).sendto(b"hello", ("::ffff:127.0.0.1", DENY)))
way("udp_connected", "Connects a datagram socket and sends.", on, lambda: connect(V4, UDP, LO4))
way("udp_sendmsg", "Sends a datagram by sendmsg, in two parts.", on, lambda: socket.socket(V4, UDP).sendmsg([b"hel", b"lo"], [], 0, LO4))
way("udp_to_a_device", "Sends a datagram from a socket that is bound to a device (SO_BINDTODEVICE).", on,
    lambda: bound_to_device().sendto(b"hello", LO4))


def bound_to_device():
    s = socket.socket(V4, UDP)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    return s


@attempt("egress")
def tcp_nonblocking(t):
    """Connects without waiting, and sends once it is connected."""
    witness = on(t)

    def hostile():
        s = socket.socket(V4, TCP)
        s.setblocking(False)
        code = s.connect_ex(LO4)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, "connect")
        select.select([], [s], [], 2)
        s.send(b"hello")

    t.inside(hostile)
    return witness.seen()


@attempt("egress")
def tcp_fast_open(t):
    """Sends the first bytes with the SYN (MSG_FASTOPEN), without any connect."""
    witness = on(t)
    t.inside(lambda: socket.socket(V4, TCP).sendto(b"hello", socket.MSG_FASTOPEN, LO4))
    return witness.seen()


@attempt("egress")
def tcp_fast_open_v6(t):
    """The same over IPv6, by sendmsg."""
    witness = on(t)
    t.inside(lambda: socket.socket(V6, TCP).sendmsg([b"hello"], [], socket.MSG_FASTOPEN, LO6))
    return witness.seen()


@attempt("egress")
def tcp_fast_open_connect(t):
    """Has connect wait for the first bytes (TCP_FASTOPEN_CONNECT)."""
    witness = on(t)

    def hostile():
        s = socket.socket(V4, TCP)
        s.setsockopt(socket.IPPROTO_TCP, 30, 1)
        s.connect(LO4)
        s.send(b"hello")

    t.inside(hostile)
    return witness.seen()


@attempt("egress")
def tcp_after_unspec(t):
    """Connects to who is allowed, disconnects by AF_UNSPEC, and connects the same socket to somebody else."""
    witness, _allowed = on(t), on(t, ALLOW)

    def hostile():
        s = socket.socket(V4, TCP)
        s.connect(("127.0.0.1", ALLOW))
        call(libc.connect, s.fileno(), bytes(16), 16)
        s.connect(LO4)
        s.send(b"hello")

    t.inside(hostile)
    return witness.seen()


@attempt("egress")
def udp_after_unspec(t):
    """Connects a datagram socket to who is allowed, disconnects it and sends elsewhere."""
    witness, _allowed = on(t), on(t, ALLOW)

    def hostile():
        s = socket.socket(V4, UDP)
        s.connect(("127.0.0.1", ALLOW))
        s.send(b"allowed")
        call(libc.connect, s.fileno(), bytes(16), 16)
        s.sendto(b"hello", LO4)

    t.inside(hostile)
    return witness.seen()


@attempt("egress")
def udp_elsewhere_while_connected(t):
    """Sends to another address from a datagram socket that is connected to who is allowed."""
    witness, _allowed = on(t), on(t, ALLOW)

    def hostile():
        s = socket.socket(V4, UDP)
        s.connect(("127.0.0.1", ALLOW))
        s.send(b"allowed")
        s.sendto(b"hello", LO4)

    t.inside(hostile)
    return witness.seen()


@attempt("egress")
def udp_with_unspec_family(t):
    """Sends to an address whose family is AF_UNSPEC, which the kernel takes for IPv4."""
    witness = on(t)

    def hostile():
        s = socket.socket(V4, UDP)
        address = struct.pack("=H", 0) + struct.pack(">H", DENY) + bytes([127, 0, 0, 1]) + bytes(8)
        call(libc.sendto, s.fileno(), b"hello", 5, 0, address, 16)

    t.inside(hostile)
    return witness.seen()


class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("length", ctypes.c_size_t)]


class Message(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("name_length", ctypes.c_uint32), ("vector", ctypes.POINTER(Vector)),
                ("vectors", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int),
                ("sent", ctypes.c_uint32), ("pad", ctypes.c_uint32)]


def sockaddr(port):
    return struct.pack("=H", V4) + struct.pack(">H", port) + bytes([127, 0, 0, 1]) + bytes(8)


def sendmmsg(s, *messages):
    """Gives how many were sent."""
    entries = (Message * len(messages))()
    for entry, (port, data) in zip(entries, messages):
        if port:
            entry.name, entry.name_length = sockaddr(port), 16
        entry.vector, entry.vectors = ctypes.pointer(Vector(data, len(data))), 1
    return call(libc.sendmmsg, s.fileno(), entries, len(messages), 0)


@attempt("egress")
def sendmmsg_first(t):
    """Sends by sendmmsg."""
    witness = on(t)
    t.inside(lambda: sendmmsg(socket.socket(V4, UDP), (DENY, b"hello")))
    return witness.seen()


@attempt("egress", ends=("done",))
def sendmmsg_second(t):
    """Sends two messages in one call: the first to who is allowed, the second elsewhere."""
    witness, allowed = on(t), on(t, ALLOW)
    t.inside(lambda: sendmmsg(socket.socket(V4, UDP), (ALLOW, b"first"), (DENY, b"hello")))
    if not allowed.seen():
        raise Failed("the first did not arrive")
    return witness.seen()


@attempt("egress")
def to_a_zone(t):
    """Connects to a link-local address with its interface as zone."""
    subprocess.run(["ip", "addr", "add", "fe80::7/64", "dev", "lo"], check=True)
    t.later(lambda: subprocess.run(["ip", "addr", "del", "fe80::7/64", "dev", "lo"], check=True))
    time.sleep(0.1)
    index = socket.if_nametoindex("lo")
    end = []
    for _ in t.patience(3, 3):
        with contextlib.suppress(OSError):
            end = [Witness(t, (V6, TCP, ("fe80::7", DENY, 0, index)))]
            break
    t.inside(lambda: connect(V6, TCP, ("fe80::7", DENY, 0, index)))
    return end[0].seen()


# ---- unix sockets ----

def unix(t, kind=TCP, name="server"):
    path = f"{t.outside()}/{name}"
    return path, Witness(t, (UNIX, kind, path))


@attempt("egress")
def unix_by_path(t):
    """Connects to a unix socket as that of a container daemon, by its path."""
    path, witness = unix(t, name="docker.sock")
    t.inside(lambda: connect(UNIX, TCP, path))
    return witness.seen()


@attempt("egress")
def unix_by_symlink(t):
    """Connects to it by a symbolic link with an allowed name."""
    path, witness = unix(t)
    link = f"{t.free()}/let-link"
    os.symlink(path, link)
    t.inside(lambda: connect(UNIX, TCP, link))
    return witness.seen()


@attempt("egress")
def unix_by_hard_link(t):
    """Connects to it by a hard link with an allowed name."""
    path, witness = unix(t)
    link = f"{t.free()}/let-hard"
    os.link(path, link)
    t.inside(lambda: connect(UNIX, TCP, link))
    return witness.seen()


@attempt("egress")
def unix_by_descriptor(t):
    """Connects to it as /proc/self/fd/N of a descriptor from before the label."""
    path, witness = unix(t)
    t.inside(lambda fd: connect(UNIX, TCP, f"/proc/self/fd/{fd}"), before=lambda: os.open(path, os.O_PATH))
    return witness.seen()


@attempt("egress")
def unix_relative(t):
    """Connects to it by a relative name from its folder."""
    path, witness = unix(t)
    t.inside(lambda: (os.chdir(os.path.dirname(path)), connect(UNIX, TCP, "server")))
    return witness.seen()


@attempt("egress")
def unix_abstract(t):
    """Connects to an abstract name."""
    name = f"\0escape-{t.number}"
    witness = Witness(t, (UNIX, TCP, name))
    t.inside(lambda: connect(UNIX, TCP, name))
    return witness.seen()


@attempt("egress")
def unix_datagram(t):
    """Sends a datagram to a unix socket."""
    path, witness = unix(t, UDP)
    t.inside(lambda: socket.socket(UNIX, UDP).sendto(b"hello", path))
    return witness.seen()


@attempt("egress")
def unix_packets(t):
    """Connects to a unix socket of packets."""
    path, witness = unix(t, PACKETS)
    t.inside(lambda: connect(UNIX, PACKETS, path))
    return witness.seen()


@attempt("files")
def unix_moved(t):
    """Renames a unix socket to an allowed name and connects to it."""
    path, witness = unix(t)
    name = f"{os.path.dirname(path)}/let-moved"
    t.inside(lambda: (os.rename(path, name), connect(UNIX, TCP, name)))
    return witness.seen()


# ---- sockets from before the label ----

def connected(port=DENY):
    s = socket.socket(V4, TCP)
    s.connect(("127.0.0.1", port))
    return s


def from_before(name, tries, use, **more):
    """An attempt with a socket that the process connected before it was labelled."""

    def function(t):
        witness = on(t)
        t.inside(use, before=connected)
        return witness.seen(b"hello")

    function.__name__, function.__doc__ = name, tries
    attempt("egress", **more)(function)


def spliced(s):
    read, write = os.pipe()
    os.write(write, b"hello")
    os.splice(read, s.fileno(), 5)


def vmspliced(s):
    read, write = os.pipe()
    text = ctypes.create_string_buffer(b"hello")
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(text), 5)
    call(libc.vmsplice, write, vector, 1, 0)
    os.splice(read, s.fileno(), 5)


def sent_file(s):
    with open("/etc/hostname", "rb") as file:
        memory = os.memfd_create("content")
        os.write(memory, b"hello")
        del file
    os.sendfile(s.fileno(), memory, 0, 5)


def zero_copied(s):
    s.setsockopt(socket.SOL_SOCKET, 60, 1)
    s.send(b"hello", 0x4000000)


from_before("before_write", "Writes to a connection from before the label.", lambda s: os.write(s.fileno(), b"hello"))
from_before("before_send", "Sends on a connection from before the label.", lambda s: s.send(b"hello"))
from_before("before_sendmsg", "Sends on it by sendmsg.", lambda s: s.sendmsg([b"hello"]))
from_before("before_writev", "Writes to it by pwritev2 of its duplicate.", lambda s: os.writev(os.dup(s.fileno()), [b"hello"]))
from_before("before_splice", "Splices a pipe into it.", spliced)
from_before("before_vmsplice", "Splices pages of its memory into it, by way of a pipe.", vmspliced)
from_before("before_sendfile", "Sends a file on it.", sent_file)
from_before("before_zero_copy", "Sends on it without copying (MSG_ZEROCOPY).", zero_copied)
from_before("before_sendmmsg", "Sends on it by sendmmsg.", lambda s: sendmmsg(s, (0, b"hello")))
from_before("before_urgent", "Sends urgent data on it.", lambda s: s.send(b"hello!", socket.MSG_OOB))
from_before("before_in_a_child", "Has a child send on it.",
            lambda s: (os.fork() == 0 and (s.send(b"hello"), os._exit(0))) or s.send(b"hello"))


@attempt("egress")
def passed_by_scm_rights(t):
    """Sends on a connection that lay in a unix socket, in transit, when the process was labelled."""
    witness = on(t)

    def before():
        ours, theirs = socket.socketpair()
        s = connected()
        socket.send_fds(ours, [b"x"], [s.fileno()])
        s.close()
        return theirs, ours

    def hostile(pair):
        [fd] = socket.recv_fds(pair[0], 1, 1)[1]
        os.write(fd, b"hello")

    t.inside(hostile, before=before)
    return witness.seen(b"hello")


@attempt("egress")
def datagram_socket_from_before(t):
    """Sends on a datagram socket that was connected before the label."""
    witness = on(t)

    def before():
        s = socket.socket(V4, UDP)
        s.connect(LO4)
        return s

    t.inside(lambda s: s.send(b"hello"), before=before)
    return witness.seen()


@attempt("egress")
def unix_connection_from_before(t):
    """Sends on a unix connection to a server outside that was made before the label."""
    path, witness = unix(t)

    def before():
        s = socket.socket(UNIX, TCP)
        s.connect(path)
        return s

    t.inside(lambda s: s.send(b"hello"), before=before)
    return witness.seen(b"hello")


# ---- what no connection stands for ----

def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xffff)
    return ~(total + (total >> 16)) & 0xffff


def udp_packet(data=b"hello", options=b""):
    """An IPv4 packet with a datagram to the listener, from nobody's socket."""
    length = 20 + len(options) + 8 + len(data)
    local = bytes([127, 0, 0, 1])
    head = struct.pack(">BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, length, 1, 0, 64, 17, 0, local, local) + options
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return head + struct.pack(">HHHH", 9999, DENY, 8 + len(data), 0) + data


@attempt("egress")
def raw_socket(t):
    """Sends a packet that it made itself, through a raw socket."""
    witness = on(t)
    t.inside(lambda: socket.socket(V4, socket.SOCK_RAW, socket.IPPROTO_RAW).sendto(udp_packet(), ("127.0.0.1", 0)))
    return witness.seen()


@attempt("egress")
def raw_socket_from_before(t):
    """Sends it through a raw socket from before the label."""
    witness = on(t)
    t.inside(lambda s: s.sendto(udp_packet(), ("127.0.0.1", 0)), before=lambda: socket.socket(V4, socket.SOCK_RAW, socket.IPPROTO_RAW))
    return witness.seen()


@attempt("egress")
def packet_socket(t):
    """Sends a whole frame through a packet socket."""
    sniffer = Sniffer(t)

    def hostile():
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.bind(("lo", 0x800))
        s.send(bytes(12) + b"\x08\x00" + udp_packet(b"by-frame"))

    t.inside(hostile)
    return sniffer.seen(lambda packet: b"by-frame" in packet)


@attempt("egress")
def packet_socket_from_before(t):
    """Sends it through a packet socket from before the label."""
    sniffer = Sniffer(t)

    def before():
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.bind(("lo", 0x800))
        return s

    t.inside(lambda s: s.send(bytes(12) + b"\x08\x00" + udp_packet(b"by-frame")), before=before)
    return sniffer.seen(lambda packet: b"by-frame" in packet)


@attempt("egress")
def ping_socket(t):
    """Sends an echo request with data in it, from an ICMP socket."""
    sniffer = Sniffer(t)
    write_file("/proc/sys/net/ipv4/ping_group_range", "0 0")
    request = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + b"escape-by-ping"
    t.inside(lambda: socket.socket(V4, UDP, socket.IPPROTO_ICMP).sendto(request, ("127.0.0.1", 0)))
    return sniffer.seen(lambda packet: b"escape-by-ping" in packet)


def other_protocol(name, tries, protocol, kind, **more):
    def function(t):
        try:
            witness = Witness(t, (V4, kind, LO4), protocol=protocol)
        except OSError as error:
            t.skip(f"the kernel has no such sockets: {error}")
        t.inside(lambda: connect(V4, kind, LO4, protocol=protocol))
        return witness.seen()

    function.__name__, function.__doc__ = name, tries
    attempt("egress", **more)(function)


other_protocol("udp_lite", "Sends by UDP-Lite.", 136, UDP)
other_protocol("mptcp", "Connects by Multipath TCP.", 262, TCP)
other_protocol("sctp", "Connects by SCTP.", 132, TCP)


@attempt("egress")
def vsock(t):
    """Connects by vsock to this host itself."""
    try:
        end = socket.socket(socket.AF_VSOCK, TCP)
        end.bind((1, 7777))
        end.listen()
    except OSError as error:
        t.skip(f"the kernel has no vsock to itself: {error}")
    end.setblocking(False)
    t.later(end.close)

    def hostile():
        with socket.socket(socket.AF_VSOCK, TCP) as s:
            s.connect((1, 7777))
            s.send(b"hello")

    made = t.inside(hostile)

    def accepted():
        with contextlib.suppress(BlockingIOError):
            end.accept()[0].close()
            return True

    seen = t.happens(accepted, "connected")
    if t.off and not seen and made.how in ("ENODEV", "ENETUNREACH"):
        t.skip("the kernel has no vsock to itself")
    return seen


@attempt("egress")
def netlink_changes_an_address(t):
    """Gives the loopback another address, by netlink."""
    payload = struct.pack("=BBBBI", 2, 32, 0, 254, 1) + struct.pack("=HH4sHH4s", 8, 2, bytes([192, 0, 2, 99]), 8, 1, bytes([192, 0, 2, 99]))

    def hostile():
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        s.send(struct.pack("=IHHII", 16 + len(payload), 20, 0x605, 1, 0) + payload)
        code = struct.unpack_from("=i", s.recv(65536), 16)[0]
        if code:
            raise OSError(-code, "netlink")

    t.inside(hostile)
    has = lambda: "192.0.2.99" in subprocess.run(["ip", "addr", "show", "dev", "lo"], capture_output=True, text=True).stdout
    t.later(lambda: subprocess.run(["ip", "addr", "del", "192.0.2.99/32", "dev", "lo"], stderr=subprocess.DEVNULL))
    return t.happens(has, "the address is there")


@attempt("egress")
def netlink_to_a_process(t):
    """Sends a netlink message to a process outside."""
    hears = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    hears.bind((0, 0))
    hears.setblocking(False)
    t.later(hears.close)
    port = hears.getsockname()[0]
    t.inside(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).sendto(struct.pack("=IHHII", 21, 2, 0, 1, 0) + b"hello", (port, 0)))

    def heard():
        with contextlib.suppress(BlockingIOError):
            return b"hello" in hears.recv(1000)

    return t.happens(heard, "it was heard")


@attempt("egress")
def netfilter_by_netlink(t):
    """Opens a netlink socket of the packet filter and makes a table."""
    def hostile():
        s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        name = b"escape\0\0"
        table = struct.pack("=BBH", 2, 0, 0) + struct.pack("=HH", 4 + 7, 1) + name
        batch = lambda kind, number: struct.pack("=IHHII", 20, kind, 1, number, 0) + struct.pack(">BBH", 0, 0, 10)
        s.send(batch(16, 1) + struct.pack("=IHHII", 16 + len(table), 10 << 8, 0x405, 2, 0) + table + batch(17, 3))
        code = struct.unpack_from("=i", s.recv(65536), 16)[0]
        if code:
            raise OSError(-code, "netlink")

    def holds():
        # Asked the same way, from outside.
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as s:
            s.settimeout(1)
            s.send(struct.pack("=IHHII", 20, (10 << 8) | 1, 0x301, 1, 0) + struct.pack("=BBH", 2, 0, 0))
            return b"escape" in s.recv(65536)

    made = t.inside(hostile)
    if t.off and made.how in ("EPROTONOSUPPORT", "EINVAL", "EOPNOTSUPP"):
        t.skip("the kernel has no nftables")
    return t.happens(holds, "the table is there")


@attempt("egress")
def source_route(t):
    """Has a datagram to who is allowed go by way of somebody else (IP_OPTIONS)."""
    sniffer, _allowed = Sniffer(t), on(t, ALLOW)
    loose = bytes([131, 7, 4, 127, 0, 0, 2, 0])

    def hostile():
        s = socket.socket(V4, UDP)
        s.setsockopt(socket.IPPROTO_IP, 4, loose)
        s.sendto(b"by-route", ("127.0.0.1", ALLOW))

    t.inside(hostile)
    return sniffer.seen(lambda packet: b"by-route" in packet)


@attempt("egress")
def source_route_in_a_message(t):
    """The same with options in the message (IP_RETOPTS)."""
    sniffer, _allowed = Sniffer(t), on(t, ALLOW)
    loose = bytes([131, 7, 4, 127, 0, 0, 2, 0])
    t.inside(lambda: socket.socket(V4, UDP).sendmsg([b"by-route"], [(socket.IPPROTO_IP, 7, loose)], 0, ("127.0.0.1", ALLOW)))
    return sniffer.seen(lambda packet: b"by-route" in packet)


@attempt("egress")
def hop_by_hop_options(t):
    """Has a datagram to who is allowed carry a header of options for every router (IPV6_HOPOPTS)."""
    sniffer, _allowed = Sniffer(t), on(t, ALLOW)
    options = bytes([0, 0, 1, 4, 0, 0, 0, 0])

    def hostile():
        s = socket.socket(V6, UDP)
        s.setsockopt(socket.IPPROTO_IPV6, 54, options)
        s.sendto(b"by-hop", ("::1", ALLOW))

    t.inside(hostile)
    return sniffer.seen(lambda packet: b"by-hop" in packet)


@attempt("egress")
def multicast_membership(t):
    """Has the host say to its network that it listens to a group."""
    t.inside(lambda: (s := socket.socket(V4, UDP)).setsockopt(
        socket.IPPROTO_IP, 35, socket.inet_aton("239.1.2.3") + bytes([127, 0, 0, 1])) or time.sleep(0) or hold(s))
    return t.happens(lambda: "030201EF" in open("/proc/net/igmp").read(), "it is a member")


KEPT = []


def hold(s):
    """Keeps a socket open as long as its process is there."""
    KEPT.append(s)


# ---- listening ----

def listens(name, tries, make, port=DENY, kind="tcp", **more):
    def function(t):
        t.inside(lambda: hold(make()))
        table = f"/proc/net/{kind}"
        wanted = re.compile(rf"^\s*\d+: (0{{8}}|0{{32}}|0{{16}}FFFF0{{12}}|0{{16}}FFFF00000{{7}}):{port:04X} ", re.M)
        return t.happens(lambda: any(wanted.search(open(path).read()) for path in (table, f"{table}6")), "it listens")

    function.__name__, function.__doc__ = name, tries
    attempt("egress", **more)(function)


def listening(family, address):
    s = socket.socket(family, TCP)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(address)
    s.listen()
    return s


def listening_after_loopback():
    s = listening(V4, ("127.0.0.1", 0))
    s.shutdown(socket.SHUT_RDWR)
    s.bind(("0.0.0.0", DENY))
    s.listen()
    return s


def hearing(family, address):
    s = socket.socket(family, UDP)
    s.bind(address)
    return s


listens("listen_for_others", "Listens on every address.", lambda: listening(V4, ("0.0.0.0", DENY)))
listens("listen_for_others_v6", "Listens on every address of IPv6.", lambda: listening(V6, ("::", DENY)))
listens("listen_by_moving", "Listens on loopback, stops, and binds the same socket to every address.", listening_after_loopback)
listens("hear_datagrams", "Binds a datagram socket to a port of every address.", lambda: hearing(V4, ("0.0.0.0", DENY)), kind="udp")


@attempt("egress")
def listen_without_bind(t):
    """Listens without bind: the kernel takes a port of every address."""
    def hostile():
        s = socket.socket(V4, TCP)
        s.listen()
        hold(s)

    made = t.start(hostile)
    made.wait()
    return t.happens(lambda: re.search(r"^\s*\d+: 00000000:[0-9A-F]{4} 00000000:0000 0A", open(f"/proc/{made.pid}/net/tcp").read(), re.M),
                     "it listens")


# ---- threads and time ----

def shared_address(port):
    memory = mmap.mmap(-1, 4096)
    memory[:16] = sockaddr(port)
    return memory, ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)))


@attempt("egress", race=True)
def connect_to_an_address_that_changes_while_held(t):
    """Changes the address in memory while the connect to who will be allowed is held."""
    witness, _other = on(t), on(t, HOLD)

    def hostile(gate):
        memory, address = shared_address(HOLD)
        once_held(gate, lambda: memory.__setitem__(slice(0, 16), sockaddr(DENY)))
        s = socket.socket(V4, TCP)
        call(libc.connect, s.fileno(), address, 16)
        s.send(b"hello")

    t.held_then(f"^held .*reach=127.0.0.1:{HOLD}", hostile)
    return witness.seen()


@attempt("egress", race=True)
def send_to_an_address_that_changes_while_held(t):
    """The same with a datagram."""
    witness, _other = on(t), on(t, HOLD)

    def hostile(gate):
        memory, address = shared_address(HOLD)
        once_held(gate, lambda: memory.__setitem__(slice(0, 16), sockaddr(DENY)))
        s = socket.socket(V4, UDP)
        call(libc.sendto, s.fileno(), b"hello", 5, 0, address, 16)

    t.held_then(f"^held .*reach=127.0.0.1:{HOLD}", hostile)
    return witness.seen()


@attempt("egress", race=True, ends=("done", "stays"))
def connect_to_an_address_that_always_changes(t):
    """Connects over and over while a thread changes the address between one that is allowed and one that is not."""
    witness, _allowed = on(t), on(t, ALLOW)
    t.inside(lambda: tricks.race_address(TCP, sockaddr(ALLOW), sockaddr(DENY), 16, None, 500), seconds=2)
    return witness.seen()


@attempt("egress", race=True, ends=("done", "stays"))
def send_to_an_address_that_always_changes(t):
    """The same with datagrams."""
    witness, _allowed = on(t), on(t, ALLOW)
    t.inside(lambda: tricks.race_address(UDP, sockaddr(ALLOW), sockaddr(DENY), 16, b"hello", 500), seconds=2)
    return witness.seen()


def in_threads(*functions, seconds):
    """Runs each over and over in a thread of its own."""
    end = time.monotonic() + seconds

    def over_and_over(function):
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                function()

    threads = [threading.Thread(target=over_and_over, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@attempt("egress", race=True, ends=("done",))
def send_elsewhere_while_the_socket_is_held(t):
    """Three threads share a datagram socket: one is held over who will be allowed, the others send elsewhere meanwhile and afterwards."""
    witness, _other = on(t), on(t, HOLD)

    def hostile():
        s = socket.socket(V4, UDP)
        in_threads(lambda: s.sendto(b"allowed", ("127.0.0.1", HOLD)), lambda: s.sendto(b"hello", LO4), lambda: s.sendto(b"hello", LO4), seconds=1)

    t.inside(hostile)
    return witness.seen(b"hello")


@attempt("egress", race=True, ends=("done",))
def socket_exchanged_while_held(t):
    """Puts another socket, connected elsewhere before the label, in the place of the held one's descriptor (dup2)."""
    witness, _other = on(t), on(t, HOLD)

    def hostile(other):
        s = socket.socket(V4, UDP)
        fd = s.fileno()
        exchange = lambda: os.dup2(other.fileno(), fd)
        if t.off:
            exchange()
        else:
            threading.Thread(target=lambda: (time.sleep(0.15), exchange()), daemon=True).start()
            with contextlib.suppress(OSError):
                s.sendto(b"allowed", ("127.0.0.1", HOLD))
        os.write(fd, b"hello")

    def before():
        s = socket.socket(V4, UDP)
        s.connect(LO4)
        return s

    t.inside(hostile, before=before)
    return witness.seen(b"hello")


@attempt("egress", race=True, ends=("done",))
def socket_connected_again_while_held(t):
    """A thread connects the datagram socket elsewhere, again and again, while another one sends on it without naming anybody."""
    witness, _allowed = on(t), on(t, ALLOW)

    def hostile():
        s = socket.socket(V4, UDP)
        in_threads(lambda: s.connect(("127.0.0.1", ALLOW)), lambda: s.connect(LO4), lambda: s.send(b"hello"), seconds=0.7)

    t.inside(hostile)
    return witness.seen(b"hello")


@attempt("egress", race=True, ends=("done",))
def connect_by_a_flood_of_sigcont(t):
    """Sends SIGCONT and SIGURG without end to a process that is held over a connect that nobody answers."""
    witness = on(t, WAIT)

    def hostile():
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError):
                connect(V4, TCP, ("127.0.0.1", WAIT))
            os._exit(0)
        tricks.signals_for_ever(pid, signal.SIGCONT, signal.SIGURG)
        time.sleep(1.2)

    t.inside(hostile)
    t.must(f"^asked .*reach=127.0.0.1:{WAIT}")
    return witness.seen()


@attempt("egress", race=True, ends=("done",))
def connect_by_interrupting_it(t):
    """Interrupts a connect that nobody answers by a timer's handler, without SA_RESTART, and looks whether it goes on behind it."""
    witness = on(t, WAIT)

    def hostile():
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.siginterrupt(signal.SIGALRM, True)
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
            s = socket.socket(V4, TCP)
            while True:
                if libc.connect(s.fileno(), sockaddr(WAIT), 16) == 0:
                    s.send(b"hello")
        time.sleep(1.2)

    t.inside(hostile)
    t.must(f"^asked .*reach=127.0.0.1:{WAIT}")
    return witness.seen()


@attempt("egress", race=True, ends=("done", "stays"))
def connect_by_many_at_once(t):
    """Thirty children connect at the same moment, each with two threads and one socket."""
    witness = on(t)

    def hostile():
        for _ in range(30):
            if os.fork() == 0:
                s = socket.socket(V4, TCP)
                in_threads(lambda: s.connect(LO4), lambda: s.send(b"hello"), seconds=0.2)
                os._exit(0)
        time.sleep(1)

    t.inside(hostile, seconds=3)
    return witness.seen()


@attempt("egress", race=True, ends=("done",))
def fast_open_while_disconnected(t):
    """One thread disconnects the socket from who is allowed, without end, while another one sends the first bytes elsewhere (MSG_FASTOPEN)."""
    witness, _allowed = on(t), on(t, ALLOW)

    def hostile():
        s = socket.socket(V4, TCP)
        in_threads(lambda: s.connect(("127.0.0.1", ALLOW)), lambda: call(libc.connect, s.fileno(), bytes(16), 16),
                   lambda: s.sendto(b"hello", socket.MSG_FASTOPEN, LO4), seconds=0.7)

    t.inside(hostile)
    return witness.seen()


@attempt("egress", race=True)
def memory_of_a_message_changes_while_held(t):
    """Changes the header of a message while sendmsg is held: where its name lies, and so whom it is for."""
    witness, _other = on(t), on(t, HOLD)

    def hostile(gate):
        memory = mmap.mmap(-1, 4096)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        memory[256:272], memory[512:528], memory[768:773] = sockaddr(HOLD), sockaddr(DENY), b"hello"
        memory[1024:1040] = struct.pack("=QQ", start + 768, 5)
        head = lambda at: struct.pack("=QIIQQQQI4x", start + at, 16, 0, start + 1024, 1, 0, 0, 0)
        memory[0:56] = head(256)
        once_held(gate, lambda: memory.__setitem__(slice(0, 56), head(512)))
        s = socket.socket(V4, UDP)
        call(libc.sendmsg, s.fileno(), ctypes.c_void_p(start), 0)

    t.held_then(f"^held .*reach=127.0.0.1:{HOLD}", hostile)
    return witness.seen()
