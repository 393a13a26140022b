"""What holds under every policy: strides change nothing, nobody sees the future, no leaks."""

from collections import Counter
from typing import Any

import msgspec
import pytest

from mars.core import events as ev
from mars.policy.base import CallView, Key, Policy, Steady
from mars.policy.presets import PRESETS, Scheduling, build_policy
from mars.sim import run as run_module
from mars.sim.profiles import load_profile
from mars.sim.run import Outcome, Simulation, simulate
from mars.sim.settings import EngineSettings, SimSettings, ToolSettings
from mars.workload.make import make
from mars.workload.synthetic import Synthetic
from mars.workload.trace import Recorded

from .workloads import random_sessions

COST = load_profile("h100-nvl/qwen3-coder-30b").cost()
SEEDS = range(8)


def settings(policy: str, seed: int, lag: int, window_tokens: int = 0) -> SimSettings:
    return SimSettings(
        scheduling=Scheduling(policy=policy),
        engine=EngineSettings(
            kv_blocks=1000 if window_tokens else 700,
            window_tokens=window_tokens,
            step_tokens=2048,
            most_calls=8 + 8 * (seed % 2),
            lag=lag,
            api_s=0.003 * (seed % 3),
            sample_s=0.2,
            host_blocks=0 if window_tokens else (0, 0, 300, 3000)[seed % 4],
            host_block_s=(0.00003, 0.002)[seed // 4],
        ),
        tools=ToolSettings(
            cores=3, share=1 + seed % 2, memory_bytes=(2 << 20) if seed % 3 else None
        ),
    )


def names(outcome: Outcome) -> list[tuple[str, str]]:
    return [(type(e).__name__, getattr(e, "session_id", "")) for e in outcome.events]


@pytest.mark.parametrize(("lag", "window_tokens"), [(0, 0), (1, 0), (1, 128)])
@pytest.mark.parametrize("policy", PRESETS)
def test_macro_steps_change_nothing(policy: str, lag: int, window_tokens: int) -> None:
    """The same facts in the same order, at the same times to 1e-9 s; far fewer steps taken."""
    steps = macro_steps = 0
    for seed in SEEDS:
        sessions, given = random_sessions(seed), settings(policy, seed, lag, window_tokens)
        macro, micro = simulate(sessions, COST, given), simulate(sessions, COST, given, micro=True)
        assert names(macro) == names(micro), f"seed {seed}"
        for one, other in zip(macro.events, micro.events, strict=True):
            assert one.at_s == pytest.approx(other.at_s, abs=1e-9), f"seed {seed}: {one}, {other}"
        assert macro.steps == micro.steps
        steps, macro_steps = steps + macro.steps, macro_steps + macro.macro_steps
    assert macro_steps < steps / 5


@pytest.mark.parametrize("policy", ["fcfs", "mars", "mars_preview", "autellix-released"])
def test_macro_steps_change_nothing_in_a_long_crowded_run(policy: str) -> None:
    """Each fact whole, times to 1e-6 s: small errors have a thousand facts to grow in."""
    swe = msgspec.convert(
        {"kind": "synthetic", "class": "swe", "max_context_tokens": 30_000}, Synthetic
    )
    given = SimSettings(
        scheduling=Scheduling(policy=policy),
        engine=EngineSettings(kv_blocks=4000, step_tokens=2048, sample_s=1.0),
    )
    sessions = make(swe, 40, 0.3, 1)
    macro, micro = simulate(sessions, COST, given), simulate(sessions, COST, given, micro=True)
    for one, other in zip(macro.events, micro.events, strict=True):
        assert type(one) is type(other)
        for field in one.__struct_fields__:
            if field != "why":
                expected = getattr(other, field)
                if isinstance(expected, float):
                    expected = pytest.approx(expected, abs=1e-6)
                assert getattr(one, field) == expected, f"{field}: {one}, {other}"
    assert macro.first_token_s == pytest.approx(micro.first_token_s, abs=1e-6)


@pytest.mark.parametrize("policy", PRESETS)
def test_every_session_ends_and_the_books_are_even_after_every_event(policy: str) -> None:
    for seed in SEEDS:
        sessions = random_sessions(seed)
        given = settings(policy, seed, seed % 2, window_tokens=128 * (seed % 3 == 1))
        simulation = Simulation(sessions, COST, given, checks=True)
        outcome = simulation.run()
        counts = Counter(type(e).__name__ for e in outcome.events)
        assert counts["SessionArrived"] == counts["SessionEnded"] == len(sessions)
        assert counts["CallQueued"] == counts["CallFinished"]
        assert counts["ToolQueued"] == counts["ToolFinished"]
        assert counts["KvHeld"] >= counts["KvReleased"]
        times = [e.at_s for e in outcome.events]
        assert times == sorted(times), "facts are in time order"


def lengthened(sessions: list[Recorded]) -> list[Recorded]:
    """The last session's last answer, three times as long."""
    last = max(sessions, key=lambda s: s.arrives_s)
    turn = msgspec.structs.replace(last.turns[-1], output_tokens=last.turns[-1].output_tokens * 3)
    longer = msgspec.structs.replace(last, turns=(*last.turns[:-1], turn), leaves_s=None)
    return [longer if s is last else s for s in sessions]


def foreknown(policy: str, seed: int) -> bool:
    """Does anything change before the moment at which the shorter answer ends?"""
    sessions = [msgspec.structs.replace(s, leaves_s=None) for s in random_sessions(seed)]
    given = settings(policy, seed, 0)
    before, after = simulate(sessions, COST, given), simulate(lengthened(sessions), COST, given)
    last = max(sessions, key=lambda s: s.arrives_s)
    end_s = max(
        e.at_s
        for e in before.events
        if isinstance(e, ev.CallServed) and e.session_id == last.session_id
    )
    return [e for e in before.events if e.at_s < end_s - 1e-6] != [
        e for e in after.events if e.at_s < end_s - 1e-6
    ]


@pytest.mark.parametrize("policy", PRESETS)
def test_no_policy_sees_the_future(policy: str) -> None:
    assert not any(foreknown(policy, seed) for seed in SEEDS)


class Peek(Steady):
    """A bad policy: shortest answer first, read from where no policy may look."""

    live = True

    def __init__(self, lengths: dict[str, int]) -> None:
        self._lengths = lengths

    def run_key(self, call: CallView, now_s: float) -> Key:
        del now_s
        return (self._lengths[call.call_id], call.queued_s)

    victim_key = run_key


def test_a_policy_that_peeks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    truth: dict[str, int] = {}

    def build(scheduling: Scheduling) -> Policy:
        return Policy(Peek(truth), build_policy(scheduling).retention)

    def remember(sessions: list[Recorded]) -> Any:
        truth.update(
            (f"{s.session_id}/{n}", turn.output_tokens)
            for s in sessions
            for n, turn in enumerate(s.turns)
        )

    monkeypatch.setattr(run_module, "build_policy", build)
    original = run_module.simulate

    def peeking(sessions: Any, *rest: Any, **options: Any) -> Outcome:
        remember(sessions)
        return original(sessions, *rest, **options)

    monkeypatch.setitem(globals(), "simulate", peeking)
    assert any(foreknown("fcfs", seed) for seed in range(40))


@pytest.mark.parametrize("policy", PRESETS)
def test_a_run_is_a_function_of_its_inputs(policy: str) -> None:
    sessions = random_sessions(5)
    first, second = (simulate(sessions, COST, settings(policy, 5, 1)) for _ in range(2))
    assert first.events == second.events
