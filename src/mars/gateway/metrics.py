"""`GET /metrics`: what an operator watches, in Prometheus' form.

Counters and histograms read the facts, as the event log does; nothing is measured for them alone.
Gauges of the present come from `gauges`, when Prometheus asks.

Labels are few, whatever the traffic: kinds of reasons, and names of the first tenants and tools
that were seen; the others are `other`. A session's id is never one.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from mars.core import events as ev
from mars.core.ids import CallId, SessionId

_MOST_NAMES: Final = 30
"""Different values of a label that others choose."""
_FIRST_ERROR: Final = 400

_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    *(5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0),
)


class Names:
    """A label whose values others choose: the first few keep their names."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        if name not in self._known:
            if len(self._known) >= _MOST_NAMES:
                return "other"
            self._known.add(name)
        return name


class Metrics:
    """A reader of facts: hand each to `observe`, in the order they were told."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tenants = Names()
        """Of labels."""
        self._sessions = _Sessions(self.registry, self.tenants)
        self._calls = _Calls(self.registry)
        self._kv = _Kv(self.registry)
        self._tools = _Tools(self.registry)

    def observe(self, event: ev.Event) -> None:
        match event:
            case ev.CallQueued() | ev.CallFinished():
                self._calls.observe(event, self._sessions.tenant(event.session_id))
            case ev.CallServed() | ev.CallPreempted() | ev.KvHeld() | ev.KvDropped():
                self._kv.observe(event)
            case ev.KvReleased():
                self._kv.released(event.why).inc()
            case ev.ToolStarted() | ev.ToolFinished():
                self._tools.observe(event)
            case (
                ev.SessionArrived()
                | ev.SessionReturned()
                | ev.SessionAdmitted()
                | ev.SessionPaused()
                | ev.SessionEnded()
            ):
                self._sessions.observe(event)
            case ev.SessionRefused():
                self._sessions.refused.inc()
            case _:
                pass  # what is now, not what has happened: see gauges


def _counters(
    name: str, text: str, labels: Sequence[str], registry: CollectorRegistry
) -> Callable[..., Counter]:
    """By the values of its labels; kept, since to look one up takes longer than to count."""
    return cache(Counter(name, text, labels, registry=registry).labels)


class _Sessions:
    def __init__(self, registry: CollectorRegistry, names: Names) -> None:
        self.arrived = _counters(
            "mars_sessions_arrived", "Sessions that came, by tenant.", ["tenant"], registry
        )
        self.refused = Counter(
            "mars_sessions_refused", "Sessions that found the queue full.", registry=registry
        )
        self.admitted = _counters(
            "mars_admissions", "Sessions let in, by what let them in.", ["by"], registry
        )
        self.paused = Counter("mars_pauses", "Sessions sent back to the gate.", registry=registry)
        self.ended = _counters(
            "mars_sessions_ended", "Sessions that left, by what ended them.", ["by"], registry
        )
        self.gate_wait = Histogram(
            "mars_gate_wait_seconds",
            "Time a session's request waited at the gate until it was let in.",
            registry=registry,
            buckets=_SECONDS,
        )
        self._names = names
        self._tenants: dict[SessionId, str] = {}
        self._waits_since_s: dict[SessionId, float] = {}

    def tenant(self, session_id: SessionId) -> str:
        return self._tenants.get(session_id, "")

    def observe(
        self,
        event: ev.SessionArrived
        | ev.SessionReturned
        | ev.SessionAdmitted
        | ev.SessionPaused
        | ev.SessionEnded,
    ) -> None:
        match event:
            case ev.SessionArrived():
                tenant = self._tenants[event.session_id] = self._names.label(event.tenant)
                self.arrived(tenant).inc()
                if not event.was_in:
                    self._waits_since_s[event.session_id] = event.first_s
            case ev.SessionReturned():
                self._waits_since_s[event.session_id] = event.at_s
            case ev.SessionAdmitted():
                self.admitted(event.by).inc()
                since_s = self._waits_since_s.pop(event.session_id, None)
                if since_s is not None:  # else none of its requests was at the gate
                    self.gate_wait.observe(event.at_s - since_s)
            case ev.SessionPaused():
                self.paused.inc()
            case ev.SessionEnded():
                self.ended(event.by).inc()
                self._tenants.pop(event.session_id, None)
                self._waits_since_s.pop(event.session_id, None)


class _Calls:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.finished = _counters(
            "mars_calls",
            "Calls that are over, by outcome and tenant.",
            ["outcome", "tenant"],
            registry,
        )
        self.first_byte = Histogram(
            "mars_first_byte_seconds",
            "From the hand-over of a call to the engine to the first byte of its answer.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.took = Histogram(
            "mars_call_seconds",
            "From the hand-over of a call to the engine to the end of its answer.",
            registry=registry,
            buckets=_SECONDS,
        )
        line = Histogram(
            "mars_line_wait_seconds",
            "Time of a call in line, since its tenant had as many open as it may; of those that "
            "had to wait.",
            ["tenant"],
            registry=registry,
            buckets=_SECONDS,
        )
        self.line_wait: Callable[..., Histogram] = cache(line.labels)
        self._since_s: dict[CallId, float] = {}

    def observe(self, event: ev.CallQueued | ev.CallFinished, tenant: str) -> None:
        if isinstance(event, ev.CallQueued):
            self._since_s[event.call_id] = event.at_s
            if event.waited_s:
                self.line_wait(tenant).observe(event.waited_s)
            return
        self.finished(_outcome(event), tenant).inc()
        if event.first_byte_s is not None:
            self.first_byte.observe(event.first_byte_s)
        if (since_s := self._since_s.pop(event.call_id, None)) is not None:
            self.took.observe(event.at_s - since_s)


def _outcome(event: ev.CallFinished) -> str:
    if event.ok:
        return "ok"
    if event.gone:
        return "client left"
    if event.status is not None and event.status >= _FIRST_ERROR:
        return f"HTTP {event.status // 100}xx"
    return "broken off"


class _Kv:
    """What the engine tells: an engine without our plugin tells nothing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prompt = Counter(
            "mars_prompt_tokens",
            "Prompt tokens of calls that the engine served: warm were in its cache.",
            ["kv"],
            registry=registry,
        )
        self.warm, self.cold = prompt.labels("warm"), prompt.labels("cold")
        self.computed = Counter(
            "mars_computed_tokens",
            "Tokens the model was run on, prefill and decode, again after preemptions.",
            registry=registry,
        )
        self.made = Counter("mars_made_tokens", "Tokens of answers.", registry=registry)
        self.queued = Histogram(
            "mars_engine_queue_seconds",
            "Time of a call in the engine before it first ran.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.preempted = Counter("mars_preemptions", "Calls set back.", registry=registry)
        self.held = Counter("mars_kv_held", "Calls whose KV was then held.", registry=registry)
        self.dropped = Counter("mars_kv_dropped", "Calls whose KV was not held.", registry=registry)
        self.released = _counters(
            "mars_kv_released", "Holds that ended, by what ended them.", ["by"], registry
        )

    def observe(self, event: ev.CallServed | ev.CallPreempted | ev.KvHeld | ev.KvDropped) -> None:
        match event:
            case ev.CallServed():
                self.warm.inc(event.cached_tokens)
                self.cold.inc(max(0, event.prompt_tokens - event.cached_tokens))
                self.computed.inc(event.computed_tokens)
                self.made.inc(event.made_tokens)
                self.queued.observe(event.queued_s)
            case ev.CallPreempted():
                self.preempted.inc()
            case ev.KvHeld():
                self.held.inc()
            case ev.KvDropped():
                self.dropped.inc()


class _Tools:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.finished = _counters(
            "mars_tools",
            "Tool calls that are over, by name and by what ended them.",
            ["tool", "by"],
            registry,
        )
        self.waited = Histogram(
            "mars_tool_wait_seconds",
            "Time a tool call waited for its cores.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.ran = Histogram(
            "mars_tool_run_seconds",
            "Time a tool call ran.",
            registry=registry,
            buckets=_SECONDS,
        )
        self.cpu = _counters(
            "mars_tool_cpu_seconds", "CPU time of tools, by name.", ["tool"], registry
        )
        self._names = Names()

    def observe(self, event: ev.ToolStarted | ev.ToolFinished) -> None:
        if isinstance(event, ev.ToolStarted):
            self.waited.observe(event.wait_s)
            return
        tool = self._names.label(event.tool)
        self.finished(tool, event.why).inc()
        if event.exit_code is not None:  # else it never ran
            self.ran.observe(event.run_s)
            self.cpu(tool).inc(event.cpu_s)
