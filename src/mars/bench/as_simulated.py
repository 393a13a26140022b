"""A real stack as the simulator sees it: engine and tool settings from what it was started with."""

from collections.abc import Sequence

from mars.bench.calibrating import given
from mars.sim.profiles import Profile
from mars.sim.settings import EngineSettings, ToolSettings

BLOCK_TOKENS = 16
"""vLLM's own defaults, where its arguments do not say."""
STEP_TOKENS = 8192
MOST_CALLS = 256


def as_simulated(
    vllm_args: Sequence[str], share: int, cores: int, profile: Profile, *, lag: int = 0
) -> tuple[EngineSettings, ToolSettings]:
    """`share` commands at a time on each of `cores`; `lag` as in EngineSettings."""
    block_tokens = given(vllm_args, "--block-size") or BLOCK_TOKENS
    blocks = given(vllm_args, "--num-gpu-blocks-override")
    engine = EngineSettings(
        kv_blocks=(blocks or profile.kv_capacity_tokens() // block_tokens) - 1,  # one is vLLM's own
        block_tokens=block_tokens,
        step_tokens=given(vllm_args, "--max-num-batched-tokens") or STEP_TOKENS,
        most_calls=given(vllm_args, "--max-num-seqs") or MOST_CALLS,
        lag=lag,
        api_s=profile.api_s,
        api_token_s=profile.api_token_s,
        sample_s=0.2,
    )
    return engine, ToolSettings(cores=cores, share=share, start_s=profile.command_s)
