"""Leases for commands that clients type into long-lived shells of their own.

An agent's terminal is a shell that outlives every command in it, so a lease cannot last as long as
the shell. Nor does it end with the agent's call: a call may give up waiting while its command runs
on, and `&` leaves jobs behind.

    enter -> ToolQueued -> [granted: the shell is on the cores] -> ToolStarted
    leave -> ToolFinished      the agent has its answer; the scheduler may expect it back
             [nothing runs in its foreground any more: the cores go to whoever is next]

Who enters a shell that has a lease joins it. What runs longer than its time is ended, the shell is
not. What is in the background by then (`server &`) runs on without a lease, where it is and with
the lowest priority. Commands are held by affinity alone: they are the client's children, in its
control group. What a command puts into a session of its own and orphans is not found.
"""

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from mars.core.errors import InputError, PartDiedError
from mars.tools.command import Outcome
from mars.tools.runtime import CANCELLED, ToolCall, ToolRuntime
from mars.tools.settings import ToolSettings
from mars.tools.wire import ShellEntered, ShellEntry, ShellExit

_LOOK_S: Final = 0.05
"""How often to look whether something still runs, once nobody waits for it."""
_LOWEST: Final = 19
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_GONE: Final = 128 + signal.SIGHUP  # nobody is left who could know the exit code


@dataclass(slots=True, eq=False)
class _Open:
    """A call whose client has no answer yet."""

    call: ToolCall
    began_s: float
    cpu_s: float
    """Of the shell and all below it, before."""


@dataclass(slots=True, eq=False)
class _Shell:
    pid: int
    lease: ToolCall
    ends_s: float = 0.0
    open: dict[str, _Open] = field(default_factory=dict)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """A call is over: look at once."""


class Shells:
    def __init__(self, runtime: ToolRuntime, settings: ToolSettings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._shells: dict[int, _Shell] = {}

    async def enter(self, entry: ShellEntry) -> ShellEntered:
        """Wait for cores and put the shell on them. Cancelling this call gives the place up.

        Raises InputError for a process that is not there or not ours, and for more cores than there
        are; PartDiedError when the server stops.
        """
        _check_ours(entry.pid)
        shell = self._shells.get(entry.pid)
        if shell is None:
            shell = await self._lease(entry)
            call = shell.lease
        elif shell.lease.cores:
            call = self._runtime.join(entry, shell.lease.cores)
        else:
            raise InputError(f"shell {entry.pid} waits for cores already")
        shell.open[call.tool_id] = _Open(call, time.monotonic(), _cpu_s(shell.pid))
        return ShellEntered(tool_id=call.tool_id, cores=call.cores, wait_s=call.wait_s)

    def leave(self, left: ShellExit) -> None:
        """Raises InputError when no such call is open."""
        for shell in self._shells.values():
            if left.tool_id in shell.open:
                self._finish(shell, left.tool_id, left.exit_code)
                return
        raise InputError(f"no call {left.tool_id} is open in a shell (its time may have been over)")

    async def _lease(self, entry: ShellEntry) -> _Shell:
        lease = self._runtime.queue(entry, memory_bytes=0)
        shell = self._shells[entry.pid] = _Shell(entry.pid, lease)
        try:
            await lease.ready.wait()
            _move(entry.pid, lease)
        except BaseException:
            self._give_up(shell)
            raise
        shell.ends_s = time.monotonic() + (entry.timeout_s or self._settings.timeout_s)
        self._runtime.spawn(self._hold(shell))
        return shell

    def _give_up(self, shell: _Shell) -> None:
        self._runtime.finished(shell.lease, CANCELLED)
        self._end(shell)

    def _end(self, shell: _Shell) -> None:
        del self._shells[shell.pid]
        self._runtime.give_back(shell.lease)

    def _finish(self, shell: _Shell, tool_id: str, exit_code: int) -> None:
        over = shell.open.pop(tool_id)
        outcome = Outcome(
            exit_code=exit_code,
            why="ended",
            run_s=time.monotonic() - over.began_s,
            cpu_s=max(0.0, _cpu_s(shell.pid) - over.cpu_s),
        )
        self._runtime.finished(over.call, outcome)
        shell.left.set()

    async def _hold(self, shell: _Shell) -> None:
        try:
            if not await self._calms_down(shell):
                await self._end_tree(shell)
        finally:
            for tool_id in list(shell.open):
                self._finish(shell, tool_id, _GONE)
            self._end(shell)
            _put_back(shell.pid)

    async def _calms_down(self, shell: _Shell) -> bool:
        """Wait until no call is open and nothing runs in front; False: its time is over, or the
        server's.
        """
        while not shell.lease.cancelled.is_set() and time.monotonic() < shell.ends_s:
            if not (shell.open and _lives(shell.pid)) and not in_front(shell.pid):
                return True
            shell.left.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(shell.left.wait(), _LOOK_S)
        return False

    async def _end_tree(self, shell: _Shell) -> None:
        """SIGTERM once to whatever runs, after the grace SIGKILL; the shell lives on."""
        kill_s = time.monotonic() + self._settings.grace_s
        told: set[int] = set()
        while pids := {process.pid for process in below(shell.pid)}:
            late = time.monotonic() >= kill_s
            for pid in pids if late else pids - told:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            told |= pids
            await asyncio.sleep(_LOOK_S)


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


def below(shell: int) -> list[Process]:
    """What runs because of a shell: its descendants, and who else is in its terminal session."""
    everybody = _processes()
    members, grown = {shell}, True
    while grown:
        more = {p.pid for p in everybody if p.parent in members or p.session == shell}
        grown = not more <= members
        members |= more
    return [p for p in everybody if p.pid in members and p.pid != shell]


def in_front(shell: int) -> list[Process]:
    """What the shell waits for. Without a terminal nobody can tell: all that runs below it."""
    own, running = _process(shell), below(shell)
    if own is None or own.front < 0:
        return running
    return [process for process in running if process.group == own.front]


def _put_back(shell: int) -> None:
    """What runs below it, but not the shell: who has no privileges cannot take that back."""
    own = _process(shell)
    for group in {process.group for process in below(shell)} - {own.group if own else 0}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, group, _LOWEST)


def _processes() -> list[Process]:
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208
    return [process for pid in pids if (process := _process(pid))]


def _process(pid: int) -> Process | None:
    """None: it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    state, *numbers = text.rpartition(b")")[2].split()
    if state in b"ZX":
        return None
    parent, group, session, _, front = map(int, numbers[:5])
    return Process(pid, parent, group, session, front, sum(map(int, numbers[10:14])) * _TICK_S)


def _lives(pid: int) -> bool:
    return _process(pid) is not None


def _cpu_s(shell: int) -> float:
    own = _process(shell)
    return (own.cpu_s if own else 0.0) + sum(process.cpu_s for process in below(shell))


def _move(shell: int, lease: ToolCall) -> None:
    if lease.cancelled.is_set():
        raise PartDiedError("the tool server is stopping")
    try:
        os.sched_setaffinity(shell, lease.cores)
    except OSError as error:
        raise InputError(f"process {shell} cannot be moved: {error.strerror}") from None


def _check_ours(pid: int) -> None:
    try:
        owner = psutil.Process(pid).uids().real
    except psutil.NoSuchProcess:
        raise InputError(f"there is no process {pid} on the tool server's machine") from None
    if os.getuid() not in {0, owner}:
        raise InputError(f"process {pid} is another user's")
