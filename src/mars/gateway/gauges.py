"""What `/metrics` says of the present: read off desk and control plane when Prometheus asks."""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mars.core import events as ev
from mars.core.session import Phase
from mars.gateway.desk import Desk
from mars.gateway.metrics import Names

_LIVE: Final = [phase for phase in Phase if phase is not Phase.ENDED]


class Gauges(Collector):
    """Also a reader of facts: of the samples it keeps the newest, and why the gate is shut."""

    def __init__(self, desk: Desk, tenants: Names) -> None:
        self._desk = desk
        self._tenants = tenants
        self._in_line: Counter[str] = Counter()
        """By label; those of whom nobody waits any more stay, with 0."""
        self._engine: ev.EngineSampled | None = None
        self._tools: ev.ToolsSampled | None = None
        self._limit: ev.Limit = ""

    def observe(self, event: ev.Event) -> None:
        match event:
            case ev.EngineSampled():
                self._engine = event
            case ev.ToolsSampled():
                self._tools = event
            case ev.GateShut():
                self._limit = event.limit
            case _:
                pass

    def describe(self) -> list[Metric]:
        """None: registering must not ask for the figures of a desk that does not run yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._of_sessions()
        yield self._of_line()
        yield from self._of_engine()
        yield from self._of_tools()
        yield from self._of_ourselves()

    def _of_sessions(self) -> Iterator[Metric]:
        control = self._desk.control
        phases = Counter(session.phase for session in control.sessions.values())
        sessions = GaugeMetricFamily("mars_sessions", "Sessions, by phase.", labels=["phase"])
        for phase in _LIVE:
            sessions.add_metric([phase.value], phases[phase])
        yield sessions
        yield _gauge("mars_sessions_active", "Sessions past the gate.", control.active)
        if control.window is not None:
            text = "How many sessions may be active (of policies that have a window)."
            yield _gauge("mars_window_sessions", text, control.window)
        kept_out = len(control.held_back)
        gated = GaugeMetricFamily(
            "mars_gated_sessions", "Sessions at the gate, by what shuts it.", labels=["limit"]
        )
        for limit in ev.LIMITS:
            here = phases[Phase.GATED] - kept_out if limit == self._limit else 0
            here += kept_out if limit == "tenant limit" else 0
            gated.add_metric([limit or "none named"], here)
        yield gated

    def _of_line(self) -> Metric:
        for label in self._in_line:
            self._in_line[label] = 0
        for tenant, waiting in self._desk.in_line().items():
            self._in_line[self._tenants.label(tenant)] += waiting
        text = "Calls in line, since their tenant has as many open as it may."
        line = GaugeMetricFamily("mars_calls_in_line", text, labels=["tenant"])
        for label, waiting in self._in_line.items():
            line.add_metric([label], waiting)
        return line

    def _of_engine(self) -> Iterator[Metric]:
        if (seen := self._engine) is None:
            return
        pressure = self._desk.control.pressure
        yield _age("mars_engine_sample_age_seconds", seen.at_s)
        yield _gauge(
            "mars_kv_used_ratio", "KV referenced by calls and holds.", pressure.kv_used_frac
        )
        text = "KV under holds."
        yield _gauge("mars_kv_held_ratio", text, seen.kv_held_blocks / seen.kv_total_blocks)
        text = "Contexts of all active sessions over KV; above 1: not all of them fit."
        yield _gauge("mars_kv_session_ratio", text, pressure.kv_session_frac)
        yield _gauge("mars_engine_running_calls", "Calls on the GPU.", seen.running_calls)
        yield _gauge("mars_engine_waiting_calls", "Calls in its queue.", seen.waiting_calls)

    def _of_tools(self) -> Iterator[Metric]:
        if (seen := self._tools) is None:
            return
        yield _age("mars_tools_sample_age_seconds", seen.at_s)
        yield _gauge("mars_tools_running", "Tool calls that have cores.", seen.running)
        yield _gauge("mars_tools_waiting", "Tool calls that wait for cores.", seen.waiting)
        yield _gauge("mars_tools_slots", "Tool calls of one core that fit.", seen.slots)
        yield _gauge("mars_tools_recent_wait_seconds", "Smoothed wait for cores.", seen.wait_s)

    def _of_ourselves(self) -> Iterator[Metric]:
        desk = self._desk
        opened = GaugeMetricFamily(
            "mars_fail_open", "1: the gate is open for all, for this cause.", labels=["cause"]
        )
        for cause in ev.OUTAGES:
            opened.add_metric([cause], desk.control.failsafe.cause == cause)
        yield opened
        for name, text, count in (
            ("mars_control_faults", "Failures of the control plane.", desk.faults),
            ("mars_late_facts", "Facts that came too late to matter.", desk.control.late),
            ("mars_lost_messages", "Messages of other processes that never came.", desk.lost),
        ):
            yield CounterMetricFamily(name, text, value=count)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _age(name: str, at_s: float) -> Metric:
    return _gauge(name, "Time since the newest sample.", time.monotonic() - at_s)
