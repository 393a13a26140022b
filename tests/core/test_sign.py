"""What the gate says of why it is shut: at once, in kind, and not without end."""

from hypothesis import given
from hypothesis import strategies as st

from mars.core.admission import Verdict
from mars.core.events import Limit
from mars.core.sign import Sign

LIMITS: tuple[Limit, ...] = ("", "room in KV", "window", "tool pressure")


def verdict(limit: Limit, why: str = "why") -> Verdict:
    return Verdict(admit=[], why_not=why, limit=limit, window=None)


def test_it_speaks_when_somebody_begins_to_wait_and_when_the_kind_changes() -> None:
    sign = Sign()
    (first,) = sign.say(verdict("window", "3 are active"), 1, 0.0)
    assert (first.limit, first.why, first.waiting) == ("window", "3 are active", 1)
    assert sign.say(verdict("window", "4 are active"), 2, 60.0) == []
    (other,) = sign.say(verdict("tool pressure"), 5, 61.0)
    assert (other.limit, other.waiting) == ("tool pressure", 5)


def test_a_wait_after_the_gate_was_empty_is_spoken_of_at_once() -> None:
    sign = Sign()
    assert sign.say(verdict("window"), 1, 0.0)
    sign.clear()
    assert sign.say(verdict("window"), 1, 0.001)


@given(st.lists(st.tuples(st.sampled_from(LIMITS), st.floats(0.0, 0.5)), max_size=100))
def test_a_reason_that_flaps_is_said_once_a_second_and_none_that_lasts_is_missed(
    asked: list[tuple[Limit, float]],
) -> None:
    sign, now_s, said = Sign(), 0.0, list[tuple[float, Limit]]()
    for limit, passed_s in asked:
        now_s += passed_s
        said += [(now_s, shut.limit) for shut in sign.say(verdict(limit), 1, now_s)]
    assert len(said) <= 2 + now_s
    if asked:
        last = asked[-1][0]
        said += [(now_s, shut.limit) for shut in sign.say(verdict(last), 1, now_s + 1.0)]
        assert said[-1][1] == last
