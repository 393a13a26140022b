"""Who gets cores next: learned, bounded, and the session's place among equals."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core import events as ev
from mars.core.ids import SessionId, ToolId
from mars.policy import tool_order
from mars.policy.settings import ToolOrderSettings
from mars.policy.tool_order import (
    Fifo,
    ShortestFirst,
    ToolCallView,
    ToolLine,
    ToolOrder,
    ToolOrderEvent,
)


def call(
    name: str, tool: str = "t", cores: int = 1, queued_s: float = 0.0, arrived_s: float = 0.0
) -> ToolCallView:
    return ToolCallView(ToolId(name), SessionId("s"), tool, cores, queued_s, arrived_s)


def finished(
    tool: str, run_s: float, exit_code: int | None = 0, why: str = "ended"
) -> ev.ToolEvent:
    return ev.ToolFinished(
        at_s=0.0,
        session_id=SessionId("s"),
        tool_id=ToolId("t"),
        tool=tool,
        run_s=run_s,
        cpu_s=0.0,
        peak_memory_bytes=0,
        exit_code=exit_code,
        why=why,  # type: ignore[arg-type]
    )


def shortest(runs: dict[str, Iterable[float]], patience_s: float = 1e6) -> ShortestFirst:
    order = ShortestFirst(ToolOrderSettings(patience_s=patience_s, tool_samples=2))
    for tool, times_s in runs.items():
        for run_s in times_s:
            order.observe(finished(tool, run_s))
    return order


def ranked(order: ToolOrder, *calls: ToolCallView, now_s: float) -> list[str]:
    return [c.tool_id for c in sorted(calls, key=lambda c: order.key(c, now_s))]


def test_fifo_knows_nothing_but_who_asked_first() -> None:
    order = Fifo()
    order.observe(finished("quick", 0.1))
    calls = call("b", queued_s=2.0), call("a", queued_s=1.0), call("c", "quick", queued_s=3.0)
    assert ranked(order, *calls, now_s=9.0) == ["a", "b", "c"]


def test_few_core_seconds_go_first() -> None:
    order = shortest({"build": [20.0] * 2, "file": [0.1] * 2})
    calls = call("wide", "build", cores=4), call("build", "build"), call("file", "file", cores=4)
    assert ranked(order, *calls, now_s=1.0) == ["file", "build", "wide"]
    assert order.expected_core_s(calls[0]) == 80.0


def test_among_equals_the_older_session_then_who_asked_first() -> None:
    order = shortest({"t": [1.0] * 2})
    calls = (
        call("young", queued_s=1.0, arrived_s=7.0),
        call("old, later", queued_s=3.0, arrived_s=5.0),
        call("old", queued_s=2.0, arrived_s=5.0),
    )
    assert ranked(order, *calls, now_s=4.0) == ["old", "old, later", "young"]


def test_it_is_the_arithmetic_mean_that_counts() -> None:
    """A tool that is mostly short and seldom very long delays those behind it by its mean."""
    rare = [0.1] * 9 + [200.0]
    order = shortest({"heavy tail": rare, "steady": [5.0] * 10})
    assert math.prod(rare) ** 0.1 < 1.0
    calls = call("tail", "heavy tail"), call("steady", "steady")
    assert ranked(order, *calls, now_s=1.0) == ["steady", "tail"]


def test_a_tool_hardly_known_counts_as_the_mean_of_all() -> None:
    order = shortest({"short": [1.0] * 3, "long": [9.0] * 3, "new": [100.0]})
    assert order.expected_core_s(call("x", "new")) == pytest.approx((3.0 + 27.0 + 100.0) / 7)
    assert order.expected_core_s(call("x", "unheard of", cores=2)) == pytest.approx(2 * 130.0 / 7)
    order.observe(finished("new", 100.0))
    assert order.expected_core_s(call("x", "new")) == 100.0


def test_before_anything_is_known_it_is_first_come_first_served() -> None:
    order = shortest({})
    calls = call("wide", cores=4, queued_s=1.0, arrived_s=9.0), call("late", queued_s=2.0)
    assert ranked(order, *calls, now_s=3.0) == ["wide", "late"]


def test_the_mean_forgets() -> None:
    order = shortest({"t": [1.0] * 200 + [5.0] * 200})
    assert order.expected_core_s(call("x")) == pytest.approx(5.0, rel=0.02)


def test_what_did_not_run_to_its_end_teaches_nothing_but_a_timeout_does() -> None:
    order = shortest({"t": [4.0] * 2})
    order.observe(finished("t", 0.0, None, "cancelled"))
    order.observe(finished("t", 0.1, 143, "cancelled"))
    assert order.expected_core_s(call("x")) == 4.0
    order.observe(finished("t", 10.0, 143, "timeout"))
    assert order.expected_core_s(call("x")) == 6.0


@given(
    st.lists(st.floats(0.0, 100.0), min_size=6, max_size=6),
    st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.floats(0.0, 1e4)),
    st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.floats(0.0, 1e4)),
    st.floats(0.1, 100.0),
    st.floats(0.0, 1e6),
)
def test_nobody_is_passed_by_who_asked_after_it_was_due(
    runs_s: list[float],
    first: tuple[str, int, float],
    other: tuple[str, int, float],
    patience_s: float,
    later_s: float,
) -> None:
    order = shortest(dict(zip("abc", zip(runs_s[:3], runs_s[3:], strict=True))), patience_s)  # noqa: B905
    one = call("one", *first, arrived_s=1e9)
    due_s = one.queued_s + patience_s * order.expected_core_s(one)
    two = call("two", other[0], other[1], math.nextafter(due_s, math.inf) + other[2])
    now_s = two.queued_s + later_s
    assert order.key(one, now_s) < order.key(two, now_s)


class Seen:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[ToolCallView, float]] = []

    def observe(self, event: ToolOrderEvent) -> None: ...

    def key(self, call: ToolCallView, now_s: float) -> tuple[float, ...]:
        self.calls.append((call, now_s))
        return Fifo().key(call, now_s)


def queued(at_s: float, session: str, name: str) -> ev.ToolQueued:
    return ev.ToolQueued(
        at_s=at_s, session_id=SessionId(session), tool_id=ToolId(name), tool="sh", cores=2
    )


def test_the_line_shows_a_call_as_the_facts_do() -> None:
    line = ToolLine(order := Seen())
    line.observe(ev.SessionArrived(at_s=1.0, session_id=SessionId("s")))
    line.observe(queued(5.0, "s", "a"))
    line.observe(queued(6.0, "unheard of", "b"))
    assert [line.rank(ToolId("a")), line.rank(ToolId("b"))] == [(5.0,), (6.0,)]
    expected = [
        ToolCallView(ToolId("a"), SessionId("s"), "sh", 2, 5.0, 1.0),
        ToolCallView(ToolId("b"), SessionId("unheard of"), "sh", 2, 6.0, 6.0),
    ]
    assert order.calls == [(view, 6.0) for view in expected]


def test_a_session_keeps_its_place_until_it_ends() -> None:
    line = ToolLine(order := Seen())
    for at_s, name in ((1.0, "a"), (2.0, "b")):
        line.observe(queued(at_s, "s", name))
    line.observe(ev.SessionEnded(at_s=3.0, session_id=SessionId("s"), why="done"))
    line.observe(queued(4.0, "s", "c"))
    for name in "abc":
        line.rank(ToolId(name))
    assert [view.session_arrived_s for view, _ in order.calls] == [1.0, 1.0, 4.0]


def test_the_line_does_not_grow_with_the_sessions_it_has_seen() -> None:
    line = ToolLine(Fifo())
    most = tool_order._MOST_SESSIONS
    for number in range(most + 100):
        line.observe(queued(float(number), "regular" if number % 2 else str(number), str(number)))
        line.observe(
            ev.ToolStarted(
                at_s=float(number),
                session_id=SessionId("s"),
                tool_id=ToolId(str(number)),
                tool="sh",
                cores=(0,),
                wait_s=0.0,
            )
        )
    for number in range(most):
        line.observe(ev.SessionArrived(at_s=1e6 + number, session_id=SessionId(f"new {number}")))
        if number == most // 2:
            line.observe(queued(1e6 + number, "regular", "again"))
    assert len(line._arrived_s) == most
    assert line._arrived_s[SessionId("regular")] == 1.0, "who comes again is not forgotten"
    assert list(line._calls) == ["again"]
