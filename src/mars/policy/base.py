"""The questions an engine may ask, and the row of facts it must hand over to be answered.

An engine (vLLM's scheduler, or a simulated one) owns memory and batches. A policy owns order: it
never touches a block, a queue or a clock. Time reaches it as `now_s`.
"""

from dataclasses import dataclass
from math import inf
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from mars.core import events as ev
from mars.core.ids import CallId, SessionId

Key = tuple[float, ...]

EngineEvent = (
    ev.SessionArrived
    | ev.SessionEnded
    | ev.CallStarted
    | ev.CallServed
    | ev.ToolQueued
    | ev.ToolStarted
    | ev.ToolProgressed
    | ev.ToolFinished
)
"""What an engine tells its policy: of sessions and tools what it hears, of calls what it does."""


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
    """When its session first came, to the gate or (no gate) to the engine; of a child: when its
    family did (core.family)."""
    prompt_tokens: int = 0
    uncached_tokens: int = 0
    """Tokens the model must still compute before the next token can be made: of a waiting call its
    prompt without what the prefix cache has now, of a running call its prefill left."""
    kv_tokens: int = 0
    """Of a running call: tokens of it that are in KV."""
    is_decode: bool = False
    is_held: bool = False
    """Of a waiting call: KV of its session is held."""


class Stays(NamedTuple):
    """For how long a waiting call's key holds: until any of these is passed."""

    until_s: float = inf
    """The key holds while now_s <= until_s."""
    uncached_tokens: float = inf
    """... and while no more tokens than this are uncached (eviction makes them more)."""


FOR_EVER: Final = Stays()


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


class Ordering(Protocol):
    live: bool
    """True when a key changes while a call waits (by time or by what is cached): the engine ranks
    again before it admits. False: a key once given stays. A call that has become a decode keeps
    the key that it then got either way."""
    by_cache: bool
    """True when the key of a waiting call depends on its `uncached_tokens`: a simulator keeps them
    true for such an ordering only."""

    def observe(self, event: EngineEvent) -> None: ...

    def run_key(self, call: CallView, now_s: float) -> Key:
        """Ascending: the least key runs first."""

    def victim_key(self, call: CallView, now_s: float) -> Key:
        """Descending: the greatest key gives up its memory first."""

    def stays(self, call: CallView, now_s: float) -> Stays:
        """Until when the `run_key` of a waiting call holds: a simulator does not ask before.

        `observe` may change keys as well, if `live`: those of the calls of the event's session.
        """

    def chunk_tokens(self, call: CallView, kv_used_frac: float) -> int | None:
        """Most prompt tokens of this call in one step; None: what the step has room for."""


class Retention(Protocol):
    def observe(self, event: EngineEvent) -> None: ...

    def hold(self, idle: IdleView) -> Hold: ...

    def takes_held_at_s(self, call: CallView) -> float:
        """From when on this waiting call may take memory that is held for idle sessions, while
        others run (while nobody does: `Hold.spared_s`).
        """


@dataclass(frozen=True, slots=True)
class Policy:
    ordering: Ordering
    retention: Retention

    def observe(self, event: EngineEvent) -> None:
        self.ordering.observe(event)
        self.retention.observe(event)


def needed_by(asking: CallView | None, victim: CallView) -> str:
    """Why the memory of a running call was given up: in the words of every engine.

    `asking`: the running call that had no room to grow; None: no call asked.
    """
    if asking is None:
        return "the engine was reset"
    if asking.call_id == victim.call_id:
        return "it had no room to grow, and is last in order"
    return f"session {asking.session_id} needed the room"


class Steady:
    """What an ordering answers that learns nothing, changes no key and caps no chunk."""

    live = False
    by_cache = False

    def observe(self, event: EngineEvent) -> None:
        del event

    def stays(self, call: CallView, now_s: float) -> Stays:
        del call, now_s
        return FOR_EVER

    def chunk_tokens(self, call: CallView, kv_used_frac: float) -> int | None:
        del call, kv_used_frac
        return None


class KeepNothing:
    """No retention: freed KV stays in vLLM's LRU until somebody needs the room."""

    def observe(self, event: EngineEvent) -> None:
        del event

    def hold(self, idle: IdleView) -> Hold:
        del idle
        return Hold(keep_s=0.0)

    def takes_held_at_s(self, call: CallView) -> float:
        del call
        return -inf
