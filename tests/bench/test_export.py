"""`mars export`, as a process, to a server that decodes OTLP."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.gateway.scripted import closed_port
from tests.stream.collector import Collector, collecting, value

from mars.core import events as ev
from mars.core.ids import CallId, SessionId, ToolId
from mars.stream.log import LogWriter, read_log

A, B = SessionId("a"), SessionId("b")
TOOL = {"session_id": A, "tool_id": ToolId("t"), "tool": "pytest"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def export(log: Path, url: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mars", "export", str(log), "--otlp", url],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def write(path: Path, events: list[ev.Event]) -> None:
    log = LogWriter(path, {})
    for event in events:
        log.write(event)
    log.close()


STORY: list[ev.Event] = [
    ev.SessionArrived(at_s=10.0, session_id=A, rule="header x-session-id", tenant="people"),
    ev.SessionAdmitted(at_s=12.0, session_id=A, why="there is room"),
    ev.CallQueued(at_s=12.0, session_id=A, call_id=CallId("c"), turn=1),
    ev.CallFinished(at_s=15.0, session_id=A, call_id=CallId("c"), ok=True, status=200),
    ev.ToolQueued(at_s=15.0, cores=1, **TOOL),  # type: ignore[arg-type]
    ev.ToolStarted(at_s=16.0, cores=(1,), wait_s=1.0, **TOOL),  # type: ignore[arg-type]
    ev.SessionArrived(at_s=16.5, session_id=B, parent_id=A),
    ev.ToolProgressed(at_s=17.0, run_s=1.0, cpu_s=0.7, memory_bytes=9, **TOOL),  # type: ignore[arg-type]
    ev.ToolFinished(
        at_s=18.0, run_s=2.0, cpu_s=1.5, peak_memory_bytes=1, exit_code=-9, why="timeout",
        **TOOL,  # type: ignore[arg-type]
    ),
    ev.CallQueued(at_s=18.0, session_id=A, call_id=CallId("d"), turn=2),
    ev.CallFinished(
        at_s=19.0, session_id=A, call_id=CallId("d"), ok=False, why="HTTP 500", status=500
    ),
    ev.SessionEnded(at_s=20.0, session_id=A, why="done", by="final request"),
    ev.CallServed(
        at_s=20.5, session_id=A, call_id=CallId("c"), prompt_tokens=100, cached_tokens=60,
        computed_tokens=50, made_tokens=10, queued_s=0.5, ok=True,
    ),
    ev.EngineSampled(
        at_s=21.0, kv_used_blocks=0, kv_held_blocks=0, kv_total_blocks=1, block_tokens=1,
        running_calls=0, waiting_calls=0,
    ),
]  # fmt: skip


def test_a_session_its_calls_and_tools_arrive_as_spans(
    collector: Collector, tmp_path: Path
) -> None:
    write(tmp_path / "events.jsonl", STORY)
    ran = export(tmp_path, collector.url)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == f"2 sessions, 6 spans -> {collector.url}\n"
    head, _ = read_log(tmp_path / "events.jsonl")
    sessions = [span for span in collector.spans if span.name == "invoke_agent"]
    a, b = sorted(sessions, key=lambda span: span.start_time_unix_nano)
    assert a.start_time_unix_nano == int((10.0 + head.wall_s - head.at_s) * 10**9)
    assert (value(a, "gen_ai.conversation.id"), value(a, "mars.tenant")) == ("a", "people")
    assert b.parent_span_id == a.span_id
    assert {span.trace_id for span in collector.spans} == {a.trace_id}

    def lasted_s(span: Span) -> float:
        return round((span.end_time_unix_nano - span.start_time_unix_nano) / 10**9, 3)

    assert (lasted_s(a), lasted_s(b)) == (10.0, 4.5), "what does not end, ends with the log"
    gate = collector.named("gate")
    assert (lasted_s(gate), value(gate, "mars.why")) == (2.0, "there is room")
    tool = collector.named("execute_tool pytest")
    assert (value(tool, "gen_ai.tool.name"), value(tool, "mars.tool.wait_s")) == ("pytest", 1.0)
    assert (tool.status.code, value(tool, "error.type")) == (2, "timeout")
    (progress,) = tool.events
    assert progress.time_unix_nano - tool.start_time_unix_nano == 2 * 10**9
    assert {it.key: it.value.double_value or it.value.int_value for it in progress.attributes} == {
        "mars.tool.run_s": 1.0, "mars.tool.cpu_s": 0.7, "mars.tool.memory_bytes": 9,
    }  # fmt: skip
    calls = [span for span in collector.spans if span.name == "chat"]
    good, bad = sorted(calls, key=lambda span: span.start_time_unix_nano)
    assert good.parent_span_id == bad.parent_span_id == tool.parent_span_id == a.span_id
    assert value(good, "gen_ai.operation.name") == "chat"
    assert value(good, "gen_ai.usage.input_tokens") == 100
    assert value(good, "gen_ai.usage.cache_read.input_tokens") == 60
    assert (bad.status.code, bad.status.message, value(bad, "error.type")) == (2, "HTTP 500", "500")


def test_many_spans_go_in_several_requests(collector: Collector, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write(log, [ev.SessionArrived(at_s=1.0, session_id=SessionId(f"s{n}")) for n in range(1001)])
    ran = export(log, collector.url)
    assert ran.returncode == 0, ran.stderr
    assert (len(collector.spans), collector.requests) == (1001, 3)


def test_a_collector_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", STORY)
    url = closed_port()
    ran = export(tmp_path / "log.jsonl", url)
    assert ran.returncode == 3
    assert f"the collector at {url} has not taken the spans; 0 were sent before" in ran.stderr


def test_no_log_is_an_error(tmp_path: Path) -> None:
    ran = export(tmp_path, "http://127.0.0.1:9")
    assert ran.returncode == 2
    assert "no event log at" in ran.stderr
