"""Spans to an OpenTelemetry collector, by OTLP over HTTP. Wants the extra `otel`."""

import logging
from collections.abc import Sequence
from typing import Final

from mars.core.errors import InputError
from mars.stream.spans import Place, Span

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
except ImportError as error:
    raise InputError(f"{error}: OpenTelemetry's spans want pip install 'mars[otel]'") from None

_NS: Final = 1_000_000_000
_SCOPE: Final = InstrumentationScope("mars")
_exporter_log: Final = logging.getLogger(OTLPSpanExporter.__module__)


class Otlp:
    def __init__(self, url: str, wall_offset_s: float) -> None:
        """`wall_offset_s`: calendar time less the spans' clock."""
        self._exporter = OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces")
        self._offset_s = wall_offset_s
        self._resource = Resource.create({"service.name": "mars"})
        self._said = _Said()
        _exporter_log.addHandler(self._said)
        _exporter_log.propagate = False

    def send(self, spans: Sequence[Span]) -> str:
        """Why they were not taken; empty: they were. Tries for the exporter's time, 10 s."""
        self._said.first = ""
        sent = self._exporter.export([self._readable(span) for span in spans])
        return "" if sent is SpanExportResult.SUCCESS else self._said.first or "it did not say why"

    def close(self) -> None:
        """Whoever sends in another thread is told that nothing more is taken."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]
        _exporter_log.removeHandler(self._said)

    def _readable(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            span.name,
            context=_context(span.place),
            parent=_context(span.above) if span.above else None,
            resource=self._resource,
            attributes=span.values,
            events=[Event(it.name, it.values, self._ns(it.at_s)) for it in span.moments],
            kind=SpanKind.CLIENT if span.is_client else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=self._ns(span.start_s),
            end_time=self._ns(span.end_s),
            instrumentation_scope=_SCOPE,
        )

    def _ns(self, at_s: float) -> int:
        return int((at_s + self._offset_s) * _NS)


class _Said(logging.Handler):
    """Hears the exporter, which says every failure of every try: that is ours to say, once."""

    first = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.first = self.first or record.getMessage()


def _context(place: Place) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED)
    return SpanContext(place.trace_id, place.span_id, is_remote=False, trace_flags=flags)
