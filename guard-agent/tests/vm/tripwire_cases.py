"""What stands behind the socket hooks: with a hole in them it drops and counts, without one it never does."""
import glob
import socket

from egress_cases import ALLOW, code
from harness import *

STRAY = 39


class Ears:
    """Listens outside the workload for one kind and port, on IPv4 and IPv6, and keeps what arrives."""

    def __init__(self, port):
        self.tcp = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        self.udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.udp.bind(("::", port))
        for end in self.tcp, self.udp:
            end.setblocking(False)

    def datagrams(self):
        heard = []
        while True:
            try:
                heard.append(self.udp.recv(9000))
            except BlockingIOError:
                return heard

    def connections(self):
        came = 0
        while True:
            try:
                self.tcp.accept()[0].close()
                came += 1
            except BlockingIOError:
                return came

    def close(self):
        self.tcp.close()
        self.udp.close()


def afresh():
    PROBES[-1].kill()
    PROBES.append(again())


@case
@limit(300)
def the_tripwire_behind_a_hole(probe):
    """Without the hooks for connect and messages, as if they had overlooked something: nothing arrives, and it is told."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    ears = Ears(7117)
    before = 0 if OFF else tripwire()
    try:
        if not OFF:
            for name in "guard_reach_connect", "guard_reach_send":
                found = glob.glob(f"/sys/fs/bpf/guard/v*/links/{name}")
                check(len(found) == 1, f"{name}: {found}")
                os.unlink(found[0])
        text = output(start(sys.executable, "-c", code("""
def wait(s):
    s.settimeout(3)
    return s
for family, host in (V4, "127.0.0.1"), (V6, "::1"):
    way("tcp", lambda data: wait(socket.socket(family, TCP)).connect((host, port)))
    way("udp", lambda data: socket.socket(family, UDP).sendto(data, (host, port)))
    way("connected", lambda data: connect(family, UDP, (host, port), data))
""", port=7117)), 60)
        heard = lambda: ears.connections() + len(ears.datagrams())
        absent(heard, f"it arrived: {text}")
        check(text.count("failed tcp") == 2 and text.count("failed udp EPERM") == 2 and text.count("failed connected EPERM") == 2, text)
        check(tripwire() >= before + 6, f"not counted: {before} before, {tripwire()} after")
        probe.expect(rf"^refused label=1 kind={STRAY} ")
    finally:
        ears.close()
        if not OFF:
            afresh()


@case
@limit(200)
def the_tripwire_lets_allowed_packets_alone(probe):
    """Several threads on one socket, what is kept back, "this host", replies, many peers, translated addresses."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    ears = Ears(ALLOW)
    other = Ears(ALLOW + 10000)
    before = 0 if OFF else tripwire()
    # Port 17107 is turned into the one that is listened on, after the socket and before the tripwire.
    rule = ["OUTPUT", "-p", "udp", "-d", "127.0.0.9", "--dport", str(ALLOW), "-j", "DNAT", "--to-destination", f"127.0.0.1:{ALLOW + 10000}"]
    translated = subprocess.run(["iptables", "-t", "nat", "-A", *rule], capture_output=True).returncode == 0
    try:
        text = output(start(sys.executable, "-c", code("""
import threading
MORE = 0x8000
def many(data):
    s = socket.socket(V4, UDP)
    def one(host):
        for _ in range(50):
            s.sendto(data, (host, port))
    threads = [threading.Thread(target=one, args=(f"127.0.0.{at}",)) for at in (1, 2, 3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
way("threads", many)
def kept(data):
    s = socket.socket(V4, UDP)
    s.sendto(data, MORE, ("127.0.0.1", port))
    s.sendto(data, ("127.0.0.2", port))
way("kept-back", kept)
way("this-host", lambda data: socket.socket(V4, UDP).sendto(data, ("0.0.0.0", port)))
way("this-host-6", lambda data: socket.socket(V6, UDP).sendto(data, ("::", port)))
way("mapped", lambda data: socket.socket(V6, UDP).sendto(data, ("::ffff:127.0.0.1", port)))
way("connected", lambda data: connect(V6, UDP, ("::1", port), data))
way("stream", lambda data: connect(V4, TCP, ("127.0.0.1", port), data))
way("stream-this-host", lambda data: connect(V4, TCP, ("0.0.0.0", port), data))
way("stream-6", lambda data: connect(V6, TCP, ("::1", port), data))
way("fast-open", lambda data: socket.socket(V4, TCP).sendto(data, 0x20000000, ("127.0.0.1", port)))
def replies(data):
    listener = socket.create_server(("127.0.0.1", 0))
    one = connect(V4, TCP, ("127.0.0.1", port), data)
    listener.close()
way("listens", replies)
if translated:
    way("translated", lambda data: socket.socket(V4, UDP).sendto(data, ("127.0.0.9", port)))
    way("translated-connected", lambda data: connect(V4, UDP, ("127.0.0.9", port), data))
""", port=ALLOW, translated=translated)), 60)
        check("failed" not in text, text)
        if OFF:
            return
        check(len(ears.datagrams()) >= 155, "datagrams are missing")
        check(not translated or len(other.datagrams()) == 2, "translated ones are missing")
        check(tripwire() == before, f"{tripwire() - before} were dropped")
    finally:
        ears.close()
        other.close()
        if translated:
            subprocess.run(["iptables", "-t", "nat", "-D", *rule])
