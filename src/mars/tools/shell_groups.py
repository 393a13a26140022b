"""A control group for each client's shell, for as long as the shell lives.

    its first lease     the group is made; the shell and all below it move in
    a lease             sets the limits
    between leases      they stay, but for the weight, which is the lowest
    the shell ends      whoever is left in the group is ended: a daemon, what `nohup` started
    the server stops    everybody goes back to where the shell was

A shell whose server was killed stays in its group, and the next server takes it over. Where the
system lets us make no group, or move no process of somebody else's, affinity alone holds a shell.
"""

import asyncio
import contextlib
import os
from dataclasses import dataclass, field, replace
from typing import Final

from mars.tools.group import Group
from mars.tools.groups import Groups, Limits
from mars.tools.processes import below
from mars.tools.runtime import ToolRuntime

_LEAST_WEIGHT: Final = 1


@dataclass(slots=True, eq=False)
class _Kept:
    group: Group
    home: Group
    """Where the shell was before."""
    limits: Limits | None = None
    """Of the newest lease; None: another server's."""
    free: asyncio.Event = field(default_factory=asyncio.Event)
    """No lease is on it."""

    def dissolve(self) -> None:
        """Everybody goes back; what the system does not let go stays, for the next server."""
        with contextlib.suppress(OSError):
            self.home.take_in(self.group.pids())
            self.group.remove()


class ShellGroups:
    def __init__(self, runtime: ToolRuntime) -> None:
        self._runtime = runtime
        self._groups = runtime.controls.groups
        self._kept: dict[int, _Kept] = {}

    def take_over(self) -> None:
        """The groups of shells that outlived their server."""
        for shell, group in self._groups.left_shells().items() if self._groups else ():
            home = Group({name: folder.parent for name, folder in group.folders.items()})
            with contextlib.suppress(ProcessLookupError):  # ended by now: the next server's to end
                self._keep(shell, _Kept(group, home))

    def lend(self, shell: int, limits: Limits) -> Group | None:
        """Put the shell and all below it under the limits; None: the system does not let us."""
        if self._groups is None:
            return None
        kept = self._kept.get(shell)
        try:
            kept = kept or self._move_in(self._groups, shell, limits)
            self._groups.limit(kept.group, limits)
        except OSError:
            if kept is not None:
                kept.dissolve()
            return None
        kept.limits = limits
        kept.free.clear()
        return kept.group

    def rest(self, shell: int) -> None:
        """The lease is over."""
        kept = self._kept.get(shell)
        if kept is None or self._groups is None:
            return
        if kept.limits is not None:
            with contextlib.suppress(OSError):  # the shell is gone, and its group with it
                self._groups.limit(kept.group, replace(kept.limits, weight=_LEAST_WEIGHT))
        kept.free.set()

    def _move_in(self, groups: Groups, shell: int, limits: Limits) -> _Kept:
        home = groups.home_of(shell)
        kept = _Kept(groups.make_for_shell(shell, limits), home)
        try:
            _take_in_all(kept.group, shell)
            return self._keep(shell, kept)
        except OSError:
            kept.dissolve()
            raise

    def _keep(self, shell: int, kept: _Kept) -> _Kept:
        pidfd = os.pidfd_open(shell)
        kept.free.set()
        self._kept[shell] = kept
        self._runtime.spawn(self._see_off(shell, kept, pidfd))
        return kept

    async def _see_off(self, shell: int, kept: _Kept, pidfd: int) -> None:
        if await self._outlives_us(pidfd):
            await kept.free.wait()
            kept.dissolve()
        else:
            await kept.group.end()
        del self._kept[shell]

    async def _outlives_us(self, pidfd: int) -> bool:
        """Wait for the end of the process or of this server."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(pidfd, ended.set)
        waits = {asyncio.create_task(it.wait()) for it in (ended, self._runtime.stopping)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return not ended.is_set()
        finally:
            for wait in waits:
                wait.cancel()
            loop.remove_reader(pidfd)
            os.close(pidfd)


def _take_in_all(group: Group, shell: int) -> None:
    """Whoever is started meanwhile is where its parent was: until nobody new is found."""
    inside: set[int] = set()
    while new := {shell, *(process.pid for process in below(shell))} - inside:
        group.take_in(new)
        inside |= new
