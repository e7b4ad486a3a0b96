"""Exact rules: what is allowed by the kernel's key alone is allowed again without a question, counted, and for nothing else."""
import socket

from harness import *

PORT = 7141
RULES.append(f":{PORT}=allow")


class Exact:
    """The probe makes exact rules of what it allows at once; and a folder for programs on a file system of which rules are made."""

    def __enter__(self):
        self.probe = PROBES[-1]
        self.another_policy()
        self.folder = tempfile.mkdtemp(prefix="rules-", dir="/run")
        os.chmod(self.folder, 0o755)
        return self

    def another_policy(self):
        if not OFF:
            mark = len(self.probe.text())
            self.probe.process.send_signal(signal.SIGHUP)
            until(lambda: "another policy" in self.probe.text()[mark:], "no other policy comes into force")

    def __exit__(self, *_):
        if not OFF and PROBES[-1].process.poll() is None:
            PROBES[-1].process.send_signal(signal.SIGUSR1)
            PROBES[-1].expect(r"^no exact rules$")
        shutil.rmtree(self.folder, ignore_errors=True)

    def program(self, name, content=None):
        path = f"{self.folder}/{name}"
        shutil.copy(program(name, content), path)
        return path

    def asked(self, *argv):
        """Runs it, and says how often it was asked about."""
        mark = len(self.probe.text())
        try:
            output(start(*argv))
        except PermissionError:
            pass
        # What was asked is told within moments.
        time.sleep(0.2)
        return len(re.findall(rf"^asked .*path={re.escape(argv[0])} ", self.probe.text()[mark:], re.M))

    def learnt(self, *argv):
        """Runs it until the kernel allows it by itself: after a change of mounts that takes a while."""
        until(lambda: self.asked(*argv) == 0, f"it is asked about for ever:\n{self.probe.since()}", 30)

    def used(self, what):
        """How often the rules for it were used, which are in force or were."""
        time.sleep(1)
        slots = dict(re.findall(rf"^used (slot=\d+) count=(\d+) {re.escape(what)}$", self.probe.text(), re.M))
        return sum(map(int, slots.values()))


@case
def a_rule_allows_in_the_kernel_and_counts(_probe):
    with Exact() as exact:
        path = exact.program("fast-allow-rule")
        mark = marker("rule")
        check(exact.asked(path, mark) == 1, f"the first one is not asked about:\n{exact.probe.since()}")
        exact.learnt(path, mark)
        before = exact.used(path)
        os.unlink(mark)
        for _ in range(10):
            check(exact.asked(path, mark) == 0, "it is asked about again")
        check(os.path.exists(mark), "it did not run")
        check(exact.used(path) == before + 10, f"{exact.used(path)} uses are counted, {before} before:\n{exact.probe.since()}")
        denied = exact.program("fast-deny-rule")
        check(exact.asked(denied, mark) == 1 and exact.asked(denied, mark) == 1, "what is denied is not asked about each time")


@case
def a_rule_ends_with_its_policy(_probe):
    with Exact() as exact:
        path = exact.program("fast-allow-policy")
        exact.learnt(path, marker("rule"))
        exact.another_policy()
        check(exact.asked(path, marker("rule")) == 1, "the rule of the policy before still counts")
        check(exact.asked(path, marker("rule")) == 0, "it is not learnt anew")


@case
def a_rule_ends_with_its_file(_probe):
    """Whatever gives the file another content, another name or another path."""
    with Exact() as exact:
        path = exact.program("fast-allow-file")
        mark = marker("rule")

        def changed(how, where=path):
            exact.learnt(path, mark)
            how()
            check(exact.asked(where, mark) >= 1, f"not asked again after: {how.__doc__}")

        def written():
            "it was written"
            with open(path, "ab") as file:
                file.write(b"\0")

        def moded():
            "its mode was changed"
            os.chmod(path, 0o700)

        def replaced():
            "another file took its name"
            shutil.copy(path, f"{path}-new")
            os.rename(f"{path}-new", path)

        def renamed():
            "it was renamed"
            os.rename(path, f"{path}-other")

        def moved():
            "its directory was renamed"
            os.rename(exact.folder, f"{exact.folder}-other")

        def linked():
            "it got another name"
            os.link(path, f"{path}-link")

        changed(written)
        changed(moded)
        changed(replaced)
        changed(renamed, f"{path}-other")
        os.rename(f"{path}-other", path)
        changed(moved, f"{exact.folder}-other/fast-allow-file")
        os.rename(f"{exact.folder}-other", exact.folder)
        changed(linked)
        for _ in range(3):
            check(exact.asked(path, mark) == 1, "a file with two names has a rule")
        check(exact.asked(f"{path}-link", mark) == 1, "the other name is not asked about")


@case
def a_rule_holds_on_its_own_mount_only(_probe):
    with Exact() as exact:
        path = exact.program("fast-allow-mount")
        other = tempfile.mkdtemp(dir="/run")
        subprocess.run(["mount", "--bind", exact.folder, other], check=True)
        try:
            exact.learnt(path, marker("rule"))
            there = f"{other}/fast-allow-mount"
            check(exact.asked(there, marker("rule")) == 1, "another path of the file is not asked about")
            check(exact.asked(there, marker("rule")) == 0, "it has no rule of its own")
            check(exact.asked(path, marker("rule")) == 0, "the first path has no rule any more")
        finally:
            subprocess.run(["umount", other], check=True)
        check(exact.asked(path, marker("rule")) == 1, "a change of mounts is not noticed")


@case
def a_rule_covers_interpreters(_probe):
    with Exact() as exact:
        mark = marker("rule")
        path = exact.program("fast-allow-script", f"#!/bin/sh\necho x >> {mark}\n")
        exact.learnt(path)
        lines = os.path.getsize(mark)
        at = len(exact.probe.text())
        check(exact.asked(path) == 0 and os.path.getsize(mark) == lines + 2, "it did not run")
        check(not re.search(r"^asked .*path=\S*sh ", exact.probe.text()[at:], re.M), "its interpreter was asked about")


@case
@one_kernel("6.18")
def a_rule_is_of_no_use_while_the_agent_is_away(_probe):
    with Exact() as exact:
        path = exact.program("fast-allow-away")
        exact.learnt(path, marker("rule"))
        exact.probe.kill()
        time.sleep(3.5)
        mark = marker("rule")
        process = start_moved(path, mark)
        until(lambda: state(process.pid) == "T", f"state {state(process.pid)}", 5)
        absent(mark, "it ran")
        PROBES.append(again())
        output(process)
        check(os.path.exists(mark), "it did not run with the new agent")
        if not OFF:
            exact.probe = PROBES[-1]
            exact.another_policy()
        check(exact.asked(path, mark) <= 1 and exact.asked(path, mark) == 0, "it has no rule")
        check(exact.used(path) >= 1, "what the first agent's rule counted is lost")


@case
def a_rule_for_an_address(_probe):
    with Exact() as exact, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as witness:
        witness.bind(("127.0.0.1", PORT))
        witness.settimeout(10 * SLOW)
        script = f'''
import socket
for number in range(10):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", {PORT}))
        s.send(b"x")
        s.send(b"x")
'''
        # A change of mounts long enough ago.
        time.sleep(2.5)
        what = f"127.0.0.1:{PORT}"
        output(start("/usr/bin/python3", "-c", script), 60)
        asked = len(re.findall(rf"^asked .*reach={what} ", exact.probe.text(), re.M))
        check(asked == 1, f"asked about {asked} times:\n{exact.probe.since()}")
        check(exact.used(what) == 9, f"{exact.used(what)} uses are counted:\n{exact.probe.since()}")
        for _ in range(20):
            witness.recv(10)
