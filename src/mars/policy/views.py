"""A call, as an engine describes it to its policy, and for how long an answer about it holds."""

from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

from mars.core.ids import CallId, SessionId


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
