"""Listens to supervisord (its manual, "Events") and does the two things that it has no directive for.

It ends the container, with exit code 1, when that cannot serve any more, where supervisord would stay up with
everything dead: nginx ended, a program cannot be started, node says by exit code 2 that its
configuration is wrong, or node crashes again and again. And it makes JSON of what programs say
on stderr, so that every line of the container's log is JSON.
"""

import json
import os
import signal
import sys
import time

MOST_CRASHES = 6  # of node, within
EXIT_CODE = "/tmp/exit-code"  # read by start.py
WINDOW = 60  # seconds: a few kills in a row are survived, a crash at each start is not

crashes: list[float] = []
supervisord = os.getppid()


def log(level: str, program: str, text: str) -> None:
    line = {"level": level, "time": int(time.time() * 1000), "program": program, "msg": text}
    try:
        with open(f"/proc/{supervisord}/fd/1", "w") as out:
            out.write(json.dumps(line) + "\n")
    except OSError:
        pass  # nobody reads; the container has to end all the same


def why_end(event: str, program: str, expected: bool) -> str | None:
    """The reason to end the container, if the event is one."""
    if event != "PROCESS_STATE_EXITED":
        return f"{program} cannot be started"
    if program == "watchdog":
        return None  # that was the one before this
    if program != "node":
        return f"{program} ended"
    if expected:
        return "node cannot work with this configuration"
    crashes.append(time.monotonic())
    recent = [at for at in crashes if at > crashes[-1] - WINDOW]
    return f"node ended {len(recent)} times in {WINDOW} s" if len(recent) > MOST_CRASHES else None


def hear(event: str, payload: str) -> None:
    head, _, text = payload.partition("\n")
    facts = dict(pair.split(":", 1) for pair in head.split())
    program = facts["processname"]
    if event == "PROCESS_LOG_STDERR":
        for line in filter(None, text.splitlines()):
            log("error", program, line)
        return
    expected = facts.get("expected") == "1"
    reason = why_end(event, program, expected)
    log("fatal" if reason else "error", program, reason or f"{program} ended and is started again")
    if reason:
        with open(EXIT_CODE, "w") as file:
            file.write("1")
        os.kill(supervisord, signal.SIGTERM)


while True:
    print("READY", flush=True)
    line = sys.stdin.buffer.readline()
    if not line:
        break  # supervisord is gone
    header = dict(pair.split(":", 1) for pair in line.decode().split())
    payload = sys.stdin.buffer.read(int(header["len"])).decode(errors="replace")
    hear(header["eventname"], payload)
    print("RESULT 2\nOK", end="", flush=True)
