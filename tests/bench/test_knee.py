"""How many agents make which load, on machines that can be reckoned by hand."""

import os

import pytest

from mars.bench.as_simulated import as_simulated
from mars.bench.knee import Knee, knee_of
from mars.config import load_settings
from mars.sim.profiles import load_profile
from mars.workload.trace import Recorded, Tool, Turn

PROFILE = load_profile("tiny-cpu")
CORE = min(os.sched_getaffinity(0))
SLEEPER = Recorded(
    session_id="s",
    turns=(
        Turn(new_tokens=991, output_tokens=8, tools=(Tool(name="sleep", run_s=90.0),)),
        Turn(new_tokens=1, output_tokens=1),
    ),
)
"""It has 1,000 tokens, for 90 seconds, and the engine is busy for a moment."""


def knee(share: int, kv_blocks: int) -> Knee:
    settings = load_settings(None, (f"tools.share={share}", f"tools.cores=[{CORE}]"))
    arguments = ("--block-size", "10", "--num-gpu-blocks-override", str(kv_blocks + 1))
    return knee_of([SLEEPER], PROFILE, settings, arguments)


def test_cores_carry_as_many_agents_as_they_run_commands() -> None:
    assert knee(share=3, kv_blocks=10_000).agents == pytest.approx(3.0, rel=0.02)


def test_memory_carries_as_many_agents_as_it_holds_contexts() -> None:
    assert knee(share=50, kv_blocks=400).agents == pytest.approx(4.0, rel=0.02)


def test_a_load_is_so_many_times_the_knee_and_never_nobody() -> None:
    found = knee(share=50, kv_blocks=400)
    assert [found.agents_at(load) for load in (0.01, 0.5, 1.0, 2.5)] == [1, 2, 4, 10]
    assert str(found).startswith("knee at 4.0 agents: alone a session takes 90.")


def test_an_engine_is_simulated_with_the_blocks_that_it_was_given() -> None:
    engine, tools = as_simulated(("--num-gpu-blocks-override=321",), 4, 2, PROFILE, lag=1)
    assert (engine.kv_blocks, engine.block_tokens, engine.lag) == (320, 16, 1)
    assert (tools.cores, tools.share) == (2, 4)


def test_an_engine_that_was_not_told_has_what_the_profile_says() -> None:
    engine, _ = as_simulated(("--block-size", "32"), 1, 1, PROFILE)
    assert engine.kv_blocks == PROFILE.kv_capacity_tokens() // 32 - 1
