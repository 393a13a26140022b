"""The client's end of one request: its body, its answer or an error, and whether it is there.

An error has the form of the request's API (`wires`). It is told as far as HTTP still allows:

    nothing sent yet            a JSON answer with its status
    an event stream has begun   an event, then the end, without [DONE]
    another answer has begun    the connection is cut: a short answer must not look whole
"""

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

import msgspec
from starlette.types import Message, Receive, Scope, Send

from mars.gateway.protocol import LEFT
from mars.gateway.wires import Error, wire_of

_STREAM_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]


class BodyTooLargeError(Exception):
    pass


class ClientGoneError(Exception):
    pass


class _Wish(msgspec.Struct):
    stream: object = False


_wish = msgspec.json.Decoder(_Wish)


class Caller:
    """As a context: while it lasts, a client that disconnects cancels the current task.

    The context then ends quietly, with `gone` set.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.wire = wire_of(scope["path"])
        self.scope = scope
        self.gone = False
        self.begun = False
        """Status and headers are out."""
        self.streams = False
        """The answer that has begun is an event stream."""
        self.status: int | None = None
        self.first_byte_s: float | None = None
        """When the first byte of the engine's answer came, on the machine's monotonic clock."""
        self._receive = receive
        self._send = send
        self._whole = False
        self._tail = b"\n\n"

    async def read(self, limit_bytes: int) -> bytes:
        """The body. Raises BodyTooLargeError, or ClientGoneError when it does not come whole."""
        chunks: list[bytes] = []
        size_bytes, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk: bytes = message.get("body", b"")
            size_bytes += len(chunk)
            if size_bytes > limit_bytes:
                raise BodyTooLargeError
            chunks.append(chunk)
            more = message.get("more_body", False)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 servers run each request in a task
        self._task = task
        self._left: asyncio.Future[None] = self.scope[LEFT]
        self._left.add_done_callback(self._leave)
        return self

    def _leave(self, _: object) -> None:
        if not self._whole:
            self.gone = True
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._left.remove_done_callback(self._leave)
        if self.gone:
            self._task.uncancel()
        return self.gone and kind is asyncio.CancelledError

    async def begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.begun, self.status = True, status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, chunk: bytes, *, last: bool) -> None:
        self._tail = chunk or self._tail
        message: Message = {"type": "http.response.body", "body": chunk, "more_body": not last}
        await self._send(message)
        self._whole = last

    async def queued(self, body: bytes) -> None:
        """Show a client that asked for a stream that it is waited on; others cannot be told."""
        if not self.begun and asks_for_stream(body):
            self.streams = True
            await self.begin(200, _STREAM_HEADERS)
        if self.streams:
            await self.write(b": queued\n\n", last=False)

    async def fail(
        self, status: int, kind: str, message: str, retry_after_s: int | None = None
    ) -> None:
        """Tell an error, as the map above says. `message` says what to do about it."""
        error = self.wire.error(status, kind, message)
        if not self.begun:
            await self.answer(status, msgspec.json.encode(error), retry_after_s)
        elif self.streams:
            await self.fail_stream(error)
        # else: the server cuts what returns unfinished

    async def answer(self, status: int, body: bytes, retry_after_s: int | None = None) -> None:
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        if retry_after_s is not None:
            headers.append((b"retry-after", str(retry_after_s).encode()))
        await self.begin(status, headers)
        await self.write(body, last=True)

    async def fail_stream(self, error: Error) -> None:
        """End a stream with `error` as an event of its own."""
        apart = b"" if self._tail.endswith((b"\n\n", b"\r\n\r\n")) else b"\n\n"
        await self.write(apart + self.wire.event(error), last=True)


def asks_for_stream(body: bytes) -> bool:
    try:
        return _wish.decode(body).stream is True
    except (ValueError, RecursionError):
        return False
