"""The desk by itself: interleavings hard to reach over HTTP, and a control plane that fails."""

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
from tests.gateway.conftest import ONE_AT_A_TIME, checked_desk, kv_sample
from tests.gateway.scripted import until

from mars.core import events as ev
from mars.core.ids import SessionId, ToolId
from mars.gateway.identity import Identity
from mars.gateway.settings import GatewaySettings
from mars.gateway.stay import SessionOverError, Stay
from mars.policy.presets import Scheduling

A, B = SessionId("a"), SessionId("b")
SHORT = GatewaySettings(idle_s=0.03, gone_s=0.03, tool_idle_s=0.2, keepalive_s=0.01)


async def wait_on() -> None:
    pass


def identity(session_id: str, parent: str | None = None) -> Identity:
    parent_id = None if parent is None else SessionId(parent)
    return Identity(session_id=SessionId(session_id), rule="test", final=False, parent_id=parent_id)


class Bench:
    """A desk without HTTP."""

    def __init__(self, scheduling: Scheduling, settings: GatewaySettings) -> None:
        self.broken: list[str] = []
        self.desk, self.events = checked_desk(scheduling, settings, self.broken)

    async def enter(self, session_id: str, parent: str | None = None, tenant: str = "") -> Stay:
        named = msgspec.structs.replace(identity(session_id, parent), tenant=tenant)
        return await self.desk.enter(named, 10, wait_on)

    async def waits(self, session_id: str) -> "asyncio.Task[Stay]":
        task = asyncio.ensure_future(self.enter(session_id))
        await until(lambda: SessionId(session_id) in self.desk.control.sessions)
        return task

    def kinds(self, session_id: str) -> list[str]:
        """The own facts of a session, in order."""
        return [
            type(event).__name__.removeprefix("Session").removeprefix("Call")
            for event in self.events
            if getattr(event, "session_id", None) == session_id
        ]

    def why(self, session_id: str) -> list[str]:
        ended = (it for it in self.events if isinstance(it, ev.SessionEnded))
        return [event.why for event in ended if event.session_id == session_id]

    def tool(self, kind: type[ev.ToolEvent], tool_id: str) -> None:
        common = {"at_s": 0.0, "session_id": A, "tool_id": ToolId(tool_id), "tool": "bash"}
        rest: dict[type[ev.ToolEvent], dict[str, object]] = {
            ev.ToolQueued: {"cores": 1},
            ev.ToolProgressed: {"run_s": 1.0, "cpu_s": 1.0, "memory_bytes": 1},
            ev.ToolFinished: {
                "run_s": 1.0, "cpu_s": 1.0, "peak_memory_bytes": 1, "exit_code": 0
            },
        }  # fmt: skip
        self.desk.emit(kind(**common, **rest[kind]))  # type: ignore[arg-type]


@pytest.fixture
async def free() -> AsyncIterator[Bench]:
    bench = Bench(Scheduling(policy="fcfs"), SHORT)
    yield bench
    assert (bench.broken, bench.desk.faults) == ([], 0)


@pytest.fixture
async def narrow() -> AsyncIterator[Bench]:
    """One session at a time, no timers to speak of."""
    bench = Bench(ONE_AT_A_TIME, GatewaySettings(idle_s=1e6, gone_s=1e6, keepalive_s=0.01))
    bench.desk.emit(kv_sample(100))
    yield bench
    bench.desk.close("the test is over")
    assert (bench.broken, bench.desk.faults) == ([], 0)


async def test_a_call_that_outlives_its_session_is_no_call_of_the_next_stay(free: Bench) -> None:
    """CallFinished of the old stay would be illegal while the new one rests."""
    desk = free.desk
    old = desk.call_started(await free.enter("a"))
    assert desk.end(A, "test")
    new = desk.call_started(await free.enter("a"))
    desk.call_finished(old, ok=True)
    desk.call_finished(new, ok=True)
    first = "Arrived Admitted Queued Ended Finished"
    assert free.kinds("a") == f"{first} Arrived Admitted Queued Finished".split()
    finished = [event for event in free.events if isinstance(event, ev.CallFinished)]
    assert [event.call_id for event in finished] == [old.call_id, new.call_id]
    assert finished[0].why == "its session was ended, and has come back"
    assert desk.control.late == 1
    await until(lambda: not desk.control.sessions)
    assert not desk._calls._orphans
    assert not desk._calls._names


async def test_calls_that_outlive_two_stays(free: Bench) -> None:
    desk = free.desk
    calls = []
    for _ in range(3):
        stay = await free.enter("a")
        calls += [desk.call_started(stay), desk.call_started(stay)]
        desk.end(A, "test")
    for call in calls:
        desk.call_finished(call, ok=True)
    finished = [event.call_id for event in free.events if isinstance(event, ev.CallFinished)]
    assert sorted(finished) == sorted(call.call_id for call in calls), "one finish a call"
    assert not desk._calls._orphans


async def test_the_timer_of_an_old_stay_does_not_end_the_next(free: Bench) -> None:
    desk = free.desk
    old = await free.enter("a")
    desk.call_finished(desk.call_started(old), ok=True)
    assert old.timer is not None
    desk.end(A, "test")
    new = await free.enter("a")
    call = desk.call_started(new)
    desk._end(old, "a timer that was about to fire", "silence")
    assert desk.control.sessions[A].open_calls == 1
    desk.call_finished(call, ok=True)
    await until(lambda: not desk.control.sessions)
    assert free.why("a") == ["test", "silent for 0.03 s"]


async def test_silence_is_counted_from_the_last_call(free: Bench) -> None:
    """Though b goes silent after a does, a, which called again, outlives it."""
    desk = free.desk
    a, b = await free.enter("a"), await free.enter("b")
    desk.call_finished(desk.call_started(a), ok=True)
    desk.call_finished(desk.call_started(b), ok=True)
    call = desk.call_started(a)
    await until(lambda: B not in desk.control.sessions)
    assert A in desk.control.sessions
    desk.call_finished(call, ok=True)
    await until(lambda: A not in desk.control.sessions)


class TestTools:
    async def test_a_tool_keeps_its_session(self, free: Bench) -> None:
        desk = free.desk
        a, b = await free.enter("a"), await free.enter("b")
        desk.call_finished(desk.call_started(a), ok=True)
        free.tool(ev.ToolQueued, "1")
        desk.call_finished(desk.call_started(b), ok=True)
        await until(lambda: B not in desk.control.sessions)
        assert A in desk.control.sessions
        free.tool(ev.ToolFinished, "1")
        await until(lambda: A not in desk.control.sessions)
        assert free.why("a") == ["silent for 0.03 s"]

    async def test_but_not_for_ever(self, free: Bench) -> None:
        a = await free.enter("a")
        free.desk.call_finished(free.desk.call_started(a), ok=True)
        free.tool(ev.ToolQueued, "1")
        await until(lambda: A not in free.desk.control.sessions)
        assert free.why("a") == ["silent for 0.2 s with a tool running"]

    async def test_a_tool_whose_end_was_lost_counts_from_its_own_start(self, free: Bench) -> None:
        stay = await free.enter("a")
        free.desk.call_finished(free.desk.call_started(stay), ok=True)
        free.tool(ev.ToolQueued, "1")
        queued_s = stay.tools[ToolId("1")]
        free.desk.call_finished(free.desk.call_started(stay), ok=True)
        assert stay.heard_s > queued_s
        end_s, _ = stay.ends(SHORT)
        assert end_s == max(queued_s + SHORT.tool_idle_s, stay.heard_s + SHORT.idle_s)
        free.desk.end(A, "test")

    async def test_a_tool_that_starts_shows_that_the_client_is_back(self, free: Bench) -> None:
        stay = await free.enter("a")
        free.desk.call_finished(free.desk.call_started(stay), ok=False, gone=True)
        assert stay.gone
        free.tool(ev.ToolQueued, "1")
        assert not stay.gone
        free.desk.end(A, "test")

    async def test_but_one_that_goes_on_does_not(self, free: Bench) -> None:
        """It may run on though nobody waits for it."""
        stay = await free.enter("a")
        free.tool(ev.ToolQueued, "1")
        free.desk.call_finished(free.desk.call_started(stay), ok=False, gone=True)
        queued_s = stay.tools[ToolId("1")]
        free.tool(ev.ToolProgressed, "1")
        assert stay.gone
        assert stay.tools[ToolId("1")] > queued_s, "it keeps the place for longer"
        free.desk.end(A, "test")

    async def test_a_tool_of_a_gated_session_starts_no_timer(self, narrow: Bench) -> None:
        await narrow.enter("b")
        task = await narrow.waits("a")
        free_timer = narrow.desk._stays[A]
        narrow.tool(ev.ToolQueued, "1")
        assert free_timer.timer is None
        task.cancel()


class TestGate:
    async def test_one_cancelled_as_it_is_woken_leaves_no_session_behind(
        self, narrow: Bench
    ) -> None:
        """It was admitted, but will not call: nobody would end it."""
        await narrow.enter("a")
        task = await narrow.waits("b")
        narrow.desk.end(A, "test")  # wakes it
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert narrow.kinds("b") == ["Arrived", "Admitted", "Ended"]
        assert narrow.why("b") == ["client left before its first call"]

    async def test_one_ended_as_it_is_woken_is_told(self, narrow: Bench) -> None:
        await narrow.enter("a")
        task = await narrow.waits("b")
        narrow.desk.end(A, "test")
        narrow.desk.end(B, "too late")
        with pytest.raises(SessionOverError, match="too late"):
            await task

    async def test_a_call_cannot_start_in_a_stay_that_is_over(self, narrow: Bench) -> None:
        stay = await narrow.enter("a")
        narrow.desk.end(A, "test")
        with pytest.raises(SessionOverError, match="test"):
            narrow.desk.call_started(stay)

    async def test_waiters_cancelled_after_a_call_has_ended_start_the_timer(self) -> None:
        bench = Bench(ONE_AT_A_TIME, SHORT)
        bench.desk.emit(kv_sample(100))
        blocker = await bench.enter("a")
        bench.desk.call_started(blocker)
        first, second = await bench.waits("b"), await bench.waits("b")
        stay = bench.desk._stays[B]
        await until(lambda: len(stay.waiting) == 2)
        bench.desk.end(A, "test")  # wakes both, but neither has run yet
        bench.desk.call_finished(bench.desk.call_started(stay), ok=True)
        first.cancel()
        second.cancel()
        await until(lambda: bench.why("b") == ["silent for 0.03 s"])
        assert bench.broken == []

    async def test_ending_twice_is_ending_once(self, narrow: Bench) -> None:
        await narrow.enter("a")
        assert narrow.desk.end(A, "test")
        assert not narrow.desk.end(A, "again")
        assert narrow.why("a") == ["test"]

    async def test_a_desk_that_is_closed_lets_nobody_in(self, narrow: Bench) -> None:
        await narrow.enter("a")
        task = await narrow.waits("b")
        narrow.desk.close("the end")
        with pytest.raises(SessionOverError, match="the end"):
            await task
        with pytest.raises(SessionOverError, match="stops"):
            await narrow.enter("c")
        assert not narrow.desk.control.sessions


async def test_the_gate_opens_when_time_alone_has_passed(narrow: Bench) -> None:
    """A gate that cannot see opens, though no event comes."""
    narrow.desk.control.failsafe.blind_s = 15.0
    narrow.desk.call_started(await narrow.enter("a"))
    task = await narrow.waits("b")
    narrow.desk.watch(time.monotonic())
    assert narrow.kinds("b") == ["Arrived"]
    narrow.desk.watch(1e9)
    assert (await task).admitted
    assert narrow.kinds("b") == ["Arrived", "Admitted"]


async def test_a_child_enters_where_its_parent_is_in(narrow: Bench) -> None:
    await narrow.enter("a")
    stranger = await narrow.waits("b")
    child = await narrow.enter("child", "a")
    assert child.admitted
    assert not stranger.done()
    (told,) = [e for e in narrow.events if isinstance(e, ev.SessionArrived) and e.parent_id]
    assert (told.session_id, told.parent_id) == ("child", "a")
    narrow.desk.end(A, "test")
    assert narrow.kinds("child") == ["Arrived", "Admitted"], "it lasts beyond its parent"
    narrow.desk.end(child.session_id, "test")
    await stranger


async def test_a_parent_is_not_silent_while_its_child_is_there(free: Bench) -> None:
    """Its own silence begins when the last of its children has ended."""
    desk = free.desk
    parent = await free.enter("a")
    desk.call_finished(desk.call_started(parent), ok=True)
    children = [await free.enter(name, "a") for name in ("one", "two")]
    assert parent.timer is None
    for child in children:
        call = desk.call_started(child)
        assert not parent.over
        desk.call_finished(call, ok=True)
    await until(lambda: not desk.control.sessions)
    ends = [e for e in free.events if isinstance(e, ev.SessionEnded)]
    assert [e.session_id for e in ends] == ["one", "two", "a"]
    assert ends[-1].at_s - ends[-2].at_s > 0.9 * SHORT.idle_s, "timers are rounded"


async def test_nobody_enters_on_another_tenant_s_word(narrow: Bench) -> None:
    await narrow.enter("a", tenant="mine")
    ours = await narrow.enter("ours", "a", tenant="mine")
    theirs = asyncio.ensure_future(narrow.enter("theirs", "a", tenant="theirs"))
    await until(lambda: SessionId("theirs") in narrow.desk.control.sessions)
    assert (ours.admitted, theirs.done()) == (True, False)
    told = {e.session_id: e for e in narrow.events if isinstance(e, ev.SessionArrived)}
    assert [told[SessionId(name)].tenant for name in ("ours", "theirs")] == ["mine", "theirs"]
    assert told[SessionId("theirs")].parent_id is None
    for name in ("a", "ours"):
        narrow.desk.end(SessionId(name), "test")
    await theirs
