"""A session on its way through the simulation; only here stands what is still to come."""

from dataclasses import dataclass, field

from mars.core.errors import InputError
from mars.core.ids import SessionId, ToolId
from mars.sim.call import Call
from mars.sim.kv import Chain, Prefix
from mars.sim.settings import EngineSettings
from mars.workload.trace import Recorded, Turn


@dataclass(slots=True, eq=False)
class Play:
    """A session and how far it is; nobody else sees what is still to come."""

    recorded: Recorded
    session_id: SessionId
    prefix: Prefix | None
    chain: Chain = field(init=False)
    number: int = -1
    """Of its turn; -1: it has made no call."""
    arrived_s: float = 0.0
    context_tokens: int = 0
    tools: int = 0
    """Tools of this turn that have started."""
    is_admitted: bool = False
    waits: bool = False
    """At the gate, with a call."""
    is_over: bool = False
    call: Call | None = None
    tool_id: ToolId | None = None

    def __post_init__(self) -> None:
        self.chain = self.fresh_chain()

    def fresh_chain(self) -> Chain:
        """KV of a new context: the shared prompt, if there is one, and nothing else."""
        return Chain() if self.prefix is None else Chain(self.prefix)

    @property
    def has_come(self) -> bool:
        return self.waits or self.number >= 0

    @property
    def turn(self) -> Turn:
        return self.recorded.turns[self.number]


def check_fits(recorded: Recorded, engine: EngineSettings) -> None:
    """Raise InputError when a call of this session could never run."""
    context_tokens = 0
    for turn in recorded.turns:
        context_tokens = turn.new_tokens + (0 if turn.reset else context_tokens)
        context_tokens += turn.output_tokens
        if engine.call_blocks(context_tokens) > engine.kv_blocks:
            raise InputError(
                f"session {recorded.session_id}: a call of {context_tokens} tokens does not "
                f"fit into `kv_blocks` {engine.kv_blocks} of {engine.block_tokens} tokens: "
                "give the engine more KV, or cap the contexts of the workload"
            )
