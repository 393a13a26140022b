"""`mars bench-simulator`: what a simulated run costs, on one core of this machine.

Sessions like the simulator's first probe: a first prompt of 8,000 tokens (mean), 1,800 more a turn,
answers of 350, tools of 6 s, on an H100 NVL with Qwen3-Coder-30B; load is the named rho. At rho 0.9
their KV does not fit, so more and more are open the longer it goes on; at 0.5 a policy that keeps
it carries them, so that a turn among 5,000 sessions can be held against one among 200.
"""

import gc
import math
import random
import statistics
from collections.abc import Sequence
from time import process_time
from typing import Final, NamedTuple

import msgspec

from mars.core import events as ev
from mars.policy.presets import Scheduling
from mars.sim.bounds import bounds, rate_for
from mars.sim.profiles import load_profile
from mars.sim.run import Outcome, simulate
from mars.sim.settings import EngineSettings, SimSettings, ToolSettings
from mars.workload.arrivals import poisson_s
from mars.workload.trace import Recorded, Tool, Turn

PROFILE: Final = "h100-nvl/qwen3-coder-30b"
MOST_CONTEXT_TOKENS: Final = 200_000


class Case(NamedTuple):
    sessions: int
    turns: tuple[int, int]
    rho: float


CASES: Final = (
    Case(200, (15, 15), 0.5),
    Case(1000, (15, 15), 0.5),
    Case(5000, (15, 15), 0.5),
    Case(200, (15, 15), 0.9),
    Case(1000, (10, 40), 0.9),
)


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    policy: str
    rho: float
    sessions: int
    turns: int
    open_sessions: float
    """At a time, mean."""
    cpu_s: float
    """Median of the repetitions, CPU seconds."""
    per_turn_us: float
    strides: int


def measure_speed(policies: Sequence[str], *, repeat: int) -> list[Speed]:
    profile = load_profile(PROFILE)
    cost, tools = profile.cost(), ToolSettings()
    engine = EngineSettings(kv_blocks=profile.kv_blocks())
    results = []
    for case in CASES:
        sample = _sessions(case, 1.0)
        rate_per_s = rate_for(case.rho, bounds(sample, cost, engine, tools))
        sessions = _sessions(case, rate_per_s)
        turns = sum(len(session.turns) for session in sessions)
        for policy in policies:
            settings = SimSettings(scheduling=Scheduling(policy=policy), engine=engine, tools=tools)
            took_s = []
            for _ in range(repeat):
                gc.collect()
                start_s = process_time()
                outcome = simulate(sessions, cost, settings)
                took_s.append(process_time() - start_s)
            cpu_s = statistics.median(took_s)
            results.append(
                Speed(
                    policy=policy,
                    rho=case.rho,
                    sessions=case.sessions,
                    turns=turns,
                    open_sessions=_open_sessions(outcome),
                    cpu_s=cpu_s,
                    per_turn_us=cpu_s / turns * 1e6,
                    strides=outcome.macro_steps,
                )
            )
    return results


def _open_sessions(outcome: Outcome) -> float:
    """Seconds of all sessions / seconds from the first fact to the last."""
    open_s = 0.0
    for fact in outcome.events:
        if isinstance(fact, ev.SessionEnded):
            open_s += fact.at_s
        elif isinstance(fact, ev.SessionArrived):
            open_s -= fact.at_s
    return open_s / (outcome.events[-1].at_s - outcome.events[0].at_s)


def _sessions(case: Case, rate_per_s: float) -> list[Recorded]:
    arrives_s = poisson_s(case.sessions, rate_per_s, 1)
    return [_session(n, at_s, case.turns) for n, at_s in enumerate(arrives_s)]


def _session(number: int, arrives_s: float, turns: tuple[int, int]) -> Recorded:
    rng = random.Random(f"speed/{number}")
    made: list[Turn] = []
    context_tokens = 0
    for turn in range(rng.randint(*turns)):
        new_tokens = max(16, round(_drawn(rng, 1800.0 if turn else 8000.0, 1.0 if turn else 0.5)))
        output_tokens = max(8, round(_drawn(rng, 350.0, 0.8)))
        context_tokens += new_tokens + output_tokens
        if context_tokens > MOST_CONTEXT_TOKENS:
            break
        tool = Tool(name="tool", run_s=_drawn(rng, 6.0, 1.5))
        made.append(Turn(new_tokens=new_tokens, output_tokens=output_tokens, tools=(tool,)))
    made[-1] = msgspec.structs.replace(made[-1], tools=())
    return Recorded(session_id=f"s{number}", arrives_s=arrives_s, turns=tuple(made))


def _drawn(rng: random.Random, mean: float, variation: float) -> float:
    """Lognormal, of this mean and coefficient of variation."""
    variance = math.log1p(variation * variation)
    return rng.lognormvariate(math.log(mean) - variance / 2.0, math.sqrt(variance))
