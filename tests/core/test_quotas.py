"""Limits of tenants: nobody has more than it may, and nobody else waits for that."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.core.test_failsafe import ADMISSIONS, SIGHTED
from tests.policy.fleet import Fleet

from mars.core import events as ev
from mars.core.admission import Admission, Open
from mars.core.quotas import Quotas
from mars.core.residency import Residency
from mars.core.settings import (
    GateSettings,
    Limits,
    ResidencySettings,
    TenantLimits,
    TenantSettings,
    WindowSettings,
)
from mars.core.window import Window

EVERYBODY: dict[str, Callable[[], Admission]] = {"open": Open, **ADMISSIONS}
every_admission = pytest.mark.parametrize("make", EVERYBODY.values(), ids=EVERYBODY)
BOUNDED = GateSettings(blind_s=1e9, wait_s=60.0)


def quotas(others: int | None = None, **most: int) -> Quotas:
    limits = tuple(TenantLimits(tenant=name, most_sessions=of) for name, of in most.items())
    return Quotas(TenantSettings(limits=limits, other_limits=Limits(most_sessions=others)))


class Families:
    """Who has a place, told by nothing but the facts."""

    def __init__(self, told: Sequence[ev.Event]) -> None:
        self.tenants: dict[str, str] = {}
        self.parents: dict[str, str | None] = {}
        self.root: dict[str, str] = {}
        for fact in told:
            match fact:
                case ev.SessionArrived():
                    self.tenants[fact.session_id] = fact.tenant
                    self.parents[fact.session_id] = fact.parent_id
                case ev.SessionAdmitted():
                    parent = self.parents[fact.session_id]
                    own = self.root.get(fact.session_id, fact.session_id)
                    self.root[fact.session_id] = self.root.get(parent or "", own)
                case ev.SessionEnded():
                    self.root.pop(fact.session_id, None)
                case _:
                    pass

    def has_place_of_parent(self, name: str) -> bool:
        """It takes no other, even where its parent is paused and it waits at the gate itself."""
        parent = self.parents[name]
        return parent in self.root and self.tenants[parent] == self.tenants[name]

    def of(self, tenant: str) -> int:
        return len({root for name, root in self.root.items() if self.tenants[name] == tenant})


step = st.tuples(
    st.sampled_from(["arrive", "arrive", "child", "end", "call", "sample", "wait"]),
    st.integers(0, 100),
)


def play(fleet: Fleet, steps: Sequence[tuple[str, int]], tenants: Sequence[str]) -> None:
    """Each step, by its number, of whom it can be of."""
    for count, (what, number) in enumerate(steps):
        here = sorted(fleet.plane.sessions)
        inside = [name for name in here if fleet.phases[name] == "acting"]
        name = f"s{count}"
        if what == "arrive":
            fleet.arrive(name, tokens=number * 20, tenant=tenants[number % len(tenants)])
        elif what == "child" and here:
            parent = here[number % len(here)]
            fleet.arrive(name, tenant=fleet.plane.sessions[parent].tenant, parent=parent)
        elif what == "end" and here:
            fleet.end(here[number % len(here)])
        elif what == "call" and inside:
            fleet.call(inside[number % len(inside)], number * 20)
        elif what == "sample":
            fleet.sample(fleet.kv_tokens * number // 100)
        elif what == "wait":
            fleet.tick(float(number))
            for decision in fleet.plane.watch(fleet.now_s):
                fleet.tell(fleet.carried_out(decision))
        check(fleet, tenants)


LIMITS = {"a": 1, "b": 2}
CHILD_OF_A_PAUSED_PARENT = [
    *[("arrive", number) for number in (0, 0, 0, 0, 0, 0, 0, 1, 2, 33, 74)],
    ("call", 33),
    ("wait", 5),
    ("child", 0),
]
"""Under ThunderAgent, which pauses."""


def check(fleet: Fleet, tenants: Sequence[str]) -> None:
    families = Families(fleet.told)
    for tenant in tenants:
        assert families.of(tenant) <= LIMITS.get(tenant, 3), tenant
    for name in fleet.plane.held_back:
        tenant = families.tenants[name]
        before = sum(
            families.tenants[it] == tenant
            and fleet.phases[it] == "gated"
            and it not in families.root
            and not families.has_place_of_parent(it)
            for it in fleet.plane.sessions.keys() - fleet.plane.held_back.keys()
        )
        assert families.of(tenant) + before == LIMITS.get(tenant, 3), "held back in spite of room"


@every_admission
@pytest.mark.parametrize("gate", [SIGHTED, BOUNDED], ids=["may lose sight", "bounds the wait"])
@given(steps=st.lists(step, max_size=60))
@example(steps=CHILD_OF_A_PAUSED_PARENT)
def test_no_tenant_ever_has_more_in_than_its_limit(
    make: Callable[[], Admission], gate: GateSettings, steps: list[tuple[str, int]]
) -> None:
    """And nobody is held back while its tenant has room."""
    play(Fleet(make(), gate=gate, quotas=quotas(3, **LIMITS)), steps, ["a", "b", "c", ""])


@every_admission
@given(steps=st.lists(st.tuples(step, st.booleans()), max_size=60))
def test_whoever_a_limit_keeps_out_changes_nothing_for_the_others(
    make: Callable[[], Admission], steps: list[tuple[tuple[str, int], bool]]
) -> None:
    """Beside a twin to which they never came."""
    beside, alone = (Fleet(make(), gate=SIGHTED, quotas=quotas(full=1)) for _ in range(2))
    for fleet in (beside, alone):
        fleet.arrive("first", tenant="full")
    for number, (one, comes) in enumerate(steps):
        if comes:
            beside.arrive(f"kept out {number}", tokens=one[1] * 20, tenant="full")
        elif one[0] == "end":
            kept = sorted(beside.plane.held_back)
            for name in kept[: one[1] % 3]:
                beside.end(name)
        twice(beside, alone, one, number)
        assert admissions(beside) == admissions(alone)


def twice(beside: Fleet, alone: Fleet, one: tuple[str, int], number: int) -> None:
    what, size = one
    here = sorted(name for name in alone.plane.sessions if name != "first")
    for fleet in (beside, alone):
        if what in {"arrive", "child"}:
            fleet.arrive(f"s{number}", tokens=size * 20, tenant="free")
        elif what == "end" and here:
            fleet.end(here[size % len(here)])
        elif what == "call" and here and fleet.phases[here[size % len(here)]] == "acting":
            fleet.call(here[size % len(here)], size * 20)
        elif what == "sample":
            fleet.sample(fleet.kv_tokens * size // 100)
        elif what == "wait":
            fleet.tick(size / 10)


def admissions(fleet: Fleet) -> list[tuple[str, float, str]]:
    return [(e.session_id, e.at_s, e.by) for e in fleet.told if isinstance(e, ev.SessionAdmitted)]


def open_fleet(**most: Any) -> Fleet:
    return Fleet(Open(), quotas=quotas(**most))


def test_who_is_kept_out_is_told_by_what_and_enters_when_a_place_is_free() -> None:
    fleet = open_fleet(a=1)
    fleet.arrive("one", "two", tenant="a")
    fleet.arrive("other", tenant="b")
    assert fleet.phases == {"one": "acting", "two": "gated", "other": "acting"}
    why = "tenant 'a': 1 in, of 1 that may be"
    assert fleet.plane.held_back == {"two": why}
    assert fleet.plane.why_not == why
    (shut,) = (fact for fact in fleet.told if isinstance(fact, ev.GateShut))
    assert (shut.limit, shut.waiting) == ("tenant limit", 1)
    fleet.end("one")
    assert fleet.phases["two"] == "acting"


def test_who_is_behind_others_of_its_tenant_is_told_so() -> None:
    fleet = Fleet(Window(WindowSettings(first=1)), quotas=quotas(a=1))
    fleet.sample(fleet.kv_tokens)
    fleet.arrive("in", tenant="b")
    fleet.arrive("one", "two", tenant="a")
    why = "tenant 'a': 0 in, of 1 that may be, and 1 of it wait before this one"
    assert fleet.plane.held_back == {"two": why}
    assert "tenant" not in fleet.plane.why_not


def test_a_place_lasts_as_long_as_the_last_of_its_family() -> None:
    """Else a parent that ends before its children would make a limit worth nothing."""
    fleet = open_fleet(a=1)
    fleet.arrive("parent", "next", tenant="a")
    fleet.arrive("child", tenant="a", parent="parent")
    assert fleet.phases["child"] == "acting"
    fleet.end("parent")
    assert fleet.phases["next"] == "gated"
    fleet.end("child")
    assert fleet.phases["next"] == "acting"


def test_a_bug_of_ours_lets_in_whom_a_limit_keeps_out() -> None:
    fleet = open_fleet(a=1)
    fleet.arrive("one", "two", tenant="a")
    fleet.plane.failsafe.fault(ValueError("bug"), 0.0)
    fleet.tick(0.0)
    assert fleet.phases["two"] == "acting"


def test_what_an_admission_remembers_of_the_others_keeps_nobody_out() -> None:
    """`small` is kept out by the limit of `few`, `big` by the room in KV."""
    fleet = Fleet(Residency(ResidencySettings(unheld_fill=1.0)), quotas=quotas(few=1))
    fleet.arrive("in", tokens=5000)
    fleet.arrive("tiny", tokens=10, tenant="few")
    fleet.arrive("big", tokens=9000)
    fleet.arrive("small", tokens=100, tenant="few")
    assert {name for name in fleet.phases if fleet.phases[name] == "gated"} == {"big", "small"}
    fleet.end("tiny")
    assert fleet.phases["small"] == "acting"


def test_nor_does_it_where_the_place_was_freed_at_another_gate() -> None:
    shared = quotas(few=1)
    here = Fleet(Residency(ResidencySettings(unheld_fill=1.0)), quotas=shared)
    there = Fleet(Open(), quotas=shared)
    there.arrive("there", tenant="few")
    here.arrive("in", tokens=5000)
    here.arrive("big", tokens=9000)
    here.arrive("small", tokens=100, tenant="few")
    here.sample(5000)
    there.end("there")
    here.tick(0.0)
    assert here.phases["small"] == "acting"


def test_two_gates_share_a_limit() -> None:
    shared = quotas(a=1)
    first, second = (Fleet(Open(), quotas=shared) for _ in range(2))
    first.arrive("one", tenant="a")
    second.arrive("two", tenant="a")
    assert second.phases == {"two": "gated"}
    first.end("one")
    second.tick(0.0)
    assert second.phases == {"two": "acting"}
