"""Spans of facts that come in any order: each told once, and nothing kept of what is over."""

from collections import Counter
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core import events as ev
from mars.core.ids import CallId, SessionId, ToolId
from mars.stream import fold as fold_module
from mars.stream.fold import SpanFold
from mars.stream.spans import Span

A, B = SessionId("a"), SessionId("b")


def arrived(at_s: float, session: str = "a", parent: str | None = None) -> ev.SessionArrived:
    parent_id = SessionId(parent) if parent else None
    return ev.SessionArrived(at_s=at_s, session_id=SessionId(session), parent_id=parent_id)


def ended(at_s: float, session: str = "a") -> ev.SessionEnded:
    return ev.SessionEnded(at_s=at_s, session_id=SessionId(session), why="done")


def queued(at_s: float, call: str = "c", session: str = "a") -> ev.CallQueued:
    return ev.CallQueued(
        at_s=at_s, session_id=SessionId(session), call_id=CallId(call), turn=1
    )  # fmt: skip


def finished(at_s: float, call: str = "c", session: str = "a") -> ev.CallFinished:
    return ev.CallFinished(
        at_s=at_s, session_id=SessionId(session), call_id=CallId(call), ok=True, status=200
    )  # fmt: skip


def served(at_s: float, call: str = "c", session: str = "a") -> ev.CallServed:
    return ev.CallServed(
        at_s=at_s, session_id=SessionId(session), call_id=CallId(call), prompt_tokens=7,
        cached_tokens=0, computed_tokens=7, made_tokens=1, queued_s=0.0, ok=True,
    )  # fmt: skip


def tool_queued(at_s: float, tool: str = "t", session: str = "a") -> ev.ToolQueued:
    return ev.ToolQueued(
        at_s=at_s, session_id=SessionId(session), tool_id=ToolId(tool), tool="ls", cores=1
    )  # fmt: skip


def tool_finished(at_s: float, tool: str = "t", session: str = "a") -> ev.ToolFinished:
    return ev.ToolFinished(
        at_s=at_s, session_id=SessionId(session), tool_id=ToolId(tool), tool="ls", run_s=1.0,
        cpu_s=1.0, peak_memory_bytes=1, exit_code=0,
    )  # fmt: skip


def folded(*events: ev.Event) -> tuple[SpanFold, list[Span]]:
    told: list[Span] = []
    fold = SpanFold(told.append)
    for event in events:
        fold.observe(event)
    return fold, told


MAKERS = [arrived, ended, queued, finished, served, tool_queued, tool_finished]
steps = st.lists(st.tuples(st.sampled_from(MAKERS), st.integers(0, 2), st.integers(0, 2)))


@given(steps)
def test_each_span_is_told_once_and_nothing_is_left(steps: list[tuple[object, int, int]]) -> None:
    clock = count(1)
    events: list[ev.Event] = []
    for make, session, item in steps:
        name, at_s = f"s{session}", float(next(clock)) / 10
        if make is arrived:
            events.append(arrived(at_s, name, f"s{item}"))
        elif make is ended:
            events.append(ended(at_s, name))
        else:
            events.append(make(at_s, f"i{item}", name))  # type: ignore[operator]
    fold, told = folded(*events)
    for session in range(3):
        for item in range(3):
            fold.observe(finished(next(clock), f"i{item}", f"s{session}"))
            fold.observe(tool_finished(next(clock), f"i{item}", f"s{session}"))
        fold.observe(ended(next(clock), f"s{session}"))
    fold.look(next(clock) + fold_module._LATE_S)
    assert fold.open == 0
    names = Counter(span.name for span in told)
    known: set[str] = set()
    due: Counter[str] = Counter()
    for event in events:
        if isinstance(event, ev.SessionArrived):
            known.add(event.session_id)
            due["invoke_agent"] += 1
        elif isinstance(event, ev.CallQueued | ev.ToolQueued) and event.session_id in known:
            due["chat" if isinstance(event, ev.CallQueued) else "execute_tool ls"] += 1
    assert names == due
    assert len({span.place.span_id for span in told}) == len(told)
    assert all(span.start_s <= span.end_s for span in told)
    before = len(told)
    fold.close()
    assert len(told) == before


def test_a_call_waits_for_the_engine_s_account_also_after_its_session_s_end() -> None:
    fold, told = folded(arrived(1), queued(2), finished(3), ended(4))
    assert [span.name for span in told] == ["invoke_agent"]
    fold.observe(served(5))
    assert (told[1].name, told[1].end_s) == ("chat", 3)
    assert told[1].values["gen_ai.usage.input_tokens"] == 7
    assert told[1].above == told[0].place
    assert fold.open == 0


def test_an_account_that_comes_first_waits_for_the_end() -> None:
    fold, told = folded(arrived(1), queued(2), served(3))
    assert told == []
    fold.observe(finished(4))
    assert told[0].values["gen_ai.usage.output_tokens"] == 1


def test_without_an_account_it_goes_after_a_time_as_it_is() -> None:
    fold, told = folded(arrived(1), queued(2), finished(3))
    fold.look(3 + fold_module._LATE_S - 0.1)
    assert told == []
    fold.look(3 + fold_module._LATE_S)
    assert (told[0].end_s, "gen_ai.usage.input_tokens" in told[0].values) == (3, False)
    fold.observe(served(20))  # too late
    assert len(told) == 1


@pytest.mark.parametrize("bound", ["_MOST_LATE", "_MOST_TOOLS"])
def test_of_ends_that_are_never_heard_no_more_is_kept_than_the_bound(bound: str) -> None:
    most = getattr(fold_module, bound)
    fold, told = folded(arrived(1))
    for number in range(most + 100):
        name = f"i{number}"
        if bound == "_MOST_LATE":
            fold.observe(queued(2, name))
            fold.observe(finished(2, name))
        else:
            fold.observe(tool_queued(2, name))
    assert fold.open == most + 1
    assert len(told) == 100


def test_a_child_hangs_below_its_parent_as_long_as_that_is_remembered() -> None:
    fold, told = folded(arrived(1), arrived(2, "b", "a"), ended(3))
    fold.observe(arrived(4, "c", "a"))
    for number in range(fold_module._MOST_LEFT):
        fold.observe(arrived(5, f"n{number}"))
        fold.observe(ended(6, f"n{number}"))
    fold.observe(arrived(7, "late", "a"))
    fold.close()
    of = {span.values["gen_ai.conversation.id"]: span for span in told}
    assert of["b"].above == of["c"].above == of["a"].place
    assert of["b"].place.trace_id == of["c"].place.trace_id == of["a"].place.trace_id
    assert of["late"].above is None
    assert not fold._left


def test_a_session_that_was_past_the_gate_before_a_restart_goes_on_in_its_trace() -> None:
    before, told_before = folded(arrived(1), tool_queued(2))
    before.close()
    again = ev.SessionArrived(at_s=1, session_id=A, was_in=True)
    let_in = ev.SessionAdmitted(at_s=9, session_id=A, why="it was in", by="restart")
    after, told_after = folded(again, let_in, tool_queued(10))
    after.close()
    assert [span.name for span in told_after] == ["execute_tool ls", "invoke_agent"]
    assert told_after[1].place == told_before[1].place
    assert told_after[0].above == told_before[0].above
    assert told_after[0].place != told_before[0].place
