"""What is learned from facts alone."""

from dataclasses import dataclass


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
