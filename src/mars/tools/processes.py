"""Who runs because of a shell, and what that takes, from /proc."""

import os
from pathlib import Path
from typing import Final, NamedTuple

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """As proc(5) has it in /proc/PID/stat."""

    pid: int
    parent: int
    group: int
    session: int
    front: int
    """The process group in the foreground of its terminal; -1: it has none."""
    cpu_s: float
    """Its own, and that of the children it has waited for."""
    waited_cpu_s: float
    """Of these alone."""
    memory_bytes: int
    """Resident: pages that several share count in each of them."""
    has_ended: bool
    """And nobody has waited for it yet."""


def find(pid: int) -> Process | None:
    """None: it has ended."""
    process = _read(pid)
    return None if process is None or process.has_ended else process


def _read(pid: int) -> Process | None:
    """None: it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *numbers = text.rpartition(b")")[2].split()
    parent, group, session, _, front = map(int, numbers[:5])
    own_s, waited_s = (sum(map(int, numbers[at : at + 2])) * _TICK_S for at in (10, 12))
    memory_bytes = int(numbers[20]) * _PAGE_BYTES
    return Process(
        pid=pid,
        parent=parent,
        group=group,
        session=session,
        front=front,
        cpu_s=own_s + waited_s,
        waited_cpu_s=waited_s,
        memory_bytes=memory_bytes,
        has_ended=state in b"ZX",
    )


def below(shell: int) -> list[Process]:
    """What runs because of a shell: its descendants, and who else is in its terminal session."""
    return [process for process in _all_below(shell) if not process.has_ended]


def _all_below(shell: int) -> list[Process]:
    everybody = _everybody()
    members, grown = {shell}, True
    while grown:
        more = {p.pid for p in everybody if p.parent in members or p.session == shell}
        grown = not more <= members
        members |= more
    return [p for p in everybody if p.pid in members and p.pid != shell]


def in_front(shell: int) -> list[Process]:
    """What the shell waits for. Without a terminal nobody can tell: all that runs below it."""
    own, running = find(shell), below(shell)
    if own is None or own.front < 0:
        return running
    return [process for process in running if process.group == own.front]


def cpu_s(shell: int) -> float:
    """Of a shell and of all below it that lives or was its descendants' to wait for."""
    own = find(shell)
    return (own.cpu_s if own else 0.0) + sum(process.cpu_s for process in _all_below(shell))


def cpu_s_below(runner: int) -> float:
    """The same without what it takes itself."""
    own = find(runner)
    return (own.waited_cpu_s if own else 0.0) + sum(it.cpu_s for it in _all_below(runner))


def memory_bytes_below(pid: int) -> int:
    return sum(process.memory_bytes for process in below(pid))


def _everybody() -> list[Process]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    return [process for pid in pids if (process := _read(pid))]
