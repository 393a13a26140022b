"""What can be seen of the gate before one engine: a reader of its facts, beside its own tables."""

import time
from collections import Counter
from typing import Literal

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from mars.core.events import Outage
from mars.core.placement import State
from mars.core.pressure import Pressure
from mars.gateway.desk import Desk
from mars.gateway.gauges import Gauges
from mars.gateway.metrics import Metrics
from mars.gateway.roster import Roster, SessionRow


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Of the gate before one engine."""

    engine: str
    """URL of its engine."""
    state: State | Literal[""] = ""
    """Of one of several: whether it gets calls; empty: it is the only one, and gets all."""
    state_why: str = ""
    """Why it is down or drains."""
    window: int | None
    """How many sessions may be active; None: no limit."""
    why_not: str
    """Why the gated sessions wait."""
    sessions: int
    active: int
    gated: int
    paused: int
    """Sent back, and not yet at the gate again."""
    phases: dict[str, int]
    """How many sessions are in each phase; those without any are left out."""
    pressure: Pressure
    engine_sample_age_s: float | None
    """Since the engine's newest sample; None: it was never heard (one without our plugin)."""
    tools_sample_age_s: float | None
    tool_controls: str
    """What holds commands to their leases, as the tool server says; empty: none was heard."""
    late: int
    """Facts that came too late to matter."""
    lost: int
    """Messages of other processes that never came."""
    faults: int
    """Failures of the control plane; each let everybody in."""
    fail_open: Outage
    """Why the gate is open for all (core.failsafe); empty: it is not."""


class Shown:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._roster = Roster()
        metrics = Metrics()
        gauges = Gauges(desk, metrics.tenants)
        self.registry: CollectorRegistry = metrics.registry
        """Of what is the engine's; what is the process's stands beside it (gateway.served)."""
        self.registry.register(gauges)
        desk.read_by(metrics.observe, gauges.observe, self._roster.observe)

    def status(self) -> Status:
        control, now_s = self._desk.control, time.monotonic()
        pressure = control.pressure
        return Status(
            engine=self._desk.engine,
            window=control.window,
            why_not=control.why_not,
            sessions=len(control.sessions),
            active=control.active,
            gated=control.gated,
            paused=control.paused,
            phases=Counter(session.phase.value for session in control.sessions.values()),
            pressure=pressure,
            engine_sample_age_s=_since(pressure.engine_at_s, now_s),
            tools_sample_age_s=_since(pressure.tools_at_s, now_s),
            tool_controls=control.tool_controls,
            late=control.late,
            lost=self._desk.lost,
            faults=self._desk.faults,
            fail_open=control.failsafe.cause,
        )

    def sessions(self) -> list[SessionRow]:
        return self._roster.rows(self._desk, time.monotonic())


def exposition(request: Request, registry: CollectorRegistry) -> Response:
    """In the format that is asked for: text, or OpenMetrics."""
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"content-type": kind})


def _since(at_s: float | None, now_s: float) -> float | None:
    return None if at_s is None else now_s - at_s
