"""A tenant with as many calls open as may be: its next ones wait, and nobody else's do."""

import asyncio
from pathlib import Path

import aiohttp
import pytest
from tests.gateway.conftest import Rig, checked_desk, gateway
from tests.gateway.pair import eventually
from tests.gateway.scripted import DONE, Engine, on_cue, until
from tests.gateway.test_fleet import OPEN, two
from tests.gateway.test_metrics import scraped, value

from mars.core import events as ev
from mars.core.decisions import Pause
from mars.core.ids import SessionId
from mars.core.settings import Limits, TenantLimits, TenantSettings
from mars.gateway.identity import Identity
from mars.gateway.settings import GatewaySettings
from mars.gateway.stay import SessionOverError, Stay
from mars.policy.presets import Scheduling

pytestmark = pytest.mark.timeout(240)
BATCH = {"X-Tenant": "batch"}
SETTINGS = GatewaySettings(tenant_header="X-Tenant", keepalive_s=0.02, idle_s=0.05, gone_s=0.05)
ONE_CALL = Scheduling(
    policy="fcfs",
    tenants=TenantSettings(limits=(TenantLimits(tenant="batch", most_calls=1),)),
)
WHY = "tenant 'batch': 1 calls open, of 1 that may be, and {} wait"


async def in_line(rig: Rig, waiting: int) -> None:
    await until(lambda: rig.desk._slots.why_not("batch") == WHY.format(waiting))


async def line_up(
    rig: Rig, place: int, session: str | None, **how: object
) -> asyncio.Task[aiohttp.ClientResponse]:
    call = rig.post(session, headers=BATCH, **how)
    await in_line(rig, place)
    return call


async def test_the_next_waits_in_order_with_the_reason_and_nobody_else_does(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, SETTINGS, ONE_CALL) as rig:
        first = rig.post("a", headers=BATCH)
        await engine.called(1)
        same = await line_up(rig, 1, "a")
        nameless = await line_up(rig, 2, None, stream=True)
        last = await line_up(rig, 3, "c")
        rows = await rig.sessions()
        assert {row.phase for row in rows.values()} == {"queued", "acting"}
        assert {row.why for row in rows.values()} == {WHY.format(3)}
        other = rig.post("d")
        (await engine.called(2)).cue.set()
        assert (await other).status == 200, "another tenant's"
        response = await nameless  # its headers come with the first comment
        assert await response.content.readuntil(b"\n\n") == b": queued\n\n"
        for number, call in ((1, first), (3, same)):
            (await engine.called(number)).cue.set()
            assert (await call).status == 200
        (await engine.called(4)).cue.set()
        assert (await response.read()).endswith(DONE)
        (await engine.called(5)).cue.set()
        assert (await last).status == 200
        sessions = [exchange.header("x-session-id") for exchange in engine.seen]
        assert sessions[:3] == ["a", "d", "a"]
        assert sessions[4] == "c"
        await until(lambda: not rig.phases)
        assert [it.ok for it in rig.of(ev.CallFinished)] == [True] * 5
        assert not rig.desk._slots._had


async def test_who_leaves_the_line_leaves_nothing(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, SETTINGS, ONE_CALL) as rig:
        first = rig.post("a", headers=BATCH)
        await engine.called(1)
        leaves = await line_up(rig, 1, "b")
        ended = await line_up(rig, 2, "c")
        last = await line_up(rig, 3, "d")
        leaves.cancel()
        await in_line(rig, 2)
        assert await rig.ended("b") == "client left before its first call"
        async with rig.http.delete(rig.url + "/mars/sessions/c") as response:
            assert response.status == 200
        assert (await ended).status == 410
        first.cancel()  # a call that is cut has ended
        (await engine.called(2)).cue.set()
        assert (await last).status == 200
        await until(lambda: not rig.phases)
        assert not rig.desk._slots._had


async def test_who_is_sent_back_while_it_waits_gives_up_its_turn_and_asks_again() -> None:
    broken: list[str] = []
    desk, events = checked_desk(ONE_CALL, GatewaySettings(keepalive_s=1000.0), broken)

    async def enter(name: str) -> Stay:
        identity = Identity(session_id=SessionId(name), rule="test", final=False, tenant="batch")

        async def still() -> None:
            pass

        return await desk.enter(identity, 10, still)

    call = desk.call_started(await enter("a"))
    sent_back = asyncio.ensure_future(enter("b"))
    await until(lambda: desk.why_in_line(SessionId("b")) != "")
    behind = asyncio.ensure_future(enter("c"))
    await until(lambda: desk.why_in_line(SessionId("c")) == WHY.format(2))
    pause = Pause(session_id=SessionId("b"), why="test")
    desk.control._pause(pause)
    desk.emit(*desk._carry_out([pause]))
    await until(lambda: desk.why_in_line(SessionId("b")) != "")
    kinds = [type(it).__name__ for it in events if getattr(it, "session_id", "") == "b"]
    assert kinds[1:] == ["SessionAdmitted", "SessionPaused", "SessionReturned", "SessionAdmitted"]
    desk.call_finished(call, ok=True)
    behind_call = desk.call_started(await behind)
    assert not sent_back.done()
    desk.call_finished(behind_call, ok=True)
    desk.call_finished(desk.call_started(await sent_back), ok=True)
    desk.close("the end")
    with pytest.raises(SessionOverError):
        await enter("d")
    assert not desk._slots._had
    assert broken == []


async def test_who_waits_in_line_is_counted_and_how_long_by_tenant(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, SETTINGS, ONE_CALL) as rig:
        first = rig.post("a", headers=BATCH)
        await engine.called(1)
        second = await line_up(rig, 1, "b")
        third = await line_up(rig, 2, "c")
        leaves = await line_up(rig, 3, "d")
        assert await value(rig, "mars_calls_in_line", tenant="batch") == 3
        assert await value(rig, "mars_calls_in_line") == 3
        assert await value(rig, "mars_line_wait_seconds_count") == 0
        leaves.cancel()
        await in_line(rig, 2)
        for number, call in ((1, first), (2, second), (3, third)):
            (await engine.called(number)).cue.set()
            assert (await call).status == 200
        await rig.finished(3)
        assert await value(rig, "mars_line_wait_seconds_count", tenant="batch") == 2
        assert await value(rig, "mars_line_wait_seconds_count") == 2
        waits = [it.waited_s for it in rig.of(ev.CallQueued)]
        assert waits[0] == 0.0 < min(waits[1:])
        assert await value(rig, "mars_line_wait_seconds_sum") == pytest.approx(sum(waits))
        assert ("mars_calls_in_line", {"tenant": "batch"}, 0.0) in await scraped(rig)


async def test_100_tenants_in_line_make_no_more_labels_than_have_names(engine: Engine) -> None:
    engine.script = on_cue
    one_each = TenantSettings(other_limits=Limits(most_calls=1))
    async with gateway(engine.url, SETTINGS, Scheduling(policy="fcfs", tenants=one_each)) as rig:
        calls = []
        for number in range(100):
            tenant = {"X-Tenant": f"t{number}"}
            calls += [
                rig.post(f"a{number}", headers=tenant),
                rig.post(f"b{number}", headers=tenant),
            ]
        await until(lambda: rig.desk.in_line().total() == 100)
        lines = [it for it in await scraped(rig) if it[0] == "mars_calls_in_line"]
        assert len(lines) == 31
        assert sum(it[2] for it in lines) == 100
        for call in calls:
            call.cancel()
        await until(lambda: not rig.phases)


async def test_the_limit_holds_over_all_engines(tmp_path: Path) -> None:
    limit = "scheduling.tenants.other_limits.most_calls=1"
    async with two(tmp_path, *OPEN, "--set", limit) as fleet:
        stream = await fleet.post("a", chunks=400, gap_ms=50)
        waiting = fleet.post("b", final=True)

        async def waits() -> bool:
            async with fleet.http.get(fleet.url + "/mars/sessions") as response:
                whys = {row["session_id"]: row["why"] for row in await response.json()}
            return "1 calls open, of 1 that may be" in whys.get("b", "")

        await eventually(waits)
        homes = await fleet.sessions()
        assert homes["a"] != homes["b"]
        assert (await fleet.row(0)).calls + (await fleet.row(1)).calls == 1
        stream.close()
        assert (await waiting).status == 200
