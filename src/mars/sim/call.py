"""A call inside the simulated engine, and one engine step's worth of work."""

from dataclasses import dataclass, field

from mars.policy.base import CallView, Key
from mars.sim.kv import Chain


@dataclass(slots=True, eq=False)
class Call:
    """A call and its fate: `output_tokens` never reaches a policy."""

    view: CallView
    chain: Chain
    order: int
    """Intake number: the last tie-break of every order."""
    output_tokens: int
    tokens: int
    """To be in KV before the next token can be made: the prompt, after a preemption the answer so
    far as well."""
    made: int = 0
    """Tokens made before the present decode phase."""
    computed: int = 0
    """Of a call that is no decode: tokens in KV."""
    key: Key = ()
    until_s: float = 0.0
    """A waiting call's key holds until then."""
    most_uncached: float = 0.0
    """... and while no more tokens are uncached."""
    joined: int = 0
    """Step in which its prompt was complete; steps in which a decode got no token are added."""
    last: int = 0
    """Step that makes its last token."""
    is_running: bool = False
    is_decode: bool = False
    is_leaving: bool = False
    """Its last token is scheduled, but not yet made."""
    starved: int = -1
    """Latest step in which it got no token."""
    is_loaded: bool = False
    """It waits with memory of its own: for blocks from the host, or for its place once they are
    there."""
    loaded_tokens: int = 0
    """From host memory, all runs together."""
    cached_tokens: int = 0
    start_tokens: int = 0
    """Cached when the present run started."""
    spent_tokens: int = 0
    """Computed in earlier runs, which a preemption ended."""
    started_s: float = -1.0
    first_token_s: float = -1.0
    """When the step that makes it ends, from its scheduling on."""


@dataclass(slots=True, eq=False)
class Batch:
    """One engine step, or `steps` in a row between which nothing is decided.

    Its decodes, contexts, chunks and complete prompts are those of the last step with chunks.
    """

    index: int
    """Number of its last step."""
    steps: int = 1
    decodes: int = 0
    """Calls that compute one token each (a one-token resume chunk costs like a decode)."""
    context_tokens: int = 0
    """Sum of their contexts, the new tokens included."""
    chunks: list[tuple[int, int]] = field(default_factory=list)
    """Prefill: (tokens, tokens computed before)."""
    started: list[Call] = field(default_factory=list)
    preempted: list[Call] = field(default_factory=list)
    complete: list[Call] = field(default_factory=list)
    """Whose prompt is complete with it: they make their first token."""
    is_full: bool = False
    """The next waiting call does not fit, and will not until somebody leaves or a hold may go."""
    ended: list[Call] = field(default_factory=list)
    """Who make their last token in it, in the order in which vLLM frees them."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Tokens of each call, by name; kept only for a twin (`Batcher.keep_tokens`)."""

    @property
    def is_empty(self) -> bool:
        return not (self.decodes or self.chunks)

    @property
    def all_tokens(self) -> int:
        """In one step."""
        return self.decodes + sum([n for n, _ in self.chunks]) if self.chunks else self.decodes
