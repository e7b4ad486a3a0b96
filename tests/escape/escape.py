#!/usr/bin/env python3
"""Runs the attempts to escape, as root in a VM.

escape.py [--off] [--list] [--exactly] FOLDER [WORD...] runs the attempts whose name contains one of the words (or is one of them), or all;
--list only names them. FOLDER holds hold_probe and what the attempts are made of; see suite.py for what an attempt is.

With enforcement on, each attempt runs under a label whose policy denies it: `ok NAME SECONDS`, `ESCAPED NAME: what was seen`,
`FAILED NAME: why` when it proves nothing, `skipped NAME: why`. With --off nothing is loaded and nothing labelled, and each attempt has to
succeed: `proven NAME SECONDS`, or `FAILED NAME: why`. Real programs, which must work once they are approved, have the lines
`works NAME SECONDS`, `broken NAME: why` and `skipped NAME: why`. The last line is `end: …`: without it the run did not come to its end.
"""
import glob
import importlib
import os
import signal
import sys
import time
import traceback

from suite import ASKED, ATTEMPTS, ENFORCED, FOLDER, OFF, PROGRAMS, SLOW, Failed, Probe, Skipped, Try, asked_for


def too_late(_number, _frame):
    raise Failed("it took too long")


def run(attempt):
    """Runs one attempt; gives the first word of its line and the line."""
    name, began = attempt.name, time.monotonic()
    if not OFF and attempt.kind not in ENFORCED:
        return "skipped", f"{name}: class {attempt.kind} is not enforced yet"
    tried = Try(attempt)
    try:
        signal.alarm(int(60 * SLOW))
        try:
            seen = attempt.function(tried)
        finally:
            signal.alarm(0)
        why = None if OFF or seen else tried.odd_end()
        story = tried.story()
        signal.alarm(int(60 * SLOW))
        tried.close()
        took = f"{name} {time.monotonic() - began:.1f}s"
        if OFF and not seen:
            return "FAILED", f"{name}: proves nothing: with enforcement off it does not succeed either: {story}"
        if OFF:
            return "proven", took
        if seen:
            return "ESCAPED", f"{name}: {seen}: {story}"
        if why:
            return "FAILED", f"{name}: it failed for a reason of its own: {why}: {story}"
        return "ok", took
    except Skipped as why:
        return "skipped", f"{name}: {why}"
    except Failed as why:
        return "FAILED", f"{name}: {why}: {tried.story()}"
    except Exception:
        return "FAILED", f"{name}: {traceback.format_exc()}"
    finally:
        signal.alarm(int(60 * SLOW))
        tried.close_quietly()
        signal.alarm(0)


def works(program):
    """Runs one real program below a policy that asks, with everything approved."""
    name, began = program.name, time.monotonic()
    tried = Try(program)
    signal.alarm(int(240 * SLOW))
    try:
        program.function(tried)
        return "works", f"{name} {time.monotonic() - began:.1f}s"
    except Skipped as why:
        return "skipped", f"{name}: {why}"
    except Failed as why:
        return "broken", f"{name}: {why}: {tried.story()}"
    except Exception:
        return "broken", f"{name}: {traceback.format_exc()}"
    finally:
        signal.alarm(int(60 * SLOW))
        tried.close_quietly()
        signal.alarm(0)


def say(word, line):
    print(word, line.rstrip().replace("\n", "\n   | "), flush=True)


def main():
    sys.path.insert(0, f"{FOLDER}/attempts")
    for path in sorted(glob.glob(f"{FOLDER}/attempts/*.py")):
        importlib.import_module(os.path.basename(path)[:-3])
    if ASKED.list:
        for attempt in ATTEMPTS:
            print(f"{attempt.kind:<10} {attempt.name:<45} {'race ' if attempt.race else '     '}{attempt.tries}")
        return
    signal.signal(signal.SIGALRM, too_late)
    counts = {}

    def count(word, line):
        counts[word] = counts.get(word, 0) + 1
        say(word, line)

    attempts = list(filter(asked_for, ATTEMPTS))
    if attempts and not OFF:
        Probe.start()
    for attempt in attempts:
        count(*run(attempt))
        if not OFF and Probe.ended():
            # It has to outlive everything: without it nothing says who was asked.
            say("   the probe ended:", Probe.text()[-1500:])
            Probe.start()
    programs = [] if OFF else list(filter(asked_for, PROGRAMS))
    if programs:
        Probe.start(approves=True)
        for program in programs:
            count(*works(program))
    if not OFF:
        Probe.stop()
    print("end:", ", ".join(f"{number} {word}" for word, number in counts.items()))


main()
