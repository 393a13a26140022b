"""The gateway's routes.

POST /v1/chat/completions, /v1/completions   through the gate to the engine
POST /v1/responses, /v1/messages             the same
*    /v1/...                                 to the engine
GET  /health                                 200 when the engine answers its own /health
GET  /mars/status, /mars/sessions            what the gateway sees and decides
DELETE /mars/sessions/ID, POST /mars/sessions/ID/end
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mars.core.ids import SessionId
from mars.core.pressure import Pressure
from mars.core.session import Phase
from mars.gateway.desk import Desk
from mars.gateway.proxy import GatedCall, PassThrough
from mars.gateway.recall import Recall
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
    pressure: Pressure
    tool_controls: str
    """What holds commands to their leases, as the tool server says; empty: none was heard."""
    late: int
    """Facts that came too late to matter."""
    lost: int
    """Messages of other processes that never came."""
    faults: int
    """Failures of the control plane; each let everybody in."""


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    session_id: SessionId
    phase: str
    phase_s: float
    """Since when it has been in this phase, in seconds before now."""
    turn: int
    context_tokens: int
    why: str
    """Why it waits at the gate; empty past it."""


def build_app(desk: Desk, upstream_url: str, settings: GatewaySettings) -> Starlette:
    """The connections to the engine live as long as the app's lifespan.

    `app.state.upstream` is the Upstream. Raises InputError for an address that cannot be one.
    """
    upstream = Upstream(upstream_url, settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with upstream:
            yield

    views = _Views(desk, upstream)
    gated = GatedCall(desk, Recall(infers=settings.infer_sessions), upstream, settings)
    session = "/mars/sessions/{session_id:path}"  # an id may have a slash in it
    app = Starlette(
        lifespan=lifespan,
        routes=[
            *(Route(path, gated, methods=["POST"]) for path in _CALLS),
            Route("/v1/{rest:path}", PassThrough(upstream, settings)),
            Route("/health", views.health),
            Route("/mars/status", views.status),
            Route("/mars/sessions", views.sessions),
            Route(session + "/end", views.end, methods=["POST"]),
            Route(session, views.end, methods=["DELETE"]),
        ],
    )
    app.state.upstream = upstream
    return app


class _Views:
    def __init__(self, desk: Desk, upstream: Upstream) -> None:
        self._desk = desk
        self._upstream = upstream

    async def health(self, _: Request) -> Response:
        if why := await self._upstream.sick():
            return _json({"status": "engine unreachable", "why": why}, 503)
        return _json({"status": "ok"})

    async def status(self, _: Request) -> Response:
        control = self._desk.control
        return _json(
            Status(
                window=control.window,
                why_not=control.why_not,
                sessions=len(control.sessions),
                active=control.active,
                gated=len(control.sessions) - control.active - control.paused,
                paused=control.paused,
                pressure=control.pressure,
                tool_controls=control.tool_controls,
                late=control.late,
                lost=self._desk.lost,
                faults=self._desk.faults,
            )
        )

    async def sessions(self, _: Request) -> Response:
        control, now_s = self._desk.control, time.monotonic()
        rows = [
            SessionRow(
                session_id=session.session_id,
                phase=session.phase.value,
                phase_s=now_s - session.since_s,
                turn=session.turn,
                context_tokens=session.context_tokens,
                why=control.why_not if session.phase is Phase.GATED else "",
            )
            for session in control.sessions.values()
        ]
        return _json(rows)

    async def end(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        if self._desk.end(session_id, "ended by request"):
            return _json({"ended": session_id})
        return _json({"error": f"no session {session_id!r} is here"}, 404)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
