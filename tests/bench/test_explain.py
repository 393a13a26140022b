"""Accounts of simulated lives, held to the facts they are made of; some by hand (conftest.py)."""

from functools import lru_cache
from itertools import pairwise
from typing import get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bench.conftest import MARS, TA, A, B
from tests.sim.workloads import random_sessions

from mars.bench.crowd import Extent, crowds
from mars.bench.explain import Account, Life, Line, account, lives, overview, shown
from mars.bench.phases import PHASES, Span
from mars.bench.rounds import Round
from mars.bench.tell import Teller
from mars.core import events as ev
from mars.core.ids import SessionId
from mars.policy.presets import Scheduling
from mars.sim.laws import Linear
from mars.sim.run import simulate
from mars.sim.settings import EngineSettings, SimSettings, ToolSettings

COST = Linear(step_s=0.010, prefill_token_s=0.0002, decode_call_s=0.001).cost()
POLICIES = ("fcfs", "mars", "mars-aimd", "thunderagent", "concur")
SEEDS = range(6)
EXPIRED = "the time it was kept for is over, and the session is not back"


def round_of(policy: str, events: list[ev.Event]) -> Round:
    ordered = sorted(events, key=lambda event: event.at_s)
    ended_s = ordered[-1].at_s
    return Round(policy=policy, repeat=0, started_s=0.0, ended_s=ended_s, events=ordered)


@lru_cache
def played(policy: str, seed: int) -> Round:
    """A memory that holds about one long session: everybody waits somewhere."""
    chosen = SimSettings(
        engine=EngineSettings(kv_blocks=700),
        scheduling=Scheduling(policy=policy),
        tools=ToolSettings(cores=2),
    )
    return round_of(policy, simulate(random_sessions(seed), COST, chosen).events)


def hand_made() -> Round:
    return round_of("mars", list(MARS))


def test_the_gate_s_reasons_stand_in_the_wait_they_are_of() -> None:
    """B waits from 2 to 4; what the gate said before, when nobody had to wait, is not of b."""

    def shut(at_s: float, why: str) -> ev.GateShut:
        return ev.GateShut(at_s=at_s, limit="room in KV", why=why, waiting=1)

    signs = [shut(1.0, "long ago"), shut(2.0, "no room"), shut(3.0, "tools"), shut(4.5, "later")]
    told = account(life_of(round_of("mars", [*MARS, *signs]), B))
    said = [(line.at_s, line.why) for line in told.lines if line.event == "GateShut"]
    assert said == [(0.0, "no room"), (1.0, "tools")]
    assert [line.at_s for line in told.lines] == sorted(line.at_s for line in told.lines)


def test_a_sub_agent_s_arrival_names_its_parent_and_its_tenant() -> None:
    child = ev.SessionArrived(at_s=0.0, session_id=B, parent_id=A, tenant="blue", rule="r")
    said = Teller().say(child)
    assert (said.what, said.why) == ("arrived, started by a, of tenant blue", "named by: r")


def life_of(of: Round, session_id: str) -> Life:
    return next(life for life in lives(of) if life.session_id == session_id)


runs = pytest.mark.parametrize("policy", POLICIES)


@runs
@pytest.mark.parametrize("seed", SEEDS)
def test_the_phases_are_all_of_a_session_s_time(policy: str, seed: int) -> None:
    of = played(policy, seed)
    for life in lives(of):
        told = account(life)
        arrived, ended = (
            next(
                e.at_s for e in of.events if isinstance(e, kind) and e.session_id == life.session_id
            )
            for kind in (ev.SessionArrived, ev.SessionEnded)
        )
        assert told.total_s == pytest.approx(ended - arrived)
        assert sum(time.total_s for time in told.phases) == pytest.approx(told.total_s)
        for time in told.phases:
            spans = [span for span in life.spans if span.phase == time.phase]
            took_s = {span.start_s - life.arrived_s: span.end_s - span.start_s for span in spans}
            assert time.longest_s == max(took_s.values()) == took_s[time.longest_at_s]
        if told.phases:
            assert sum(time.frac for time in told.phases) == pytest.approx(1.0)
            assert told.largest.total_s == max(time.total_s for time in told.phases)
        assert [t.phase for t in told.phases] == [
            p for p in PHASES if p in {t.phase for t in told.phases}
        ]


@runs
@pytest.mark.parametrize("seed", SEEDS)
def test_every_fact_has_one_line_and_every_reason_is_told(policy: str, seed: int) -> None:
    of = played(policy, seed)
    told = 0
    for life in lives(of):
        lines = [it for it in account(life).lines if it.event not in {"Gate", "GateShut"}]
        assert [line.event for line in lines] == [type(fact).__name__ for fact in life.facts]
        assert all(one.at_s <= then.at_s for one, then in pairwise(account(life).lines))
        for line, fact in zip(lines, life.facts, strict=True):
            match fact:
                case ev.SessionAdmitted() | ev.SessionPaused() | ev.SessionEnded() | ev.KvHeld():
                    assert line.why == fact.why
                case ev.CallFinished(ok=False):
                    assert line.why == fact.why
                    assert line.matters
                case ev.KvReleased() | ev.KvDropped() | ev.CallPreempted():
                    assert line.why
                case _:
                    pass
        told += len(lines)
    of_nobody = ev.EngineSampled | ev.ToolsSampled | ev.GateShut
    assert told == sum(not isinstance(e, of_nobody) for e in of.events)


def test_policies_with_a_gate_make_sessions_wait_there() -> None:
    """Else the laws below would be of nothing."""
    for policy in ("mars", "mars-aimd", "thunderagent", "concur"):
        assert any(account(life).gate for seed in SEEDS for life in lives(played(policy, seed)))
    assert any(
        line.event == "SessionPaused"
        for seed in SEEDS
        for life in lives(played("thunderagent", seed))
        for line in account(life).lines
    )
    assert not any(account(life).gate for life in lives(played("fcfs", 0)))


@pytest.mark.parametrize("policy", ["mars", "mars-aimd", "thunderagent", "concur"])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_wait_at_the_gate_says_what_the_others_had(policy: str, seed: int) -> None:
    of = played(policy, seed)
    for life in lives(of):
        told = account(life)
        waited = next((t for t in told.phases if t.phase == "gated"), None)
        assert len(told.gate) == (waited.spells if waited else 0)
        assert sum(1 for line in told.lines if line.event == "Gate") == len(told.gate)
        for crowd in told.gate:
            assert crowd.shut, "nobody waits without a reason"
            assert crowd.start_s == crowd.shut[0].at_s
            assert all(sign.why for sign in crowd.shut)
            start_s = crowd.start_s + life.arrived_s
            active, gated = _places(of, life, start_s)
            assert crowd.ahead == gated
            assert crowd.active.least <= active <= crowd.active.most
            for extent in (crowd.active, crowd.kv_used_frac, crowd.kv_session_frac):
                if extent is not None:
                    assert extent.least <= extent.mean + 1e-9
                    assert extent.mean <= extent.most + 1e-9
            if policy == "mars-aimd":
                assert crowd.entered <= crowd.ahead, "sessions enter in order of arrival"


def _places(of: Round, besides: Life, at_s: float) -> tuple[int, int]:
    """Others that are active and at the gate at this moment: each by its latest milestone."""
    latest: dict[str, ev.Event] = {}
    milestones = (
        ev.SessionArrived,
        ev.SessionAdmitted,
        ev.SessionPaused,
        ev.SessionReturned,
        ev.SessionEnded,
    )
    for event in of.events:
        if event.at_s <= at_s and isinstance(event, milestones):
            latest[event.session_id] = event
    latest.pop(besides.session_id, None)
    active = sum(isinstance(event, ev.SessionAdmitted) for event in latest.values())
    gated = sum(isinstance(e, ev.SessionArrived | ev.SessionReturned) for e in latest.values())
    return active, gated


def test_the_crowd_of_a_wait_by_hand() -> None:
    """From 2 to 4 s b waits and a is active; 14 of 20 blocks are used at 2 s, 16 at 3 s.

    a's first call is served at 2.5 s: its context is 111 tokens of the 320 from then on.
    """
    (crowd,) = crowds(hand_made().events, B, [Span("gated", 2.0, 4.0)])
    assert (crowd.ahead, crowd.entered) == (0, 0)
    assert crowd.active == Extent(1, 1, 1)
    assert crowd.kv_used_frac == pytest.approx((14 / 20, 15 / 20, 16 / 20))
    assert crowd.kv_session_frac == pytest.approx((0, 0.75 * 111 / 320, 111 / 320))
    assert crowd.tools_waiting == pytest.approx((0, 0.5, 1))
    assert "active 1; KV in use 75 % (70 to 80)" in crowd.said


def test_the_contexts_of_those_who_left_do_not_count() -> None:
    """From 5 to 8 s: 111 tokens of a until it ends at 6.5 s; b's call is served at 7 s: 201."""
    (crowd,) = crowds(hand_made().events, SessionId("c"), [Span("gated", 5.0, 8.0)])
    assert crowd.active == pytest.approx((1, (1.5 * 2 + 1.5 * 1) / 3, 2))
    mean_tokens = (1.5 * 111 + 0.5 * 0 + 1.0 * 201) / 3
    assert crowd.kv_session_frac == pytest.approx((0, mean_tokens / 320, 201 / 320))


def test_an_account_by_hand() -> None:
    told = account(life_of(hand_made(), B))
    assert {time.phase: time.total_s for time in told.phases} == pytest.approx(
        {"gated": 2, "queued": 1, "running": 2, "tool waits": 0.5, "tool runs": 4}
    )
    assert (told.largest.phase, told.largest.longest_at_s) == ("tool runs", 5.5)
    said = [(line.at_s, line.what, line.why) for line in told.lines if line.event != "Gate"]
    assert said == [
        (0, "arrived", ""),
        (2, "let in after 2.00 s", "room"),
        (2, "turn 0: call handed to the engine", ""),
        (3, "turn 0: on the GPU after 1.00 s; 64 of its 200 tokens cached", ""),
        (5, "turn 0: served after 2.00 s; 1 token made, 136 run", ""),
        (5, "turn 0: answer delivered", ""),
        (5, "KV of 200 tokens kept warm, for 1.00 s at first", "short tool"),
        (5, "make: asks for 1 core", ""),
        (5.5, "make: runs on core 0 after 0.50 s", ""),
        (6, "KV of 200 tokens let go after 1.00 s", EXPIRED),
        (9.5, "ended", "done"),  # at the same time as its tool, and told first
        (9.5, "make: ran 4.00 s (CPU 25.0 %), exit code 0", ""),
    ]


def test_a_tool_that_runs_on_says_what_it_takes() -> None:
    ran = {"run_s": 4.0, "cpu_s": 3.0, "memory_bytes": 210_000_000}
    now = ev.ToolProgressed(at_s=9.0, session_id=A, tool_id=TA, tool="make", **ran)  # type: ignore[arg-type]
    assert Teller().say(now).what == "make: has run 4.00 s (CPU 75.0 %), 210 MB in memory"
    asleep = msgspec.structs.replace(now, cpu_s=0.0, memory_bytes=512)
    assert Teller().say(asleep).what == "make: has run 4.00 s (CPU 0 %), 512 B in memory"


def test_a_context_that_the_cache_has_lost_is_named() -> None:
    cold = [
        msgspec.structs.replace(e, cached_tokens=16)
        if isinstance(e, ev.CallStarted) and e.call_id == "a2"
        else e
        for e in MARS
    ]
    lines = account(life_of(round_of("mars", cold), A)).lines
    (line,) = (line for line in lines if line.event == "CallStarted" and line.at_s == 4.5)
    assert (line.why, line.matters) == ("its context had 110 tokens before", True)
    warm = account(life_of(hand_made(), A)).lines
    assert not any("its context had" in line.why for line in warm)


def test_every_reason_to_let_go_has_words() -> None:
    for why in get_args(get_type_hints(ev.KvReleased)["why"]):
        released = ev.KvReleased(at_s=1, session_id=A, kv_tokens=1, held_s=1, why=why)
        assert len(Teller().say(released).why.split()) > 2


def test_who_is_let_in_before_it_came_back_did_not_wait() -> None:
    teller = Teller()
    facts = (
        ev.SessionArrived(at_s=1, session_id=A),
        ev.SessionAdmitted(at_s=3, session_id=A, why="room"),
        ev.SessionPaused(at_s=4, session_id=A, why="no room"),
        ev.SessionAdmitted(at_s=6, session_id=A, why="room again"),
    )
    assert [teller.say(fact)[:2] for fact in facts] == [
        ("arrived", ""),
        ("let in after 2.00 s", "room"),
        ("sent back: its next call must wait at the gate", "no room"),
        ("let in again before its next call came", "room again"),
    ]


@runs
@given(seed=st.sampled_from(SEEDS), share=st.floats(0.05, 1.0))
@settings(max_examples=20, deadline=None)
def test_a_log_cut_anywhere_can_be_explained(policy: str, seed: int, share: float) -> None:
    whole = played(policy, seed).events
    cut = round_of(policy, list(whole[: max(1, int(share * len(whole)))]))
    for life in lives(cut):
        told = account(life)
        assert sum(time.total_s for time in told.phases) == pytest.approx(told.total_s)
        if not told.ended:
            assert told.arrived_s + told.total_s == pytest.approx(cut.ended_s)
            assert told.why == ""


def test_an_id_that_comes_again_lives_again() -> None:
    again = [msgspec.structs.replace(event, at_s=event.at_s + 100) for event in MARS]
    first, _, second, _ = lives(round_of("mars", [*MARS, *again]))
    assert (first.session_id, second.session_id) == (A, A)
    assert (first.stay, second.stay) == (1, 2)
    assert overview(first).total_s == pytest.approx(overview(second).total_s)
    assert account(second).lines == account(first).lines


def long_life() -> Account:
    return max(
        (account(life) for seed in SEEDS for life in lives(played("mars", seed))),
        key=lambda told: len(told.lines),
    )


def test_a_folded_life_keeps_what_matters_and_says_how_much_it_leaves_out() -> None:
    lines = long_life().lines
    folded = shown(lines, most=5)
    assert len(folded) < len(lines)
    assert [line for line in folded if line.matters] == [line for line in lines if line.matters]
    left_out = [int(line.what.split()[1]) for line in folded if line.event == "Folded"]
    assert len(folded) - len(left_out) + sum(left_out) == len(lines)
    assert shown(lines, most=len(lines)) == lines


def test_a_part_of_a_life() -> None:
    lines = [Line(at_s=float(second), event="CallQueued", what="") for second in range(100)]
    assert [line.at_s for line in shown(lines, around_s=50.0)] == list(range(40, 60))
    assert [line.at_s for line in shown(lines, around_s=2.0)] == list(range(12))
    assert [line.at_s for line in shown(lines, around_s=999.0)] == list(range(90, 100))
    assert [line.at_s for line in shown(lines, last=3)] == [97, 98, 99]
