"""Prints what the agent's spool says of enforced execs, one JSON object a line: path, how it was decided, resume_ns."""

import base64
import glob
import json
import sys

for name in sorted(glob.glob(sys.argv[1] + "/**/*.seg", recursive=True)):
    with open(name, "rb") as file:
        segment = file.read()
    at = 16
    while at + 8 <= len(segment):
        length = int.from_bytes(segment[at : at + 4], "little")
        envelope = json.loads(segment[at + 8 : at + 8 + length])
        at += 8 + length
        statement = json.loads(base64.b64decode(envelope["payload"]))
        if statement["predicateType"] != "urn:guard:record:enforcement:v1":
            continue
        record = statement["predicate"]
        by_policy = record.get("by_policy")
        print(
            json.dumps(
                {
                    "label": record["label"],
                    "asked": record.get("request_id") is not None,
                    # What the kernel key alone decided, or what was read from the held thread.
                    "action": by_policy["action"]["kind"] if by_policy else None,
                    "path": by_policy["action"]["path"] if by_policy else None,
                    "verdict": record["verdict"],
                    "effect": record["effect"]["kind"],
                    "resume_ns": record["resume_ns"],
                }
            )
        )
