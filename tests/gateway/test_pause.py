"""A session that was sent back: its next request waits like a newcomer's, and is lost by nobody."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection

import msgspec
import pytest
from tests.gateway.conftest import Rig, checked_desk, gateway
from tests.gateway.scripted import Engine, on_cue, until

from mars.core import events as ev
from mars.core.admission import GatedView, Open, Verdict, let_in
from mars.core.decisions import Admit, Pause
from mars.core.ids import SessionId
from mars.core.pressure import Pressure
from mars.core.session import Phase, Session
from mars.gateway.identity import Identity
from mars.gateway.settings import GatewaySettings

A = SessionId("a")
SHORT = GatewaySettings(idle_s=0.05, gone_s=0.03, keepalive_s=0.01)
PATIENT = GatewaySettings(idle_s=1e6, gone_s=1e6, keepalive_s=0.01)


class Told(Open):
    """An instrument: does what the test has said, when it is asked next."""

    steers = True

    def __init__(self) -> None:
        self.is_open = True
        self.back: set[SessionId] = set()
        self.resume: set[SessionId] = set()

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        del pressure, now_s
        at_rest = {it.session_id for it in active if it.phase is Phase.ACTING}
        pause, self.back = self.back & at_rest, self.back - at_rest
        resume, self.resume = self.resume, set()
        return Verdict(
            admit=[
                *let_in(gated if self.is_open else (), "open"),
                *(Admit(session_id=session_id, why="resumed") for session_id in resume),
            ],
            pause=[Pause(session_id=session_id, why="told to") for session_id in pause],
            why_not="shut",
            window=None,
        )


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def rig(engine: Engine, told: Told) -> AsyncIterator[Rig]:
    async with gateway(engine.url, PATIENT, told) as rig:
        yield rig


def kinds(events: list[ev.Event]) -> list[str]:
    """The gateway's facts of session a."""
    own = [event for event in events if getattr(event, "session_id", None) == A]
    return [type(it).__name__.removeprefix("Session").removeprefix("Call") for it in own]


async def sent_back(rig: Rig, told: Told) -> None:
    """Session a has had its first call, and then was sent back; the gate is shut."""
    await rig.say("a")
    await rig.finished(1)
    told.is_open, told.back = False, {A}
    rig.desk.tick(time.monotonic())
    assert rig.phases == {"a": "paused"}


async def test_its_next_request_waits_and_then_goes_through(
    rig: Rig, engine: Engine, told: Told
) -> None:
    await sent_back(rig, told)
    assert ((await rig.status()).active, (await rig.status()).paused) == (0, 1)
    again = await rig.post("a", stream=True)  # the stream begins while it waits
    await rig.gated("a")
    assert (await again.content.readline()) == b": queued\n"
    assert (await rig.sessions())["a"].why == "shut"
    assert len(engine.seen) == 1
    assert rig.of(ev.SessionReturned)[0].prompt_bytes > 0
    told.is_open = True
    rig.desk.tick(time.monotonic())
    assert b"world" in await again.read()
    await rig.finished(2)
    first = "Arrived Admitted Queued Finished"
    assert kinds(rig.events) == f"{first} Paused Returned Admitted Queued Finished".split()
    assert [call.turn for call in rig.of(ev.CallQueued)] == [1, 2]


async def test_one_let_in_before_it_came_back_goes_straight_in(rig: Rig, told: Told) -> None:
    await sent_back(rig, told)
    told.resume = {A}
    rig.desk.tick(time.monotonic())
    assert rig.phases == {"a": "acting"}
    await rig.say("a")
    assert rig.of(ev.SessionReturned) == []


async def test_a_call_that_is_open_is_not_cut(rig: Rig, engine: Engine, told: Told) -> None:
    engine.script = on_cue
    first = rig.post("a")
    call = await engine.called(1)
    told.back = {A}
    rig.desk.tick(time.monotonic())
    assert rig.phases == {"a": "queued"}
    call.cue.set()
    assert (await first).status == 200
    await until(lambda: rig.phases == {"a": "paused"})


async def test_who_waits_while_its_session_is_ended_is_told(rig: Rig, told: Told) -> None:
    await sent_back(rig, told)
    waits = rig.post("a")
    await rig.gated("a")
    await rig.http.delete(rig.url + "/mars/sessions/a")
    response = await waits
    assert response.status == 410
    assert msgspec.json.decode(await response.read())["error"]["type"] == "session_ended"


async def test_who_comes_back_in_time_returns_once(rig: Rig, told: Told) -> None:
    await sent_back(rig, told)
    leaves = rig.post("a")
    await rig.gated("a")
    stay = rig.desk._stays[A]
    leaves.cancel()
    await until(lambda: not stay.waiting)
    assert stay.gone
    again = rig.post("a")
    await until(lambda: bool(stay.waiting))
    told.is_open = True
    rig.desk.tick(time.monotonic())
    assert (await again).status == 200
    assert len(rig.of(ev.SessionReturned)) == 1


class TestLeaving:
    """A client that leaves gives its place back."""

    async def test_while_it_is_away(self, engine: Engine, told: Told) -> None:
        async with gateway(engine.url, SHORT, told) as rig:
            await sent_back(rig, told)
            assert await rig.ended("a") == "silent for 0.05 s"
            assert rig.desk.control.paused == 0

    async def test_at_the_gate(self, engine: Engine, told: Told) -> None:
        async with gateway(engine.url, SHORT, told) as rig:
            await sent_back(rig, told)
            waits = rig.post("a")
            await rig.gated("a")
            waits.cancel()
            assert await rig.ended("a") == "the client left and was not back within 0.03 s"
            assert rig.desk.control._gate == {}

    async def test_but_not_while_it_waits_there(self, engine: Engine, told: Told) -> None:
        async with gateway(engine.url, SHORT, told) as rig:
            await sent_back(rig, told)
            waits = rig.post("a")
            await rig.gated("a")
            assert rig.desk._stays[A].timer is None
            told.is_open = True
            rig.desk.tick(time.monotonic())
            assert (await waits).status == 200


class TestWoken:
    """A session let in is sent back before its request could go on."""

    async def test_its_request_waits_again(self, told: Told) -> None:
        broken: list[str] = []
        desk, events = checked_desk(told, PATIENT, broken)
        told.is_open = False

        async def wait_on() -> None:
            pass

        named = Identity(session_id=A, rule="test", final=False)
        tasks = [asyncio.ensure_future(desk.enter(named, 10, wait_on)) for _ in range(2)]
        await until(lambda: A in desk._stays and len(desk._stays[A].waiting) == 2)
        told.is_open = True
        desk.tick(0.0)  # wakes both
        told.is_open, told.back = False, {A}
        desk.tick(0.0)  # and neither has run
        await until(lambda: kinds(events)[-1] == "Returned")
        assert not any(task.done() for task in tasks)
        told.is_open = True
        desk.tick(0.0)
        for task in tasks:
            assert (await task).admitted
        assert kinds(events) == ["Arrived", "Admitted", "Paused", "Returned", "Admitted"]
        desk.close("the test is over")
        assert (broken, desk.faults) == ([], 0)
