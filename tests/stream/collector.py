"""A server that decodes OTLP over HTTP, and can be slow to answer or refuse."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.spans: list[Span] = []
        self.requests = 0
        self.status = 200
        self.answers = threading.Event()
        """Cleared: requests hang."""
        self.answers.set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def all_named(self, name: str) -> list[Span]:
        """In order of their start."""
        found = [span for span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def named(self, name: str) -> Span:
        (found,) = self.all_named(name)
        return found


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests += 1
        self.server.answers.wait()
        if self.server.status == 200:
            for of_resource in request.resource_spans:
                for of_scope in of_resource.scope_spans:
                    self.server.spans += of_scope.spans
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.answers.set()
        server.shutdown()
        thread.join()


def value(span: Span, key: str) -> Any:
    (found,) = [it.value for it in span.attributes if it.key == key]
    return getattr(found, str(found.WhichOneof("value")))


def values(span: Span) -> set[str]:
    return {it.key for it in span.attributes}
