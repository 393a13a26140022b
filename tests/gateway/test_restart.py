"""A gateway that is killed under load and started again goes on with the sessions that were in."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from tests.gateway.processes import (
    ONE_AT_A_TIME,
    GatewayProcess,
    heard,
    mars_gateway,
    sampling,
    waits,
)
from tests.gateway.scripted import Engine, hanging, on_cue, polite, until
from tests.gateway.test_fleet import OPEN, two

from mars.core import events as ev
from mars.core.ids import CallId, SessionId, ToolId
from mars.gateway.places import read_places
from mars.stream.log import LogWriter, read_log

A, B = SessionId("a"), SessionId("b")


async def test_sessions_that_were_in_are_in_again_and_go_on(engine: Engine, tmp_path: Path) -> None:
    """Killed with a call of `a` in mid-stream, `b` at the gate and `done` over."""
    stream, log = f"ipc://{tmp_path}/engine", tmp_path / "events.jsonl"
    ours = f"ipc://{tmp_path}/gateway"
    options = (*ONE_AT_A_TIME, "--subscribe", stream, "--publish", ours)
    async with sampling(stream):
        async with mars_gateway(engine.url, *options, log=log) as gateway:
            await heard(gateway)
            await (await gateway.post("done")).read()
            await gateway.http.delete(gateway.url + "/mars/sessions/done")
            await (await gateway.post("a", messages=["x" * 400])).read()
            engine.script = hanging
            cut = gateway.post("a", messages=["x" * 400])
            exchange = await engine.called(3)
            waiting = gateway.post("b")
            await waits(gateway, "b")
            await asyncio.to_thread(wait_for_text, log, b"GateShut")
            await gateway.kill()
            for call in (cut, waiting):
                with pytest.raises(aiohttp.ClientError):
                    await call
            await asyncio.wait_for(exchange.closed.wait(), 60)  # so the engine aborts the call
        engine.script = on_cue
        async with mars_gateway(engine.url, *options, log=log) as gateway:
            rows = await gateway.sessions()
            assert set(rows) == {"a"}
            row = rows["a"]
            assert (row.phase, row.turn, row.rule) == ("acting", 2, "header x-session-id")
            assert row.age_s > row.phase_s, "it arrived before the restart"
            await heard(gateway)
            await the_second_waits_and_the_first_goes_on(gateway, engine)
            await gateway.stop()
        told = list(read_log(log)[1])
        assert isinstance(told[0], ev.SessionArrived)
        assert told[0].was_in
        assert told[0].prompt_bytes > 400, "what it has in KV is reckoned from its newest call"
        assert isinstance(told[1], ev.SessionAdmitted)
        assert told[1].by == "restart"
        assert list(read_log(log.with_name("events.jsonl.1"))[1]), "the log before is kept"


async def the_second_waits_and_the_first_goes_on(gateway: GatewayProcess, engine: Engine) -> None:
    again = gateway.post("b")
    await waits(gateway, "b")
    first = gateway.post("a")
    (await engine.called(4)).cue.set()
    assert (await first).status == 200
    assert (await gateway.sessions())["a"].turn == 3
    await gateway.http.delete(gateway.url + "/mars/sessions/a")
    (await engine.called(5)).cue.set()
    assert (await again).status == 200


def wait_for_text(log: Path, text: bytes) -> None:
    while text not in log.read_bytes():
        pass


async def test_before_several_engines_each_session_is_at_its_own_again(tmp_path: Path) -> None:
    """Killed when one of them has moved, and started again without the engine of two others."""
    async with two(tmp_path, *OPEN, "--set", "gateway.slow_start_s=0.001") as fleet:
        first, second = fleet.engine_urls
        streams = [await fleet.post(f"s{n}", chunks=400, gap_ms=50) for n in range(4)]
        assert await fleet.tell("POST", "/mars/engines/drain", json={"url": first}) == 200
        for number in (0, 1, 2, 3):
            await fleet.turn(f"s{number}")
        assert await fleet.tell("POST", "/mars/engines", json={"url": first}) == 200
        streams += [await fleet.post(f"new{n}", chunks=400, gap_ms=50) for n in range(4)]
        homes = await fleet.sessions()
        assert set(homes.values()) == {first, second}
        await until(lambda: fleet.told()["CallQueued"] == 4 + 4 + 4)
        fleet.gateway.end()
        fleet.gateway.start()
        await fleet.ready()
        assert await fleet.sessions() == homes
        for session_id in homes:
            await fleet.turn(session_id)
        assert await fleet.sessions() == homes
        await until(lambda: fleet.told()["CallFinished"] == len(homes))
        fleet.gateway.end()
        for stream in streams:
            stream.close()
        again = mars_gateway(first, "--upstream", "http://127.0.0.1:9", *OPEN, log=fleet.log)
        async with again as gateway:
            assert set(await gateway.sessions()) == {s for s in homes if homes[s] == first}


async def test_what_was_silent_for_too_long_before_ends_at_once(
    engine: Engine, tmp_path: Path
) -> None:
    log = tmp_path / "events.jsonl"
    write(log, [arrived("a", 0.0), admitted("a", 0.0), arrived("b", 0.0)])
    async with mars_gateway(engine.url, log=log) as gateway:
        while await gateway.sessions():
            pass
        await gateway.stop()
    ends = [e for e in read_log(log)[1] if isinstance(e, ev.SessionEnded)]
    assert [(e.session_id, e.by) for e in ends] == [("a", "silence")]


async def test_a_broken_log_costs_the_memory_and_not_the_start(
    engine: Engine, tmp_path: Path
) -> None:
    engine.script = polite
    log = tmp_path / "events.jsonl"
    log.write_text("what is this?\n")
    async with mars_gateway(engine.url, log=log) as gateway:
        assert (await gateway.post("a")).status == 200
        assert log.with_name("events.jsonl.1").read_text() == "what is this?\n"


def arrived(name: str, at_s: float, **more: object) -> ev.SessionArrived:
    return ev.SessionArrived(at_s=at_s, session_id=SessionId(name), rule="test", **more)  # type: ignore[arg-type]


def admitted(name: str, at_s: float) -> ev.SessionAdmitted:
    return ev.SessionAdmitted(at_s=at_s, session_id=SessionId(name), why="")


def queued(call: str, at_s: float) -> ev.CallQueued:
    call_id = CallId(call)
    return ev.CallQueued(at_s=at_s, session_id=A, call_id=call_id, turn=7, prompt_bytes=900)


def write(path: Path, events: list[ev.Event]) -> None:
    log = LogWriter(path, {})
    for event in events:
        log.write(event)
    log.close()


def test_a_place_is_what_the_log_says_last(tmp_path: Path) -> None:
    tool, path = {"session_id": A, "tool_id": ToolId("t"), "tool": "bash"}, tmp_path / "log"
    write(
        path,
        [
            arrived("a", 1.0, tenant="people"),
            admitted("a", 2.0),
            arrived("b", 3.0),  # it waits
            queued("c", 4.0),
            ev.CallFinished(at_s=5.0, session_id=A, call_id=CallId("c"), ok=True),
            ev.ToolQueued(at_s=6.0, cores=1, **tool),  # type: ignore[arg-type]
            ev.ToolProgressed(at_s=6.5, run_s=0.5, cpu_s=0.1, memory_bytes=1, **tool),  # type: ignore[arg-type]
            ev.EngineSampled(
                at_s=7.0, kv_used_blocks=0, kv_held_blocks=0, kv_total_blocks=1, block_tokens=1,
                running_calls=0, waiting_calls=0,
            ),
        ],
    )  # fmt: skip
    (place,) = read_places(path, 10.0)
    assert (place.session_id, place.arrived_s, place.heard_s) == (A, 1.0, 6.5)
    assert (place.turn, place.prompt_bytes, place.tools) == (7, 900, {"t": 6.5})
    assert (place.identity.tenant, place.identity.rule) == ("people", "test")
    assert read_places(path, 0.5) == [], "of another boot"


def test_a_call_that_was_cut_by_the_end_counts_as_heard_of_now(tmp_path: Path) -> None:
    path = tmp_path / "log"
    write(path, [arrived("a", 1.0), admitted("a", 1.0), queued("c", 2.0)])
    (place,) = read_places(path, 500.0)
    assert place.heard_s == 500.0


async def test_a_child_is_its_parent_s_child_again(engine: Engine, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    async with mars_gateway(engine.url, log=log) as gateway:
        await (await gateway.post("parent")).read()
        headers = {"X-Session-ID": "child", "X-Parent-Session-ID": "parent"}
        async with gateway.http.post(
            gateway.url + "/v1/chat/completions", json={}, headers=headers
        ) as response:
            assert response.status == 200
            await response.read()
        await until(lambda: log.read_bytes().count(b"CallFinished") == 2)
        await gateway.kill()
    async with mars_gateway(engine.url, log=log) as gateway:
        assert (await gateway.sessions())["child"].parent_id == "parent"
