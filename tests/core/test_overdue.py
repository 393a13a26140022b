"""Nobody waits at the gate for longer than the gate's settings and its client's patience allow."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.test_failsafe import ADMISSIONS
from tests.policy.fleet import BYTES_A_TOKEN, Fleet

from mars.core import events as ev
from mars.core.admission import Admission
from mars.core.ids import SessionId
from mars.core.settings import GateSettings, WindowSettings
from mars.core.window import Window

WAIT_S = 60.0
BOUNDED = GateSettings(blind_s=1e9, wait_s=WAIT_S)


class Bounded(Fleet):
    """A full machine; the shell watches as often as it is asked to."""

    def __init__(self, admission: Admission, gate: GateSettings) -> None:
        super().__init__(admission, gate=gate)
        self.sample(self.kv_tokens)
        self.arrive("in", tokens=self.kv_tokens)
        self.begin("in")
        self.sample(self.kv_tokens)

    def come(self, name: str, patience_s: float | None = None) -> None:
        prompt_bytes = self.kv_tokens * BYTES_A_TOKEN
        self.tell(
            ev.SessionArrived(
                at_s=self.now_s,
                session_id=SessionId(name),
                prompt_bytes=prompt_bytes,
                patience_s=patience_s,
            )
        )

    def pass_by(self, passed_s: float) -> None:
        assert self.plane.watch_s is not None
        end_s = self.now_s + passed_s
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + self.plane.watch_s)
            for decision in self.plane.watch(self.now_s):
                self.tell(self.carried_out(decision))

    def entered(self, name: str) -> ev.SessionAdmitted:
        (found,) = [
            e for e in self.told if isinstance(e, ev.SessionAdmitted) and e.session_id == name
        ]
        return found


@pytest.mark.parametrize("make", ADMISSIONS.values(), ids=ADMISSIONS)
@given(gaps_s=st.lists(st.floats(0.0, 50.0), min_size=1, max_size=6))
def test_under_every_admission_the_wait_is_bounded(
    make: Callable[[], Admission], gaps_s: list[float]
) -> None:
    fleet = Bounded(make(), BOUNDED)
    for number, gap_s in enumerate(gaps_s):
        fleet.come(f"s{number}")
        fleet.pass_by(gap_s)
    fleet.pass_by(1.1 * WAIT_S)
    fleet.plane.check()
    arrived_s = {e.session_id: e.at_s for e in fleet.told if isinstance(e, ev.SessionArrived)}
    for number in range(len(gaps_s)):
        admitted = fleet.entered(f"s{number}")
        waited_s = admitted.at_s - arrived_s[admitted.session_id]
        assert waited_s <= 1.1 * WAIT_S + 1e-6, "seen a tenth late at most"
        if admitted.by == "overdue":
            assert waited_s >= WAIT_S
            assert admitted.why == f"it has waited {waited_s:.0f} s, room or not"


def test_a_client_that_would_give_up_enters_when_half_of_its_patience_is_over() -> None:
    fleet = Bounded(Window(WindowSettings(first=1)), GateSettings(blind_s=10.0))
    fleet.come("has told", patience_s=100.0)
    fleet.come("has not")
    fleet.sample(fleet.kv_tokens)
    for _ in range(49):
        fleet.pass_by(1.0)
        fleet.sample(fleet.kv_tokens)
    assert fleet.phases["has told"] == "gated"
    fleet.pass_by(1.0)
    assert fleet.entered("has told").by == "overdue"
    assert fleet.phases["has not"] == "gated", "of it nothing is known"


def test_without_a_bound_nobody_is_let_in_by_time() -> None:
    fleet = Bounded(Window(WindowSettings(first=1)), GateSettings(blind_s=10.0))
    fleet.come("waits")
    for _ in range(1000):
        fleet.pass_by(5.0)
        fleet.sample(fleet.kv_tokens)
    assert fleet.phases["waits"] == "gated"
