"""Children at the gate: none of them waits there while its parent is past it."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_control import ADMISSIONS, admitted, arrived, ended, moves, queued, served

from mars.core import events as ev
from mars.core.admission import Admission
from mars.core.control import ControlPlane
from mars.core.decisions import Admit
from mars.core.family import start_s
from mars.core.ids import SessionId
from mars.core.residency import Residency
from mars.core.settings import ResidencySettings, WindowSettings
from mars.core.window import Window


def child(name: str, parent: str, at_s: float = 0.0, prompt_bytes: int = 0) -> ev.SessionArrived:
    return ev.SessionArrived(
        at_s=at_s,
        session_id=SessionId(name),
        parent_id=SessionId(parent),
        prompt_bytes=prompt_bytes,
    )


def names(plane: ControlPlane, event: ev.Event) -> list[str]:
    """Who enters with this fact; their admissions are told, as a shell does."""
    entered = [it.session_id for it in moves(plane.handle(event)) if isinstance(it, Admit)]
    for name in entered:
        plane.handle(admitted(name))
    plane.check()
    return [str(name) for name in entered]


def one_at_a_time() -> ControlPlane:
    return ControlPlane(Window(WindowSettings(first=1)))


def test_a_child_enters_a_full_house_with_its_parent_s_name_as_the_reason() -> None:
    plane = one_at_a_time()
    assert names(plane, arrived("root")) == ["root"]
    assert names(plane, arrived("stranger")) == []
    (entered,) = moves(plane.handle(child("sub", "root")))
    assert isinstance(entered, Admit)
    assert (entered.session_id, "root" in entered.why) == ("sub", True)
    plane.handle(admitted("sub"))
    assert names(plane, child("sub of sub", "sub")) == ["sub of sub"]
    assert plane.active == 3, "they count"


def test_a_child_that_came_before_its_parent_was_in_enters_with_it() -> None:
    plane = one_at_a_time()
    names(plane, arrived("first"))
    for event in (arrived("root"), child("sub", "root"), child("sub of sub", "sub")):
        assert names(plane, event) == []
    assert names(plane, ended("first")) == ["root", "sub", "sub of sub"]


@pytest.mark.parametrize("parent", ["nobody", "past"])
def test_the_child_of_nobody_who_is_here_waits_like_any_other(parent: str) -> None:
    plane = one_at_a_time()
    names(plane, arrived("past"))
    names(plane, arrived("first"))
    names(plane, ended("past"))
    assert names(plane, child("sub", parent)) == []
    assert names(plane, ended("first")) == ["sub"]


def test_what_a_child_occupies_keeps_newcomers_out() -> None:
    gate = Residency(ResidencySettings(first=1, overcommit=1.0))
    plane = ControlPlane(gate)
    names(plane, arrived("root"))
    names(plane, child("sub", "root", prompt_bytes=4000))
    plane.handle(queued("sub", "c"))
    plane.handle(served("sub", "c", 1000))
    assert gate._stays[SessionId("sub")].needs_tokens == 1001.0, "prompt and answer"
    life_s = gate._life_s
    plane.handle(ended("sub", 500.0))
    assert gate._life_s == life_s, "a part of its parent's life"
    assert list(gate._stays) == ["root"]


KINDS = ("open", "window", "residency", "last first")


@given(
    kind=st.sampled_from(KINDS),
    moments=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=30),
)
def test_no_child_waits_while_its_parent_is_in(
    kind: str, moments: list[tuple[int, int, bool]]
) -> None:
    """Whatever comes and goes: sessions, children of those that are here, and ends."""
    make: Callable[[], Admission] = ADMISSIONS[kind]
    plane, parents = ControlPlane(make()), dict[str, str]()
    for number, (who, whose, ends) in enumerate(moments):
        here = sorted(map(str, plane.sessions))
        name, parent = f"s{number}", f"s{whose}"
        if ends and here:
            names(plane, ended(here[who % len(here)]))
        elif parent in here:
            parents[name] = parent
            names(plane, child(name, parent))
        else:
            names(plane, arrived(name))
        waiting = {str(session_id) for session_id in plane._gate}
        active = {str(session_id) for session_id in plane._active}
        assert not {name for name in waiting if parents.get(name) in active}


@given(st.lists(st.tuples(st.floats(0.0, 9.0), st.integers(0, 9)), min_size=1, max_size=10))
def test_a_child_has_the_start_of_its_root(born: list[tuple[float, int]]) -> None:
    """Session k is started by one of those before it, or by nobody."""
    starts_s, roots, at_s = dict[SessionId, float](), dict[str, float](), 0.0
    for number, (passed_s, whose) in enumerate(born):
        at_s += passed_s
        name, parent = f"s{number}", f"s{whose}"
        roots[name] = roots.get(parent, at_s)
        event = child(name, parent, at_s)
        starts_s[event.session_id] = start_s(event, starts_s)
    assert starts_s == roots
