"""Who waits, who enters when, and how a session ends."""

import asyncio

import msgspec
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.gateway.conftest import ONE_AT_A_TIME, gateway
from tests.gateway.scripted import (
    Engine,
    on_cue,
    until,
)

from mars.core import events as ev
from mars.core.ids import SessionId
from mars.gateway.settings import GatewaySettings

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello?"}]
FINAL = {"X-Session-Final": "1"}


async def test_the_second_session_waits_and_the_first_goes_on(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        first = rig.post("a")
        call = await engine.called(1)
        second = rig.post("b")
        await rig.gated("b")
        status, rows = await rig.status(), await rig.sessions()
        assert (status.window, status.active, status.gated, status.sessions) == (1, 1, 1, 2)
        assert status.why_not == rows["b"].why == "KV is at 100% (limit 90%)"
        assert (rows["a"].phase, rows["a"].turn, rows["a"].why) == ("queued", 1, "")
        (shut,) = rig.of(ev.GateShut)
        assert (shut.limit, shut.why, shut.waiting) == ("KV pressure", status.why_not, 1)
        assert 0 <= rows["b"].phase_s < 20
        again = rig.post("a")  # a second call of the first, while the second session waits
        (await engine.called(2)).cue.set()
        assert (await again).status == 200
        assert rig.phases == {"a": "queued", "b": "gated"}
        assert not second.done()
        call.cue.set()
        assert (await first).status == 200
        second.cancel()
        assert await rig.ended("b") == "client left at the gate"


class TestEnds:
    """However the first session ends, the second enters."""

    async def enters(self, engine: Engine, second: "asyncio.Task[object]") -> None:
        exchange = await engine.called(2)
        assert exchange.header("x-session-id") == "b"
        exchange.cue.set()
        await second

    @pytest.mark.parametrize("name", ["X-Session-Final", "X-Dynamo-Session-Final"])
    async def test_by_header(self, engine: Engine, name: str) -> None:
        engine.script = on_cue
        async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
            first = rig.post("a", headers={name: "true"})
            await engine.called(1)
            second = rig.post("b")
            await rig.gated("b")
            engine.seen[0].cue.set()
            assert (await first).status == 200
            assert await rig.ended("a") == "its final request is answered"
            await self.enters(engine, second)

    @pytest.mark.parametrize(
        ("method", "path"), [("DELETE", "/mars/sessions/a"), ("POST", "/mars/sessions/a/end")]
    )
    async def test_by_endpoint(self, engine: Engine, method: str, path: str) -> None:
        """Though its call is open: the call goes on, and its end is counted as late."""
        engine.script = on_cue
        async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
            first = rig.post("a")
            await engine.called(1)
            second = rig.post("b")
            await rig.gated("b")
            async with rig.http.request(method, rig.url + path) as response:
                assert (response.status, await response.json()) == (200, {"ended": "a"})
            await self.enters(engine, second)
            async with rig.http.request(method, rig.url + path) as response:
                assert response.status == 404
            assert rig.ends("a") == ["ended by request"]
            engine.seen[0].cue.set()
            assert (await first).status == 200
            await rig.finished(2)
            assert (await rig.status()).late == 1

    async def test_by_silence(self, engine: Engine) -> None:
        settings = GatewaySettings(idle_s=0.05)
        async with gateway(engine.url, settings, ONE_AT_A_TIME) as rig:
            engine.script = on_cue
            first = rig.post("a")
            await engine.called(1)
            second = rig.post("b")
            await rig.gated("b")
            engine.seen[0].cue.set()
            await first
            assert await rig.ended("a") == "silent for 0.05 s"
            await self.enters(engine, second)

    async def test_by_a_client_that_left_in_mid_call(self, engine: Engine) -> None:
        engine.script = on_cue
        async with gateway(engine.url, GatewaySettings(gone_s=0.05), ONE_AT_A_TIME) as rig:
            first = rig.post("a")
            await engine.called(1)
            second = rig.post("b")
            await rig.gated("b")
            first.cancel()
            assert await rig.ended("a") == "the client left and was not back within 0.05 s"
            await self.enters(engine, second)

    async def test_by_a_client_that_left_at_the_gate(self, engine: Engine) -> None:
        engine.script = on_cue
        async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
            first = rig.post("a", headers=FINAL)
            await engine.called(1)
            gone, second = rig.post("x"), rig.post("b")
            await rig.gated("x")
            await rig.gated("b")
            gone.cancel()
            assert await rig.ended("x") == "client left at the gate"
            engine.seen[0].cue.set()
            await first
            await self.enters(engine, second)
            assert {exchange.header("x-session-id") for exchange in engine.seen} == {"a", "b"}

    async def test_an_id_with_a_slash_can_be_ended(self, engine: Engine) -> None:
        async with gateway(engine.url) as rig:
            await rig.say("a/b c")
            async with rig.http.delete(rig.url + "/mars/sessions/a%2Fb%20c") as response:
                assert await response.json() == {"ended": "a/b c"}


async def test_one_of_two_waiters_may_leave(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        first = rig.post("a", headers=FINAL)
        await engine.called(1)
        stays, leaves = rig.post("b"), rig.post("b")
        await rig.gated("b")
        stay = rig.desk._stays[SessionId("b")]
        await until(lambda: len(stay.waiting) == 2)
        leaves.cancel()
        await until(lambda: len(stay.waiting) == 1)
        engine.seen[0].cue.set()
        await first
        (await engine.called(2)).cue.set()
        assert (await stays).status == 200
        assert rig.ends("b") == []


async def test_all_waiting_requests_of_a_session_enter_together(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        first = rig.post("a", headers=FINAL)
        await engine.called(1)
        three = [rig.post("b") for _ in range(3)]
        await rig.gated("b")
        stay = rig.desk._stays[SessionId("b")]
        await until(lambda: len(stay.waiting) == 3)
        engine.seen[0].cue.set()
        await first
        await engine.called(4)
        for exchange in engine.seen:
            exchange.cue.set()
        assert [(await task).status for task in three] == [200] * 3
        assert [call.turn for call in rig.of(ev.CallQueued)] == [1, 1, 2, 3]


async def test_who_waits_while_its_session_is_ended_is_told(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        first = rig.post("a")
        await engine.called(1)
        second = rig.post("b")
        await rig.gated("b")
        await rig.http.delete(rig.url + "/mars/sessions/b")
        response = await second
        assert response.status == 410
        error = msgspec.json.decode(await response.read())["error"]
        assert error["type"] == "session_ended"
        assert "ended by request" in error["message"]
        first.cancel()


async def test_a_request_without_id_is_a_session_for_as_long_as_it_lasts(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        first = rig.post(None)
        await engine.called(1)
        second = rig.post(None)
        await until(lambda: sorted(rig.phases.values()) == ["gated", "queued"])
        engine.seen[0].cue.set()
        await first
        (await engine.called(2)).cue.set()
        await second
        await until(lambda: not rig.phases)
        ids = {event.session_id for event in rig.of(ev.SessionArrived)}
        assert len(ids) == 2
        assert {event.rule for event in rig.of(ev.SessionArrived)} == {"none"}
        assert {event.session_id for event in rig.of(ev.SessionEnded)} == ids


async def test_who_returns_after_its_end_is_a_new_session(engine: Engine) -> None:
    async with gateway(engine.url, GatewaySettings(idle_s=0.02)) as rig:
        await rig.say("a")
        await rig.ended("a")
        await rig.say("a")
        await until(lambda: len(rig.ends("a")) == 2)
        assert len(rig.of(ev.SessionArrived)) == 2
        assert [call.turn for call in rig.of(ev.CallQueued)] == [1, 1]


async def test_who_comes_back_in_time_keeps_its_place(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, GatewaySettings(gone_s=1e6, idle_s=1e6)) as rig:
        call = rig.post("a")
        await engine.called(1)
        call.cancel()
        await rig.finished(1)
        again = rig.post("a")
        (await engine.called(2)).cue.set()
        await again
        assert [call.turn for call in rig.of(ev.CallQueued)] == [1, 2]
        assert rig.ends("a") == []


async def test_the_tenant_is_what_the_header_says_that_the_settings_name(engine: Engine) -> None:
    async with gateway(engine.url, GatewaySettings(tenant_header="X-Tenant")) as rig:
        await rig.say("a", headers={"X-Tenant": " blue "})
        await rig.say("b")
        response = await rig.post("c", headers={"X-Tenant": "x" * 300})
        assert response.status == 400
        assert "the tenant (header X-Tenant) has 300 characters" in await response.text()
        assert [(e.session_id, e.tenant) for e in rig.of(ev.SessionArrived)] == [
            ("a", "blue"),
            ("b", ""),
        ]
    async with gateway(engine.url) as rig:
        await rig.say("a", headers={"X-Tenant": "blue"})
        assert [e.tenant for e in rig.of(ev.SessionArrived)] == [""]


async def test_a_sub_agent_passes_a_gate_that_is_shut(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        root = rig.post("root")
        await engine.called(1)
        stranger = rig.post("stranger")
        await rig.gated("stranger")
        child = rig.post("child", headers={"X-Parent-Session-ID": "root"})
        (await engine.called(2)).cue.set()
        assert (await child).status == 200
        assert rig.phases["stranger"] == "gated"
        (entered,) = [e for e in rig.of(ev.SessionAdmitted) if e.session_id == "child"]
        assert entered.why == "its parent root is in, and waits for it"
        stranger.cancel()
        engine.seen[0].cue.set()
        await root
