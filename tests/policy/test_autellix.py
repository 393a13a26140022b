"""Autellix by hand: queues, quanta, promotion, and the time that `stays` names."""

from math import inf, nextafter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.policy.autellix import LeastServed
from mars.policy.base import FOR_EVER, CallView, EngineEvent, Key
from mars.policy.settings import AutellixSettings

A, B = SessionId("a"), SessionId("b")


def started(
    at_s: float, *, session: SessionId = A, call: str = "c", cached_tokens: int = 0
) -> ev.CallStarted:
    return ev.CallStarted(
        at_s=at_s,
        session_id=session,
        call_id=CallId(call),
        prompt_tokens=cached_tokens + 1,
        cached_tokens=cached_tokens,
    )


def served(
    at_s: float,
    *,
    session: SessionId = A,
    call: str = "c",
    computed_tokens: int = 0,
    queued_s: float = 0.0,
) -> ev.CallServed:
    return ev.CallServed(
        at_s=at_s,
        session_id=session,
        call_id=CallId(call),
        prompt_tokens=computed_tokens,
        cached_tokens=0,
        computed_tokens=computed_tokens,
        made_tokens=1,
        queued_s=queued_s,
        ok=True,
    )


def ended(session: SessionId = A) -> ev.SessionEnded:
    return ev.SessionEnded(at_s=0.0, session_id=session, why="test")


def view(
    session: SessionId = A, *, queued_s: float = 100.0, prompt_tokens: int = 0, kv_tokens: int = 0
) -> CallView:
    return CallView(
        CallId("next"), session, queued_s, 0.0, prompt_tokens=prompt_tokens, kv_tokens=kv_tokens
    )


def after(*events: EngineEvent) -> LeastServed:
    ordering = LeastServed(AutellixSettings(cut_chunks=True))
    for event in events:
        ordering.observe(event)
    return ordering


def one_call(tokens: int, took_s: float = 10.0, queued_s: float = 0.0) -> LeastServed:
    """A program of one call so far."""
    return after(started(50.0), served(50.0 + took_s, computed_tokens=tokens, queued_s=queued_s))


@pytest.mark.parametrize(
    ("tokens", "queue", "quantum_tokens"),
    [
        (0, 0, 2048),
        (2047, 0, 2048),
        (2048, 1, 1024),
        (8191, 1, 1024),
        (8192, 2, 512),
        (32767, 2, 512),
        (32768, 3, 256),
        (10**7, 3, 256),
    ],
)
def test_the_queue_is_that_of_the_service_so_far(
    tokens: int, queue: int, quantum_tokens: int
) -> None:
    ordering = one_call(tokens)
    assert ordering.run_key(view(), 100.0) == (queue, 100.0)
    assert ordering.victim_key(view(), 100.0) == (queue, 100.0)
    assert ordering.chunk_tokens(view(), 0.5) == quantum_tokens
    assert ordering.run_key(view(B), 100.0) == (0, 100.0)


def test_service_adds_up_over_calls_in_a_row_but_not_over_parallel_ones() -> None:
    first = (started(0.0, call="1"), served(1.0, call="1", computed_tokens=5000))
    row = after(*first, started(2.0, call="2"), served(3.0, call="2", computed_tokens=5000))
    assert row.run_key(view(), 100.0) == (2, 100.0), "10,000"
    parallel = after(
        started(0.0, call="1"),
        started(0.0, call="2"),
        served(1.0, call="1", computed_tokens=5000),
        served(1.0, call="2", computed_tokens=4000),
    )
    assert parallel.run_key(view(), 100.0) == (1, 100.0), "max(5,000, 0 + 4,000)"


def test_a_program_that_is_over_is_forgotten() -> None:
    ordering = one_call(5000)
    ordering.observe(ended())
    assert ordering.run_key(view(), 100.0) == (0, 100.0)
    late = after(started(0.0), ended(), served(1.0, computed_tokens=5000))
    assert late.run_key(view(), 100.0) == (0, 100.0)


def test_a_call_is_promoted_when_it_has_waited_twice_its_service() -> None:
    """W = 5 + wait, T = 10 s: at the top once the wait is more than 2 * 10 - 5 = 15 s."""
    ordering = one_call(5000, took_s=10.0, queued_s=5.0)
    assert ordering.run_key(view(), 115.0) == (1, 100.0)
    assert ordering.run_key(view(), 115.1) == (0, 100.0)
    assert ordering.stays(view(), 101.0).until_s == 115.0
    assert ordering.stays(view(), 115.1) == FOR_EVER
    assert ordering.stays(view(B), 101.0) == FOR_EVER, "at the top already"


def test_the_wait_of_a_promoted_call_is_forgiven() -> None:
    """It waited 16 s, one more than it had to: the next one again has 2 * (10 + 10) - 5 = 35 s."""
    ordering = one_call(5000, took_s=10.0, queued_s=5.0)
    ordering.observe(started(116.0, call="2"))
    ordering.observe(served(126.0, call="2", computed_tokens=1000, queued_s=16.0))
    assert ordering.stays(view(queued_s=200.0), 200.0).until_s == 235.0
    waited = one_call(5000, took_s=10.0, queued_s=5.0)
    waited.observe(started(114.0, call="2"))
    waited.observe(served(124.0, call="2", computed_tokens=1000, queued_s=14.0))
    assert waited.stays(view(queued_s=200.0), 200.0).until_s == 221.0


def test_a_long_prompt_falls_a_queue_with_each_quantum() -> None:
    ordering = after(started(100.0, call="next", cached_tokens=1000))
    computed = [1, 2047, 2048, 3071, 3072, 3583, 3584, 90_000]
    running = [view(prompt_tokens=50_000, kv_tokens=1000 + tokens) for tokens in computed]
    assert [ordering.run_key(v, 100.0)[0] for v in running] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [ordering.chunk_tokens(v, 0.0) for v in running[::3]] == [2048, 1024, 256]


def test_a_decode_keeps_its_key() -> None:
    ordering = after(started(100.0, call="next"))
    decode = view(prompt_tokens=2000, kv_tokens=2001)
    decode.is_decode = True
    key = ordering.run_key(decode, 100.0)
    decode.kv_tokens = 60_000
    assert ordering.run_key(decode, 1e6) == key == (0, 100.0)


def test_a_running_call_stays_promoted_and_is_not_promoted_while_it_runs() -> None:
    for started_s, queue in ((121.0, 0), (119.0, 1)):
        ordering = one_call(5000, took_s=10.0)
        ordering.observe(started(started_s, call="next"))
        running = view(prompt_tokens=500, kv_tokens=100)
        assert ordering.run_key(running, started_s)[0] == queue
        assert ordering.run_key(running, 1e6)[0] == queue
        assert ordering.chunk_tokens(running, 0.0) == (2048, 1024)[queue]


def test_settings_that_do_not_fit_are_named() -> None:
    for given_, named in (
        ({"level_tokens": [5, 5, 6]}, "`level_tokens` must rise"),
        ({"level_tokens": [5]}, "`quantum_tokens` must have one more"),
        ({"quantum_tokens": [4, 3, 2, 0]}, r">= 1.*\$\.quantum_tokens"),
        ({"beta": 0}, r"> 0.0.*\$\.beta"),
    ):
        with pytest.raises(msgspec.ValidationError, match=named):
            msgspec.convert(given_, AutellixSettings)


SECONDS = st.floats(0.0, 1e4)
CALLS = st.tuples(SECONDS, SECONDS, st.integers(0, 50_000))
"""(waited, took, tokens)"""


def told(session: SessionId, calls: list[tuple[float, float, int]]) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    now_s = 0.0
    for number, (wait_s, took_s, tokens) in enumerate(calls):
        now_s += wait_s
        events.append(started(now_s, session=session, call=str(number)))
        now_s += took_s
        called = str(number)
        events.append(
            served(now_s, session=session, call=called, computed_tokens=tokens, queued_s=wait_s)
        )
    return events


@given(calls=st.lists(CALLS, max_size=6), queued_s=SECONDS, waited=SECONDS, part=st.floats(0, 1))
def test_a_key_stays_as_long_as_it_says(
    calls: list[tuple[float, float, int]], queued_s: float, waited: float, part: float
) -> None:
    ordering = after(*told(A, calls))
    call, now_s = view(queued_s=queued_s), queued_s + waited
    key, until_s = ordering.run_key(call, now_s), ordering.stays(call, now_s).until_s
    assert until_s >= now_s
    between_s = 1e9 if until_s == inf else min(until_s, now_s + part * (until_s - now_s))
    assert ordering.run_key(call, between_s) == key
    if until_s < inf:
        assert ordering.run_key(call, until_s) == key
        assert ordering.run_key(call, nextafter(until_s, inf)) == (0, queued_s) < key


@given(calls=st.lists(CALLS, max_size=4), others=st.lists(CALLS, max_size=4), now_s=SECONDS)
def test_a_program_changes_no_key_of_another(
    calls: list[tuple[float, float, int]], others: list[tuple[float, float, int]], now_s: float
) -> None:
    ordering = after(*told(A, calls))
    fleet = [view(), view(prompt_tokens=9000, kv_tokens=4000)]

    def keys() -> list[tuple[Key, int | None]]:
        return [(ordering.run_key(v, now_s), ordering.chunk_tokens(v, 0.0)) for v in fleet]

    before = keys()
    for event in [*told(B, others), ended(B)]:
        ordering.observe(event)
        assert keys() == before


def test_the_paper_cuts_no_prompts() -> None:
    assert LeastServed(AutellixSettings()).chunk_tokens(view(), 0.5) is None
