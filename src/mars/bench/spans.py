"""An event log as OpenTelemetry spans, by the GenAI conventions.

    invoke_agent            a session, below that of its parent
    ├ gate                  it waited to be let in
    ├ chat                  a call, from the hand-over to the engine to the end of its answer
    └ execute_tool NAME     a tool call, from its request for cores to its end

What ended wrongly has the status of an error. What the log does not end, ends with the log. Prompts
and answers are not in the log, so in no span.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from mars.core import events as ev
from mars.core.ids import SessionId

_NS: Final = 1_000_000_000
Value = str | int | float | bool


@dataclass(slots=True)
class _Stay:
    arrived: ev.SessionArrived
    facts: list[ev.SessionEvent] = field(default_factory=list)


def make_spans(events: Iterable[ev.Event], tracer: Tracer, wall_offset_s: float) -> int:
    """Make and end the spans of all sessions; returns of how many.

    `wall_offset_s`: calendar time less the log's clock.
    """
    stays, last_s = _stays(events)
    places: dict[SessionId, Context] = {}
    for stay in stays:
        _Maker(tracer, wall_offset_s, last_s).session(stay, places)
    return len(stays)


def _stays(events: Iterable[ev.Event]) -> tuple[list[_Stay], float]:
    """In order of arrival, and when the log ends; facts may come after their session's end."""
    stays: list[_Stay] = []
    newest: dict[SessionId, _Stay] = {}
    last_s = 0.0
    for event in events:
        last_s = max(last_s, event.at_s)
        if isinstance(event, ev.OfNoSession):
            continue
        match event:
            case ev.SessionArrived():
                newest[event.session_id] = _Stay(event)
                stays.append(newest[event.session_id])
            case _ if event.session_id in newest:
                newest[event.session_id].facts.append(event)
            case _:
                pass  # of a session that came before the log began
    return stays, last_s


class _Maker:
    def __init__(self, tracer: Tracer, wall_offset_s: float, last_s: float) -> None:
        self._tracer = tracer
        self._offset_s = wall_offset_s
        self._last_s = last_s

    def session(self, stay: _Stay, places: dict[SessionId, Context]) -> None:
        arrived = stay.arrived
        above = places.get(arrived.parent_id) if arrived.parent_id else None
        span = self._start("invoke_agent", arrived.at_s, above, SpanKind.INTERNAL)
        self._about(span, "invoke_agent", arrived.session_id)
        _put(span, {"mars.rule": arrived.rule, "mars.tenant": arrived.tenant})
        here = places[arrived.session_id] = set_span_in_context(span)
        self._waits(stay, here)
        self._calls(stay, here)
        self._tools(stay, here)
        ends = [fact for fact in stay.facts if isinstance(fact, ev.SessionEnded)]
        for end in ends:
            _put(span, {"mars.ended_by": end.by, "mars.why": end.why})
        span.end(self._ns(ends[0].at_s if ends else self._last_s))

    def _waits(self, stay: _Stay, here: Context) -> None:
        since_s: float | None = stay.arrived.at_s
        for fact in stay.facts:
            match fact:
                case ev.SessionReturned():
                    since_s = fact.at_s
                case ev.SessionAdmitted() if since_s is not None:
                    span = self._start("gate", since_s, here, SpanKind.INTERNAL)
                    _put(span, {"mars.admitted_by": fact.by, "mars.why": fact.why})
                    span.end(self._ns(fact.at_s))
                    since_s = None
                case _:
                    pass

    def _calls(self, stay: _Stay, here: Context) -> None:
        served = {it.call_id: it for it in _of(stay, ev.CallServed)}
        finished = {it.call_id: it for it in _of(stay, ev.CallFinished)}
        for queued in _of(stay, ev.CallQueued):
            span = self._start("chat", queued.at_s, here, SpanKind.CLIENT)
            self._about(span, "chat", queued.session_id)
            _put(span, {"mars.turn": queued.turn, "mars.call_id": queued.call_id})
            self._account(span, served.get(queued.call_id))
            end = finished.get(queued.call_id)
            if end is not None and not end.ok:
                _fail(span, end.why, str(end.status) if end.status else "cut")
            span.end(self._ns(end.at_s if end else self._last_s))

    def _account(self, span: Span, served: ev.CallServed | None) -> None:
        if served is not None:
            usage = {
                "gen_ai.usage.input_tokens": served.prompt_tokens,
                "gen_ai.usage.output_tokens": served.made_tokens,
                "gen_ai.usage.cache_read.input_tokens": served.cached_tokens,
                "mars.computed_tokens": served.computed_tokens,
                "mars.engine_queue_s": served.queued_s,
            }
            _put(span, usage)

    def _tools(self, stay: _Stay, here: Context) -> None:
        started = {it.tool_id: it for it in _of(stay, ev.ToolStarted)}
        finished = {it.tool_id: it for it in _of(stay, ev.ToolFinished)}
        for queued in _of(stay, ev.ToolQueued):
            span = self._start(f"execute_tool {queued.tool}", queued.at_s, here, SpanKind.INTERNAL)
            self._about(span, "execute_tool", queued.session_id)
            _put(span, {"gen_ai.tool.name": queued.tool, "gen_ai.tool.call.id": queued.tool_id})
            if (start := started.get(queued.tool_id)) is not None:
                _put(span, {"mars.tool.wait_s": start.wait_s})
            end = finished.get(queued.tool_id)
            if end is not None:
                _put(span, {"mars.tool.run_s": end.run_s, "mars.tool.cpu_s": end.cpu_s})
                if end.exit_code is not None:
                    _put(span, {"mars.tool.exit_code": end.exit_code})
                if end.why != "ended":
                    _fail(span, f"the tool was ended by {end.why}", end.why)
            span.end(self._ns(end.at_s if end else self._last_s))

    def _start(self, name: str, at_s: float, above: Context | None, kind: SpanKind) -> Span:
        context = Context() if above is None else above
        return self._tracer.start_span(name, context, kind, start_time=self._ns(at_s))

    def _about(self, span: Span, operation: str, session_id: SessionId) -> None:
        about = {"gen_ai.operation.name": operation, "gen_ai.conversation.id": session_id}
        _put(span, {**about, "gen_ai.provider.name": "vllm"})

    def _ns(self, at_s: float) -> int:
        return int((at_s + self._offset_s) * _NS)


T = TypeVar("T", bound=ev.Fact)


def _of(stay: _Stay, kind: type[T]) -> Iterator[T]:
    return (fact for fact in stay.facts if isinstance(fact, kind))


def _put(span: Span, values: Mapping[str, Value]) -> None:
    for name, value in values.items():
        if value != "":
            span.set_attribute(name, value)


def _fail(span: Span, why: str, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR, why))
