"""How long a session's context is: what its next call will extend."""

from dataclasses import dataclass

from mars.core import events as ev


@dataclass(slots=True)
class Context:
    """The longer of the last two calls.

    Agents make short calls beside their conversation (a title, a summary), which the next one does
    not extend; and they condense it, after which no call is as long as it was. One short call is
    taken for the first, two for the second.
    """

    tokens: int = 0
    _last_tokens: int = 0

    def served(self, call: ev.CallServed) -> None:
        """An aborted call was not answered, so it condensed nothing."""
        tokens = call.prompt_tokens + call.made_tokens
        if call.ok:
            self.tokens, self._last_tokens = max(self._last_tokens, tokens), tokens
        else:
            self.tokens = max(self.tokens, tokens)
