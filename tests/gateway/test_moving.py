"""Sessions that wait at one engine's gate while another has room: they go there, once, in order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from starlette.routing import Route, Router
from tests.gateway.conftest import CHAT, checked_desk, kv_sample
from tests.gateway.scripted import DONE, Engine, Exchange, on_cue, serving, until

from mars.core import events as ev
from mars.core.ids import SessionId
from mars.core.quotas import Quotas
from mars.core.settings import TenantLimits, TenantSettings
from mars.gateway.app import GateApp, build_app
from mars.gateway.desk import Desk
from mars.gateway.identity import Identity
from mars.gateway.keys import KeyRing
from mars.gateway.record import Record, of_process
from mars.gateway.served import several_engines
from mars.gateway.settings import GatewaySettings
from mars.policy.presets import Scheduling

pytestmark = pytest.mark.timeout(60)
SETTINGS = GatewaySettings(keepalive_s=0.02, health_s=60.0, gone_s=0.05, tenant_header="X-Tenant")
LARGE = "x" * 4000
"""Some 1000 tokens: of the 1600 of an engine here, so that two do not fit."""


@dataclass
class Two:
    """Two engines that have room for one session each; their answers wait for a cue."""

    url: str
    http: aiohttp.ClientSession
    engines: list[Engine]
    desks: list[Desk]
    events: list[list[ev.Event]]

    def post(
        self, session: str | None, *, tenant: str = "", **fields: object
    ) -> asyncio.Task[bytes]:
        """A whole turn, the only one of its session."""

        async def turn() -> bytes:
            body = {"model": "m", "messages": [{"role": "user", "content": LARGE}]} | fields
            headers = {"X-Session-ID": session, "X-Session-Final": "1"} if session else {}
            headers |= {"X-Tenant": tenant} if tenant else {}
            async with self.http.post(self.url + CHAT, json=body, headers=headers) as response:
                assert response.status == 200, await response.text()
                return await response.read()

        return asyncio.ensure_future(turn())

    async def fill(self, *, tenant: str = "") -> list[asyncio.Task[bytes]]:
        """`a`, of that tenant, at the first engine and `b` at the second."""
        full = [self.post("a", tenant=tenant)]
        await self.here(0, "a")  # else `b` may be the first to come
        full.append(self.post("b"))
        await self.here(1, "b")
        return full

    async def here(self, number: int, *sessions: str) -> None:
        """Until these are the sessions of an engine, in this order."""
        wanted = [SessionId(it) for it in sessions]
        await until(lambda: list(self.desks[number].control.sessions) == wanted)

    async def call(self, number: int, session: str) -> Exchange:
        """The call of a session, once the engine has it."""

        def found() -> list[Exchange]:
            seen = self.engines[number].seen
            return [it for it in seen if it.header("x-session-id") == session]

        await until(lambda: bool(found()))
        return found()[0]

    def arrivals(self, number: int) -> list[ev.SessionArrived]:
        return [it for it in self.events[number] if isinstance(it, ev.SessionArrived)]

    def moved(self) -> list[str]:
        return [
            it.session_id
            for events in self.events
            for it in events
            if isinstance(it, ev.SessionEnded) and it.by == "moved"
        ]

    def admitted(self, number: int) -> list[str]:
        return [it.session_id for it in self.events[number] if isinstance(it, ev.SessionAdmitted)]


@asynccontextmanager
async def two(*limits: TenantLimits) -> AsyncIterator[Two]:
    scheduling = Scheduling(policy="mars", tenants=TenantSettings(limits=limits))
    quotas = Quotas(scheduling.tenants)
    desks: list[Desk] = []
    facts: list[list[ev.Event]] = []
    broken: list[str] = []

    def gate(url: str, ring: KeyRing | None) -> tuple[Desk, GateApp]:
        desk, events = checked_desk(scheduling, SETTINGS, broken, quotas=quotas, engine=url)
        desk.emit(kv_sample())
        desks.append(desk)
        facts.append(events)
        return desk, build_app(desk, url, SETTINGS, ring)

    engines = [Engine(), Engine()]
    first, second = (serving(Router(routes=[Route("/{rest:path}", it)])) for it in engines)
    async with first as engines[0].url, second as engines[1].url:
        urls = [it.url for it in engines]
        process = of_process(Record(None))
        served = several_engines(urls, [], None, gate, SETTINGS, process=process)
        async with (
            serving(served.app) as url,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        ):
            for engine in engines:
                engine.script = on_cue
            try:
                yield Two(url, http, engines, desks, facts)
            finally:
                for engine in engines:
                    for exchange in engine.seen:
                        exchange.cue.set()
    assert broken == []
    assert [desk.faults for desk in desks] == [0, 0]


async def test_the_oldest_goes_where_there_is_room_and_its_client_sees_nothing() -> None:
    async with two() as fleet:
        full = await fleet.fill()
        waiting = []
        for count, name in enumerate(("c", "d", "e", "f")):
            waiting.append(fleet.post(name, stream=count % 2 == 0))
            await until(lambda: sum(it.control.gated for it in fleet.desks) == len(waiting))
        await fleet.here(0, "a", "c", "e")
        await fleet.here(1, "b", "d", "f")
        came_s = [it.at_s for it in fleet.arrivals(0)]
        for name in ("b", "d", "f"):  # those who came there first go before
            assert fleet.moved() == []
            (await fleet.call(1, name)).cue.set()
        await fleet.here(1, "c")
        assert fleet.moved() == ["c"]
        (await fleet.call(1, "c")).cue.set()
        (await fleet.call(1, "e")).cue.set()
        assert fleet.moved() == ["c", "e"]
        assert [it.endswith(DONE) for it in await asyncio.gather(*waiting)] == [True, False] * 2
        assert fleet.admitted(0) == ["a"]
        since_s = [it.waits_since_s for it in fleet.arrivals(1)]
        assert since_s == [None, None, None, *came_s[1:]]
        (await fleet.call(0, "a")).cue.set()
        await asyncio.gather(*full)


async def test_a_request_that_names_no_session_goes_too() -> None:
    async with two() as fleet:
        full = await fleet.fill()
        nameless = fleet.post(None)
        await until(lambda: fleet.desks[0].control.gated == 1)
        (session,) = (it for it in fleet.desks[0].control.sessions if it != "a")
        (await fleet.call(1, "b")).cue.set()
        (await fleet.call(1, session)).cue.set()
        await nameless
        assert fleet.moved() == [session]
        (await fleet.call(0, "a")).cue.set()
        await asyncio.gather(*full)
        await fleet.here(0)
        await fleet.here(1)


async def test_who_its_tenant_s_limit_keeps_out_stays_and_those_behind_it_go() -> None:
    async with two(TenantLimits(tenant="batch", most_sessions=1)) as fleet:
        full = await fleet.fill(tenant="batch")
        kept = fleet.post("kept", tenant="batch")
        await fleet.here(0, "a", "kept")
        behind = fleet.post("behind")
        await fleet.here(0, "a", "kept", "behind")
        (await fleet.call(1, "b")).cue.set()
        (await fleet.call(1, "behind")).cue.set()
        await behind
        assert fleet.moved() == ["behind"]
        (await fleet.call(0, "a")).cue.set()
        (await fleet.call(0, "kept")).cue.set()
        await asyncio.gather(kept, *full)


async def test_an_engine_that_tells_that_its_kv_is_full_has_no_room() -> None:
    async with two() as fleet:
        full = await fleet.fill()
        waits = fleet.post("waits")
        await fleet.here(0, "a", "waits")
        fleet.desks[1].emit(kv_sample(used_blocks=95))
        (await fleet.call(1, "b")).cue.set()
        await fleet.here(1)
        await asyncio.gather(full[1])
        assert fleet.moved() == []
        fleet.desks[1].emit(kv_sample(used_blocks=5))
        (await fleet.call(1, "waits")).cue.set()
        await waits
        (await fleet.call(0, "a")).cue.set()
        await asyncio.gather(*full)


async def desk_with_one_in(engine: str, broken: list[str]) -> Desk:
    desk, _ = checked_desk(Scheduling(policy="mars"), SETTINGS, broken, engine=engine)
    desk.emit(kv_sample())
    await enter(desk, f"in {engine}")
    return desk


async def still() -> None:
    pass


async def enter(desk: Desk, name: str, parent: str | None = None) -> None:
    identity = Identity(
        session_id=SessionId(name),
        rule="test",
        final=False,
        parent_id=None if parent is None else SessionId(parent),
    )
    await desk.enter(identity, len(LARGE), still)


async def test_only_who_was_in_nowhere_and_is_bound_to_nobody_is_moved_and_once() -> None:
    broken: list[str] = []
    here, there = [await desk_with_one_in(name, broken) for name in ("http://a", "http://b")]
    coming = [asyncio.ensure_future(enter(here, "parent"))]
    await until(lambda: here.control.gated == 1)
    coming.append(asyncio.ensure_future(enter(here, "child", parent="parent")))
    await until(lambda: here.control.gated == 2)
    assert here.first_to_move() is None, "a family stays together"
    coming.append(asyncio.ensure_future(enter(here, "free")))
    await until(lambda: here.control.gated == 3)
    first = here.first_to_move()
    assert first is not None
    assert first.session_id == "free"
    here.hand_over(first.session_id, there)
    assert "free" not in here.control.sessions
    (waits,) = there.control.offered
    assert waits.arrived_s == first.arrived_s, "its place in order of arrival, and its patience"
    assert there.first_to_move() is None, "it was moved"
    await until(lambda: not there.control.gated)  # nobody has followed it
    here.close("the end")
    there.close("the end")
    assert all(await asyncio.gather(*coming, return_exceptions=True))
    assert broken == []
