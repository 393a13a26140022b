"""Slots of tenants: never more than may be, none idle while somebody waits, first come first."""

from collections import Counter, defaultdict
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from mars.core.settings import Limits, TenantLimits, TenantSettings
from mars.core.slots import Slot, Slots

LIMITS = {"a": 1, "b": 2}
OTHERS = 3
SETTINGS = TenantSettings(
    limits=tuple(TenantLimits(tenant=name, most_calls=most) for name, most in LIMITS.items()),
    other_limits=Limits(most_calls=OTHERS),
)
steps = st.lists(st.tuples(st.sampled_from(["ask", "ask", "give"]), st.integers(0, 50)))


def nobody() -> None:
    pass


@given(steps)
def test_never_more_than_may_be_none_idle_and_in_order(steps: list[tuple[str, int]]) -> None:
    slots, here = Slots(SETTINGS), list[Slot]()
    asked: defaultdict[str, list[Slot]] = defaultdict(list)
    for what, number in steps:
        if what == "ask":
            tenant = ("a", "b", "c", "")[number % 4]
            slot = slots.ask(tenant, nobody, 0.0)
            here.append(slot)
            asked[tenant].append(slot)
        elif here:
            slot = here.pop(number % len(here))
            asked[slot.tenant].remove(slot)
            slots.give(slot)
            slots.give(slot)  # is no other
        had = Counter(it.tenant for it in here if it.is_had)
        for tenant, line in asked.items():
            most = LIMITS.get(tenant, OTHERS)
            assert had[tenant] == min(most, len(line)), "too many, or one idle"
            assert [it.is_had for it in line] == sorted((it.is_had for it in line), reverse=True)
    for slot in here:
        slots.give(slot)
    assert not slots._had
    assert not slots._lines, "nothing is kept of a tenant that is gone"


def test_it_is_called_when_its_turn_has_come_and_can_say_why_it_waits() -> None:
    slots, called = Slots(SETTINGS), list[str]()
    first, *others = (slots.ask("a", partial(called.append, it), 2.0) for it in "xyz")
    assert first.is_had
    assert [it.asked_s for it in (first, *others)] == [None, 2.0, 2.0]
    assert slots.why_not("a") == "tenant 'a': 1 calls open, of 1 that may be, and 2 wait"
    slots.give(first)
    assert called == ["y"]
    slots.give(others[1])
    slots.give(others[0])
    assert called == ["y"], "who has given up is not called"


def test_without_a_limit_nobody_waits() -> None:
    slots = Slots(TenantSettings())
    assert slots.most("a") is None
    assert all(slots.ask("a", nobody, 0.0).is_had for _ in range(100))
