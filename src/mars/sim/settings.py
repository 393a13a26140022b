"""What may be set of a simulated machine: the engine, the tools, and how both are scheduled."""

from typing import Annotated

import msgspec
from msgspec import Meta

from mars.core.errors import InputError
from mars.core.leases import LEASES_A_CORE
from mars.policy.presets import Scheduling
from mars.sim.windows import most_window_blocks

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0.0)]


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kv_blocks: Count
    block_tokens: Count = 16
    step_tokens: Count = 8192
    """Most tokens in a step (--max-num-batched-tokens)."""
    most_calls: Count = 256
    """Most calls that run at once (--max-num-seqs)."""
    lag: Annotated[int, Meta(ge=0, le=1)] = 1
    """1: asynchronous scheduling, vLLM's default on a GPU."""
    window_tokens: Annotated[int, Meta(ge=0)] = 0
    """What half of the layers see, where these are a KV group of their own (GPT-OSS: 128); 0: all
    layers see everything."""
    host_blocks: Annotated[int, Meta(ge=0)] = 0
    """Host memory behind the KV, in its blocks (--kv-offloading-size); 0: none. Not modelled
    together with `window_tokens`."""
    host_block_s: Seconds = 0.0
    """What a block takes over the link from there to the GPU."""
    api_s: Seconds = 0.0
    """Between the gateway and the engine's queue: HTTP, tokenizer; a call."""
    api_token_s: Seconds = 0.0
    """The same, a prompt token."""
    sample_s: Annotated[float, Meta(gt=0.0)] = 2.0
    """How often the engine tells the control plane of its memory. The plugin: 0.2 s; here sessions
    take minutes, and every sample is a step that cannot be strided over."""

    def __post_init__(self) -> None:
        if self.window_tokens and self.host_blocks:
            raise InputError(
                "host memory behind the KV of a model with a sliding window is not simulated: "
                "leave `host_gib` (`host_blocks`) out, or take another model"
            )

    @property
    def flying_tokens(self) -> int:
        """Most tokens of steps that are scheduled and not over."""
        return (1 + self.lag) * self.step_tokens

    def call_blocks(self, tokens: int) -> int:
        """Most blocks that a call of so many tokens has at a time."""
        blocks = -(-tokens // self.block_tokens)
        return blocks + min(blocks, self._window_blocks)

    @property
    def longest_context_tokens(self) -> int:
        """Of a call that has the memory for itself."""
        blocks = max(self.kv_blocks // 2, self.kv_blocks - self._window_blocks)
        return (blocks if self.window_tokens else self.kv_blocks) * self.block_tokens

    @property
    def _window_blocks(self) -> int:
        return most_window_blocks(self.window_tokens, self.block_tokens, self.flying_tokens)


class ToolSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cores: Annotated[int, Meta(ge=1)] = 16
    share: Annotated[int, Meta(ge=1, le=64)] = LEASES_A_CORE
    """Leases for each core. 1: a command has its cores to itself; more: all share all cores."""
    memory_bytes: Annotated[int, Meta(ge=1)] | None = None
    """For all commands together; None: not limited."""
    start_s: Annotated[float, Meta(ge=0.0)] = 0.0
    """A lease is held so much longer than the command runs: to start it, to hear of its end. Where
    leases share the cores this is burnt too."""


class SimSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    engine: EngineSettings
    scheduling: Scheduling = Scheduling()
    tools: ToolSettings = ToolSettings()
