"""A gate that cannot judge is open for all, says so, and is a gate again when it can."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.policy.fleet import Fleet

from mars.core import events as ev
from mars.core.admission import Admission
from mars.core.ids import CallId, SessionId
from mars.core.residency import Residency
from mars.core.settings import GateSettings, ResidencySettings, WindowSettings
from mars.core.window import Window
from mars.policy.concur import Concur
from mars.policy.mars_preview_window import PreviewWindow
from mars.policy.settings import ConcurSettings, PreviewWindowSettings, ThunderAgentSettings
from mars.policy.thunderagent import ThunderAgent

BLIND_S = 15.0
SIGHTED = GateSettings(blind_s=BLIND_S)

ADMISSIONS: dict[str, Callable[[], Admission]] = {
    "residency": lambda: Residency(ResidencySettings()),
    "window": lambda: Window(WindowSettings(first=1)),
    "thunderagent": lambda: ThunderAgent(ThunderAgentSettings()),
    "concur": lambda: Concur(ConcurSettings()),
    "preview": lambda: PreviewWindow(PreviewWindowSettings()),
}


class Watched(Fleet):
    """A fleet whose shell also watches."""

    def __init__(self, admission: Admission) -> None:
        super().__init__(admission, gate=SIGHTED)

    def pass_by(self, passed_s: float) -> None:
        """Time goes by, watched as often as the control plane asks for."""
        assert self.plane.watch_s is not None
        end_s = self.now_s + passed_s
        while self.now_s < end_s:
            self.now_s = min(end_s, self.now_s + self.plane.watch_s)
            for decision in self.plane.watch(self.now_s):
                self.tell(self.carried_out(decision))

    @property
    def owed_s(self) -> float:
        return self.plane.pressure.blind_s(self.now_s)

    @property
    def said(self) -> list[str]:
        return [it.cause for it in self.told if isinstance(it, ev.FailOpenChanged)]

    @property
    def gated(self) -> list[str]:
        return [name for name, phase in self.phases.items() if phase == "gated"]


class Unheard(Watched):
    def sample(self, used_tokens: int) -> None:
        """There is nobody who would."""


def crowded(admission: Admission) -> Watched:
    """One session calls an engine whose KV is full, another waits."""
    fleet = Watched(admission)
    fleet.sample(fleet.kv_tokens)
    fleet.arrive("in", tokens=fleet.kv_tokens)
    fleet.begin("in")
    fleet.sample(fleet.kv_tokens)
    fleet.arrive("waits", tokens=fleet.kv_tokens)
    assert fleet.gated == ["waits"]
    return fleet


@pytest.mark.parametrize("make", [ADMISSIONS["residency"], ADMISSIONS["window"]])
def test_a_gate_that_cannot_see_opens_and_closes_again(make: Callable[[], Admission]) -> None:
    fleet = crowded(make())
    fleet.pass_by(BLIND_S)
    assert fleet.gated == ["waits"]
    fleet.pass_by(BLIND_S / 10)
    assert (fleet.gated, fleet.said) == ([], ["no samples"])
    (admitted,) = [
        e for e in fleet.told if isinstance(e, ev.SessionAdmitted) and e.by != "admission"
    ]
    assert (admitted.session_id, admitted.by) == ("waits", "no samples")
    assert admitted.why == "no engine samples for 16 s: the gate is open"
    fleet.arrive("at once", tokens=fleet.kv_tokens)
    assert fleet.gated == []
    fleet.sample(fleet.kv_tokens)
    assert fleet.said == ["no samples", ""]
    fleet.arrive("later", tokens=fleet.kv_tokens)
    assert fleet.gated == ["later"], "a gate again"


def test_an_idle_engine_is_not_lost() -> None:
    fleet = Watched(Window(WindowSettings(first=1)))
    fleet.arrive("in")
    fleet.pass_by(10 * BLIND_S)
    fleet.arrive("waits")
    assert (fleet.gated, fleet.said) == (["waits"], [])


@pytest.mark.parametrize("make", ADMISSIONS.values(), ids=ADMISSIONS)
def test_an_engine_that_was_never_heard_holds_nobody_up(make: Callable[[], Admission]) -> None:
    """One without the plugin: its calls are short, and it never owes for long at a time."""
    fleet = Unheard(make())
    for number in range(20):
        name = f"s{number}"
        fleet.arrive(name)
        if name not in fleet.gated:
            fleet.begin(name)
            fleet.tell(
                ev.CallFinished(
                    at_s=fleet.now_s, session_id=SessionId(name), call_id=CallId(name), ok=True
                )
            )
        fleet.pass_by(BLIND_S / 10)
    assert (fleet.gated, fleet.said) == ([], ["no samples"])


def test_an_engine_that_falls_idle_unheard_is_still_lost() -> None:
    """What ends an outage is a sample: silence of an idle engine tells nothing."""
    fleet = crowded(Window(WindowSettings(first=1)))
    fleet.pass_by(2 * BLIND_S)
    fleet.finish("in", 1)
    fleet.pass_by(2 * BLIND_S)
    fleet.arrive("at once", tokens=fleet.kv_tokens)
    assert (fleet.gated, fleet.said) == ([], ["no samples"])


def test_a_sample_from_before_the_loss_does_not_end_it() -> None:
    fleet = crowded(Window(WindowSettings(first=1)))
    fleet.pass_by(2 * BLIND_S)
    now_s, fleet.now_s = fleet.now_s, 1.0
    fleet.sample(0)  # it was on its way all the time
    fleet.now_s = now_s
    assert fleet.said == ["no samples"]


def test_a_fault_opens_the_gate_until_there_was_none_for_a_while() -> None:
    fleet = Watched(Window(WindowSettings(first=1)))
    fleet.arrive("in")
    fleet.arrive("waits")
    failsafe = fleet.plane.failsafe
    (opened,) = failsafe.fault(ZeroDivisionError("a bug"), fleet.now_s)
    assert (opened.cause, opened.why) == (
        "fault",
        "the control plane failed: ZeroDivisionError('a bug')",
    )
    fleet.arrive("at once")
    assert fleet.gated == []
    fleet.pass_by(BLIND_S - 1.0)
    assert failsafe.fault(ZeroDivisionError("again"), fleet.now_s) == [], "it is known"
    fleet.pass_by(BLIND_S - 1.0)
    assert failsafe.cause == "fault"
    fleet.pass_by(2.0)
    assert (failsafe.cause, fleet.said) == ("", [""])
    fleet.arrive("later")
    assert fleet.gated == ["later"]


class History(RuleBasedStateMachine):
    """Whatever happens, and under whatever admission."""

    @initialize(admission=st.sampled_from(sorted(ADMISSIONS)))
    def start(self, admission: str) -> None:
        self.fleet = Watched(ADMISSIONS[admission]())
        self.count = 0

    @rule(tokens=st.integers(1, 12_000))
    def arrive(self, tokens: int) -> None:
        self.count += 1
        self.fleet.arrive(f"s{self.count}", tokens=tokens)

    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        if acting := [n for n, phase in self.fleet.phases.items() if phase == "acting"]:
            self.fleet.begin(data.draw(st.sampled_from(acting)))

    @rule(data=st.data(), tokens=st.integers(1, 9000))
    def finish(self, data: st.DataObject, tokens: int) -> None:
        if queued := [n for n, phase in self.fleet.phases.items() if phase == "queued"]:
            self.fleet.finish(data.draw(st.sampled_from(queued)), tokens)

    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        if paused := [n for n, phase in self.fleet.phases.items() if phase == "paused"]:
            self.fleet.come_back(data.draw(st.sampled_from(paused)))

    @rule(used_tokens=st.integers(0, 10_000))
    def sample(self, used_tokens: int) -> None:
        self.fleet.sample(used_tokens)

    @rule(passed_s=st.floats(0.1, 40.0))
    def pass_by(self, passed_s: float) -> None:
        self.fleet.pass_by(passed_s)

    @invariant()
    def nobody_waits_at_a_gate_that_cannot_see(self) -> None:
        late_s = BLIND_S / 10
        if self.fleet.owed_s > BLIND_S + late_s:
            assert self.fleet.plane.failsafe.cause == "no samples"
        if self.fleet.plane.failsafe.cause:
            assert self.fleet.gated == []

    @invariant()
    def what_is_said_is_so(self) -> None:
        said = self.fleet.said
        assert said[::2] == ["no samples"] * len(said[::2])
        assert said[1::2] == [""] * len(said[1::2])
        assert (said[-1] if said else "") == self.fleet.plane.failsafe.cause


TestAnyHistory = History.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
