"""Facts of calls that the engine names itself come under our names."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.gateway import names
from mars.gateway.names import EngineNames

A, B = SessionId("a"), SessionId("b")


def started(session: SessionId, name: str, at_s: float) -> ev.CallStarted:
    return ev.CallStarted(
        at_s=at_s, session_id=session, call_id=CallId(name), prompt_tokens=5, cached_tokens=0
    )


def served(session: SessionId, name: str, at_s: float) -> ev.CallServed:
    return ev.CallServed(
        at_s=at_s, session_id=session, call_id=CallId(name), prompt_tokens=5, cached_tokens=0,
        computed_tokens=5, made_tokens=1, queued_s=0.0, ok=True,
    )  # fmt: skip


def heard(known: EngineNames, fact: ev.CallStarted | ev.CallServed) -> str:
    mine = known.ours(fact)
    assert isinstance(mine, type(fact))
    assert msgspec.structs.replace(mine, call_id=fact.call_id) == fact, "nothing else changes"
    return mine.call_id


def test_all_facts_of_a_call_come_under_our_name() -> None:
    known = EngineNames()
    known.expect(A, CallId("mine"), 1.0)
    assert heard(known, started(A, "resp_x", 2.0)) == "mine"
    assert heard(known, started(A, "resp_x", 3.0)) == "mine", "again, after a preemption"
    known.close(A, CallId("mine"), 4.0)
    assert heard(known, served(A, "resp_x", 5.0)) == "mine", "the answer overtook the account"
    assert heard(known, served(A, "resp_x", 6.0)) == "resp_x", "accounted for is forgotten"


def test_another_session_s_call_keeps_its_name() -> None:
    known = EngineNames()
    known.expect(A, CallId("mine"), 1.0)
    assert heard(known, started(B, "resp_x", 2.0)) == "resp_x"
    sample = ev.SessionEnded(at_s=1.0, session_id=A, why="")
    assert known.ours(sample) is sample


def test_a_call_that_the_engine_refused_gives_its_place_to_nobody() -> None:
    known = EngineNames()
    known.expect(A, CallId("refused"), 1.0)
    known.close(A, CallId("refused"), 1.5)
    known.expect(A, CallId("next"), 2.0)
    assert heard(known, started(A, "resp_x", 2.5)) == "next"


def test_late_facts_of_an_earlier_call_are_not_the_next_one_s() -> None:
    known = EngineNames()
    known.expect(A, CallId("first"), 1.0)
    known.close(A, CallId("first"), 2.0)
    known.expect(A, CallId("second"), 2.1)
    assert heard(known, started(A, "resp_1", 1.5)) == "first"
    assert heard(known, started(A, "resp_2", 2.2)) == "second"


@given(st.lists(st.sampled_from(["chat", "refused", "served", "quick"]), max_size=30), st.data())
def test_calls_made_in_turn_are_never_mistaken(kinds: list[str], data: st.DataObject) -> None:
    """However late the facts come, in the order in which the engine sends them."""
    known, facts, now_s = EngineNames(), list[tuple[str, ev.CallStarted | ev.CallServed]](), 0.0
    for number, kind in enumerate(kinds):
        ours = f"call{number}"
        theirs = ours if kind == "chat" else f"resp_{number}"
        if kind != "chat":
            known.expect(A, CallId(ours), now_s + 1)
        if kind != "refused":
            facts += [(ours, started(A, theirs, now_s + 2)), (ours, served(A, theirs, now_s + 3))]
        known.close(A, CallId(ours), now_s + (2.5 if kind == "quick" else 4))
        now_s += 5
        for ours, fact in facts[: data.draw(st.integers(0, len(facts)))]:
            assert heard(known, fact) == ours
            facts.pop(0)
    assert [heard(known, fact) for _, fact in facts] == [ours for ours, _ in facts]


def test_what_is_remembered_is_bounded() -> None:
    known = EngineNames()
    for number in range(2 * names._MOST):
        session = SessionId(f"s{number % 7}" if number % 2 else f"anon{number}")
        known.expect(session, CallId(f"c{number}"), number)
        if number % 3 == 0:
            known.ours(started(session, f"resp_{number}", number))
    assert known._count == sum(map(len, known._nameless.values())) <= names._MOST
    assert len(known._ours) <= names._MOST
