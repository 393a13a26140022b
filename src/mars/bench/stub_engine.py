"""An engine that costs next to nothing: what a gateway adds can be seen before it.

    python -m mars.bench.stub_engine PORT [ENDPOINT [KV_BLOCKS]]

A protocol class on a raw socket, HTTP/1.1 as far as a gateway speaks it to an engine. It serves the
models `stub-Nms`: a chat stream of `max_tokens` chunks, one every N milliseconds from the request
on, that say when they were sent; with N = 0, all at once. With ENDPOINT it publishes there what
the plugin would: starts and ends of calls, and samples of a KV cache, which has room for everybody
unless KV_BLOCKS says less.
"""

import asyncio
import re
import sys
import time
from dataclasses import dataclass
from typing import Final, cast

import uvloop

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.stream.link import Publisher

TELL_S: Final = 0.01
"""Facts go out this often, as those of an engine's steps do."""
_SAMPLE_S: Final = 0.25
_KV_BLOCKS: Final = 1_000_000
"""As good as no limit."""
_BLOCK_TOKENS: Final = 16
_TOKEN_BYTES: Final = 4
"""English text; a gate that learns its tokens a byte here must not learn nonsense."""

_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_MODEL: Final = re.compile(rb'"model": *"stub-(\d+)ms"')
_CHUNKS: Final = re.compile(rb'"max_tokens": *(\d+)')
_SESSION: Final = re.compile(rb"x-session-id: *(\S+)", re.IGNORECASE)
_CALL: Final = re.compile(rb"x-request-id: *(\S+)", re.IGNORECASE)

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_EVENT: Final = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"stub","choices":'
    b'[{"index":0,"delta":{"content":" word"},"finish_reason":null}]%b}\n\n'
)
_JSON: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
_EARLY_BYTES: Final = 300
_END: Final = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_MODELS: Final = b'{"object":"list","data":[{"id":"stub-0ms","object":"model"}]}'


class Facts:
    """What the engine publishes. Direct calls, which no gateway has named, are not told of."""

    def __init__(self, endpoint: str | None, kv_blocks: int) -> None:
        self._kv_blocks = kv_blocks
        self._publisher = Publisher(endpoint) if endpoint else None
        self._told: list[ev.Event] = []
        self._sample_s = 0.0

    async def tell(self) -> None:
        """For ever."""
        while True:
            now_s = time.monotonic()
            if now_s >= self._sample_s:
                self._sample_s = now_s + _SAMPLE_S
                self._told.append(_sample(now_s, self._kv_blocks))
            if self._publisher is not None:
                self._publisher.send(self._told)
            self._told = []
            await asyncio.sleep(TELL_S)

    def started(self, head: bytes, body: bytes) -> ev.CallStarted | None:
        session, call = _SESSION.search(head), _CALL.search(head)
        if self._publisher is None or session is None or call is None:
            return None
        started = ev.CallStarted(
            at_s=time.monotonic(),
            session_id=SessionId(session[1].decode()),
            call_id=CallId(call[1].decode()),
            prompt_tokens=max(1, len(body) // _TOKEN_BYTES),
            cached_tokens=0,
        )
        self._told.append(started)
        return started

    def served(self, started: ev.CallStarted | None, made_tokens: int) -> None:
        if started is not None:
            self._told.append(
                ev.CallServed(
                    at_s=time.monotonic(),
                    session_id=started.session_id,
                    call_id=started.call_id,
                    prompt_tokens=started.prompt_tokens,
                    cached_tokens=0,
                    computed_tokens=started.prompt_tokens + made_tokens,
                    made_tokens=made_tokens,
                    queued_s=0.0,
                    ok=True,
                )
            )


def _sample(at_s: float, kv_blocks: int) -> ev.EngineSampled:
    return ev.EngineSampled(
        at_s=at_s,
        kv_used_blocks=0,
        kv_held_blocks=0,
        kv_total_blocks=kv_blocks,
        block_tokens=_BLOCK_TOKENS,
        running_calls=0,
        waiting_calls=0,
    )


@dataclass(slots=True)
class _Answer:
    started: ev.CallStarted | None
    chunks: int
    gap_s: float
    due_s: float
    """When the next chunk is to be sent, on the loop's clock."""
    left: int


class Connection(asyncio.Protocol):
    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._loop = asyncio.get_running_loop()
        self._came = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._came += data
        head_end = self._came.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = bytes(self._came[:head_end])
        length = _LENGTH.search(head)
        if len(self._came) >= head_end + 4 + (int(length[1]) if length else 0):
            body = bytes(self._came[head_end + 4 :])
            self._came.clear()  # nobody sends a second request before the answer to the first
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        model, chunks = _early(_MODEL, body), _early(_CHUNKS, body)
        if model is None or chunks is None:
            said = _MODELS if b"/v1/models" in head else b"{}"
            self._transport.write(_JSON % (len(said), said))
            return
        started, count, gap_s = (
            self._facts.started(head, body),
            int(chunks[1]),
            int(model[1]) / 1000,
        )
        if gap_s:
            self._transport.write(_HEAD + _chunk(_now()))
            answer = _Answer(started, count, gap_s, self._loop.time(), count - 1)
            self._wait(answer)
        else:
            self._transport.write(_HEAD + _chunk(b"") * count + _END)
            self._facts.served(started, count)

    def _wait(self, answer: _Answer) -> None:
        answer.due_s += answer.gap_s
        self._timer = self._loop.call_at(answer.due_s, self._go_on, answer)

    def _go_on(self, answer: _Answer) -> None:
        if answer.left:
            answer.left -= 1
            self._transport.write(_chunk(_now()))
            self._wait(answer)
        else:
            self._timer = None
            self._transport.write(_END)
            self._facts.served(answer.started, answer.chunks)


def _early(wanted: re.Pattern[bytes], body: bytes) -> re.Match[bytes] | None:
    """Our client puts these fields first; a gateway may have moved them."""
    return wanted.search(body, 0, _EARLY_BYTES) or wanted.search(body)


def _now() -> bytes:
    return b',"sent_ns":%d' % time.monotonic_ns()


def _chunk(sent: bytes) -> bytes:
    event = _EVENT % sent
    return b"%x\r\n%b\r\n" % (len(event), event)


async def serve(port: int, endpoint: str | None, kv_blocks: int) -> None:
    facts = Facts(endpoint, kv_blocks)
    loop = asyncio.get_running_loop()
    await loop.create_server(lambda: Connection(facts), "127.0.0.1", port, backlog=4096)
    await facts.tell()


if __name__ == "__main__":
    _port, _endpoint, _blocks, *_ = *sys.argv[1:], "", ""
    uvloop.run(serve(int(_port), _endpoint or None, int(_blocks or _KV_BLOCKS)))
