"""Bounds against the simulator: no run may beat them, and a session alone must meet its own."""

import random
from math import inf

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars.core import events as ev
from mars.policy.presets import PRESETS, Scheduling
from mars.sim.bounds import bounds, isolated_s, rate_for
from mars.sim.cost import Cost
from mars.sim.laws import Linear
from mars.sim.needs import need_of
from mars.sim.prices import prices_of
from mars.sim.profiles import load_profile, profile_names
from mars.sim.run import Outcome, simulate
from mars.sim.settings import EngineSettings, SimSettings, ToolSettings
from mars.workload.trace import Recorded, Tool, Turn

TINY, H100 = load_profile("tiny-cpu").cost(), load_profile("h100-nvl/qwen3-coder-30b").cost()
BLOCK = 16

tools_ = st.builds(
    Tool,
    name=st.just("sh"),
    run_s=st.floats(0.0, 20.0),
    cpu_s=st.floats(0.0, 20.0),
    cores=st.integers(1, 4),
)


@st.composite
def sessions_(draw: st.DrawFn, *, reset: bool) -> Recorded:
    shared_tokens = draw(st.sampled_from([0, 5, 64, 500]))
    turns = []
    for number in range(draw(st.integers(1, 6))):
        is_reset = reset and number > 0 and draw(st.booleans())
        least = shared_tokens if is_reset or not number else 0
        turns.append(
            Turn(
                new_tokens=least + draw(st.integers(1, 700)),
                output_tokens=draw(st.integers(1, 60)),
                reset=is_reset,
                tools=tuple(draw(st.lists(tools_, max_size=2))),
                think_s=draw(st.sampled_from([0.0, 3.0])),
            )
        )
    return Recorded(
        session_id="alone",
        arrives_s=draw(st.sampled_from([0.0, 2.5])),
        turns=tuple(turns),
        shared_prefix="system" if shared_tokens else "",
        shared_tokens=shared_tokens,
    )


def _run(
    sessions: list[Recorded],
    cost: Cost,
    engine: EngineSettings,
    tools: ToolSettings,
    policy: str = "fcfs",
) -> Outcome:
    scheduling = Scheduling(policy=policy)
    return simulate(sessions, cost, SimSettings(scheduling=scheduling, engine=engine, tools=tools))


def _latencies_s(outcome: Outcome) -> list[float]:
    came = {e.session_id: e.at_s for e in outcome.events if isinstance(e, ev.SessionArrived)}
    return [e.at_s - came[e.session_id] for e in outcome.events if isinstance(e, ev.SessionEnded)]


@pytest.mark.parametrize("cost", [TINY, H100], ids=["tiny-cpu", "h100"])
@given(
    session=sessions_(reset=True),
    lag=st.integers(0, 1),
    share=st.integers(1, 3),
    step_tokens=st.sampled_from([100, 8192]),
    api_s=st.sampled_from([0.0, 0.25]),
)
@settings(max_examples=60, deadline=None)
def test_a_session_alone_takes_its_isolated_time(
    *, cost: Cost, session: Recorded, lag: int, share: int, step_tokens: int, api_s: float
) -> None:
    """Whatever the lag: with nobody else there, the next step is known when this one starts."""
    engine = EngineSettings(kv_blocks=1000, lag=lag, step_tokens=step_tokens, api_s=api_s)
    tools = ToolSettings(cores=3, share=share)
    (latency_s,) = _latencies_s(_run([session], cost, engine, tools))
    assert latency_s == pytest.approx(isolated_s(session, cost, engine, tools), abs=1e-9)


def test_isolated_time_by_hand() -> None:
    """Steps of 1 s and 1 ms a prompt token; of 149 tokens in KV 144 are whole blocks. What the last
    turn would do after its answer nobody waits for.
    """
    cost = Linear(step_s=1.0, prefill_token_s=1e-3, decode_call_s=0.0).cost()
    make = Tool(name="make", run_s=3.0, cpu_s=8.0, cores=4)
    session = Recorded(
        session_id="s",
        turns=(
            Turn(new_tokens=100, output_tokens=50, tools=(make,), think_s=5.0),
            Turn(new_tokens=1, output_tokens=1, tools=(make,)),
        ),
    )
    engine = EngineSettings(kv_blocks=100, step_tokens=64)
    # 2 steps and 49 decodes; 8 CPU seconds on 2 cores; thinking; 151 - 144 tokens
    expected_s = (2.0 + 0.1 + 49.0) + 4.0 + 5.0 + (1.0 + 7e-3)
    assert isolated_s(session, cost, engine, ToolSettings(cores=2)) == pytest.approx(expected_s)


def test_a_session_that_leaves_is_not_there_for_longer() -> None:
    session = Recorded(
        session_id="s", turns=(Turn(new_tokens=100, output_tokens=500),), leaves_s=0.5
    )
    engine, tools = EngineSettings(kv_blocks=100), ToolSettings()
    of = bounds([session], TINY, engine, tools)
    assert of.isolated_s == {"s": 0.5}
    assert of.clairvoyant_mean_s == 0.5
    assert of.knee_per_s == inf


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_no_step_is_cheaper_than_what_is_in_it(data: st.DataObject) -> None:
    profile = load_profile(data.draw(st.sampled_from(profile_names())))
    cost = profile.cost(1.0, data.draw(st.sampled_from([1.0, 1.45])))
    engine = EngineSettings(kv_blocks=data.draw(st.sampled_from([200, 16_000])))
    workload = _sessions(data.draw(st.integers(0, 20)), count=10, rate_per_s=1.0)
    needs = [need_of(session, cost, engine, ToolSettings()) for session in workload]
    prices = prices_of(needs, cost, engine)
    # some of the calls that fit, each over its own KV and a shared prefix
    own_tokens, left = [], float(engine.kv_blocks * engine.block_tokens)
    for need in data.draw(st.permutations(needs)):
        own_tokens.append(need.least_own_tokens * data.draw(st.floats(1.0, 30.0)))
        left -= own_tokens[-1]
        if left < 0:
            own_tokens.pop()
            break
    contexts = [tokens + data.draw(st.integers(0, 1000)) for tokens in own_tokens]
    budget = engine.step_tokens - len(own_tokens)
    chunks = []
    while budget > 2 and data.draw(st.booleans()):
        chunks.append((data.draw(st.integers(2, budget)), data.draw(st.integers(0, 120_000))))
        budget -= chunks[-1][0]
    priced_s = sum(
        prices.decode_s + prices.own_token_s * own + prices.context_token_s * context
        for own, context in zip(own_tokens, contexts, strict=True)
    ) + sum(prices.prompt(n, n * (c + n / 2)) for n, c in chunks)
    took_s = cost.step_s(len(own_tokens), int(sum(contexts)) + 1, chunks)
    if own_tokens or chunks:
        assert priced_s <= took_s * (1 + 1e-9)


def test_gpu_work_by_hand() -> None:
    """Five rates: decodes pay d and their share of a step, prompts p, each read a, each pair q."""
    law = Linear(
        step_s=0.1, prefill_token_s=1e-3, decode_call_s=0.01, context_token_s=1e-6, pair_s=1e-7
    )
    session = Recorded(session_id="s", turns=(Turn(new_tokens=100, output_tokens=3),))
    twice = [session, msgspec.structs.replace(session, session_id="t")]
    of = bounds(twice, law.cost(), EngineSettings(kv_blocks=100), ToolSettings())
    # both fit into a batch: each of the 2 decodes pays half a step; contexts 101 and 102
    work_s = 2 * (0.1 / 2 + 0.01) + 203e-6 + 100e-3 + 5000e-7
    assert of.gpu_bound_per_s == pytest.approx(1 / work_s, rel=1e-6)


def test_cores_are_leased_for_the_wall_time_and_burnt_for_the_cpu_time() -> None:
    tool = Tool(name="sh", run_s=10.0, cpu_s=4.0, cores=2)
    session = Recorded(
        session_id="s",
        turns=(
            Turn(new_tokens=9, output_tokens=2, tools=(tool,)),
            Turn(new_tokens=9, output_tokens=2),
        ),
    )
    engine = EngineSettings(kv_blocks=100)

    def rate(share: int) -> float:
        tools = ToolSettings(cores=4, share=share)
        return bounds([session], TINY, engine, tools).cpu_bound_per_s

    assert rate(1) == pytest.approx(4 / 20)
    assert rate(2) == pytest.approx(8 / 20)
    assert rate(64) == pytest.approx(4 / 4)


def test_load_is_a_share_of_the_least_bound() -> None:
    of = bounds(
        _sessions(1, count=10, rate_per_s=1.0), TINY, EngineSettings(kv_blocks=500), ToolSettings()
    )
    assert of.kv_bound_per_s <= of.gpu_bound_per_s
    known = (of.kept_bound_per_s, of.gpu_bound_per_s, of.cpu_bound_per_s)
    assert of.knee_per_s == min(known)
    assert rate_for(0.5, of) == of.knee_per_s / 2


def _sessions(
    seed: int, count: int, rate_per_s: float, *, shared_tokens: int = 0, leave: bool = False
) -> list[Recorded]:
    """Small agents of all kinds: many short calls, a few long ones, tools and none."""
    chance, at_s, made = random.Random(seed), 0.0, []
    for index in range(count):
        at_s += chance.expovariate(rate_per_s)
        turns = [
            Turn(
                new_tokens=(0 if number else shared_tokens) + 1 + int(chance.expovariate(1 / 200)),
                output_tokens=1 + int(chance.expovariate(1 / 20)),
                tools=tuple(
                    Tool(
                        name="sh",
                        run_s=chance.expovariate(1 / 2),
                        cpu_s=chance.expovariate(1.0),
                        cores=chance.randint(1, 3),
                    )
                    for _ in range(chance.randint(0, 2))
                ),
                think_s=chance.choice([0.0, 1.0]),
            )
            for number in range(chance.randint(1, 6))
        ]
        made.append(
            Recorded(
                session_id=f"s{index}",
                arrives_s=at_s,
                turns=tuple(turns),
                shared_prefix="system" if shared_tokens else "",
                shared_tokens=shared_tokens,
                leaves_s=5.0 if leave and index % 3 == 0 else None,
            )
        )
    return made


@pytest.mark.parametrize("policy", PRESETS)
@given(
    seed=st.integers(0, 10_000),
    room=st.sampled_from([1.0, 2.0, 10.0]),
    rate_per_s=st.sampled_from([0.2, 2.0, 50.0]),
    cores=st.integers(1, 6),
    share=st.integers(1, 2),
    shared_tokens=st.sampled_from([0, 300]),
    leave=st.booleans(),
    cost=st.sampled_from([TINY, H100]),
)
@settings(max_examples=12, deadline=None)
def test_no_run_beats_its_bounds(
    *,
    policy: str,
    seed: int,
    room: float,
    rate_per_s: float,
    cores: int,
    share: int,
    shared_tokens: int,
    leave: bool,
    cost: Cost,
) -> None:
    """All of the work lies between the first arrival and the last end, so these are laws without
    edge effects. The isolated mean is one only where no other session warms the system prompt.
    """
    sessions = _sessions(seed, 12, rate_per_s, shared_tokens=shared_tokens, leave=leave)
    largest = max(sum(t.new_tokens + t.output_tokens for t in s.turns) for s in sessions)
    engine = EngineSettings(kv_blocks=int(room * -(-largest // BLOCK)))
    tools = ToolSettings(cores=cores, share=share)
    of = bounds(sessions, cost, engine, tools)
    outcome = _run(sessions, cost, engine, tools, policy)
    times_s = _latencies_s(outcome)
    mean_s = sum(times_s) / len(times_s)
    assert of.clairvoyant_mean_s <= mean_s + 1e-9
    if not shared_tokens:
        assert of.isolated_mean_s <= of.clairvoyant_mean_s + 1e-9
    ends = [e.at_s for e in outcome.events if isinstance(e, ev.SessionEnded)]
    rate = len(ends) / (max(ends) - sessions[0].arrives_s)
    assert rate <= of.cpu_bound_per_s + 1e-9
    assert rate <= of.gpu_bound_per_s + 1e-9
    assert rate <= of.kv_bound_per_s + 1e-9
    assert len(ends) / outcome.engine_busy_s <= of.gpu_bound_per_s * (1 + 1e-9)


def test_giving_up_kv_through_a_long_tool_beats_keeping_it() -> None:
    """Why `kept_bound_per_s` is no bound of every schedule, and not in the least of them."""
    tool = Tool(name="sleep", run_s=100.0)
    sessions = [
        Recorded(
            session_id=f"s{index}",
            turns=(
                Turn(new_tokens=1000, output_tokens=4, tools=(tool,)),
                Turn(new_tokens=10, output_tokens=4),
            ),
        )
        for index in range(40)
    ]
    engine, tools = EngineSettings(kv_blocks=70), ToolSettings(cores=40)
    of = bounds(sessions, TINY, engine, tools)
    outcome = _run(sessions, TINY, engine, tools)
    rate = len(sessions) / outcome.events[-1].at_s
    assert of.kept_bound_per_s * 10 < rate <= min(of.kv_bound_per_s, of.cpu_bound_per_s)
