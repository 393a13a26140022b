"""Spans of sessions, calls and tools, live to an OpenTelemetry collector.

The loop folds facts and puts the spans that are over into a queue; a thread turns them into OTLP
and sends them. A collector that is slow or gone costs spans, which are counted, and nothing else.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from mars.core.events import Event
from mars.stream.fold import SpanFold
from mars.stream.spans import Span

_log: Final = logging.getLogger(__name__)
_MOST_QUEUED: Final = 5000
"""Spans that may wait to be sent."""
_BATCH_SPANS: Final = 100
"""Few: while they are encoded the loop may have to wait for the interpreter."""
_EVERY_S: Final = 0.5
_END_S: Final = 2.0
"""When the gateway stops, what waits has so long to be sent."""


class Traces(Collector):
    """A reader of facts. As a context: spans are sent."""

    def __init__(self, url: str, send: Callable[[Sequence[Span]], str]) -> None:
        """`send` may take its time, and says why spans were not taken; empty: they were."""
        self.sent = 0
        self.fold = SpanFold(self._put)
        self.observe: Callable[[Event], None] = self.fold.observe
        self._url = url
        self._send = send
        self._queue: deque[Span] = deque()
        self._told = 0
        self._no_room = 0
        """Dropped by the loop."""
        self._not_taken = 0
        """Dropped by our thread."""
        self._seen = 0
        self._is_losing = False
        self._stop = threading.Event()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)

    @property
    def dropped(self) -> int:
        return self._no_room + self._not_taken

    @property
    def unsent(self) -> int:
        return self._told - self.sent - self.dropped

    def look(self) -> None:
        """To be called again and again: time passes for what is open."""
        self.fold.look(time.monotonic())

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """What is open is over. Lasts `_END_S` at most."""
        self.fold.close()
        self._stop.set()
        if self.unsent:
            self._thread.join(_END_S)
        self._is_over = True
        if left := self.unsent:
            _log.warning("%d spans were not sent before the end", left)

    def collect(self) -> Iterator[Metric]:
        text = "Spans that the OpenTelemetry collector has taken."
        yield CounterMetricFamily("mars_spans_sent", text, value=self.sent)
        text = "Spans that were given up, since the collector did not take them in time."
        yield CounterMetricFamily("mars_spans_dropped", text, value=self.dropped)

    def _put(self, span: Span) -> None:
        self._told += 1
        if len(self._queue) < _MOST_QUEUED:
            self._queue.append(span)
        else:
            self._no_room += 1

    # -- in our thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        self._send_or_drop([])  # so that a collector that is not there is known at once
        while not self._stop.wait(_EVERY_S):
            self._send_queued()
        self._send_queued()

    def _send_queued(self) -> None:
        while self._queue and not self._is_over:
            size = min(_BATCH_SPANS, len(self._queue))
            self._send_or_drop([self._queue.popleft() for _ in range(size)])

    def _send_or_drop(self, spans: Sequence[Span]) -> None:
        try:
            why = self._send(spans)
        except Exception as error:  # noqa: BLE001 whatever it is, the next ones are to be tried
            why = repr(error)
        if why:
            self._not_taken += len(spans)
        else:
            self.sent += len(spans)
        self._tell(why)

    def _tell(self, why: str) -> None:
        """When losing begins, and when it is over."""
        dropped, before = self.dropped, self._seen
        self._seen = dropped
        if why or dropped > before:
            if not self._is_losing:
                text = "spans are being lost, the collector at %s does not take them: %s"
                _log.warning(text, self._url, why or "it is slower than they come")
            self._is_losing = True
        elif self._is_losing and not self._queue:
            self._is_losing = False
            text = "the collector at %s takes spans again; lost so far: %d"
            _log.warning(text, self._url, dropped)


@contextmanager
def tracing(url: str) -> Iterator[Traces | None]:
    """None without a URL. Raises InputError when OpenTelemetry is not installed."""
    if not url:
        yield None
        return
    from mars.stream.otlp import Otlp

    otlp = Otlp(url, time.time() - time.monotonic())
    traces = Traces(url, otlp.send)
    traces.start()
    try:
        yield traces
    finally:
        traces.close()
        otlp.close()


def check_otel(url: str) -> None:
    """Raises InputError when spans are asked for and OpenTelemetry is not installed."""
    if url:
        import mars.stream.otlp  # noqa: F401
