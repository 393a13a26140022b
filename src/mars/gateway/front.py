"""A fleet's routes: its engines can be seen, added, drained and removed while it runs.

GET    /mars/engines            the engines, their state and load
POST   /mars/engines            {"url": ..., "facts": ENDPOINT}: a new one, or one that drains stays
POST   /mars/engines/drain      {"url": ...}: no new calls; its sessions go on elsewhere
DELETE /mars/engines?url=...    the same, and it is forgotten once its calls have ended
GET    /mars/status, /mars/sessions, /metrics
                                of all engines, each named; of one: ?engine=URL
DELETE /mars/sessions/ID        as before one engine
*      /v1/...                  to an engine
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from mars.core.errors import InputError
from mars.core.ids import SessionId
from mars.gateway.dispatch import Dispatch
from mars.gateway.fleet import Fleet, Member
from mars.gateway.overview import Overview
from mars.gateway.settings import GatewaySettings


class EngineRow(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    state: str
    why: str
    """Why it is down or drains."""
    sessions: int
    waiting: int
    """Of those, at its gate."""
    calls: int
    kv_frac: float | None
    """KV that its sessions have or are about to have, over its capacity; None: not known."""


class _Wanted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str
    facts: str = ""


def build_front(
    fleet: Fleet, settings: GatewaySettings, door: list[Middleware], process: CollectorRegistry
) -> Router:
    """`process`: what is counted of the process."""

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with fleet:
            yield

    views, overview = _Views(fleet), Overview(fleet, process)
    session = "/mars/sessions/{session_id:path}"
    return Router(
        lifespan=lifespan,
        middleware=door,
        routes=[
            Route("/v1/{rest:path}", Dispatch(fleet, settings)),
            Route("/health", views.health),
            Route("/mars/engines", views.engines, methods=["GET"]),
            Route("/mars/engines", views.add, methods=["POST"]),
            Route("/mars/engines", views.leave, methods=["DELETE"]),
            Route("/mars/engines/drain", views.drain, methods=["POST"]),
            Route("/mars/status", overview.status),
            Route("/mars/sessions", overview.sessions),
            Route("/metrics", overview.metrics),
            Route(session + "/end", views.end, methods=["POST"]),
            Route(session, views.end, methods=["DELETE"]),
        ],
    )


class _Views:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def health(self, _: Request) -> Response:
        if any(member.state == "up" for member in self._fleet):
            return _json({"status": "ok"})
        return _json({"status": "no engine is up"}, 503)

    async def engines(self, _: Request) -> Response:
        return _json([_row(member) for member in self._fleet])

    async def add(self, request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(await request.body(), type=_Wanted)
            member = await self._fleet.add(wanted.url.rstrip("/"), wanted.facts)
        except (msgspec.MsgspecError, InputError) as error:
            return _json({"error": str(error)}, 400)
        return _json(_row(member))

    async def drain(self, request: Request) -> Response:
        try:
            wanted = msgspec.json.decode(await request.body(), type=_Wanted)
            return _json(_row(self._fleet.drain(wanted.url.rstrip("/"), leave=False)))
        except (msgspec.MsgspecError, InputError) as error:
            return _json({"error": str(error)}, 400)

    async def leave(self, request: Request) -> Response:
        try:
            url = request.query_params.get("url", "")
            return _json(_row(self._fleet.drain(url.rstrip("/"), leave=True)))
        except InputError as error:
            return _json({"error": str(error)}, 404)

    async def end(self, request: Request) -> Response:
        session_id = SessionId(request.path_params["session_id"])
        home = self._fleet.home(session_id)
        if home is not None and home.desk.end(session_id, "ended by request"):
            return _json({"ended": session_id})
        return _json({"error": f"no session {session_id!r} is here"}, 404)


def _row(member: Member) -> EngineRow:
    view = member.view(0)
    return EngineRow(
        url=member.url,
        state=member.state,
        why=member.why,
        sessions=len(member.desk.control.sessions),
        waiting=view.waiting,
        calls=view.calls,
        kv_frac=view.kv_frac,
    )


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
