"""Facts between processes: ZeroMQ publish/subscribe, bounded, drops counted.

Every process publishes what it saw on an endpoint of its own and subscribes to whoever it wants to
hear. A full queue drops; each message carries the publisher's sequence number, so the reader knows
how many it missed. A lost fact costs freshness, never correctness.

Message: msgpack of [endpoint, sequence, [event, ...]].
"""

from collections.abc import Iterator, Sequence

import msgspec
import zmq

from mars.core.errors import InputError
from mars.core.events import Event

_QUEUE_MESSAGES = 100_000

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, int, list[Event]])


class Publisher:
    def __init__(self, endpoint: str) -> None:
        """Bind `endpoint` (`ipc:///path`, `tcp://host:port`). Raises InputError if it cannot be."""
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
        self._socket.set_hwm(_QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise InputError(f"cannot publish facts on {endpoint}: {error}") from None
        self._endpoint = endpoint
        self._sequence = 0

    def send(self, events: Sequence[Event]) -> None:
        if events:
            self._sequence += 1
            message = _encoder.encode((self._endpoint, self._sequence, events))
            self._socket.send(message, zmq.DONTWAIT)

    def close(self) -> None:
        self._socket.close()


class Subscriber:
    """Reads several publishers. `lost` counts the messages that never came."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
        self._socket.set_hwm(_QUEUE_MESSAGES)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        for endpoint in endpoints:
            try:
                self._socket.connect(endpoint)
            except zmq.ZMQError as error:
                self._socket.close()
                raise InputError(f"cannot hear facts from {endpoint}: {error}") from None
        self._seen: dict[str, int] = {}
        self.lost = 0

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """For readers that wait on it with their own loop; then call `drain`."""
        return self._socket

    def drain(self) -> Iterator[Event]:
        """All events that are here now; never blocks."""
        while True:
            try:
                message = self._socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            source, sequence, events = _decoder.decode(message)
            seen = self._seen.get(source, sequence - 1)
            self.lost += max(0, sequence - seen - 1)
            self._seen[source] = sequence
            yield from events

    def close(self) -> None:
        self._socket.close()
