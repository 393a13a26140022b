"""A row against the run that it tells of."""

import msgspec
import pytest

from mars.bench.rounds import Round, figures, quantile, session_times_s
from mars.compare.figures import row
from mars.compare.row import Row
from mars.core import events as ev
from mars.policy.presets import PRESETS, Scheduling
from mars.sim.bounds import bounds
from mars.sim.laws import Linear
from mars.sim.run import Outcome, simulate
from mars.sim.settings import EngineSettings, SimSettings, ToolSettings
from mars.workload.synthetic import Synthetic, sessions
from mars.workload.trace import Recorded, Tool, Turn

COST = Linear(step_s=0.01, prefill_token_s=1e-4, decode_call_s=1e-3, context_token_s=1e-8).cost()


def _played(
    recorded: list[Recorded], policy: str = "fcfs", *, kv_blocks: int = 600, cores: int = 2
) -> tuple[Row, Outcome]:
    engine, tools = EngineSettings(kv_blocks=kv_blocks), ToolSettings(cores=cores, share=1)
    scheduling = Scheduling(policy=policy)
    outcome = simulate(
        recorded, COST, SimSettings(scheduling=scheduling, engine=engine, tools=tools)
    )
    made = row(
        profile="p",
        workload="w",
        rho=0.5,
        step_factor=1.0,
        prefill_factor=1.0,
        policy=policy,
        seed=1,
        rate_per_s=2.0,
        wall_s=0.1,
        tools=tools,
        bounds=bounds(recorded, COST, engine, tools),
        outcome=outcome,
    )
    return made, outcome


@pytest.mark.parametrize("policy", PRESETS)
def test_figures_are_those_of_a_live_log(policy: str) -> None:
    workload = Synthetic(session_class="terminal", max_context_tokens=4000)
    made, outcome = _played(sessions(workload, 20, 2.0, seed=3), policy)
    one = Round(policy=policy, repeat=0, started_s=0.0, ended_s=1e9, events=outcome.events)
    live = msgspec.structs.asdict(figures([one]))
    same = [name for name in live if hasattr(made, name)]
    assert len(same) == 16
    assert {name: getattr(made, name) for name in same} == {name: live[name] for name in same}
    assert sum(made.phase_mean_s.values()) == pytest.approx(made.mean_s)
    assert made.sessions_per_s == live["throughput_sessions_per_s"]
    assert made.p99_s == quantile(session_times_s(one), 0.99)
    assert made.recomputed_frac == live["recomputed_tokens"] / live["needed_tokens"]
    queued_s = [e.queued_s for e in outcome.events if isinstance(e, ev.CallServed)]
    assert made.queue_wait_max_s == max(queued_s)
    assert 0 < made.gpu_busy_frac <= 1
    assert 0 < made.cpu_busy_frac <= 1
    assert made.goodput_2_per_s <= made.goodput_3_per_s <= made.goodput_5_per_s
    assert made.goodput_5_per_s <= made.sessions_per_s
    assert made.slowdown_mean <= made.slowdown_max
    assert made.mean_s >= made.clairvoyant_mean_s


def _agent(name: str, arrives_s: float, *, leaves_s: float | None = None) -> Recorded:
    """Two calls of 10 + 320 tokens, and 6 s on 1 core, of them 3 busy."""
    tool = Tool(name="make", run_s=6.0, cpu_s=3.0)
    first = Turn(new_tokens=320, output_tokens=11, tools=(tool,))
    return Recorded(
        session_id=name,
        arrives_s=arrives_s,
        turns=(first, Turn(new_tokens=10, output_tokens=1)),
        leaves_s=leaves_s,
    )


def test_a_row_by_hand() -> None:
    """The second agent's tool waits for the first one's core; apart from that each is alone."""
    made, outcome = _played([_agent("a", 0.0), _agent("b", 1.0)], cores=1)
    call_s = 0.01 + 0.032 + 10 * (0.01 + 1e-3) + (10 * 320 + 55) * 1e-8
    later_s = 0.01 + (341 - 320) * 1e-4  # 20 blocks of 16 are cached
    alone_s = call_s + 6.0 + later_s
    end_s = call_s + 12.0 + later_s  # of b, which came at 1 s
    slowdown = (end_s - 1.0) / alone_s
    assert made.isolated_mean_s == pytest.approx(alone_s)
    assert made.mean_s == pytest.approx((alone_s + end_s - 1.0) / 2)
    assert made.slowdown_max == pytest.approx(slowdown)
    assert made.slowdown_mean == pytest.approx((1 + slowdown) / 2)
    assert made.jain == pytest.approx((1 + slowdown) ** 2 / (2 * (1 + slowdown**2)))
    assert made.goodput_2_per_s == pytest.approx(2 / end_s)
    assert made.tool_wait_mean_s == pytest.approx(5.0 / 2)
    assert made.cpu_busy_frac == pytest.approx(6.0 / end_s)
    assert made.gpu_busy_frac == pytest.approx(2 * (call_s + later_s) / end_s)
    assert made.first_token_cold_p50_s == pytest.approx(0.042)
    assert made.first_token_warm_p50_s == pytest.approx(later_s)
    assert made.steps == outcome.steps == 2 * (1 + 10 + 1)


def test_who_leaves_is_not_served_well() -> None:
    """One leaves after 2 s, while its tool runs: sooner than it would end alone, but unserved."""
    made, outcome = _played([_agent("a", 0.0), _agent("b", 0.0, leaves_s=2.0)])
    end_s = outcome.events[-1].at_s
    assert made.sessions_per_s == pytest.approx(2 / end_s)
    assert made.goodput_5_per_s == pytest.approx(1 / end_s)
    assert made.slowdown_max == pytest.approx(1.0, abs=0.01)
