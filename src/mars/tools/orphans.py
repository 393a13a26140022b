"""Processes of a tool server that is gone: who they are, and their end.

A server that dies takes its commands along (runner.py), unless its runners were killed in the same
moment. Then a command's processes are known by what they inherit: the control group, see
`groups.py`, and the mark below in their environment. It names the server, so that several servers
on one machine leave each other's commands alone; pids mean something in one PID namespace only, so
other namespaces are left alone too (a sandbox has one, and dies with its parent). A process that
has neither group nor mark is not found.
"""

import contextlib
import os
import signal
from pathlib import Path

MARK = "MARS_TOOL_SERVER"
"""In the environment of every command; written by the tool server, never read as a setting."""


def mark_of(pid: int) -> str:
    """Names a process for ever: pids come again, but not with the same start time.

    Raises OSError when there is no such process.
    """
    after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return f"{pid}-{int(after_name[19])}"  # field 22 of proc(5): start time in clock ticks


def is_alive(mark: str) -> bool:
    pid = mark.partition("-")[0]
    try:
        return mark_of(int(pid)) == mark
    except (OSError, ValueError):
        return False


def end_orphans() -> int:
    """Kill every process that bears the mark of a server that is gone; how many there were."""
    ours = _namespace("self")
    pids = [name for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    found = [
        int(pid)
        for pid in pids
        if _namespace(pid) == ours and (mark := mark_in(pid)) and not is_alive(mark)
    ]
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return len(found)


def _namespace(pid: str) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115
    return ""


def mark_in(pid: int | str) -> str:
    """Empty: none, or not ours to read."""
    with contextlib.suppress(OSError):
        for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = pair.partition(b"=")
            if name == MARK.encode():
                return value.decode(errors="replace")
    return ""
