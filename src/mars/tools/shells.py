"""Leases for commands that clients type into long-lived shells of their own.

An agent's terminal is a shell that outlives every command in it, so a lease cannot last as long as
the shell. Nor does it end with the agent's call: a call may give up waiting while its command runs
on, and `&` leaves jobs behind.

    enter -> ToolQueued -> [granted: the shell is on the cores] -> ToolStarted
             ToolProgressed ...
    leave -> ToolFinished      the agent has its answer; the scheduler may expect it back
             [nothing runs in its foreground any more: the cores go to whoever is next]

Who enters a shell that has a lease joins it. What runs longer than its time is ended, the shell is
not. What is in the background by then (`server &`) runs on without a lease, where it is and with
the lowest priority. See `shell_groups` for what holds them.
"""

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, field, replace
from typing import Final

import psutil

from mars.core.errors import InputError, PartDiedError
from mars.tools import processes
from mars.tools.command import Outcome
from mars.tools.group import Group, Used
from mars.tools.progress import Using
from mars.tools.runtime import CANCELLED, ToolCall, ToolRuntime
from mars.tools.settings import ToolSettings
from mars.tools.shell_groups import ShellGroups
from mars.tools.wire import ShellEntered, ShellEntry, ShellExit

_LOOK_S: Final = 0.05
"""How often to look whether something still runs, once nobody waits for it."""
_LOWEST: Final = 19
_GONE: Final = 128 + signal.SIGHUP  # nobody is left who could know the exit code


@dataclass(slots=True, eq=False)
class _Open:
    """A call whose client has no answer yet."""

    call: ToolCall
    began_s: float
    before: Used


@dataclass(slots=True, eq=False)
class _Shell:
    pid: int
    lease: ToolCall
    group: Group | None = None
    """None: held by affinity alone."""
    ends_s: float = 0.0
    open: dict[str, _Open] = field(default_factory=dict)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """A call is over: look at once."""

    def used(self) -> Used:
        """By all who ever ran in it, as far as anybody counts that."""
        used = self.group.used() if self.group else Used()
        if self.group and self.group.counts_cpu:
            return used
        return replace(used, cpu_s=processes.cpu_s(self.pid))

    def using(self, before: Used) -> Using:
        """By a call since it began."""
        memory_bytes = self.group.memory_in_use() if self.group else 0
        return Using(
            cpu_s=max(0.0, self.used().cpu_s - before.cpu_s),
            memory_bytes=memory_bytes or processes.memory_bytes_below(self.pid),
        )

    def running(self) -> set[int]:
        """Processes other than the shell."""
        members = {process.pid for process in processes.below(self.pid)}
        return members | {*(self.group.pids() if self.group else ())} - {self.pid}


class Shells:
    def __init__(self, runtime: ToolRuntime, settings: ToolSettings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._groups = ShellGroups(runtime)
        self._shells: dict[int, _Shell] = {}

    def take_over(self) -> None:
        """Shells of a server that was killed, once its orphans are ended."""
        self._groups.take_over()

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
        before = shell.used()
        shell.open[call.tool_id] = _Open(call, time.monotonic(), before)
        self._runtime.watch(call, lambda: shell.using(before))
        return ShellEntered(
            tool_id=call.tool_id,
            cores=call.cores,
            wait_s=call.wait_s,
            held_by="group" if shell.group else "affinity",
        )

    def leave(self, left: ShellExit) -> None:
        """Raises InputError when no such call is open."""
        for shell in self._shells.values():
            if left.tool_id in shell.open:
                self._finish(shell, left.tool_id, left.exit_code)
                return
        raise InputError(f"no call {left.tool_id} is open in a shell (its time may have been over)")

    async def _lease(self, entry: ShellEntry) -> _Shell:
        lease = self._runtime.queue(entry)
        shell = self._shells[entry.pid] = _Shell(entry.pid, lease)
        try:
            await lease.ready.wait()
            self._move(shell, entry)
        except BaseException:
            self._give_up(shell)
            raise
        shell.ends_s = time.monotonic() + (entry.timeout_s or self._settings.timeout_s)
        self._runtime.spawn(self._hold(shell))
        return shell

    def _move(self, shell: _Shell, entry: ShellEntry) -> None:
        if shell.lease.cancelled.is_set():
            raise PartDiedError("the tool server is stopping")
        cores = shell.lease.cores
        shell.group = self._groups.lend(shell.pid, self._runtime.controls.limits(entry, cores))
        try:
            os.sched_setaffinity(shell.pid, cores)
        except OSError as error:
            raise InputError(f"process {shell.pid} cannot be moved: {error.strerror}") from None

    def _give_up(self, shell: _Shell) -> None:
        self._runtime.finished(shell.lease, CANCELLED)
        self._end(shell)

    def _end(self, shell: _Shell) -> None:
        self._groups.rest(shell.pid)
        del self._shells[shell.pid]
        self._runtime.give_back(shell.lease)

    def _finish(self, shell: _Shell, tool_id: str, exit_code: int) -> None:
        over = shell.open.pop(tool_id)
        before, now = over.before, shell.used()
        peak_bytes = now.peak_memory_bytes
        if shell.group and peak_bytes == before.peak_memory_bytes:  # a peak before this call
            peak_bytes = shell.group.memory_in_use()
        outcome = Outcome(
            exit_code=exit_code,
            why="ended",
            run_s=time.monotonic() - over.began_s,
            cpu_s=max(0.0, now.cpu_s - before.cpu_s),
            peak_memory_bytes=peak_bytes,
        )
        if now.oom_kills > before.oom_kills:
            outcome = outcome.short_of_memory()
        self._runtime.finished(over.call, outcome)
        shell.left.set()

    async def _hold(self, shell: _Shell) -> None:
        try:
            if not await self._calms_down(shell):
                await self._end_tree(shell)
        finally:
            for tool_id in list(shell.open):
                self._finish(shell, tool_id, _GONE)
            _put_back(shell.pid)
            self._end(shell)

    async def _calms_down(self, shell: _Shell) -> bool:
        """Wait until no call is open and nothing runs in front; False: its time is over, or the
        server's.
        """
        while not shell.lease.cancelled.is_set() and time.monotonic() < shell.ends_s:
            if not (shell.open and processes.find(shell.pid)) and not processes.in_front(shell.pid):
                return True
            shell.left.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(shell.left.wait(), _LOOK_S)
        return False

    async def _end_tree(self, shell: _Shell) -> None:
        """SIGTERM once to whatever runs, after the grace SIGKILL; the shell lives on."""
        kill_s = time.monotonic() + self._settings.grace_s
        told: set[int] = set()
        while (pids := shell.running()) and time.monotonic() < kill_s:
            _signal(pids - told, signal.SIGTERM)
            told |= pids
            await asyncio.sleep(_LOOK_S)
        if shell.group:
            shell.group.forbid_forks()
        while pids := shell.running():
            _signal(pids, signal.SIGKILL)
            await asyncio.sleep(_LOOK_S)


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _put_back(shell: int) -> None:
    """What runs below it, but not the shell: who has no privileges cannot take that back."""
    own = processes.find(shell)
    for group in {process.group for process in processes.below(shell)} - {own.group if own else 0}:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, group, _LOWEST)


def _check_ours(pid: int) -> None:
    try:
        owner = psutil.Process(pid).uids().real
    except psutil.NoSuchProcess:
        raise InputError(f"there is no process {pid} on the tool server's machine") from None
    if os.getuid() not in {0, owner}:
        raise InputError(f"process {pid} is another user's")
