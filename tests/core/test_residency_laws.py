"""Admission by resources: laws over every order of facts."""

import copy
from collections.abc import Callable, Mapping
from math import inf
from typing import ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from tests.core.test_control import Shell, arrived, finished, queued, served
from tests.core.test_residency import Gate

from mars.core import events as ev
from mars.core.admission import Admission
from mars.core.control import ControlPlane
from mars.core.ids import SessionId
from mars.core.quotas import Quotas
from mars.core.residency import Residency
from mars.core.settings import ResidencySettings, TenantLimits, TenantSettings


@given(
    patience=st.floats(0.0, 3.0),
    lives=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    small=st.integers(100, 150),
)
def test_nobody_is_passed_for_ever(patience: float, lives: list[int], small: int) -> None:
    """A session that needs the machine for itself, beside newcomers that never cease to come.

    They need five times 150 of 1000 tokens at most. Were they more than the machine can take, their
    lives would grow with their wait for it, and its patience with them.
    """
    assert steps_until_in(patience, lives, small) < 40


def test_without_patience_the_smaller_ones_pass_for_ever() -> None:
    """The law above can fail."""
    assert steps_until_in(1e9, [4, 5], 150) == 400


def steps_until_in(patience: float, lives: list[int], small: int) -> int:
    gate = Gate(patience=patience)
    gate.arrive(first=small)
    gate.ask()
    gate.arrive(big=950)
    ends: dict[str, float] = {"first": 5.0}
    for step in range(400):
        gate.now_s = float(step)
        for name in [name for name, end_s in ends.items() if end_s <= gate.now_s]:
            del ends[name]
            gate.end(name)
        gate.arrive(**{f"small{step}": small})
        entered = gate.ask()
        if "big" in entered:
            return step
        for name in entered:
            ends[name] = gate.now_s + lives[step % len(lives)]
    return 400


def summed(books: Residency) -> float:
    """What its active sessions occupy, from their own entries."""
    resident = idle = 0.0
    for stay in books._stays.values():
        if stay.calls or stay.is_held or stay.is_new:
            resident += stay.needs_tokens
        else:
            idle += stay.needs_tokens
    share = books._set.idle_share if books._holds else 1.0
    return resident + share * max(0.0, idle - books._set.host_share * books._host_tokens)


class Facts(Shell):
    """The laws of the control plane under it, and its own books beside the shell's."""

    admissions: ClassVar[Mapping[str, Callable[[], Admission]]] = {
        "residency": lambda: Residency(ResidencySettings(first=2)),
    }
    unfair: ClassVar[set[str]] = {"residency"}

    @property
    def books(self) -> Residency:
        assert isinstance(self.plane._admission, Residency)
        return self.plane._admission

    @rule(size=st.integers(0, 9000))
    def arrive_with_a_prompt(self, size: int) -> None:
        session = self.name()
        self.gate.append(session)
        self.stages[session] = "gated"
        self.tell(msgspec.structs.replace(arrived(session, self.now_s), prompt_bytes=size))

    @invariant()
    def calls_and_contexts_add_up(self) -> None:
        """Here newcomers have prompts: the pressure counts what they are expected to take."""
        self.plane.check()

    @invariant()
    def its_stays_are_the_active_sessions(self) -> None:
        assert sorted(self.books._stays) == sorted(self.active)

    @invariant()
    def its_calls_are_the_open_ones(self) -> None:
        for session, stay in self.books._stays.items():
            assert stay.calls == {call for call, of in self.calls.items() if of == session}

    @invariant()
    def what_is_occupied_adds_up(self) -> None:
        assert all(stay.needs_tokens >= 0.0 for stay in self.books._stays.values())
        assert self.books._occupied_tokens == pytest.approx(summed(self.books), abs=1e-6)

    @invariant()
    def what_it_remembers_to_save_work_changes_no_answer(self) -> None:
        anew, plane = copy.deepcopy(self.books), self.plane
        anew._fits_tokens = inf
        answers = [
            books.choose(plane.offered, plane._active.values(), plane.pressure, self.now_s)
            for books in (copy.deepcopy(self.books), anew)
        ]
        assert answers[0] == answers[1]

    def teardown(self) -> None:
        """When all have ended nothing is left."""
        if not hasattr(self, "plane"):
            return
        while self.stages:
            self.end_session_now(min(self.stages))
        assert (self.books._occupied_tokens, self.books._stays) == (0.0, {})

    def end_session_now(self, session: str) -> None:
        del self.stages[session]
        for where in (self.gate, self.active):
            if session in where:
                where.remove(session)
        self.orders = [order for order in self.orders if order.session_id != session]
        self.tell(ev.SessionEnded(at_s=self.now_s, session_id=SessionId(session), why=""))


class LimitedFacts(Facts):
    """Sessions of a tenant that may have two in, between those of one without a limit."""

    def make_plane(self) -> ControlPlane:
        limits = (TenantLimits(tenant="few", most_sessions=2),)
        return ControlPlane(
            self.admissions[self.admission](), quotas=Quotas(TenantSettings(limits=limits))
        )

    @rule(size=st.integers(0, 9000))
    def arrive_of_a_tenant(self, size: int) -> None:
        session = self.name()
        self.gate.append(session)
        self.stages[session] = "gated"
        fact = arrived(session, self.now_s)
        self.tell(msgspec.structs.replace(fact, prompt_bytes=size, tenant="few"))


TestLimitedFacts = LimitedFacts.TestCase
TestLimitedFacts.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

TestFacts = Facts.TestCase
TestFacts.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)

SESSIONS = st.sampled_from("abc")
CALLS = st.sampled_from("xyz")
ANY_FACTS = st.lists(
    st.one_of(
        st.builds(queued, SESSIONS, CALLS),
        st.builds(finished, SESSIONS, CALLS),
        st.builds(served, SESSIONS, CALLS, st.integers(0, 5000)),
        st.builds(
            lambda name: ev.KvHeld(
                at_s=0.0, session_id=SessionId(name), kv_tokens=1, keep_s=1.0, why=""
            ),
            SESSIONS,
        ),
        st.builds(
            lambda name: ev.KvReleased(
                at_s=0.0, session_id=SessionId(name), kv_tokens=1, held_s=1.0, why="returned"
            ),
            SESSIONS,
        ),
    ),
    max_size=40,
)


@given(
    facts=ANY_FACTS,
    late=ANY_FACTS,
    kv_tokens=st.none() | st.integers(10, 10_000),
    host_tokens=st.integers(0, 10_000),
)
def test_no_order_of_facts_breaks_the_books(
    facts: list[ev.SessionEvent],
    late: list[ev.SessionEvent],
    kv_tokens: int | None,
    host_tokens: int,
) -> None:
    """Also orders that no control plane would pass on: doubled, and from before the admission."""
    gate = Gate(kv_tokens=kv_tokens, host_tokens=host_tokens, first=3)
    gate.arrive(a=10, b=20, c=700)
    for number, fact in enumerate(facts):
        gate.residency.observe(fact)
        if number % 5 == 0:
            gate.ask()
        assert gate.occupied == pytest.approx(summed(gate.residency), abs=1e-6)
    for name in "abc":
        gate.end(name)
    for fact in late:
        gate.residency.observe(fact)
    assert (gate.occupied, gate.residency._stays) == (0.0, {})
    gate.arrive(next=1e6)
    assert gate.ask() == ["next"]
