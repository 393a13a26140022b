"""uvicorn's protocol, and what ours needs besides.

A bound: httptools collects a request line and headers without end.

A client that leaves is told of by a future in the request's scope. ASGI's own word for it is a
message, for which every request would need a second task.
"""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES: Final = 64 << 10
"""Request line and headers together. Agents' are some 2 KB; servers and proxies stop at 8 to 64."""

_BODY: Final = (
    b'{"error":{"message":"the request line and headers are larger than %d bytes",'
    b'"type":"request_too_large","code":431}}' % HEAD_BYTES
)
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


LEFT: Final = "mars.left"
"""In the scope: a future that is done when the client has left before its answer was whole."""


class GatewayProtocol(HttpToolsProtocol):
    _head_bytes = 0
    _in_body = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_body and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[LEFT] = self.loop.create_future()  # type: ignore[typeddict-unknown-key]
        self._head_bytes, self._in_body = 0, False

    def on_headers_complete(self) -> None:
        self._in_body = True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self.pipeline:  # a large body stops it, and an end that is not read is not seen
            self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if getattr(self.cycle, "disconnected", False):  # None before its first request
            self.cycle.scope[LEFT].set_result(None)  # type: ignore[typeddict-item]
