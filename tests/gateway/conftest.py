"""A gateway before a scripted engine, both on loopback, in this process and on uvloop.

The control plane's invariants are checked after every fact; a rig that leaves its context asserts
that none was broken and that the control plane never failed.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import msgspec
import pytest
import uvloop
from openai import AsyncOpenAI
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from mars.core import events as ev
from mars.core.control import ControlPlane
from mars.core.window import WindowSettings
from mars.gateway.app import SessionRow, Status, build_app
from mars.gateway.desk import Desk
from mars.gateway.run import server_config
from mars.gateway.settings import GatewaySettings
from mars.policy.presets import Scheduling, build_admission

T = TypeVar("T", bound=ev.Fact)

CHAT = "/v1/chat/completions"
ONE_AT_A_TIME = Scheduling(policy="mars", window=WindowSettings(first=1, blind_s=1e6))
"""With the engine's KV full, as `gateway` reports it then: the window stays at one session."""


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        await asyncio.sleep(0.002)


def event_of(text: str) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + msgspec.json.encode(chunk | {"choices": [choice]}) + b"\n\n"


DONE = b"data: [DONE]\n\n"
STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
JSON = [(b"content-type", b"application/json")]


def answer_of(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    return msgspec.json.encode(whole | {"choices": [choice]})


@dataclass(eq=False)
class Exchange:
    """One request as the engine got it, and the engine's end of the answer."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    receive: Receive
    send: Send
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """The gateway has closed the connection before the answer was whole."""

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key == name.encode()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0].decode() if values else None

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes, *, last: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": chunk, "more_body": not last})

    async def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        length = (b"content-length", str(len(body)).encode())
        await self.begin(status, [*headers, length])
        await self.write(body, last=True)

    async def hang(self) -> None:
        """Until the other end closes."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.closed.set()


Script = Callable[[Exchange], Awaitable[None]]


async def polite(exchange: Exchange) -> None:
    """What an engine does when all is well."""
    if exchange.method == "POST" and msgspec.json.decode(exchange.body).get("stream"):
        await exchange.begin(200, STREAM)
        for text in ("Hello", ", ", "world"):
            await exchange.write(event_of(text))
        await exchange.write(DONE, last=True)
    else:
        await exchange.answer(200, JSON, answer_of("Hello, world"))


async def hanging(exchange: Exchange) -> None:
    await exchange.hang()


@dataclass
class Engine:
    """Follows its script; one that returns without a whole answer has its connection cut."""

    url: str = ""
    script: Script = polite
    seen: list[Exchange] = field(default_factory=list)
    open: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        query = scope["query_string"].decode()
        target = scope["raw_path"].decode() + (f"?{query}" if query else "")
        exchange = Exchange(scope["method"], target, scope["headers"], body, receive, send)
        self.seen.append(exchange)
        self.open += 1
        try:
            await self.script(exchange)
        finally:
            self.open -= 1

    @property
    def last(self) -> Exchange:
        return self.seen[-1]

    async def called(self, times: int) -> Exchange:
        """The call of this number, once it has come."""
        await until(lambda: len(self.seen) >= times)
        return self.seen[times - 1]


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    """uvicorn's protocol and settings without its main loop, which takes 0.2 s to end."""
    config, state = server_config(app), ServerState()
    config.load()

    def protocol() -> asyncio.Protocol:
        return config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=state, app_state={}
        )

    async with app.router.lifespan_context(app):
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        try:
            yield "http://127.0.0.1:{}".format(server.sockets[0].getsockname()[1])
        finally:
            server.close()
            for connection in list(state.connections):
                connection.transport.abort()  # type: ignore[union-attr]
            await until(lambda: not state.tasks)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    scripted = Engine()
    async with serving(Starlette(routes=[Route("/{rest:path}", scripted)])) as url:
        scripted.url = url
        yield scripted


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


def full_kv() -> ev.EngineSampled:
    return ev.EngineSampled(
        at_s=time.monotonic(),
        kv_used_blocks=100,
        kv_held_blocks=0,
        kv_total_blocks=100,
        block_tokens=16,
        running_calls=1,
        waiting_calls=0,
    )


def checked_desk(
    scheduling: Scheduling, settings: GatewaySettings, broken: list[str]
) -> tuple[Desk, list[ev.Event]]:
    """A desk, its facts, and in `broken` each invariant that a fact left broken."""
    control = ControlPlane(build_admission(scheduling))
    events: list[ev.Event] = []

    def record(event: ev.Event) -> None:
        events.append(event)
        try:
            control.check()
        except AssertionError as error:
            broken.append(f"after {event}: {error}")

    def publish(own: Sequence[ev.Event]) -> None:
        assert own

    return Desk(control, settings, record=record, publish=publish), events


@asynccontextmanager
async def gateway(
    engine_url: str,
    settings: GatewaySettings | None = None,
    scheduling: Scheduling | None = None,
) -> AsyncIterator[Rig]:
    settings = settings or GatewaySettings()
    broken: list[str] = []
    desk, events = checked_desk(scheduling or Scheduling(policy="fcfs"), settings, broken)
    async with serving(build_app(desk, engine_url, settings)) as url:
        if scheduling is ONE_AT_A_TIME:
            desk.emit(full_kv())
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
