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

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import msgspec
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Receive, Scope, Send

from mars.core.ids import SessionId
from mars.gateway.desk import Desk
from mars.gateway.door import Door, read_secret
from mars.gateway.keys import KeyRing
from mars.gateway.proxy import GatedCall, PassThrough
from mars.gateway.recall import Recall
from mars.gateway.settings import GatewaySettings
from mars.gateway.shown import Shown, exposition
from mars.gateway.upstream import Upstream

_CALLS: Final = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
)
"""Paths of model calls; what is posted to others asks for no KV that a later call goes on from."""


class _CallRoute(BaseRoute):
    """All of them, by equality, which takes less time than a pattern for each."""

    def __init__(self, gated: GatedCall) -> None:
        self._gated = gated

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        is_call = scope["path"] in _CALLS and scope["method"] == "POST"
        return (Match.FULL if is_call else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gated(scope, receive, send)


class GateApp(NamedTuple):
    router: Router
    upstream: Upstream
    shown: Shown


def build_app(
    desk: Desk, upstream_url: str, settings: GatewaySettings, ring: KeyRing | None = None
) -> GateApp:
    """The gate before one engine, whose connections live as long as the router's lifespan.

    `ring`: who may come in; None: everybody. A Router, not a Starlette: the two layers that this
    adds look at every chunk of every answer. Raises InputError for an address that cannot be one,
    and for an engine's key that cannot be read.
    """
    upstream = Upstream(upstream_url, settings)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with upstream:
            yield

    shown = Shown(desk)
    views = _Views(desk, upstream, shown)
    gated = GatedCall(desk, Recall(infers=settings.infer_sessions), upstream, settings)
    session = "/mars/sessions/{session_id:path}"  # an id may have a slash in it
    door = [] if ring is None else [Middleware(Door, ring, read_secret(settings.engine_key_file))]
    router = Router(
        lifespan=lifespan,
        middleware=door,
        routes=[
            _CallRoute(gated),
            Route("/v1/{rest:path}", PassThrough(upstream, settings)),
            Route("/health", views.health),
            Route("/metrics", views.metrics),
            Route("/mars/status", views.status),
            Route("/mars/sessions", views.sessions),
            Route(session + "/end", views.end, methods=["POST"]),
            Route(session, views.end, methods=["DELETE"]),
        ],
    )
    return GateApp(router, upstream, shown)


class _Views:
    def __init__(self, desk: Desk, upstream: Upstream, shown: Shown) -> None:
        self._desk = desk
        self._upstream = upstream
        self._shown = shown

    async def health(self, _: Request) -> Response:
        if why := await self._upstream.sick():
            return _json({"status": "engine unreachable", "why": why}, 503)
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return exposition(request, self._shown.registry)

    async def status(self, _: Request) -> Response:
        return _json(self._shown.status())

    async def sessions(self, _: Request) -> Response:
        return _json(self._shown.sessions())

    async def end(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        if self._desk.end(session_id, "ended by request"):
            return _json({"ended": session_id})
        return _json({"error": f"no session {session_id!r} is here"}, 404)


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
