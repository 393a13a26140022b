"""The gateway's routes.

POST /v1/chat/completions, /v1/completions   through the gate to the engine
POST /v1/responses, /v1/messages             the same
*    /v1/...                                 to the engine
GET  /health                                 200 when the engine answers its own /health
GET  /mars/status, /mars/sessions            what the gateway sees and decides
GET  /metrics                                the same, counted, for Prometheus
DELETE /mars/sessions/ID, POST /mars/sessions/ID/end

With `gateway.keys_file` a key is asked for first (mars.gateway.door).
"""

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from mars.core.events import Outage
from mars.core.ids import SessionId
from mars.core.pressure import Pressure
from mars.gateway.desk import Desk
from mars.gateway.door import Door, read_secret
from mars.gateway.gauges import Gauges
from mars.gateway.keys import KeyRing
from mars.gateway.metrics import Metrics
from mars.gateway.proxy import GatedCall, PassThrough
from mars.gateway.recall import Recall
from mars.gateway.roster import Roster
from mars.gateway.settings import GatewaySettings
from mars.gateway.upstream import Upstream

_CALLS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
"""Paths of model calls; what is posted to others asks for no KV that a later call goes on from."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
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


def build_app(
    desk: Desk, upstream_url: str, settings: GatewaySettings, ring: KeyRing | None = None
) -> tuple[Router, Upstream]:
    """The routes, and the connections to the engine, which live as long as their lifespan.

    `ring`: who may come in; None: everybody. A Router, not a Starlette: the two layers that this
    adds look at every chunk of every answer. Raises InputError for an address that cannot be one,
    and for an engine's key that cannot be read.
    """
    upstream = Upstream(upstream_url, settings)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with upstream:
            yield

    metrics, gauges, roster = Metrics(), Gauges(desk), Roster()
    metrics.registry.register(gauges)
    desk.read_by(metrics.observe, gauges.observe, roster.observe)
    views = _Views(desk, upstream, metrics, roster)
    gated = GatedCall(desk, Recall(infers=settings.infer_sessions), upstream, settings)
    session = "/mars/sessions/{session_id:path}"  # an id may have a slash in it
    door = [] if ring is None else [Middleware(Door, ring, read_secret(settings.engine_key_file))]
    router = Router(
        lifespan=lifespan,
        middleware=door,
        routes=[
            *(Route(path, gated, methods=["POST"]) for path in _CALLS),
            Route("/v1/{rest:path}", PassThrough(upstream, settings)),
            Route("/health", views.health),
            Route("/metrics", views.metrics),
            Route("/mars/status", views.status),
            Route("/mars/sessions", views.sessions),
            Route(session + "/end", views.end, methods=["POST"]),
            Route(session, views.end, methods=["DELETE"]),
        ],
    )
    return router, upstream


class _Views:
    def __init__(self, desk: Desk, upstream: Upstream, metrics: Metrics, roster: Roster) -> None:
        self._desk = desk
        self._roster = roster
        self._upstream = upstream
        self._metrics = metrics

    async def health(self, _: Request) -> Response:
        if why := await self._upstream.sick():
            return _json({"status": "engine unreachable", "why": why}, 503)
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._metrics.registry), headers={"content-type": kind})

    async def status(self, _: Request) -> Response:
        control, now_s = self._desk.control, time.monotonic()
        pressure = control.pressure
        return _json(
            Status(
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
        )

    async def sessions(self, _: Request) -> Response:
        rows = self._roster.rows(self._desk.control, time.monotonic())
        return _json(list(rows))

    async def end(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        if self._desk.end(session_id, "ended by request"):
            return _json({"ended": session_id})
        return _json({"error": f"no session {session_id!r} is here"}, 404)


def _since(at_s: float | None, now_s: float) -> float | None:
    return None if at_s is None else now_s - at_s


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
