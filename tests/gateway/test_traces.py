"""Spans live from a gateway to a server that decodes OTLP, and to one that is slow or gone."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.pair import Pair
from tests.gateway.processes import GatewayProcess, mars_gateway
from tests.gateway.scripted import Engine, closed_port, until
from tests.gateway.test_run import Running, running, served
from tests.stream.collector import Collector, collecting, value, values

from mars.core import events as ev
from mars.core.ids import SessionId, ToolId
from mars.gateway import traces as traces_module
from mars.gateway.settings import GatewaySettings
from mars.gateway.traces import Traces
from mars.stream.link import Publisher

TOOL: dict[str, Any] = {"session_id": SessionId("a"), "tool_id": ToolId("t"), "tool": "pytest"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


async def counted(gateway: Running | GatewayProcess) -> dict[str, float]:
    async with gateway.http.get(gateway.url + "/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    samples = (it for family in families for it in family.samples)
    return {it.name: it.value for it in samples if it.name.startswith("mars_spans")}


async def arrived(collector: Collector, *names: str) -> None:
    """Until spans of these names have come."""
    await until(lambda: set(names) <= {span.name for span in collector.spans})


def tool_facts() -> list[ev.Event]:
    at_s = time.monotonic()
    return [
        ev.ToolQueued(at_s=at_s, cores=1, **TOOL),
        ev.ToolStarted(at_s=at_s, cores=(1,), wait_s=0.0, **TOOL),
        ev.ToolFinished(
            at_s=at_s, run_s=2.0, cpu_s=1.5, peak_memory_bytes=1, exit_code=0, **TOOL
        ),
    ]  # fmt: skip


async def test_spans_arrive_while_it_runs_and_its_log_gives_the_same_ones(
    engine: Engine, collector: Collector, tmp_path: Path
) -> None:
    log, theirs = tmp_path / "events.jsonl", f"ipc://{tmp_path}/engine"
    publisher = Publisher(theirs)
    options = ("--otlp", collector.url, "--subscribe", theirs)
    try:
        async with mars_gateway(engine.url, *options, log=log) as gateway:
            idle = ev.ToolsSampled(at_s=0.0, running=0, waiting=0, slots=1, wait_s=0.0)
            while (await gateway.status()).tools_sample_age_s is None:
                publisher.send([idle])
            assert (await gateway.post("a")).status == 200
            call_id = str(engine.last.header("x-request-id"))
            publisher.send([served("a", call_id), *tool_facts()])
            child = {"X-Session-ID": "b", "X-Parent-Session-ID": "a", "X-Session-Final": "1"}
            chat = gateway.url + "/v1/chat/completions"
            async with gateway.http.post(chat, json={}, headers=child) as response:
                assert response.status == 200
            await arrived(collector, "gate", "chat", "execute_tool pytest", "invoke_agent")
            assert value(collector.named("invoke_agent"), "gen_ai.conversation.id") == "b"
            call, tool = collector.named("chat"), collector.named("execute_tool pytest")
            assert value(call, "gen_ai.usage.input_tokens") == 100
            assert value(tool, "mars.tool.cpu_s") == 1.5
            while (await counted(gateway))["mars_spans_sent_total"] < 5:
                pass
            await gateway.http.delete(gateway.url + "/mars/sessions/a")
            await until(lambda: len(collector.all_named("invoke_agent")) == 2)
            a, b = collector.all_named("invoke_agent")
            assert not a.parent_span_id
            assert {b.parent_span_id, call.parent_span_id, tool.parent_span_id} == {a.span_id}
            assert {span.trace_id for span in collector.spans} == {a.trace_id}
            assert abs(a.start_time_unix_nano / 1e9 - time.time()) < 600
            await gateway.stop()
    finally:
        publisher.close()
    calls = collector.all_named("chat")
    assert ["gen_ai.usage.input_tokens" in values(it) for it in calls] == [True, False]
    with collecting() as again:
        argv = [sys.executable, "-m", "mars", "export", str(log), "--otlp", again.url]
        export = await asyncio.create_subprocess_exec(*argv)
        assert await asyncio.wait_for(export.wait(), 120) == 0
    assert about(again) == about(collector)


def about(collector: Collector) -> list[tuple[bytes, bytes, bytes, str, list[str]]]:
    return sorted(
        (it.trace_id, it.span_id, it.parent_span_id, it.name, sorted(map(str, it.attributes)))
        for it in collector.spans
    )


async def test_before_several_engines_all_spans_go_one_way(
    engine: Engine, collector: Collector, tmp_path: Path
) -> None:
    pair = Pair(tmp_path, "--otlp", collector.url, engines=2)
    try:
        await pair.start()
        for number in range(4):
            response = await pair.post(f"s{number}", chunks=1, final=True)
            assert response.status == 200
            await response.read()
        await until(lambda: len(collector.all_named("invoke_agent")) == 4)
        async with pair.http.get(pair.url + "/metrics") as response:
            text = await response.text()
        assert text.count("\nmars_spans_sent_total ") == 1, "of the process, not of an engine"
        pair.gateway.end(signal.SIGTERM)
    finally:
        await pair.end()
    assert len(collector.all_named("chat")) == len(collector.all_named("gate")) == 4
    assert len({value(it, "mars.call_id") for it in collector.all_named("chat")}) == 4


async def say(gateway: Running, times: int) -> None:
    """Calls that must go well."""
    responses = await asyncio.gather(*(gateway.post(f"s{number}") for number in range(times)))
    assert [it.status for it in responses] == [200] * times


async def test_a_collector_that_hangs_harms_no_call_and_no_stop(
    engine: Engine, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answers.clear()
    async with running(engine.url, settings=GatewaySettings(otlp=collector.url)) as gateway:
        await until(lambda: collector.requests > 0)
        await say(gateway, 50)
        began_s = time.monotonic()
        await gateway.stop()
        assert time.monotonic() - began_s < 30
    assert "150 spans were not sent before the end" in caplog.text
    collector.answers.set()


async def test_spans_that_are_refused_are_counted_and_said_once(
    engine: Engine, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 400
    async with running(engine.url, settings=GatewaySettings(otlp=collector.url)) as gateway:
        await until(lambda: "spans are being lost" in caplog.text)
        assert "code: 400" in caplog.text
        for _ in range(3):
            before = (await counted(gateway))["mars_spans_dropped_total"]
            await say(gateway, 5)
            await gateway.http.delete(gateway.url + "/mars/sessions/s0")
            while (await counted(gateway))["mars_spans_dropped_total"] == before:
                pass
        collector.status = 200
        await gateway.http.delete(gateway.url + "/mars/sessions/s1")
        await arrived(collector, "invoke_agent")
        await until(lambda: "takes spans again" in caplog.text)
        assert (await counted(gateway))["mars_spans_sent_total"] > 0
    said = [it.message for it in caplog.records if it.name == traces_module.__name__]
    assert len(said) == 2, said


async def test_a_collector_that_is_not_there_is_said_once_and_serving_goes_on(
    engine: Engine, tmp_path: Path
) -> None:
    url, log = closed_port(), tmp_path / "gateway.log"
    async with mars_gateway(engine.url, "--otlp", url, "--log", str(log)) as gateway:
        assert (await gateway.post("a")).status == 200
        await until(lambda: f"the collector at {url} does not take them" in log.read_text())
        assert (await gateway.post("a")).status == 200
        await gateway.stop()
    loggers = Counter(json.loads(line)["logger"] for line in log.read_text().splitlines())
    assert loggers[traces_module.__name__] == 2, "that it loses spans, and how many at the end"
    assert not [name for name in loggers if name.startswith("opentelemetry")]


def test_no_more_wait_than_may_and_the_others_are_counted(collector: Collector) -> None:
    collector.answers.clear()
    from mars.stream.otlp import Otlp  # noqa: PLC0415 an extra

    otlp = Otlp(collector.url, 0.0)
    traces = Traces(collector.url, otlp.send)
    traces.start()
    most = traces_module._MOST_QUEUED
    for number in range(most + 1000):
        of: dict[str, Any] = {"at_s": float(number), "session_id": SessionId(f"s{number}")}
        traces.observe(ev.SessionArrived(**of))
        traces.observe(ev.SessionEnded(**of, why="done"))
    assert traces.unsent <= most + traces_module._BATCH_SPANS
    assert 1000 - traces_module._BATCH_SPANS <= traces.dropped <= 1000
    collector.answers.set()
    traces.close()
    otlp.close()
    assert traces.sent + traces.dropped == most + 1000
    assert len(collector.spans) == traces.sent


@pytest.mark.parametrize(
    "command", [["gateway", "--upstream", "http://127.0.0.1:9"], ["serve", "no-such-model"]]
)
def test_without_the_extra_it_is_an_error_before_anything_starts(
    command: list[str], tmp_path: Path
) -> None:
    hidden = "import sys; sys.modules['opentelemetry'] = None; from mars.cli import main; main()"
    argv = [sys.executable, "-c", hidden, *command, "--otlp", "http://127.0.0.1:4318"]
    ran = subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path
    )
    assert ran.returncode == 2, ran.stderr
    assert "pip install 'mars[otel]'" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_what_is_no_url_is_named() -> None:
    argv = [sys.executable, "-m", "mars", "gateway", "--upstream", "http://x", "--otlp", "host:1"]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 2
    assert "gateway.otlp" in ran.stderr
