"""`mars export LOG --otlp URL`: sessions, calls and tools to an OpenTelemetry collector."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from mars.core.errors import InputError, PartDiedError
from mars.stream.log import read_log

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExportResult
except ImportError as error:
    raise InputError(f"{error}: mars export needs pip install 'mars[otel]'") from None

from mars.bench.spans import make_spans

_BATCH_SPANS: Final = 500


def export_command(log: Path, url: str, tell: Callable[[str], None]) -> None:
    """Raises PartDiedError when the collector does not take a batch."""
    path = log / "events.jsonl" if log.is_dir() else log
    head, events = read_log(path)
    sender = _Sender(OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces"), url)
    provider = TracerProvider(resource=Resource.create({"service.name": "mars"}))
    provider.add_span_processor(sender)
    count = make_spans(events, provider.get_tracer("mars"), head.wall_s - head.at_s)
    sender.send()
    tell(f"{count} sessions, {sender.sent} spans -> {url}")


class _Sender(SpanProcessor):
    """In batches and in turn: the SDK's own drops what a slow collector leaves over."""

    def __init__(self, exporter: OTLPSpanExporter, url: str) -> None:
        self._exporter = exporter
        self._url = url
        self._spans: list[ReadableSpan] = []
        self.sent = 0

    def on_end(self, span: ReadableSpan) -> None:
        self._spans.append(span)
        if len(self._spans) >= _BATCH_SPANS:
            self.send()

    def send(self) -> None:
        if not self._spans:
            return
        if self._exporter.export(self._spans) is not SpanExportResult.SUCCESS:
            raise PartDiedError(
                f"the collector at {self._url} has not taken the spans; {self.sent} were sent "
                "before. Check that it takes OTLP over HTTP there (port 4318 by custom)"
            )
        self.sent += len(self._spans)
        self._spans = []
