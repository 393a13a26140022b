"""What a gateway process serves: the gate before one engine, or a fleet of them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from starlette.middleware import Middleware
from starlette.routing import Router

from mars.gateway.app import GateApp
from mars.gateway.desk import Desk
from mars.gateway.door import Door, read_secret
from mars.gateway.ear import Ear
from mars.gateway.fleet import Fleet, Member
from mars.gateway.front import build_front
from mars.gateway.keys import KeyRing
from mars.gateway.places import Place
from mars.gateway.settings import GatewaySettings

LOOK_S: Final = 0.5


class Served(NamedTuple):
    """What is served: one engine's gate, or a fleet's."""

    app: Router
    life: AbstractAsyncContextManager[None]
    """It hears, and time passes for it."""
    close: Callable[[str], None]
    """End all sessions, saying why, and let nobody in any more."""
    cut: Callable[[], Awaitable[None]]
    """Close all connections to engines."""
    restore: Callable[[Place], None]
    """Give a session its place back that it had before a gateway that is gone. Not while it serves:
    by then it may have come as a new one."""


Gate = Callable[[str, KeyRing | None], tuple[Desk, GateApp]]
"""Makes the gate before an engine, given its URL and who may come in."""


def one_engine(
    upstream: str,
    subscribe: Sequence[str],
    ring: KeyRing | None,
    gate: Gate,
    process: CollectorRegistry,
) -> Served:
    """`process`: what is counted of the process."""
    desk, app = gate(upstream, ring)
    app.shown.registry.register(process)
    life = _living(desk, subscribe)
    return Served(app.router, life, desk.close, app.upstream.close, desk.restore)


def several_engines(
    upstreams: Sequence[str],
    subscribe: Sequence[str],
    ring: KeyRing | None,
    gate: Gate,
    settings: GatewaySettings,
    *,
    process: CollectorRegistry,
) -> Served:
    """Its engines' gates have no door of their own: theirs is the fleet's."""

    def member(url: str, facts: str) -> Member:
        desk, app = gate(url, None)
        return Member(app.upstream.url, facts, desk, app.router, app.upstream, app.shown)

    @asynccontextmanager
    async def live(member: Member) -> AsyncIterator[None]:
        endpoints = [member.facts] if member.facts else []
        async with (
            _living(member.desk, endpoints),
            member.app.lifespan_context(member.app),
        ):
            yield

    @asynccontextmanager
    async def hearing() -> AsyncIterator[None]:
        with Ear.listening(fleet, subscribe) as ear:
            async with every(LOOK_S, ear.look):
                yield

    fleet = Fleet(member, live, settings)
    for upstream in upstreams:
        url, _, facts = upstream.partition("=")
        fleet.found(url, facts)
    door = [] if ring is None else [Middleware(Door, ring, read_secret(settings.engine_key_file))]
    app = build_front(fleet, settings, door, process)
    return Served(app, hearing(), fleet.close, fleet.cut, fleet.restore)


@asynccontextmanager
async def _living(desk: Desk, endpoints: Sequence[str]) -> AsyncIterator[None]:
    """A desk hears, and time passes for it."""

    def tick() -> None:
        desk.tick(time.monotonic())

    def watch() -> None:
        desk.watch(time.monotonic())

    control = desk.control
    with Ear.listening(desk, endpoints) as ear:
        async with (
            every(LOOK_S, ear.look),
            every(control.tick_s, tick),
            every(control.watch_s, watch),
        ):
            yield


@asynccontextmanager
async def every(period_s: float | None, action: Callable[[], None]) -> AsyncIterator[None]:
    """None: never."""
    if period_s is None:
        yield
        return

    async def repeat() -> None:
        while True:
            await asyncio.sleep(period_s)
            action()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
