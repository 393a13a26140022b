"""A gateway before a scripted engine, both on loopback, in this process and on uvloop.

The control plane's invariants are checked after every fact; a rig that leaves its context asserts
that none was broken and that the control plane never failed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import msgspec
import pytest
import uvloop
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from starlette.routing import Route, Router
from tests.gateway.scripted import Engine, serving, until

from mars.core import events as ev
from mars.core.admission import Admission
from mars.core.control import ControlPlane
from mars.core.quotas import Quotas
from mars.core.settings import WindowSettings
from mars.core.slots import Slots
from mars.gateway.app import build_app
from mars.gateway.desk import Desk
from mars.gateway.keys import KeyRing
from mars.gateway.record import Record, of_process
from mars.gateway.roster import SessionRow
from mars.gateway.settings import GatewaySettings
from mars.gateway.shown import Status
from mars.gateway.traces import Traces
from mars.policy.presets import Scheduling, build_admission

T = TypeVar("T", bound=ev.Fact)

CHAT = "/v1/chat/completions"
ONE_AT_A_TIME = Scheduling(policy="mars-aimd", window=WindowSettings(first=1))
"""With the engine's KV full, as `gateway` reports it then: the window stays at one session."""


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    scripted = Engine()
    async with serving(Router(routes=[Route("/{rest:path}", scripted)])) as url:
        scripted.url = url
        yield scripted
        for exchange in scripted.seen:
            exchange.cue.set()


@dataclass
class Rig:
    url: str
    desk: Desk
    http: aiohttp.ClientSession
    events: list[ev.Event]
    clients: AsyncExitStack

    def post(self, session_id: str | None, **how: Any) -> asyncio.Task[aiohttp.ClientResponse]:
        """A call of a session; the task is done with the headers of its answer."""
        headers = dict(how.pop("headers", {}))
        if session_id is not None:
            headers["X-Session-ID"] = session_id
        body = {"model": "m", "messages": []} | how.pop("fields", {}) | how
        request = self.http.post(self.url + CHAT, json=body, headers=headers)
        return asyncio.ensure_future(request.__aenter__())

    async def say(self, session_id: str | None, **how: Any) -> bytes:
        """A whole call, which must go well."""
        response = await self.post(session_id, **how)
        assert response.status == 200, await response.text()
        return await response.read()

    def openai(self, session_id: str | None = "s") -> AsyncOpenAI:
        client = AsyncOpenAI(
            base_url=self.url + "/v1",
            api_key="none",
            max_retries=0,
            default_headers={} if session_id is None else {"X-Session-ID": session_id},
        )
        self.clients.push_async_callback(client.close)
        return client

    def anthropic(self, session_id: str | None = "s") -> AsyncAnthropic:
        client = AsyncAnthropic(
            base_url=self.url,
            api_key="none",
            max_retries=0,
            default_headers={} if session_id is None else {"X-Session-ID": session_id},
        )
        self.clients.push_async_callback(client.close)
        return client

    async def status(self) -> Status:
        async with self.http.get(self.url + "/mars/status") as response:
            return msgspec.json.decode(await response.read(), type=Status)

    async def sessions(self) -> dict[str, SessionRow]:
        async with self.http.get(self.url + "/mars/sessions") as response:
            rows = msgspec.json.decode(await response.read(), type=list[SessionRow])
        return {row.session_id: row for row in rows}

    async def gated(self, session_id: str) -> None:
        """Until the session waits at the gate."""
        await until(lambda: session_id in self.phases and self.phases[session_id] == "gated")

    async def ended(self, session_id: str) -> str:
        """Why the session has ended, once it has."""
        await until(lambda: bool(self.ends(session_id)))
        return self.ends(session_id)[-1]

    async def finished(self, times: int) -> ev.CallFinished:
        """The finish of this number, once it has come."""
        await until(lambda: len(self.of(ev.CallFinished)) >= times)
        return self.of(ev.CallFinished)[times - 1]

    @property
    def phases(self) -> dict[str, str]:
        return {key: value.phase.value for key, value in self.desk.control.sessions.items()}

    def ends(self, session_id: str) -> list[str]:
        return [it.why for it in self.of(ev.SessionEnded) if it.session_id == session_id]

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]


def kv_sample(used_blocks: int = 0) -> ev.EngineSampled:
    """Of an engine with 100 blocks, which are 1,600 tokens."""
    return ev.EngineSampled(
        at_s=time.monotonic(),
        kv_used_blocks=used_blocks,
        kv_held_blocks=0,
        kv_total_blocks=100,
        block_tokens=16,
        running_calls=1,
        waiting_calls=0,
    )


def checked_desk(
    scheduling: Scheduling | Admission,
    settings: GatewaySettings,
    broken: list[str],
    *,
    quotas: Quotas | None = None,
    engine: str = "",
) -> tuple[Desk, list[ev.Event]]:
    """A desk, its facts, and in `broken` each invariant that a fact left broken."""
    if isinstance(scheduling, Scheduling):
        admission = build_admission(scheduling)
        quotas = quotas or Quotas(scheduling.tenants)
        slots = Slots(scheduling.tenants)
    else:
        admission, slots = scheduling, None
    control = ControlPlane(admission, quotas=quotas)
    events: list[ev.Event] = []

    def record(event: ev.Event) -> None:
        events.append(event)
        try:
            control.check()
        except AssertionError as error:
            broken.append(f"after {event}: {error}")

    def publish(own: Sequence[ev.Event]) -> None:
        assert own

    desk = Desk(control, settings, record=record, publish=publish, engine=engine, slots=slots)
    return desk, events


@asynccontextmanager
async def gateway(
    engine_url: str,
    settings: GatewaySettings | None = None,
    scheduling: Scheduling | Admission | None = None,
    ring: KeyRing | None = None,
) -> AsyncIterator[Rig]:
    settings = settings or GatewaySettings()
    broken: list[str] = []
    desk, events = checked_desk(scheduling or Scheduling(policy="fcfs"), settings, broken)
    app = build_app(desk, engine_url, settings, ring)
    app.shown.registry.register(of_process(Record(None), Traces("http://none", lambda _: "")))
    async with serving(app.router) as url:
        if scheduling is ONE_AT_A_TIME:
            desk.emit(kv_sample(100))
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, auto_decompress=False) as http,
            AsyncExitStack() as clients,
        ):
            yield Rig(url, desk, http, events, clients)
    assert broken == []
    assert desk.faults == 0


@pytest.fixture
async def rig(engine: Engine) -> AsyncIterator[Rig]:
    """A gateway without admission control, with the settings as they are."""
    async with gateway(engine.url) as rig:
        yield rig
