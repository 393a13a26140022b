"""An idle session, as an engine may truthfully describe it, and what its KV is worth."""

from typing import Literal

import msgspec

from mars.core.ids import SessionId

IdleStage = Literal["left", "tool started", "tool ended"]


class IdleView(msgspec.Struct, frozen=True, kw_only=True):
    """A session off the GPU, its KV still in memory."""

    session_id: SessionId
    stage: IdleStage
    """What has just happened. `left`: its call ended, nothing is known of a tool yet."""
    tool: str
    """Name of the tool, when one is known to run."""
    session_arrived_s: float
    context_tokens: int
    """Tokens whose KV a hold would keep."""
    others_tokens: int
    """KV of the calls that run now."""
    kv_capacity_tokens: int
    compute_s: float
    """The engine's own estimate of what it takes to compute this context again."""
    refill_s: float
    """What it takes to have it again: that, or to load what host memory has of it and compute the
    rest, whichever is less."""
    idle_s: float
    """How long the session has been off the GPU."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    keep_s: float
    """Keep this KV for so long from now on; 0 lets it go."""
    value: float = 0.0
    """Under pressure the least value goes first."""
    spared_s: float = 0.0
    """An engine in which nothing runs leaves its calls waiting for so long before one of them takes
    this KV; 0: it takes it at once."""
    why: str = ""
