"""What is learned from facts alone."""

from dataclasses import dataclass, field

from mars.core.ids import SessionId


@dataclass(slots=True)
class PrefillRate:
    """How fast this engine computes prompts, from the steps it has taken.

    rate = sum(tokens) / sum(seconds) over large steps, each older step counting `decay` less. Steps
    of few tokens are decodes: their time is memory traffic and says nothing of prefill.
    """

    first_tokens_per_s: float = 5000.0
    """Believed before the first large step."""
    least_tokens: int = 256
    decay: float = 0.95
    _tokens: float = 0.0
    _seconds: float = 0.0

    def observe(self, tokens: int, took_s: float) -> None:
        if tokens >= self.least_tokens and took_s > 0.0:
            self._tokens = self._tokens * self.decay + tokens
            self._seconds = self._seconds * self.decay + took_s

    def seconds(self, tokens: int) -> float:
        """Estimated time to compute `tokens` from nothing."""
        if self._seconds <= 0.0:
            return tokens / self.first_tokens_per_s
        return tokens * self._seconds / self._tokens


@dataclass(slots=True)
class Newcomers:
    """Sessions past the gate whose first call the engine has not yet accounted for.

    Their KV is on its way but in no sample: without them a burst of arrivals sees an empty machine
    and all of it enters. A prompt is known in bytes only, so tokens per byte are learned from the
    first calls that come back.
    """

    tokens_per_byte: float = 0.25
    """English text in JSON, until something is learned; token ids in JSON have about 0.2."""
    weight: float = 0.2
    """Of the newest prompt in the average."""
    _prompt_bytes: dict[SessionId, int] = field(default_factory=dict)
    _sum_bytes: int = 0

    @property
    def tokens(self) -> float:
        return self._sum_bytes * self.tokens_per_byte

    def enter(self, session_id: SessionId, prompt_bytes: int) -> None:
        self.leave(session_id)
        self._prompt_bytes[session_id] = prompt_bytes
        self._sum_bytes += prompt_bytes

    def served(self, session_id: SessionId, prompt_tokens: int) -> None:
        prompt_bytes = self.leave(session_id)
        if prompt_bytes and prompt_tokens:
            ratio = prompt_tokens / prompt_bytes
            self.tokens_per_byte += self.weight * (ratio - self.tokens_per_byte)

    def leave(self, session_id: SessionId) -> int:
        """Returns the size of its prompt; 0 of one that is no newcomer."""
        prompt_bytes = self._prompt_bytes.pop(session_id, 0)
        self._sum_bytes -= prompt_bytes
        return prompt_bytes
