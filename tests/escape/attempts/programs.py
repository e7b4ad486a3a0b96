"""Real programs: run below a label whose policy asks about everything and is answered at once, they must do what they are for."""
import http.server
import shutil
import socketserver

from suite import *
from suite import FREE


def run(t, *argv, cwd=None, environment=(), seconds=60, fine=0):
    """Runs a program inside the label, and gives what it printed; it must end well."""
    def enter():
        os.chdir(cwd or t.home)
        variables = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": t.home, "LANG": "C.UTF-8", **dict(environment)}
        os.execve(shutil.which(argv[0]), argv, variables)

    made = t.start(enter)
    status = made.finish(seconds)
    if status != fine:
        raise Failed(f"{argv[0]} ended with {status}: {made.hear()[-1500:]}")
    return made.hear()


def real(function):
    """A program, with a home of its own; skipped where the guest does not have it."""
    name = function.__name__

    def with_home(t):
        if not shutil.which(name.replace("container", "unshare").replace("apt", "apt-get")):
            t.skip(f"{name} is not in the guest")
        t.home = t.free()
        function(t)
        if not t.asked():
            raise Failed("nobody was asked")

    with_home.__name__, with_home.__doc__ = name, function.__doc__
    return program(with_home)


def served(t, content):
    """A web server outside; gives its port."""
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
    pid = os.fork()
    if pid == 0:
        signal.alarm(0)
        server.serve_forever()
        os._exit(0)
    port = server.server_address[1]
    server.server_close()
    t.later(lambda: (os.kill(pid, signal.SIGKILL), os.waitpid(pid, 0)))
    return port


def same(got, wanted):
    if got != wanted:
        raise Failed(f"{got!r} instead of {wanted!r}")


@real
def curl(t):
    """Fetches a page and writes it into a file."""
    port = served(t, b"a page\n")
    run(t, "curl", "-sS", "-o", "page", f"http://127.0.0.1:{port}/")
    same(open(f"{t.home}/page").read(), "a page\n")


@real
def git(t):
    """Clones, commits and pushes."""
    quiet = {"env": {**os.environ, "HOME": t.home}, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", f"{t.home}/origin"], **quiet)
    run(t, "git", "clone", "-q", f"{t.home}/origin", "work")
    t.file(f"{t.home}/work/file", b"content\n")
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    run(t, "git", "-C", "work", "add", "file")
    run(t, "git", "-C", "work", *who, "commit", "-q", "-m", "one")
    run(t, "git", "-C", "work", "push", "-q", "origin", "HEAD:main")
    shown = subprocess.run(["git", "--git-dir", f"{t.home}/origin", "show", "main:file"], capture_output=True, text=True)
    same(shown.stdout, "content\n")


@real
def python3(t):
    """Runs a program, a thread, a child and a connection of its own."""
    port = served(t, b"for python\n")
    script = f"""
import subprocess, threading, urllib.request
threading.Thread(target=lambda: open("made", "w").write("by a thread")).start()
print(subprocess.run(["/bin/echo", "a child"], capture_output=True, text=True).stdout.strip())
print(urllib.request.urlopen("http://127.0.0.1:{port}/").read().decode().strip())
"""
    same(run(t, "python3", "-c", script), "a child\nfor python\n")
    same(open(f"{t.home}/made").read(), "by a thread")


@real
def tar(t):
    """Packs a folder, compressed by another program, and unpacks it."""
    t.file(f"{t.home}/folder/a", b"one")
    t.file(f"{t.home}/folder/deep/b", b"two")
    os.symlink("a", f"{t.home}/folder/link")
    run(t, "tar", "-czf", "packed.tar.gz", "folder")
    os.mkdir(f"{t.home}/out")
    run(t, "tar", "-xzf", "packed.tar.gz", "-C", "out")
    same(open(f"{t.home}/out/folder/deep/b").read(), "two")
    same(os.readlink(f"{t.home}/out/folder/link"), "a")


@real
def bash(t):
    """Runs a pipeline with a subshell, a here document and a loop."""
    same(run(t, "bash", "-c", "for n in 3 1 2; do echo $n; done | sort | (read first; echo first $first; cat | wc -l) > out; cat out"),
         "first 1\n2\n")


@real
def apt(t):
    """Installs a package from a file."""
    t.file(f"{t.home}/build/DEBIAN/control", b"Package: escape-suite\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n"
           b"Description: nothing\n")
    t.file(f"{t.home}/build/usr/share/escape-suite/file", b"installed\n")
    subprocess.run(["dpkg-deb", "--build", f"{t.home}/build", f"{t.home}/escape-suite.deb"], check=True, stdout=subprocess.DEVNULL)
    run(t, "apt-get", "install", "-y", "-q", "--no-download", "-o", "Dpkg::Use-Pty=0", "./escape-suite.deb", environment={"DEBIAN_FRONTEND": "noninteractive"}.items(),
        seconds=200)
    same(open("/usr/share/escape-suite/file").read(), "installed\n")


@real
def container(t):
    """Starts a program in namespaces and with a root of its own, as container engines do."""
    root = f"{t.home}/root"
    for folder in "bin", "proc":
        os.makedirs(f"{root}/{folder}")
    shutil.copy("/bin/busybox", f"{root}/bin/busybox")
    os.symlink("busybox", f"{root}/bin/sh")
    said = run(t, "unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", f"--root={root}", "--mount-proc", "/bin/sh", "-c",
               "echo pid $$; busybox ls /")
    same(said, "pid 1\nbin\nproc\n")


@real
def ssh(t):
    """Runs a command on a server."""
    if not os.path.exists("/usr/sbin/sshd"):
        t.skip("there is no server for it in the guest")
    keys = t.outside()
    for name in "host", "user":
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{keys}/{name}"], check=True)
    shutil.copy(f"{keys}/user", f"{t.home}/key")
    os.chmod(f"{t.home}/key", 0o600)
    os.makedirs("/run/sshd", exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", "/dev/null", "-p", "2222", "-h", f"{keys}/host", "-o", "ListenAddress=127.0.0.1",
                               "-o", f"AuthorizedKeysFile={keys}/user.pub", "-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none"],
                              stderr=subprocess.DEVNULL)
    t.later(lambda: (server.kill(), server.wait()))
    time.sleep(1)
    said = run(t, "ssh", "-F", "none", "-i", f"{t.home}/key", "-p", "2222", "-o", "StrictHostKeyChecking=no", "-o",
               f"UserKnownHostsFile={t.home}/known", "-o", "LogLevel=ERROR", "root@127.0.0.1", "echo there")
    same(said, "there\n")


@real
def rsync(t):
    """Copies a folder."""
    t.file(f"{t.home}/from/a", b"one")
    t.file(f"{t.home}/from/deep/b", b"two")
    run(t, "rsync", "-a", "from/", "to")
    same(open(f"{t.home}/to/deep/b").read(), "two")


@real
def gcc(t):
    """Compiles a program and runs it."""
    t.file(f"{t.home}/main.c", b'#include <stdio.h>\nint main(void) { puts("compiled"); return 0; }\n')
    run(t, "gcc", "-O1", "-o", "main", "main.c")
    same(run(t, f"{t.home}/main"), "compiled\n")


@real
def node(t):
    """Writes a file, starts a child and fetches a page."""
    port = served(t, b"for node\n")
    script = f"""
require("fs").writeFileSync("made", "by node");
console.log(require("child_process").execFileSync("/bin/echo", ["a child"]).toString().trim());
require("http").get("http://127.0.0.1:{port}/", answer => answer.on("data", data => console.log(data.toString().trim())));
"""
    same(run(t, "node", "-e", script), "a child\nfor node\n")
    same(open(f"{t.home}/made").read(), "by node")
