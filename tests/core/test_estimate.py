import pytest

from mars.core import events as ev
from mars.core.control import ControlPlane
from mars.core.decisions import Admit
from mars.core.estimate import Newcomers, PrefillRate
from mars.core.ids import CallId, SessionId
from mars.core.settings import WindowSettings
from mars.core.window import Window


def test_the_prefill_rate_is_of_large_steps_only() -> None:
    rate = PrefillRate()
    assert rate.seconds(5000) == 1.0  # believed before anything is seen
    rate.observe(64, 10.0)  # a step of decodes says nothing
    assert rate.seconds(5000) == 1.0
    rate.observe(1000, 0.1)
    assert rate.seconds(5000) == pytest.approx(0.5)


def test_the_prefill_rate_follows_the_machine() -> None:
    rate = PrefillRate()
    for _ in range(10):
        rate.observe(1000, 0.1)
    for _ in range(200):
        rate.observe(1000, 0.2)
    assert rate.seconds(1000) == pytest.approx(0.2, rel=0.01)


def test_a_newcomer_counts_until_the_engine_has_counted_it() -> None:
    newcomers = Newcomers()
    newcomers.enter(SessionId("a"), 4000)
    newcomers.enter(SessionId("b"), 8000)
    assert newcomers.tokens == 3000
    newcomers.leave(SessionId("b"))
    assert newcomers.tokens == 1000
    newcomers.served(SessionId("a"), 2000)  # 0.5 a byte, weight 0.2
    assert newcomers.tokens == 0
    assert newcomers.tokens_per_byte == pytest.approx(0.25 + 0.2 * 0.25)


def arrival(name: str, prompt_bytes: int) -> ev.SessionArrived:
    return ev.SessionArrived(at_s=1.0, session_id=SessionId(name), prompt_bytes=prompt_bytes)


def sample(total_blocks: int) -> ev.EngineSampled:
    return ev.EngineSampled(
        at_s=0.5,
        kv_used_blocks=0,
        kv_held_blocks=0,
        kv_total_blocks=total_blocks,
        block_tokens=10,
        running_calls=0,
        waiting_calls=0,
    )


def test_a_burst_does_not_see_an_empty_machine() -> None:
    plane = ControlPlane(Window(WindowSettings(first=100)))
    plane.handle(sample(1000))  # 10,000 tokens
    entered = [  # 8,000 bytes are taken for 2,000 tokens: 20 % each, the limit is 90 %
        any(isinstance(it, Admit) for it in plane.handle(arrival(f"s{number}", 8000)))
        for number in range(6)
    ]
    assert entered == [True] * 4 + [False] * 2
    assert plane.pressure.kv_session_frac == pytest.approx(0.8)
    assert plane.why_not == "KV is at 80% and the next session's prompt does not fit"


def test_a_prompt_larger_than_the_machine_enters_when_it_is_alone() -> None:
    plane = ControlPlane(Window(WindowSettings(first=100)))
    plane.handle(sample(10))
    assert isinstance(plane.handle(arrival("whale", 1_000_000))[0], Admit)


def test_the_engines_account_takes_the_place_of_the_estimate() -> None:
    plane = ControlPlane(Window(WindowSettings(first=100)))
    plane.handle(sample(1000))
    session, call = SessionId("s"), CallId("c")
    plane.handle(arrival("s", 8000))
    plane.handle(ev.SessionAdmitted(at_s=1.0, session_id=session, why=""))
    plane.handle(ev.CallQueued(at_s=1.0, session_id=session, call_id=call, turn=1))
    plane.handle(
        ev.CallServed(
            at_s=2.0,
            session_id=session,
            call_id=call,
            prompt_tokens=2990,
            cached_tokens=0,
            computed_tokens=3000,
            made_tokens=10,
            queued_s=0.0,
            ok=True,
        )
    )
    assert plane.pressure.kv_session_frac == pytest.approx(0.3)
    plane.handle(ev.SessionEnded(at_s=3.0, session_id=session, why="test"))
    assert plane.pressure.kv_session_frac == 0.0
