"""Two tenants on one machine under `mars`: shares under overload, and what one costs the other."""

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

import msgspec
import pytest

from mars.core import events as ev
from mars.core.errors import InputError
from mars.core.settings import Limits, TenantSettings, TenantWeight
from mars.policy.presets import Scheduling
from mars.sim.run import Outcome, simulate
from mars.sim.settings import EngineSettings, SimSettings
from mars.workload.make import make
from mars.workload.synthetic import Synthetic
from mars.workload.trace import Recorded

from .test_laws import COST, names
from .test_laws import settings as crowded
from .workloads import random_sessions

SWE = msgspec.convert(
    {"kind": "synthetic", "class": "swe", "max_context_tokens": 30_000}, Synthetic
)
KV_BLOCKS = 4000
"""For a few sessions: everybody waits at the gate."""


def weighed(**weights: float) -> Scheduling:
    named = tuple(TenantWeight(tenant=name, weight=of) for name, of in weights.items())
    return Scheduling(tenants=TenantSettings(weights=named))


def play(sessions: list[Recorded], scheduling: Scheduling, tenants: Mapping[str, str]) -> Outcome:
    given = SimSettings(
        scheduling=scheduling, engine=EngineSettings(kv_blocks=KV_BLOCKS, sample_s=1.0)
    )
    return simulate(sessions, COST, given, tenants=tenants)


def attained_s(outcome: Outcome, tenants: Mapping[str, str], until_s: float) -> dict[str, float]:
    """Seconds of calls on the GPU and core seconds of tools, read off the log."""
    attained, started_s = defaultdict[str, float](float), dict[str, float]()
    for event in outcome.events:
        match event:
            case _ if event.at_s > until_s:
                break
            case ev.CallStarted():
                started_s[event.call_id] = event.at_s
            case ev.CallServed():
                attained[tenants[event.session_id]] += event.at_s - started_s[event.call_id]
            case ev.ToolFinished():
                attained[tenants[event.session_id]] += event.run_s
            case _:
                pass
    return attained


def last_s(outcome: Outcome, kind: type[ev.SessionAdmitted], of: set[str]) -> float:
    return max(e.at_s for e in outcome.events if isinstance(e, kind) and e.session_id in of)


def times_s(outcome: Outcome, of: set[str]) -> list[float]:
    arrived_s = {e.session_id: e.at_s for e in outcome.events if isinstance(e, ev.SessionArrived)}
    ended = (e for e in outcome.events if isinstance(e, ev.SessionEnded) and e.session_id in of)
    return [e.at_s - arrived_s[e.session_id] for e in ended]


@pytest.mark.parametrize("part", [0.5, 1.0])
@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_under_overload_each_attains_its_share(ratio: float, part: float) -> None:
    """While both have sessions at the gate, and in the first half of that: over eight runs, since
    in one the sessions of a tenant may all be long.
    """
    of_a = of_b = 0.0
    for seed in range(1, 9):
        sessions = make(SWE, 240, 2.0, seed)
        tenants = {s.session_id: "ab"[n % 2] for n, s in enumerate(sessions)}
        outcome = play(sessions, weighed(a=ratio, b=1.0), tenants)
        both = [{name for name, of in tenants.items() if of == tenant} for tenant in "ab"]
        end_s = min(last_s(outcome, ev.SessionAdmitted, of) for of in both)
        attained = attained_s(outcome, tenants, part * end_s)
        of_a, of_b = of_a + attained["a"], of_b + attained["b"]
    assert of_a / of_b == pytest.approx(ratio, rel=0.2)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_tenant_within_its_share_does_not_feel_another_s_flood(seed: int) -> None:
    """Its largest slowdown is bounded by what it shares with, not by how much the other asks."""
    sessions = make(SWE, 240, 2.0, seed)
    few = {s.session_id for s in sessions[::24]}
    tenants = {s.session_id: "few" if s.session_id in few else "flood" for s in sessions}
    alone = times_s(play([s for s in sessions if s.session_id in few], Scheduling(), {}), few)
    unweighed = times_s(play(sessions, Scheduling(), tenants), few)
    shared = times_s(play(sessions, weighed(few=1.0, flood=1.0), tenants), few)
    assert len(alone) == len(shared) == 10
    assert sum(shared) < 4.0 * sum(alone)
    assert max(shared) < 2.0 * max(alone)
    assert sum(shared) < sum(unweighed) / 5.0, "else the flood is none"


@pytest.mark.parametrize("seed", range(4))
def test_a_tenant_that_is_alone_has_the_machine_as_if_there_were_no_tenants(seed: int) -> None:
    sessions = random_sessions(seed)
    mine = {s.session_id: "a" for s in sessions}
    given = crowded("mars", seed, seed % 2)
    shared = msgspec.structs.replace(given, scheduling=weighed(a=3.0, b=1.0))
    with_shares, without = (
        simulate(sessions, COST, settings, tenants=mine) for settings in (shared, given)
    )
    assert names(with_shares) == names(without)
    for one, other in zip(with_shares.events, without.events, strict=True):
        assert one.at_s == pytest.approx(other.at_s, abs=1e-9)  # sums are cut at other strides


@pytest.mark.parametrize("seed", range(6))
def test_macro_steps_change_nothing_for_tenants_either(seed: int) -> None:
    sessions = random_sessions(seed)
    tenants = {s.session_id: "ab"[n % 2] for n, s in enumerate(sessions)}
    given = msgspec.structs.replace(crowded("mars", seed, 1), scheduling=SMALL_CLASSES)
    macro, micro = (
        simulate(sessions, COST, given, tenants=tenants, micro=micro) for micro in (False, True)
    )
    assert names(macro) == names(micro)
    for one, other in zip(macro.events, micro.events, strict=True):
        assert one.at_s == pytest.approx(other.at_s, abs=1e-9)
    assert all(one.at_s <= then.at_s for one, then in pairwise(macro.events))


SMALL_CLASSES = Scheduling(
    tenants=TenantSettings(
        weights=(TenantWeight(tenant="a", weight=3.0),), quantum_s=0.5, again_s=0.7
    )
)
"""Classes that change all the time."""


def test_a_limit_of_calls_which_nobody_would_keep_is_refused() -> None:
    tenants = TenantSettings(other_limits=Limits(most_calls=1))
    limited = msgspec.structs.replace(
        crowded("mars", 0, 0), scheduling=Scheduling(policy="mars", tenants=tenants)
    )
    with pytest.raises(InputError, match="most_calls"):
        simulate(random_sessions(1), COST, limited)
