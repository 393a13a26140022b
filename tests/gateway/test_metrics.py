"""/metrics: read by Prometheus' own parser, true to what has happened, and bounded."""

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.conftest import CHAT, ONE_AT_A_TIME, Rig, gateway, kv_sample
from tests.gateway.scripted import JSON, Engine, Exchange, hanging, on_cue

from mars.core import events as ev
from mars.core.ids import CallId, SessionId, ToolId
from mars.gateway.identity import Identity
from mars.gateway.metrics import Metrics
from mars.gateway.settings import GatewaySettings


async def scraped(rig: Rig) -> list[tuple[str, dict[str, str], float]]:
    async with rig.http.get(rig.url + "/metrics") as response:
        assert response.status == 200
        text = await response.text()
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    return [(it.name, it.labels, it.value) for family in families for it in family.samples]


async def value(rig: Rig, name: str, **labels: str) -> float:
    found = [
        it[2] for it in await scraped(rig) if it[0] == name and labels.items() <= it[1].items()
    ]
    return sum(found)


async def test_it_is_what_the_two_formats_of_prometheus_say(rig: Rig) -> None:
    await rig.say("a")
    assert ("mars_sessions", {"phase": "acting"}, 1.0) in await scraped(rig)
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    async with rig.http.get(rig.url + "/metrics", headers=accept) as response:
        assert "openmetrics" in response.headers["content-type"]
        names = {family.name for family in open_metrics(await response.text())}  # type: ignore[no-untyped-call]
    assert {"mars_sessions", "mars_calls", "mars_call_seconds"} <= names


async def test_calls_are_counted_by_how_they_ended(rig: Rig, engine: Engine) -> None:
    await rig.say("ok", headers={"X-Session-Final": "1"})

    async def refusing(exchange: Exchange) -> None:
        await exchange.answer(404, JSON, b'{"error": "no such model"}')

    async def dying(exchange: Exchange) -> None:
        await exchange.begin(200, JSON)
        await exchange.write(b"{")

    engine.script = refusing
    assert (await rig.post("refused")).status == 404
    engine.script = dying
    with pytest.raises(aiohttp.ClientPayloadError):
        await (await rig.post("died")).read()
    engine.script = hanging
    call = rig.post("leaver")
    await engine.called(4)
    call.cancel()
    await rig.finished(4)
    for outcome in ("ok", "HTTP 4xx", "broken off", "client left"):
        assert await value(rig, "mars_calls_total", outcome=outcome) == 1, outcome
    assert await value(rig, "mars_call_seconds_count") == 4
    assert await value(rig, "mars_first_byte_seconds_count") == 3, "the leaver saw none"
    assert await value(rig, "mars_sessions_ended_total", by="final request") == 1
    assert await value(rig, "mars_sessions_arrived_total") == 4


async def test_who_waits_and_why_is_seen_and_so_is_how_long(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        first = rig.post("first")
        exchange = await engine.called(1)
        waiting = rig.post("waits")
        await rig.gated("waits")
        assert await value(rig, "mars_sessions", phase="gated") == 1
        assert await value(rig, "mars_gated_sessions", limit="KV pressure") == 1
        assert await value(rig, "mars_gated_sessions") == 1, "for one reason at a time"
        assert await value(rig, "mars_window_sessions") == 1
        assert await value(rig, "mars_kv_used_ratio") == 1
        assert await value(rig, "mars_gate_wait_seconds_count") == 1
        exchange.cue.set()
        await first
        await rig.http.delete(rig.url + "/mars/sessions/first")
        (await engine.called(2)).cue.set()
        await waiting
        assert await value(rig, "mars_gate_wait_seconds_count") == 2
        assert await value(rig, "mars_gate_wait_seconds_sum") > 0
        assert await value(rig, "mars_admissions_total", by="admission") == 2
        assert await value(rig, "mars_sessions_ended_total", by="asked for") == 1


async def test_what_engine_and_tools_tell_is_counted(rig: Rig) -> None:
    assert await value(rig, "mars_engine_waiting_calls") == 0
    assert "mars_engine_sample_age_seconds" not in {it[0] for it in await scraped(rig)}
    rig.desk.emit(kv_sample(100))
    of = {"session_id": SessionId("a"), "call_id": CallId("c")}
    await rig.say("a")
    rig.desk.emit(
        ev.CallServed(
            at_s=0.0, prompt_tokens=100, cached_tokens=70, computed_tokens=50, made_tokens=20,
            queued_s=0.5, ok=True, **of,  # type: ignore[arg-type]
        ),
        ev.KvHeld(at_s=0.0, session_id=SessionId("a"), kv_tokens=120, keep_s=1.0, why="worth it"),
        tool_started("a", "1", "pytest", 2.0),
        tool_finished("a", "1", "pytest", 4.0),
    )  # fmt: skip
    assert await value(rig, "mars_prompt_tokens_total", kv="warm") == 70
    assert await value(rig, "mars_prompt_tokens_total", kv="cold") == 30
    assert await value(rig, "mars_computed_tokens_total") == 50
    assert await value(rig, "mars_kv_held_total") == 1
    assert await value(rig, "mars_tool_wait_seconds_sum") == 2
    assert await value(rig, "mars_tool_run_seconds_sum") == 4
    assert await value(rig, "mars_tools_total", tool="pytest", by="ended") == 1
    assert 0 <= await value(rig, "mars_engine_sample_age_seconds") < 60


def tool_started(session: str, tool_id: str, tool: str, wait_s: float) -> ev.ToolStarted:
    return ev.ToolStarted(
        at_s=0.0, session_id=SessionId(session), tool_id=ToolId(tool_id), tool=tool, cores=(1,),
        wait_s=wait_s,
    )  # fmt: skip


def tool_finished(session: str, tool_id: str, tool: str, run_s: float) -> ev.ToolFinished:
    return ev.ToolFinished(
        at_s=0.0, session_id=SessionId(session), tool_id=ToolId(tool_id), tool=tool, run_s=run_s,
        cpu_s=1.0, peak_memory_bytes=1, exit_code=0,
    )  # fmt: skip


async def test_5000_sessions_tenants_and_tools_make_no_more_labels_than_100(engine: Engine) -> None:
    async with gateway(engine.url, GatewaySettings(tenant_header="X-Tenant", idle_s=3600.0)) as rig:

        async def wait_on() -> None:
            raise AssertionError("there is no gate")

        async def live(number: int) -> None:
            name = f"s{number}"
            identity = Identity(
                session_id=SessionId(name), rule="test", final=True, tenant=f"tenant {number}"
            )
            stay = await rig.desk.enter(identity, 1, wait_on)
            rig.desk.emit(tool_started(name, "t", f"tool {number}", 0.0))
            rig.desk.emit(tool_finished(name, "t", f"tool {number}", 0.0))
            rig.desk.call_finished(rig.desk.call_started(stay), ok=bool(number % 2))
            if number % 3:
                rig.desk.end(SessionId(name), "test")

        for number in range(100):
            await live(number)
        after_100 = await scraped(rig)
        for number in range(100, 5000):
            await live(number)
        after_5000 = await scraped(rig)
        assert {it[0] for it in after_5000} == {it[0] for it in after_100}
        assert len(after_5000) == len(after_100) < 600
        assert await value(rig, "mars_sessions_arrived_total", tenant="other") == 5000 - 30
        assert await value(rig, "mars_sessions_arrived_total") == 5000
        assert not any("s4999" in text for it in after_5000 for text in it[1].values())


async def test_a_session_that_ended_leaves_nothing_in_the_reader(rig: Rig) -> None:
    await rig.say("a", headers={"X-Session-Final": "1"})
    await rig.ended("a")
    metrics = Metrics()
    for event in rig.events:
        metrics.observe(event)
    assert not metrics._sessions._tenants
    assert not metrics._sessions._waits_since_s
    assert not metrics._calls._since_s


async def test_a_request_that_names_no_session_is_counted(rig: Rig) -> None:
    async with rig.http.post(rig.url + CHAT, json={"model": "m", "messages": []}) as response:
        assert response.status == 200
        await response.read()
    await rig.finished(1)
    assert await value(rig, "mars_calls_total", outcome="ok", tenant="") == 1
