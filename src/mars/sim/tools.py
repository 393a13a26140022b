"""The simulated tool pool: core leases as the live tool server lends them, CPU seconds apart from
wall seconds.

A command burns its CPU seconds first and then sleeps until its recorded run time has passed
(mars.bench.burn does just that). Alone it takes max(run_s, cpu_s / cores). Where there are several
leases for a core, those that still burn share all of them (sim.cores), so burning takes longer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from mars.core import events as ev
from mars.core.decisions import Grant
from mars.core.ids import SessionId, ToolId
from mars.core.leases import LeaseBook
from mars.policy.tool_order import ToolLine, ToolOrder
from mars.sim.cores import Burn, SharedCores
from mars.sim.settings import ToolSettings
from mars.workload.trace import Tool

_WAIT_ALPHA: Final = 0.2
"""Of the newest wait in the smoothed one, as in the live runtime."""


@dataclass(slots=True, eq=False)
class _Run:
    session_id: SessionId
    tool_id: ToolId
    tool: Tool
    cores: int
    queued_s: float
    started_s: float | None = None
    """None: it waits for cores."""
    burn: Burn | None = None
    """On cores that others may burn on as well."""


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
        self._cores = SharedCores(settings.cores) if settings.share > 1 else None
        self._burning: dict[Burn, _Run] = {}
        self._foretold = 0
        """So many times an end was: only the newest counts."""
        self._start_s = settings.start_s
        self._emit, self._at = emit, at
        self._runs: dict[ToolId, _Run] = {}
        self._wait_s = 0.0
        self.busy_core_s = 0.0
        """CPU seconds burnt so far, by commands that have ended."""

    def hear(self, event: ev.SessionArrived | ev.SessionEnded) -> None:
        self._line.observe(event)

    def ask(self, session_id: SessionId, tool_id: ToolId, tool: Tool, now_s: float) -> None:
        cores = min(tool.cores, self._most_cores)
        self._runs[tool_id] = _Run(session_id, tool_id, tool, cores, now_s)
        self._tell(
            ev.ToolQueued(
                at_s=now_s, session_id=session_id, tool_id=tool_id, tool=tool.name, cores=cores
            )
        )
        self._start(self._book.ask(tool_id, cores, tool.memory_bytes), now_s)

    def cancel(self, tool_id: ToolId, now_s: float) -> None:
        """Its client has gone: end the command, or leave the queue."""
        run = self._runs[tool_id]
        self._finish(run, now_s, exit_code=None if run.started_s is None else 0, why="cancelled")

    def _start(self, grants: list[Grant], now_s: float) -> None:
        for grant in grants:
            run = self._runs[grant.tool_id]
            run.started_s = now_s
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
            self._begin(run, now_s)
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

    def _begin(self, run: _Run, now_s: float) -> None:
        tool = run.tool
        if self._cores is None:
            took_s = max(tool.run_s, tool.cpu_s / run.cores)
            self._at(now_s + self._start_s + took_s, self._ender(run))
        elif (burn_s := tool.cpu_s + self._start_s) > 0.0:
            run.burn = self._cores.begin(run.cores, burn_s, now_s)
            self._burning[run.burn] = run
            self._foretell(self._cores)
        else:
            self._at(now_s + tool.run_s, self._ender(run))

    def _ender(self, run: _Run) -> Callable[[float], None]:
        def end(now_s: float) -> None:
            if run.tool_id in self._runs:
                self._finish(run, now_s, exit_code=0, why="ended")

        return end

    def _foretell(self, cores: SharedCores) -> None:
        """Who burns has changed, and with it who is through first."""
        self._foretold += 1
        foretold = self._foretold

        def burnt(now_s: float) -> None:
            if foretold == self._foretold:
                run = self._burning.pop(cores.take(now_s))
                self._foretell(cores)
                self._sleep(run, now_s)

        if cores.next_s < inf:
            self._at(cores.next_s, burnt)

    def _sleep(self, run: _Run, now_s: float) -> None:
        """Nothing is left to burn; a command that also sleeps goes on until its time is over."""
        assert run.started_s is not None  # noqa: S101 - it has burnt
        until_s = run.started_s + self._start_s + run.tool.run_s
        if until_s > now_s:
            self._at(until_s, self._ender(run))
        else:
            self._finish(run, now_s, exit_code=0, why="ended")

    def _left_s(self, run: _Run, now_s: float) -> float:
        """CPU seconds that a command has still to burn, as it ends."""
        if run.started_s is None:
            return run.tool.cpu_s
        if self._cores is None:
            return max(0.0, run.tool.cpu_s - run.cores * (now_s - run.started_s))
        if run.burn is None or run.burn.is_over:
            return 0.0
        del self._burning[run.burn]
        left_s = self._cores.leave(run.burn, now_s)
        self._foretell(self._cores)
        return left_s

    def _finish(self, run: _Run, now_s: float, *, exit_code: int | None, why: str) -> None:
        started_s = run.started_s
        cpu_s = max(0.0, run.tool.cpu_s - self._left_s(run, now_s))
        del self._runs[run.tool_id]
        self.busy_core_s += cpu_s
        self._tell(
            ev.ToolFinished(
                at_s=now_s,
                session_id=run.session_id,
                tool_id=run.tool_id,
                tool=run.tool.name,
                run_s=0.0 if started_s is None else max(0.0, now_s - started_s - self._start_s),
                cpu_s=cpu_s,
                peak_memory_bytes=run.tool.memory_bytes,
                exit_code=exit_code,
                why="ended" if why == "ended" else "cancelled",
            )
        )
        self._start(self._book.give_back(run.tool_id), now_s)
