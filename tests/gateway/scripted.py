"""An engine that follows a script, and how an app is served on loopback."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from starlette.routing import Router
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from mars.gateway.run import server_config


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
    cue: asyncio.Event = field(default_factory=asyncio.Event)
    """What the script `on_cue` waits for."""

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


async def on_cue(exchange: Exchange) -> None:
    await exchange.cue.wait()
    await polite(exchange)


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
async def serving(app: Router) -> AsyncIterator[str]:
    """The protocol of uvicorn and settings without its main loop, which takes 0.2 s to end."""
    config, state = server_config(app), ServerState()
    config.load()

    def protocol() -> asyncio.Protocol:
        return config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=state, app_state={}
        )

    async with app.lifespan_context(app):
        server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for connection in list(state.connections):
                connection.transport.abort()
            await until(lambda: not state.tasks)


def closed_port() -> str:
    """An address where nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{found.getsockname()[1]}"
