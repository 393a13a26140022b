"""Leases for tool calls: who waits, who runs, and the facts about it. Knows no HTTP.

    open -> ToolQueued -> [granted] -> ToolStarted -> [tree is gone] -> ToolFinished
                  +----- cancelled while it waits: exit_code None -----------^

A tool call is carried out by a task of its own: whoever opened it may go away, its lease comes back
when the last process of its tree is gone.
"""

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mars.core.decisions import Grant
from mars.core.errors import PartDiedError
from mars.core.events import Event, ToolEvent, ToolFinished, ToolQueued, ToolsSampled, ToolStarted
from mars.core.ids import SessionId, ToolId
from mars.core.leases import LeaseBook
from mars.policy.tool_order import ToolLine, ToolOrder
from mars.tools.command import CommandHost, Outcome, Spec
from mars.tools.settings import ToolSettings, lendable
from mars.tools.wire import Finished, Line, Output, Queued, RunRequest, Started

_WAIT_ALPHA = 0.2  # weight of the newest wait in the smoothed one
_CANCELLED = Outcome(exit_code=143, why="cancelled")
_CANNOT_RUN = 126


@dataclass(slots=True, eq=False)
class ToolCall:
    tool_id: ToolId
    request: RunRequest
    queued_s: float
    cores: tuple[int, ...] = ()
    """Empty until it was granted."""
    wait_s: float = 0.0
    lines: asyncio.Queue[Line | None] = field(default_factory=asyncio.Queue)
    """What the client is told; None is the end. The output cap bounds it."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    """Granted or cancelled."""

    def cancel(self) -> None:
        self.cancelled.set()
        self.ready.set()


class ToolRuntime:
    """Raises InputError when the settings name a core that does not exist."""

    def __init__(
        self, settings: ToolSettings, emit: Callable[[Event], None], order: ToolOrder
    ) -> None:
        self._line = ToolLine(order)
        self.book = LeaseBook(lendable(settings), settings.share, rank=self._line.rank)
        self._settings = settings
        self._emit = emit
        self._host = CommandHost()
        self._calls: dict[ToolId, ToolCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wait_s = 0.0
        self._stopping = False

    def open(self, request: RunRequest) -> ToolCall:
        """Queue a command; read its `lines`.

        Raises InputError when it asks for more cores than there are, PartDiedError after `stop`.
        """
        if self._stopping:
            raise PartDiedError("the tool server is stopping")
        call = ToolCall(ToolId(uuid.uuid4().hex), request, time.monotonic())
        self.book.check_ask(call.tool_id, request.cores)
        self._calls[call.tool_id] = call
        self._tell(
            ToolQueued(
                at_s=call.queued_s,
                session_id=SessionId(request.session_id),
                tool_id=call.tool_id,
                tool=request.tool_name,
                cores=request.cores,
            )
        )
        call.lines.put_nowait(Queued(tool_id=call.tool_id))
        self._start(self.book.ask(call.tool_id, request.cores))
        task = asyncio.create_task(self._carry_out(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return call

    async def stop(self) -> None:
        """Take no more commands, end all there are, wait until their trees are gone."""
        self.cancel_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel_all(self) -> None:
        self._stopping = True
        for call in self._calls.values():
            call.cancel()

    def _tell(self, event: ToolEvent) -> None:
        self._line.observe(event)
        self._emit(event)

    def _start(self, grants: Sequence[Grant]) -> None:
        now_s = time.monotonic()
        for grant in grants:
            call = self._calls[grant.tool_id]
            call.cores, call.wait_s = grant.cores, now_s - call.queued_s
            self._wait_s += _WAIT_ALPHA * (call.wait_s - self._wait_s)
            self._tell(
                ToolStarted(
                    at_s=now_s,
                    session_id=SessionId(call.request.session_id),
                    tool_id=call.tool_id,
                    tool=call.request.tool_name,
                    cores=call.cores,
                    wait_s=call.wait_s,
                )
            )
            call.lines.put_nowait(Started(cores=call.cores, wait_s=call.wait_s))
            call.ready.set()
        self._emit(
            ToolsSampled(
                at_s=now_s,
                running=self.book.running,
                waiting=self.book.waiting,
                slots=self.book.slots,
                wait_s=self._wait_s,
            )
        )

    async def _carry_out(self, call: ToolCall) -> None:
        outcome = _CANCELLED
        try:
            await call.ready.wait()
            if not call.cancelled.is_set():
                outcome = await self._run(call)
        finally:
            self._finish(call, outcome)

    async def _run(self, call: ToolCall) -> Outcome:
        request = call.request
        spec = Spec(
            argv=request.argv,
            cwd=request.cwd,
            env=request.env or {},
            cores=call.cores,
            timeout_s=request.timeout_s or self._settings.timeout_s,
            grace_s=self._settings.grace_s,
            parent_pid=os.getpid(),
        )
        keep_bytes = self._settings.output_bytes
        try:
            return await self._host.run(spec, keep_bytes, call.lines.put_nowait, call.cancelled)
        except OSError as error:
            text = f"mars: the tool server cannot start a process: {error}\n"
            call.lines.put_nowait(Output(stream="stderr", data=text.encode()))
            return Outcome(exit_code=_CANNOT_RUN, why="ended")

    def _finish(self, call: ToolCall, outcome: Outcome) -> None:
        now_s = time.monotonic()
        self._tell(
            ToolFinished(
                at_s=now_s,
                session_id=SessionId(call.request.session_id),
                tool_id=call.tool_id,
                tool=call.request.tool_name,
                run_s=outcome.run_s,
                cpu_s=outcome.cpu_s,
                peak_memory_bytes=outcome.peak_memory_bytes,
                exit_code=outcome.exit_code if call.cores else None,
                why=outcome.why,
            )
        )
        del self._calls[call.tool_id]
        self._start(self.book.give_back(call.tool_id))
        call.lines.put_nowait(
            Finished(
                exit_code=outcome.exit_code,
                why=outcome.why,
                wait_s=call.wait_s if call.cores else now_s - call.queued_s,
                run_s=outcome.run_s,
                cpu_s=outcome.cpu_s,
                peak_memory_bytes=outcome.peak_memory_bytes,
                dropped_bytes=outcome.dropped_bytes,
            )
        )
        call.lines.put_nowait(None)
