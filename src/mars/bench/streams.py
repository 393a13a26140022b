"""A load of chat streams over raw sockets, cheap enough to see what a gateway adds.

A protocol class sends a request that was made before, and looks at the answer's bytes only as far
as it must: when its first event came, how many came, when the last one did.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec

from mars.core.errors import PartDiedError

_EVENT: Final = b"data: "
_END: Final = b"0\r\n\r\n"
_LOOK_S: Final = 0.05
_SENT: Final = re.compile(rb'"sent_ns":(\d+)')


class Load(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    streams: int
    """Connections; each is a session, whose turns follow one another."""
    body_bytes: int
    lasts_s: float
    """After it no stream is begun."""
    chunks: int = 20
    spread_s: float = 0.0
    """The connections begin one after the other within this time, so that they stay apart."""


@dataclass(slots=True)
class Seen:
    """What the streams of one load met with, but for the first of each connection."""

    first_s: list[float] = field(default_factory=list)
    """From the request to the first event."""
    late_s: list[float] = field(default_factory=list)
    """Of each event that says when it was sent: its way."""
    streams: int = 0
    joined: int = 0
    """Events that came together with one before them."""
    events: int = 0
    took_s: float = 0.0
    cpu_s: float | None = None
    """What the gateway computed meanwhile; None: there was none."""

    @property
    def per_s(self) -> float:
        return self.streams / self.took_s


class _Stream(asyncio.Protocol):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._done: asyncio.Future[None] | None = None
        self._tail = b""
        self._events = 0
        self._sent_s = 0.0
        self._counts = False
        self.begun = False
        """The first event of the present answer is here."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was closed: {exc or 'by the other end'}")

    def ask(self, request: bytes, *, counts: bool) -> asyncio.Future[None]:
        """The future is done with the end of the answer; it raises PartDiedError without one."""
        self._done = asyncio.get_running_loop().create_future()
        self._tail, self._events, self._counts, self.begun = b"", 0, counts, False
        self._sent_s = time.monotonic()
        self._transport.write(request)
        return self._done

    def close(self) -> None:
        self._done = None
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        now_s = time.monotonic()
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self._fail(data[:500].decode(errors="replace"))
            return
        came = self._tail + data  # an event or the end may come in two parts
        self._tail = came[1 - len(_EVENT) :]
        if events := came.count(_EVENT):
            self._see(came, events, now_s)
        if came.endswith(_END) and self._done is not None and not self._done.done():
            self._seen.streams += self._counts
            self._done.set_result(None)

    def _see(self, came: bytes, events: int, now_s: float) -> None:
        seen = self._seen
        if self._counts:
            if not self.begun:
                seen.first_s.append(now_s - self._sent_s)
            seen.events += events
            seen.joined += events - 1
            seen.late_s += [now_s - int(sent) / 1e9 for sent in _SENT.findall(came)]
        self.begun = True

    def _fail(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(PartDiedError(f"a stream had no answer: {why}"))


def request(url: str, load: Load, session: str, path: str = "/v1/chat/completions") -> bytes:
    host = urlsplit(url).netloc
    body = (
        b'{"model":"%b","max_tokens":%d,"stream":true,"temperature":0,"ignore_eos":true,'
        b'"messages":[{"role":"user","content":"' % (load.model.encode(), load.chunks)
    )
    words = b"The quick brown fox jumps over the lazy dog. "
    room = max(0, load.body_bytes - len(body) - 4)
    body += (words * (room // len(words) + 1))[:room] + b'"}]}'
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"X-Session-ID: {session}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def play(url: str, load: Load, name: str) -> Seen:
    """`name` begins the sessions' ids. Raises PartDiedError when an answer is none."""
    seen = Seen()
    begins_s = time.monotonic() + load.spread_s
    ends_s = begins_s + load.lasts_s

    async def go_on(stream: _Stream, number: int) -> None:
        asked = request(url, load, f"{name}-{number}")
        await asyncio.sleep(load.spread_s * number / load.streams)
        await stream.ask(asked, counts=False)
        while time.monotonic() < ends_s:
            await stream.ask(asked, counts=time.monotonic() >= begins_s)

    async with _connected(url, load.streams, seen) as streams:
        await _all(go_on(stream, number) for number, stream in enumerate(streams))
        seen.took_s = time.monotonic() - begins_s
    return seen


@asynccontextmanager
async def held_open(url: str, load: Load, name: str) -> AsyncIterator[None]:
    """As many streams as the load says; inside, all have had their first event and none its last.

    `lasts_s` is how long the first events may take. Raises PartDiedError as `play` does.
    """
    async with _connected(url, load.streams, Seen()) as streams:
        ends = [
            stream.ask(request(url, load, f"{name}-{number}"), counts=False)
            for number, stream in enumerate(streams)
        ]
        ends_s = time.monotonic() + load.lasts_s
        while any(not stream.begun for stream in streams):
            for end in ends:
                if end.done():
                    end.result()  # raises
            if time.monotonic() > ends_s:
                begun = sum(stream.begun for stream in streams)
                raise PartDiedError(f"{begun} of {load.streams} streams began in {load.lasts_s} s")
            await asyncio.sleep(_LOOK_S)
        yield


@asynccontextmanager
async def _connected(url: str, count: int, seen: Seen) -> AsyncIterator[list[_Stream]]:
    loop = asyncio.get_running_loop()
    where = urlsplit(url)
    host, port = where.hostname or "", where.port or 80
    streams: list[_Stream] = []
    try:
        for _ in range(count):
            _, stream = await loop.create_connection(lambda: _Stream(seen), host, port)
            streams.append(stream)
        yield streams
    except OSError as error:
        raise PartDiedError(f"cannot connect to {url}: {error}") from None
    finally:
        for stream in streams:
            stream.close()


async def _all(plays: Iterator[Coroutine[None, None, None]]) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for play_one in plays:
                group.create_task(play_one)
    except* PartDiedError as errors:
        raise PartDiedError(str(errors.exceptions[0])) from None
