"""Leases for tool calls: who waits, who runs, and the facts about it. Knows no HTTP.

    open -> ToolQueued -> [granted] -> ToolStarted -> [tree is gone] -> ToolFinished
                  |                       +- ToolProgressed ... -+          ^
                  +----- cancelled while it waits: exit_code None ----------+

A tool call is carried out by a task of its own: whoever opened it may go away, its lease comes back
when the last process of its tree is gone.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mars.core.decisions import Grant
from mars.core.errors import PartDiedError
from mars.core.events import (
    Event,
    ToolEvent,
    ToolFinished,
    ToolProgressed,
    ToolQueued,
    ToolsSampled,
    ToolStarted,
)
from mars.core.ids import SessionId, ToolId
from mars.core.leases import LeaseBook
from mars.policy.tool_order import ToolLine, ToolOrder
from mars.tools.command import CommandHost, Outcome, Spec
from mars.tools.controls import Controls
from mars.tools.group import Group
from mars.tools.orphans import MARK, end_orphans, mark_of
from mars.tools.progress import Using, of_command, tell_progress
from mars.tools.settings import ToolSettings
from mars.tools.wire import Ask, Finished, Line, Output, Queued, RunRequest, Started

_WAIT_ALPHA = 0.2  # weight of the newest wait in the smoothed one
CANCELLED = Outcome(exit_code=143, why="cancelled")
_CANNOT_RUN = 126


@dataclass(slots=True, eq=False)
class ToolCall:
    tool_id: ToolId
    ask: Ask
    queued_s: float
    cores: tuple[int, ...] = ()
    """Empty until it was granted."""
    wait_s: float = 0.0
    lines: asyncio.Queue[Line | None] = field(default_factory=asyncio.Queue)
    """What the client is told; None is the end. The output cap bounds it."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Granted or cancelled."""
    progress: asyncio.Task[None] | None = None
    """Tells how it is doing."""

    @property
    def started_s(self) -> float:
        return self.queued_s + self.wait_s

    def cancel(self) -> None:
        self.cancelled.set()
        self.ready.set()


class ToolRuntime:
    """Raises InputError when the settings name what does not exist here, see `Controls.probe`."""

    def __init__(
        self, settings: ToolSettings, emit: Callable[[Event], None], order: ToolOrder
    ) -> None:
        self._line = ToolLine(order)
        self.controls = Controls.probe(settings)
        self.book = LeaseBook(
            self.controls.cores, settings.share, settings.memory_bytes, self._line.rank
        )
        self._settings = settings
        self._emit = emit
        self._mark = mark_of(os.getpid())
        self._host = CommandHost(self._mark)
        self._calls: dict[ToolId, ToolCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wait_s = 0.0
        self.stopping = asyncio.Event()

    def open(self, request: RunRequest) -> ToolCall:
        """Queue a command; read its `lines`.

        Raises InputError when it asks for more than there is, PartDiedError after `stop`.
        """
        argv = self.controls.argv(request)
        call = self.queue(request)
        self.spawn(self._carry_out(call, request, argv))
        return call

    def queue(self, ask: Ask) -> ToolCall:
        """Ask for a lease; whoever asked carries the call out once it is `ready`, then says
        `finished` and gives the lease back. Raises as `open` does.
        """
        if self.stopping.is_set():
            raise PartDiedError("the tool server is stopping")
        call = ToolCall(ToolId(uuid.uuid4().hex), ask, time.monotonic())
        memory_bytes = self.controls.memory_bytes(ask)
        self.book.check_ask(call.tool_id, ask.cores, memory_bytes)
        self._calls[call.tool_id] = call
        self._tell_queued(call)
        call.lines.put_nowait(Queued(tool_id=call.tool_id))
        self._start(self.book.ask(call.tool_id, ask.cores, memory_bytes))
        return call

    def join(self, ask: Ask, cores: tuple[int, ...]) -> ToolCall:
        """One more call under a lease that its asker has already."""
        call = ToolCall(ToolId(uuid.uuid4().hex), ask, time.monotonic(), cores)
        self._tell_queued(call)
        self._tell_started(call, call.queued_s)
        return call

    def watch(self, call: ToolCall, read: Callable[[], Using]) -> None:
        """Tell how a call is doing until it is `finished`. `read` runs in a thread."""

        def tell(now_s: float, using: Using) -> None:
            self._tell(
                ToolProgressed(
                    at_s=now_s,
                    session_id=SessionId(call.ask.session_id),
                    tool_id=call.tool_id,
                    tool=call.ask.tool_name,
                    run_s=now_s - call.started_s,
                    cpu_s=using.cpu_s,
                    memory_bytes=using.memory_bytes,
                )
            )

        call.progress = asyncio.create_task(tell_progress(call.started_s, read, tell))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """`stop` waits for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end_orphans(self) -> int:
        """End what servers that were killed have left; how many processes or groups there were."""
        groups = self.controls.groups
        return (await groups.end_orphans() if groups else 0) + end_orphans()

    async def stop(self) -> None:
        """Take no more commands, end all there are, wait until their trees are gone."""
        self.cancel_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel_all(self) -> None:
        self.stopping.set()
        for call in self._calls.values():
            call.cancel()

    def _tell(self, event: ToolEvent) -> None:
        self._line.observe(event)
        self._emit(event)

    def _tell_queued(self, call: ToolCall) -> None:
        self._tell(
            ToolQueued(
                at_s=call.queued_s,
                session_id=SessionId(call.ask.session_id),
                tool_id=call.tool_id,
                tool=call.ask.tool_name,
                cores=call.ask.cores,
            )
        )

    def _tell_started(self, call: ToolCall, now_s: float) -> None:
        self._tell(
            ToolStarted(
                at_s=now_s,
                session_id=SessionId(call.ask.session_id),
                tool_id=call.tool_id,
                tool=call.ask.tool_name,
                cores=call.cores,
                wait_s=call.wait_s,
            )
        )

    def _start(self, grants: Sequence[Grant]) -> None:
        now_s = time.monotonic()
        for grant in grants:
            call = self._calls[grant.tool_id]
            call.cores, call.wait_s = grant.cores, now_s - call.queued_s
            self._wait_s += _WAIT_ALPHA * (call.wait_s - self._wait_s)
            self._tell_started(call, now_s)
            call.lines.put_nowait(Started(cores=call.cores, wait_s=call.wait_s))
            call.ready.set()
        self._emit(
            ToolsSampled(
                at_s=now_s,
                running=self.book.running,
                waiting=self.book.waiting,
                slots=self.book.slots,
                wait_s=self._wait_s,
                controls=str(self.controls),
            )
        )

    async def _carry_out(self, call: ToolCall, request: RunRequest, argv: list[str]) -> None:
        outcome = CANCELLED
        try:
            await call.ready.wait()
            if not call.cancelled.is_set():
                outcome = await self._run(call, request, argv)
        finally:
            self.finished(call, outcome)
            self.give_back(call)
            self._answer(call, outcome)

    async def _run(self, call: ToolCall, request: RunRequest, argv: list[str]) -> Outcome:
        try:
            group = self.controls.group(call.tool_id, request, call.cores)
            if group is None:
                return await self._run_in(call, request, argv, None)
            try:
                outcome = await self._run_in(call, request, argv, group)
            finally:
                used = await group.end()
            if used.oom_kills:
                self._say(call, "the command ran out of its memory")
                outcome = outcome.short_of_memory()
            return msgspec.structs.replace(
                outcome,
                cpu_s=max(outcome.cpu_s, used.cpu_s),
                peak_memory_bytes=max(outcome.peak_memory_bytes, used.peak_memory_bytes),
            )
        except OSError as error:
            self._say(call, f"the tool server cannot start a process: {error}")
            return Outcome(exit_code=_CANNOT_RUN, why="ended")

    async def _run_in(
        self, call: ToolCall, request: RunRequest, argv: list[str], group: Group | None
    ) -> Outcome:
        spec = Spec(
            argv=argv,
            cwd=request.cwd,
            env={**(request.env or {}), MARK: self._mark},
            cores=call.cores,
            nice=self.controls.nice,
            groups=group.joins if group else [],
            timeout_s=request.timeout_s or self._settings.timeout_s,
            grace_s=self._settings.grace_s,
            parent_pid=os.getpid(),
        )
        return await self._host.run(
            spec,
            self._settings.output_bytes,
            call.lines.put_nowait,
            call.cancelled,
            lambda runner: self.watch(call, lambda: of_command(runner, group)),
        )

    def _say(self, call: ToolCall, text: str) -> None:
        call.lines.put_nowait(Output(stream="stderr", data=f"mars: {text}\n".encode()))

    def finished(self, call: ToolCall, outcome: Outcome) -> None:
        """Whoever asked has its answer; the lease may last longer."""
        if call.progress is not None:
            call.progress.cancel()
        self._tell(
            ToolFinished(
                at_s=time.monotonic(),
                session_id=SessionId(call.ask.session_id),
                tool_id=call.tool_id,
                tool=call.ask.tool_name,
                run_s=outcome.run_s,
                cpu_s=outcome.cpu_s,
                peak_memory_bytes=outcome.peak_memory_bytes,
                exit_code=outcome.exit_code if call.cores else None,
                why=outcome.why,
            )
        )

    def give_back(self, call: ToolCall) -> None:
        del self._calls[call.tool_id]
        self._start(self.book.give_back(call.tool_id))

    def _answer(self, call: ToolCall, outcome: Outcome) -> None:
        call.lines.put_nowait(
            Finished(
                exit_code=outcome.exit_code,
                why=outcome.why,
                wait_s=call.wait_s if call.cores else time.monotonic() - call.queued_s,
                run_s=outcome.run_s,
                cpu_s=outcome.cpu_s,
                peak_memory_bytes=outcome.peak_memory_bytes,
                dropped_bytes=outcome.dropped_bytes,
            )
        )
        call.lines.put_nowait(None)
