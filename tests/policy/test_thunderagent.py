"""ThunderAgent: who is sent back, who is resumed, in which order."""

from collections.abc import Callable, Mapping
from typing import ClassVar

from hypothesis import settings
from tests.core.test_control import Shell
from tests.policy.fleet import Fleet

from mars.core import events as ev
from mars.core.admission import Admission
from mars.core.ids import SessionId
from mars.policy.settings import ThunderAgentSettings
from mars.policy.thunderagent import ThunderAgent

EXACT = ThunderAgentSettings(buffer_tokens=0)


def crowded(*contexts: int) -> Fleet:
    """Sessions a, b, c ... of these contexts, at rest, in KV of 10,000 tokens."""
    fleet = Fleet(ThunderAgent(EXACT))
    for name in "abcdef"[: len(contexts)]:
        fleet.arrive(name)
    for name, tokens in zip("abcdef", contexts, strict=False):
        fleet.call(name, tokens)
    return fleet


def test_the_smallest_acting_sessions_are_sent_back_until_the_rest_fits() -> None:
    fleet = crowded(6000, 1000, 4000, 2000)
    fleet.tick(4.9)
    assert "paused" not in fleet.phases.values(), "no round yet"
    fleet.tick(0.1)
    assert fleet.phases == {"a": "acting", "b": "paused", "c": "acting", "d": "paused"}
    assert fleet.plane.pressure.kv_session_frac == 1.0


def test_then_the_smallest_reasoning_ones_are_marked_and_go_when_their_calls_end() -> None:
    fleet = crowded(6000, 5000, 2000)
    for name in "abc":
        fleet.begin(name)
    fleet.tick(5.0)
    assert set(fleet.phases.values()) == {"queued"}, "no call is cut"
    fleet.finish("a", 6100)
    assert fleet.phases["a"] == "acting", "c and b make room enough"
    fleet.finish("b", 5100)
    fleet.finish("c", 2100)
    assert fleet.phases == {"a": "acting", "b": "paused", "c": "paused"}


def test_what_is_marked_is_not_counted_twice() -> None:
    fleet = crowded(6000, 5000, 2000)
    for name in "abc":
        fleet.begin(name)
    fleet.tick(5.0)  # marks c and b: 6000 remain
    fleet.tick(5.0)
    fleet.finish("a", 6000)
    assert fleet.phases["a"] == "acting"


def test_returning_before_new_before_acting_and_the_smallest_first() -> None:
    fleet = crowded(5000, 1000, 1500, 1800, 4000)  # 13,300
    fleet.tick(5.0)  # b, c go: 10,800; d goes: 9,000
    fleet.come_back("d")
    fleet.come_back("c")
    fleet.arrive("new", tokens=2000)
    assert fleet.phases | {"a": "", "e": ""} == {
        "a": "",
        "b": "paused",
        "c": "gated",
        "d": "gated",
        "e": "",
        "new": "gated",
    }
    fleet.end("e")  # 5,000 are free: c 1,500, d 1,800; new does not fit, b does
    fleet.tick(5.0)
    assert fleet.phases == {
        "a": "acting",
        "b": "acting",
        "c": "acting",
        "d": "acting",
        "new": "gated",
    }


def test_a_new_session_enters_at_once_if_nobody_waits_and_it_fits() -> None:
    fleet = crowded(6000)
    fleet.tick(5.0)
    fleet.tick(1.0)
    fleet.arrive("small", tokens=3000)
    fleet.arrive("large", tokens=3000)
    fleet.arrive("tiny", tokens=1)
    assert (fleet.phases["small"], fleet.phases["large"]) == ("acting", "gated")
    assert fleet.phases["tiny"] == "gated", "somebody waits before it"


def test_the_buffer_is_room_for_what_each_session_makes_next() -> None:
    fleet = Fleet(ThunderAgent(ThunderAgentSettings(buffer_tokens=100)))
    fleet.arrive("a")
    fleet.call("a", 4000)
    fleet.tick(5.0)
    fleet.tick(1.0)
    fleet.arrive("b", tokens=5801)
    assert fleet.phases["b"] == "gated"
    fleet.end("b")
    fleet.arrive("c", tokens=5800)
    assert fleet.phases["c"] == "acting"


def test_an_empty_machine_takes_whoever_is_next() -> None:
    fleet = Fleet(ThunderAgent(EXACT))
    fleet.arrive("whale", tokens=1_000_000)
    assert fleet.phases == {"whale": "acting"}
    fleet.arrive("next", tokens=1_000_000)
    fleet.end("whale")
    assert fleet.phases == {"next": "acting"}


def test_who_has_waited_too_long_enters_whatever_its_size() -> None:
    fleet = crowded(9000)
    fleet.arrive("large", tokens=5000)
    fleet.tick(1800.0)
    assert fleet.phases["large"] == "gated"
    fleet.tick(5.0)
    assert fleet.phases["large"] == "acting"


def test_a_session_that_ended_is_forgotten() -> None:
    fleet = crowded(6000, 5000)
    fleet.begin("a")
    fleet.begin("b")
    fleet.tick(5.0)
    fleet.end("b")
    fleet.arrive("b")
    fleet.call("b", 10)
    assert fleet.phases["b"] == "acting", "the mark was of another stay"


def test_before_the_first_sample_one_session_enters() -> None:
    fleet = Fleet(ThunderAgent(EXACT))
    fleet.plane._admission = ThunderAgent(EXACT)  # it has seen no sample
    fleet.arrive("a")
    fleet.arrive("b")
    assert fleet.phases == {"a": "acting", "b": "gated"}
    fleet.tell(ev.SessionEnded(at_s=0.0, session_id=SessionId("a"), why=""))
    assert fleet.phases == {"b": "acting"}


class Pausing(Shell):
    """The laws of the control plane under it."""

    admissions: ClassVar[Mapping[str, Callable[[], Admission]]] = {
        "thunderagent": lambda: ThunderAgent(ThunderAgentSettings(every_s=1.0)),
    }
    unfair: ClassVar[set[str]] = {"thunderagent"}


TestPausing = Pausing.TestCase
TestPausing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
