"""The questions an engine may ask, and the row of facts it must hand over to be answered.

An engine (vLLM's scheduler, or a simulated one) owns memory and batches. A policy owns order: it
never touches a block, a queue or a clock. Time reaches it as `now_s`.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from mars.core import events as ev
from mars.core.ids import CallId, SessionId

Key = tuple[float, ...]


@dataclass(slots=True)
class CallView:
    """One LLM call as an engine may truthfully describe it: nothing here is foreknowledge.

    The engine keeps one view per call and updates it in place: this is the hot path.
    """

    call_id: CallId
    session_id: SessionId
    queued_s: float
    """When this call came to the engine."""
    session_arrived_s: float
    """When its session first came, to the gate or (no gate) to the engine."""
    uncached_tokens: int = 0
    """Tokens the model must still compute before the next token can be made: of a waiting call its
    prompt without what the prefix cache has now, of a running call its prefill left."""
    is_decode: bool = False


IdleStage = Literal["left", "tool started", "tool ended"]


class IdleView(msgspec.Struct, frozen=True, kw_only=True):
    """A session off the GPU, its KV still in memory."""

    session_id: SessionId
    stage: IdleStage
    """What has just happened. `left`: its call ended, nothing is known of a tool yet."""
    tool: str
    """Name of the tool, when one is known to run."""
    context_tokens: int
    """Tokens whose KV a hold would keep."""
    kv_capacity_tokens: int
    refill_s: float
    """The engine's own estimate of what it costs to compute this context again."""
    idle_s: float
    """How long the session has been off the GPU."""


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    keep_s: float
    """Keep this KV for so long from now on; 0 lets it go."""
    value: float = 0.0
    """Under pressure the least value goes first."""
    why: str = ""


class Ordering(Protocol):
    live: bool
    """True when a key changes while a call waits (by time or by what is cached): the engine ranks
    again before it admits. False: a key once given stays."""

    def run_key(self, call: CallView, now_s: float) -> Key:
        """Ascending: the least key runs first."""

    def victim_key(self, call: CallView, now_s: float) -> Key:
        """Descending: the greatest key gives up its memory first."""


class Retention(Protocol):
    def observe(self, event: ev.ToolEvent) -> None: ...

    def hold(self, idle: IdleView) -> Hold: ...

    def may_take_held(self, call: CallView, now_s: float) -> bool:
        """May this waiting call take memory that is held for idle sessions?"""


@dataclass(frozen=True, slots=True)
class Policy:
    ordering: Ordering
    retention: Retention


class KeepNothing:
    """No retention: freed KV stays in vLLM's LRU until somebody needs the room."""

    def observe(self, event: ev.ToolEvent) -> None:
        del event

    def hold(self, idle: IdleView) -> Hold:
        del idle
        return Hold(keep_s=0.0)

    def may_take_held(self, call: CallView, now_s: float) -> bool:
        del call, now_s
        return True
