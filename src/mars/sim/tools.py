"""The simulated tool pool: core leases as the live tool server lends them, CPU seconds apart from
wall seconds.

A command burns its CPU seconds first and then sleeps until its recorded run time has passed
(mars.bench.burn does just that). Alone it takes max(run_s, cpu_s / cores). Where several leases are
on a core, those that still burn share it equally (processor sharing), so burning takes longer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from mars.core import events as ev
from mars.core.decisions import Grant
from mars.core.ids import SessionId, ToolId
from mars.core.leases import LEASES_A_CORE, LeaseBook
from mars.policy.tool_order import ToolLine, ToolOrder
from mars.workload.trace import Tool

_WAIT_ALPHA: Final = 0.2
"""Of the newest wait in the smoothed one, as in the live runtime."""


class ToolSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cores: Annotated[int, Meta(ge=1)] = 16
    share: Annotated[int, Meta(ge=1, le=64)] = LEASES_A_CORE
    """Leases that may be on one core at once."""
    memory_bytes: Annotated[int, Meta(ge=1)] | None = None
    """For all commands together; None: not limited."""
    start_s: Annotated[float, Meta(ge=0.0)] = 0.0
    """A lease is held so much longer than the command runs: to start it, to hear of its end. On a
    core that others may burn on this is burnt too."""


@dataclass(slots=True, eq=False)
class _Run:
    session_id: SessionId
    tool_id: ToolId
    tool: Tool
    queued_s: float
    cores: tuple[int, ...] = ()
    started_s: float = 0.0
    left_s: float = 0.0
    """CPU seconds still to burn."""
    seen_s: float = 0.0
    """When `left_s` was true."""
    rate: float = 0.0
    """Cores that it has to itself."""
    version: int = 0
    """Of the end that was last foretold: earlier ones do not count."""


class ToolPool:
    def __init__(
        self,
        settings: ToolSettings,
        order: ToolOrder,
        *,
        emit: Callable[[ev.Event], None],
        at: Callable[[float, Callable[[float], None]], None],
    ) -> None:
        """`at(when_s, do)` has `do(when_s)` called at that time."""
        self._line = ToolLine(order)
        self._book = LeaseBook(
            range(settings.cores), settings.share, settings.memory_bytes, self._line.rank
        )
        self._most_cores = settings.cores
        self._shared = settings.share > 1
        self._start_s = settings.start_s
        self._emit, self._at = emit, at
        self._runs: dict[ToolId, _Run] = {}
        self._burning: dict[int, set[_Run]] = {core: set() for core in range(settings.cores)}
        self._wait_s = 0.0
        self.busy_core_s = 0.0
        """CPU seconds burnt so far, by commands that have ended."""

    def hear(self, event: ev.SessionArrived | ev.SessionEnded) -> None:
        self._line.observe(event)

    def ask(self, session_id: SessionId, tool_id: ToolId, tool: Tool, now_s: float) -> None:
        cores = min(tool.cores, self._most_cores)
        self._runs[tool_id] = _Run(session_id, tool_id, tool, now_s)
        self._tell(
            ev.ToolQueued(
                at_s=now_s, session_id=session_id, tool_id=tool_id, tool=tool.name, cores=cores
            )
        )
        self._start(self._book.ask(tool_id, cores, tool.memory_bytes), now_s)

    def cancel(self, tool_id: ToolId, now_s: float) -> None:
        """Its client has gone: end the command, or leave the queue."""
        run = self._runs[tool_id]
        self._burn_on(run, now_s)
        self._finish(run, now_s, exit_code=0 if run.cores else None, why="cancelled")

    def _start(self, grants: list[Grant], now_s: float) -> None:
        for grant in grants:
            run = self._runs[grant.tool_id]
            run.cores, run.started_s, run.seen_s = grant.cores, now_s, now_s
            wait_s = now_s - run.queued_s
            self._wait_s += _WAIT_ALPHA * (wait_s - self._wait_s)
            self._tell(
                ev.ToolStarted(
                    at_s=now_s,
                    session_id=run.session_id,
                    tool_id=run.tool_id,
                    tool=run.tool.name,
                    cores=grant.cores,
                    wait_s=wait_s,
                )
            )
            run.left_s, run.rate = run.tool.cpu_s, float(len(grant.cores))
            if self._shared:
                run.left_s += self._start_s
            if self._shared and run.left_s > 0.0:
                self._burn(run, now_s)
            else:
                took_s = max(run.tool.run_s, run.left_s / run.rate)
                self._at(now_s + self._start_s + took_s, self._ender(run))
        book = self._book
        self._emit(
            ev.ToolsSampled(
                at_s=now_s,
                running=book.running,
                waiting=book.waiting,
                slots=book.slots,
                wait_s=self._wait_s,
            )
        )

    def _tell(self, event: ev.ToolEvent) -> None:
        self._line.observe(event)
        self._emit(event)

    def _burn(self, run: _Run, now_s: float) -> None:
        """A command begins, on cores that others may burn on as well."""
        for core in run.cores:
            self._burning[core].add(run)
        self._share_out(run.cores, now_s)

    def _share_out(self, cores: tuple[int, ...], now_s: float) -> None:
        """Who burns on these cores has changed: foretell anew when each is through."""
        for run in sorted(
            {run for core in cores for run in self._burning[core]}, key=lambda r: r.tool_id
        ):
            self._burn_on(run, now_s)
            run.rate = sum(1.0 / len(self._burning[core]) for core in run.cores)
            self._at(now_s + run.left_s / run.rate, self._ender(run))

    def _burn_on(self, run: _Run, now_s: float) -> None:
        run.left_s = max(0.0, run.left_s - run.rate * (now_s - run.seen_s))
        run.seen_s = now_s

    def _ender(self, run: _Run) -> Callable[[float], None]:
        run.version += 1
        version = run.version

        def end(now_s: float) -> None:
            if run.tool_id in self._runs and run.version == version:
                self._burnt(run, now_s)

        return end

    def _burnt(self, run: _Run, now_s: float) -> None:
        """Nothing is left to burn; a command that also sleeps goes on until its time is over."""
        run.left_s = 0.0
        if self._shared:
            self._leave_cores(run, now_s)
            until_s = run.started_s + self._start_s + run.tool.run_s
            if until_s > now_s:
                self._at(until_s, self._ender(run))
                return
        self._finish(run, now_s, exit_code=0, why="ended")

    def _leave_cores(self, run: _Run, now_s: float) -> None:
        if any(run in self._burning[core] for core in run.cores):
            for core in run.cores:
                self._burning[core].discard(run)
            self._share_out(run.cores, now_s)

    def _finish(self, run: _Run, now_s: float, *, exit_code: int | None, why: str) -> None:
        self._leave_cores(run, now_s)
        del self._runs[run.tool_id]
        cpu_s = max(0.0, run.tool.cpu_s - run.left_s) if run.cores else 0.0
        self.busy_core_s += cpu_s
        self._tell(
            ev.ToolFinished(
                at_s=now_s,
                session_id=run.session_id,
                tool_id=run.tool_id,
                tool=run.tool.name,
                run_s=max(0.0, now_s - run.started_s - self._start_s) if run.cores else 0.0,
                cpu_s=cpu_s,
                peak_memory_bytes=run.tool.memory_bytes,
                exit_code=exit_code,
                why="ended" if why == "ended" else "cancelled",
            )
        )
        self._start(self._book.give_back(run.tool_id), now_s)
