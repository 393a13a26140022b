"""What spans say, by OpenTelemetry's GenAI conventions.

    invoke_agent            a session, below that of its parent
    ├ gate                  it waited to be let in
    ├ chat                  a call, from the hand-over to the engine to the end of its answer
    └ execute_tool NAME     a tool call, from its request for cores to its end; its progress

What ended wrongly has the status of an error. Prompts and answers are in no fact, so in no span.

Ids are made from what a span is of, not by chance: the log of a gateway that sent its spans gives
the same ones again, and a session that outlives its gateway goes on in its trace.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from mars.core import events as ev
from mars.core.ids import SessionId

Value = str | int | float | bool


class Place(msgspec.Struct, frozen=True):
    """Of a span among others."""

    trace_id: int
    span_id: int


class Moment(msgspec.Struct, frozen=True):
    """What was seen while a span lasted: OpenTelemetry calls it an event."""

    name: str
    at_s: float
    values: Mapping[str, Value]


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One that is over. Times are of the machine's monotonic clock, as those of facts."""

    name: str
    place: Place
    above: Place | None
    start_s: float
    end_s: float
    values: Mapping[str, Value]
    moments: tuple[Moment, ...] = ()
    is_client: bool = False
    """It is what somebody else does for us."""
    error: str = ""
    """What went wrong; empty: nothing."""


@dataclass(slots=True)
class OpenSession:
    arrived: ev.SessionArrived
    above: Place | None
    place: Place = field(init=False)
    waits_since_s: float | None = None
    """None: not at the gate."""

    def __post_init__(self) -> None:
        session_id, at_s = self.arrived.session_id, self.arrived.at_s
        trace_id = self.above.trace_id if self.above else _id(16, session_id, at_s)
        self.place = Place(trace_id, _id(8, "session", session_id, at_s))
        if not self.arrived.was_in:
            self.waits_since_s = at_s

    def let_in(self, admitted: ev.SessionAdmitted) -> Span | None:
        """Its time at the gate; None: no request of it was there."""
        since_s, self.waits_since_s = self.waits_since_s, None
        if since_s is None:
            return None
        return _span(
            "gate",
            _below(self.place, "gate", admitted.session_id, since_s),
            self.place,
            (since_s, admitted.at_s),
            {"mars.admitted_by": admitted.by, "mars.why": admitted.why},
        )

    def over(self, end: ev.SessionEnded | None, last_s: float) -> Span:
        """`last_s`: when it ends if nobody has told."""
        arrived = self.arrived
        values = _about("invoke_agent", arrived.session_id)
        values |= {"mars.rule": arrived.rule, "mars.tenant": arrived.tenant}
        if end is not None:
            values |= {"mars.ended_by": end.by, "mars.why": end.why}
        lasted_s = arrived.at_s, end.at_s if end else last_s
        return _span("invoke_agent", self.place, self.above, lasted_s, values)


@dataclass(slots=True)
class OpenCall:
    queued: ev.CallQueued
    above: Place
    served: ev.CallServed | None = None
    finished: ev.CallFinished | None = None

    def over(self, last_s: float) -> Span:
        queued, served, end = self.queued, self.served, self.finished
        values = _about("chat", queued.session_id)
        values |= {"mars.turn": queued.turn, "mars.call_id": queued.call_id}
        if queued.waited_s:
            values["mars.line_wait_s"] = queued.waited_s
        if served is not None:
            values |= {
                "gen_ai.usage.input_tokens": served.prompt_tokens,
                "gen_ai.usage.output_tokens": served.made_tokens,
                "gen_ai.usage.cache_read.input_tokens": served.cached_tokens,
                "mars.computed_tokens": served.computed_tokens,
                "mars.engine_queue_s": served.queued_s,
            }
        error = ""
        if end is not None and not end.ok:
            values["error.type"] = str(end.status) if end.status else "cut"
            error = end.why or "it failed"
        return _span(
            "chat",
            _below(self.above, "call", queued.session_id, queued.call_id, queued.at_s),
            self.above,
            (queued.at_s, end.at_s if end else last_s),
            values,
            is_client=True,
            error=error,
        )


@dataclass(slots=True)
class OpenTool:
    queued: ev.ToolQueued
    above: Place
    started: ev.ToolStarted | None = None
    moments: list[Moment] = field(default_factory=list)
    """Few: of a call that lasts they come at doublings of its time."""

    def progress(self, seen: ev.ToolProgressed) -> None:
        values = {
            "mars.tool.run_s": seen.run_s,
            "mars.tool.cpu_s": seen.cpu_s,
            "mars.tool.memory_bytes": seen.memory_bytes,
        }
        self.moments.append(Moment("progress", seen.at_s, values))

    def over(self, end: ev.ToolFinished | None, last_s: float) -> Span:
        queued, error = self.queued, ""
        values = _about("execute_tool", queued.session_id)
        values |= {"gen_ai.tool.name": queued.tool, "gen_ai.tool.call.id": queued.tool_id}
        if self.started is not None:
            values["mars.tool.wait_s"] = self.started.wait_s
        if end is not None:
            values |= {"mars.tool.run_s": end.run_s, "mars.tool.cpu_s": end.cpu_s}
            if end.exit_code is not None:
                values["mars.tool.exit_code"] = end.exit_code
            if end.why != "ended":
                values["error.type"] = end.why
                error = f"the tool was ended: {end.why}"
        return _span(
            f"execute_tool {queued.tool}",
            _below(self.above, "tool", queued.session_id, queued.tool_id, queued.at_s),
            self.above,
            (queued.at_s, end.at_s if end else last_s),
            values,
            moments=tuple(self.moments),
            error=error,
        )


def _span(
    name: str,
    place: Place,
    above: Place | None,
    lasted_s: tuple[float, float],
    values: Mapping[str, Value],
    *,
    moments: tuple[Moment, ...] = (),
    is_client: bool = False,
    error: str = "",
) -> Span:
    start_s, end_s = lasted_s
    return Span(
        name=name,
        place=place,
        above=above,
        start_s=start_s,
        end_s=max(start_s, end_s),
        values={key: value for key, value in values.items() if value != ""},
        moments=moments,
        is_client=is_client,
        error=error,
    )


def _about(operation: str, session_id: SessionId) -> dict[str, Value]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.conversation.id": session_id,
        "gen_ai.provider.name": "vllm",
    }


def _below(above: Place, *parts: str | float) -> Place:
    return Place(above.trace_id, _id(8, *parts))


def _id(size_bytes: int, *parts: str | float) -> int:
    text = "\0".join(map(str, parts)).encode("utf-8", "replace")
    return int.from_bytes(blake2b(text, digest_size=size_bytes).digest())
