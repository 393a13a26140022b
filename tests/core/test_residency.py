"""Admission by resources, by hand."""

import msgspec
import pytest
from tests.core.test_control import arrived, engine_sampled, finished, queued, served

from mars.core import events as ev
from mars.core.admission import GatedView, Verdict
from mars.core.control import ControlPlane
from mars.core.decisions import Admit, Shut
from mars.core.ids import CallId, SessionId
from mars.core.pressure import Pressure
from mars.core.residency import Residency
from mars.core.session import Session
from mars.core.settings import ResidencySettings

CALM = Pressure()


class Gate:
    """A residency with the sessions before and behind it; 0.25 tokens a byte until it learns."""

    def __init__(
        self,
        *,
        kv_tokens: int | None = 1000,
        host_tokens: int = 0,
        holds: bool = True,
        **changes: object,
    ) -> None:
        plain: dict[str, object] = {"overcommit": 1.0}
        self.residency = Residency(msgspec.convert(plain | changes, ResidencySettings))
        self.now_s = 0.0
        self.gated: dict[str, GatedView] = {}
        self.active: dict[str, Session] = {}
        self.last = Verdict(admit=[], why_not="", window=None)
        if holds:
            self.hold("of earlier times")
        if kv_tokens is not None:
            self.residency.observe(
                ev.EngineSampled(
                    at_s=0.0,
                    kv_used_blocks=0,
                    kv_held_blocks=0,
                    kv_total_blocks=kv_tokens // 10,
                    block_tokens=10,
                    running_calls=0,
                    waiting_calls=0,
                    host_total_blocks=host_tokens // 10,
                )
            )

    def arrive(self, **tokens: float) -> None:
        """Sessions by name, each with so many tokens of prompt, at 4 bytes a token."""
        for name, count in tokens.items():
            self.gated[name] = GatedView(
                session_id=SessionId(name), arrived_s=self.now_s, prompt_bytes=int(4 * count)
            )
            self.residency.observe(arrived(name, self.now_s))

    def ask(self, pressure: Pressure = CALM) -> list[str]:
        self.last = self.residency.choose(
            self.gated.values(), self.active.values(), pressure, self.now_s
        )
        entered: list[str] = [admit.session_id for admit in self.last.admit]
        for name in entered:
            self.active[name] = Session(SessionId(name), self.gated.pop(name).arrived_s)
        return entered

    def begin(self, name: str, call: str = "c") -> None:
        self.residency.observe(queued(name, call, self.now_s))

    def leave(self, name: str, call: str = "c") -> None:
        self.residency.observe(finished(name, call, self.now_s))

    def serve(
        self, name: str, prompt: int, *, made: int = 0, cached: int = 0, ok: bool = True
    ) -> None:
        self.residency.observe(
            ev.CallServed(
                at_s=self.now_s,
                session_id=SessionId(name),
                call_id=CallId("c"),
                prompt_tokens=prompt,
                cached_tokens=cached,
                computed_tokens=prompt + made - cached,
                made_tokens=made,
                queued_s=0.0,
                ok=ok,
            )
        )

    def call(self, name: str, prompt: int, *, made: int = 0, cached: int = 0) -> None:
        self.begin(name)
        self.serve(name, prompt, made=made, cached=cached)
        self.leave(name)

    def hold(self, name: str) -> None:
        self.residency.observe(
            ev.KvHeld(at_s=0.0, session_id=SessionId(name), kv_tokens=1, keep_s=1.0, why="")
        )

    def let_go(self, name: str) -> None:
        self.residency.observe(
            ev.KvReleased(
                at_s=0.0, session_id=SessionId(name), kv_tokens=1, held_s=1.0, why="expired"
            )
        )

    def end(self, name: str) -> None:
        self.gated.pop(name, None)
        self.active.pop(name, None)
        self.residency.observe(ev.SessionEnded(at_s=self.now_s, session_id=SessionId(name), why=""))

    @property
    def occupied(self) -> float:
        return self.residency._occupied_tokens


def test_the_smallest_enter_first_as_far_as_there_is_room() -> None:
    gate = Gate()
    gate.arrive(big=700, small=100, middle=300)
    assert gate.ask() == ["small", "middle"]
    assert gate.occupied == 400, "700 more would be 1100 of 1000"
    assert gate.last.why_not == "0 active sessions need 0% of KV"
    assert gate.ask() == []
    assert gate.last.why_not == "2 active sessions need 40% of KV"
    gate.end("small")
    assert gate.ask() == ["big"], "300 + 700 fit exactly"


def test_what_host_memory_can_hold_of_those_in_a_gap_counts_nothing() -> None:
    gate = Gate(host_tokens=1000, host_share=0.5, idle_share=0.5)
    gate.arrive(a=300, b=400)
    assert gate.ask() == ["a", "b"]
    gate.begin("a")
    gate.serve("a", 300)
    assert gate.occupied == 700, "who has a call open is on the GPU"
    gate.leave("a")
    assert gate.occupied == 400
    gate.call("b", 400)
    assert gate.occupied == 0.5 * (300 + 400 - 500), "of two the host has no room for 200"
    gate.hold("b")
    assert gate.occupied == 400


def test_overcommit_is_over_the_capacity() -> None:
    for overcommit, entered in ((1.2, ["a", "b"]), (1.19, ["a"])):
        gate = Gate(overcommit=overcommit)
        gate.arrive(a=600, b=600)
        assert gate.ask() == entered


def test_whoever_comes_to_an_empty_machine_enters() -> None:
    gate = Gate()
    gate.arrive(huge=5000, tiny=1)
    assert gate.ask() == ["tiny"]
    gate.end("tiny")
    assert gate.ask() == ["huge"], "five times the capacity, but nobody else is there"
    gate.arrive(tiny=1)
    assert gate.ask() == []


def test_a_gap_without_a_hold_counts_a_share() -> None:
    gate = Gate(idle_share=0.5)
    gate.arrive(a=100)
    gate.ask()
    assert gate.occupied == 100, "as estimated"
    gate.begin("a")
    gate.serve("a", 400, made=40)
    assert gate.occupied == 440, "its call is not over"
    gate.leave("a")
    assert gate.occupied == 220
    gate.hold("a")
    assert gate.occupied == 440
    gate.let_go("a")
    assert gate.occupied == 220
    gate.begin("a")
    assert gate.occupied == 440


def test_the_context_is_that_of_the_longer_of_two_calls() -> None:
    gate = Gate(idle_share=1.0)
    gate.arrive(a=100)
    gate.ask()
    gate.call("a", 500)
    gate.call("a", 60)  # a title writer's
    assert gate.occupied == 500
    gate.call("a", 600, made=10)
    assert gate.occupied == 610
    gate.call("a", 250)  # a summary, then what is left
    gate.call("a", 300)
    assert gate.occupied == 300


def test_a_newcomer_counts_as_estimated_until_the_engine_has_accounted_for_a_call() -> None:
    gate = Gate(idle_share=0.5)
    gate.arrive(a=100)
    gate.ask()
    gate.begin("a")
    gate.leave("a")
    assert gate.occupied == 100, "refused: its prompt is still to come"
    gate.begin("a")
    gate.serve("a", 30, ok=False)
    gate.leave("a")
    assert gate.occupied == 100, "aborted: it tells nothing"
    assert gate.residency._tokens_per_byte == 0.25
    gate.call("a", 30)
    assert gate.occupied == 15, "known, and in a gap"


def test_tokens_per_byte_are_learned_from_first_calls() -> None:
    gate = Gate(kv_tokens=100_000)
    gate.arrive(a=100)  # 400 bytes
    gate.ask()
    gate.call("a", 500)  # 1.25 tokens a byte
    learned = 0.25 + 0.1 * (1.25 - 0.25)
    assert gate.residency._tokens_per_byte == pytest.approx(learned)
    gate.call("a", 40_000)
    assert gate.residency._tokens_per_byte == pytest.approx(learned), "not of a first call"
    occupied = gate.occupied
    gate.arrive(b=100)
    gate.ask()
    assert gate.occupied - occupied == pytest.approx(400 * learned)


def test_a_prompt_without_bytes_teaches_no_ratio() -> None:
    gate = Gate()
    gate.arrive(a=0)
    gate.ask()
    gate.call("a", 500)
    assert gate.residency._tokens_per_byte == 0.25


def test_what_all_share_is_counted_once() -> None:
    gate = Gate(idle_share=1.0)
    gate.arrive(a=400)
    gate.ask()
    gate.call("a", 400, cached=300)
    common = 0.1 * 300
    assert gate.residency._common_tokens == pytest.approx(common)
    assert gate.occupied == 100, "of 400 tokens 300 were there"
    gate.arrive(b=400, c=551, d=20)
    # d adds nothing: 20 tokens are within what is common. b adds 370, c 521 of 1000 - 100 - 30.
    assert gate.ask() == ["d", "b"]
    assert gate.occupied == pytest.approx(100 + 370)
    gate.end("b")
    gate.end("d")
    assert gate.ask() == ["c"]


def test_before_the_capacity_is_known_only_the_first_few_enter() -> None:
    gate = Gate(kv_tokens=None, first=2)
    gate.arrive(a=9000, b=1, c=1)
    assert gate.ask() == ["a", "b"], "in order of arrival: nothing is known of room"
    assert gate.ask() == []
    assert gate.last.why_not == "the engine's KV capacity is not known yet"
    gate.end("b")
    assert gate.ask() == ["c"]


def test_whoever_comes_in_place_of_one_that_left_the_gate_is_asked_about() -> None:
    gate = Gate()
    gate.arrive(a=500)
    gate.ask()
    gate.arrive(big=600)
    assert gate.ask() == []
    gate.end("big")  # nobody is left to ask about
    gate.arrive(small=100)
    assert gate.ask() == ["small"]


def test_nothing_that_was_full_stays_full_when_room_comes() -> None:
    gate = Gate(idle_share=0.5)
    gate.arrive(a=500)
    gate.ask()
    gate.begin("a")
    gate.arrive(b=600)
    for _ in range(2):
        assert gate.ask() == []
    gate.serve("a", 500)
    assert gate.ask() == []
    gate.leave("a")
    assert gate.ask() == ["b"], "250 + 600"
    gate.arrive(c=300)
    assert gate.ask() == []
    gate.residency.observe(engine_sampled(0, 200))  # of 16 tokens
    assert gate.ask() == ["c"]


def test_what_is_learned_of_prompts_may_make_them_fit() -> None:
    gate = Gate(idle_share=1.0)
    gate.arrive(a=1, b=500)
    gate.ask()
    gate.call("b", 500)  # as estimated
    gate.arrive(c=501)
    assert gate.ask() == [], "500 + 501, and 1"
    gate.call("a", 0)  # no tokens in 4 bytes: 0.225 a byte now, 451 for the 2004 of c
    assert gate.ask() == ["c"]


def test_who_has_waited_long_goes_first_and_nobody_passes_it() -> None:
    gate = Gate(patience=2.0)
    gate.arrive(a=500, short=1)
    gate.ask()
    gate.now_s = 10.0
    gate.end("short")  # the mean life of a session: 10 s
    gate.arrive(big=600)
    gate.now_s = 30.0
    gate.arrive(small=100)
    assert gate.ask() == ["small"], "20 s are not more than twice 10"
    gate.now_s = 60.0
    gate.arrive(tiny=1)
    assert gate.ask() == [], "tiny would fit, but big is first now"
    gate.end("a")  # the mean is 10 + (60 - 10) / 10 now: big has waited for more than 30 s
    assert gate.ask() == ["big", "tiny"], "600 + 1 and small's 100"


def test_nobody_is_late_before_a_session_has_ended() -> None:
    gate = Gate(patience=0.0)
    gate.arrive(a=500)
    gate.ask()
    gate.arrive(big=900)
    gate.now_s = 1e6
    gate.arrive(small=10)
    assert gate.ask() == ["small"]


def test_the_mean_life_moves_by_a_tenth() -> None:
    gate = Gate()
    for arrived_s, life_s in ((0.0, 10.0), (10.0, 30.0)):
        gate.now_s = arrived_s
        gate.arrive(a=1)
        gate.ask()
        gate.now_s += life_s
        gate.end("a")
    assert gate.residency._life_s == pytest.approx(10.0 + 0.1 * 20.0)
    gate.arrive(never_in=5000, b=1)
    gate.ask()
    gate.now_s = 1e6
    gate.end("never_in")
    assert gate.residency._life_s == pytest.approx(12.0), "it was not in: it did not live"


def test_a_session_that_ended_leaves_room_and_nothing_else() -> None:
    gate = Gate()
    gate.arrive(a=700, b=700)
    gate.ask()
    gate.begin("a")
    gate.end("a")
    gate.leave("a")
    gate.serve("a", 900)
    gate.hold("a")
    assert (gate.occupied, gate.residency._stays) == (0.0, {})
    gate.end("a")
    assert gate.ask() == ["b"]


def test_calls_that_were_never_queued_or_end_twice_do_not_count() -> None:
    gate = Gate(idle_share=0.5)
    gate.arrive(a=100)
    gate.ask()
    gate.call("a", 200)
    gate.leave("a")
    gate.leave("a", "queued before the admission")
    assert gate.occupied == 100
    gate.begin("a")
    gate.begin("a")
    assert gate.occupied == 200
    gate.leave("a")
    assert gate.occupied == 100, "in a gap again"


def test_the_control_plane_opens_this_gate_at_every_event_that_makes_room() -> None:
    plane = ControlPlane(Residency(ResidencySettings(overcommit=1.0, idle_share=0.5)))
    plane.handle(engine_sampled(0, 100))
    held = SessionId("of earlier times")
    plane.handle(ev.KvHeld(at_s=0.0, session_id=held, kv_tokens=1, keep_s=1.0, why=""))
    for name in ("a", "b"):
        told = plane.handle(msgspec.structs.replace(arrived(name), prompt_bytes=4 * 1000))
        assert [type(it) for it in told] == [Admit if name == "a" else Shut]
    plane.handle(ev.SessionAdmitted(at_s=0.0, session_id=SessionId("a"), why=""))
    plane.handle(queued("a", "c"))
    assert plane.handle(served("a", "c", 1100)) == []
    assert plane.why_not == "1 active sessions need 69% of KV"
    (entered,) = plane.handle(finished("a", "c"))
    assert isinstance(entered, Admit)
    assert entered.session_id == "b", "550 + 1000"
    assert plane.window is None


def test_where_nothing_is_held_whole_contexts_count_and_must_fit() -> None:
    """900 of 1,000 tokens may be filled; 500 count whole in a gap, and 0.6 of them later."""
    gate = Gate(holds=False, unheld_fill=0.9, idle_share=0.6)
    gate.arrive(a=500)
    assert gate.ask() == ["a"]
    gate.call("a", 500)
    gate.arrive(b=450)
    assert gate.ask() == []
    gate.hold("somebody else")
    assert gate.ask() == ["b"]
