"""`mars export LOG --otlp URL`: sessions, calls and tools to an OpenTelemetry collector."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mars.core.errors import PartDiedError
from mars.stream.fold import SpanFold
from mars.stream.log import read_log
from mars.stream.otlp import Otlp
from mars.stream.spans import Span

_BATCH_SPANS: Final = 500


def export_command(log: Path, url: str, tell: Callable[[str], None]) -> None:
    """Raises PartDiedError when the collector does not take a batch."""
    path = log / "events.jsonl" if log.is_dir() else log
    head, events = read_log(path)
    batches = _Batches(Otlp(url, head.wall_s - head.at_s), url)
    fold = SpanFold(batches.add)
    for event in events:
        fold.observe(event)
    fold.close()
    batches.send()
    tell(f"{fold.sessions} sessions, {batches.sent} spans -> {url}")


class _Batches:
    """In turn: the log waits for a slow collector."""

    def __init__(self, otlp: Otlp, url: str) -> None:
        self._otlp = otlp
        self._url = url
        self._spans: list[Span] = []
        self.sent = 0

    def add(self, span: Span) -> None:
        self._spans.append(span)
        if len(self._spans) >= _BATCH_SPANS:
            self.send()

    def send(self) -> None:
        if not self._spans:
            return
        if why := self._otlp.send(self._spans):
            raise PartDiedError(
                f"the collector at {self._url} has not taken the spans; {self.sent} were sent "
                f"before. Check that it takes OTLP over HTTP there (port 4318 by custom): {why}"
            )
        self.sent += len(self._spans)
        self._spans = []
