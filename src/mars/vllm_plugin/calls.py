"""What the plugin remembers of each open call and each session."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.policy.base import CallView, Key

_MOST_SESSIONS: Final = 100_000
_API_ID: Final = re.compile(r"^(?:chatcmpl|cmpl|resp|msg)[-_](.+?)(?:-\d+)?-[0-9a-f]{8}$")


def call_id_of(request_id: str) -> CallId:
    """The X-Request-Id that came with the HTTP request, out of vLLM's internal id.

    vLLM 0.32 makes `chatcmpl-<X-Request-Id>-<8 hex>`, for completions
    `cmpl-<X-Request-Id>-<index of the prompt>-<8 hex>`.
    """
    match = _API_ID.match(request_id)
    return CallId(match[1] if match else request_id)


@dataclass(slots=True)
class OpenCall:
    view: CallView
    order: int
    """Intake number: the last tie-break of every order."""
    named: bool
    """False: the request came without a session; it is alone and never returns."""
    prompt_tokens: int
    key: Key = ()
    cached_tokens: int = 0
    start_tokens: int = 0
    """Cached tokens of the present run (a preempted call starts again)."""
    computed_tokens: int = 0
    """Computed in earlier runs, which a preemption ended."""
    queued_s: float = 0.0
    started: bool = False

    def begin(self, event_at_s: float, cached_tokens: int) -> None:
        if not self.started:
            self.started = True
            self.cached_tokens = cached_tokens
            self.queued_s = event_at_s - self.view.queued_s
        self.start_tokens = cached_tokens

    def stop(self, kv_tokens: int) -> int:
        """A run ends with KV of `kv_tokens`; returns all tokens computed so far."""
        self.computed_tokens += max(0, kv_tokens - self.start_tokens)
        self.start_tokens = 0
        return self.computed_tokens


class Sessions:
    """When each session arrived, and how many calls it has open."""

    def __init__(self) -> None:
        self._arrived_s: dict[SessionId, float] = {}
        self._open: Counter[SessionId] = Counter()

    def hear_arrived(self, event: ev.SessionArrived) -> None:
        self._arrived_s[event.session_id] = event.at_s

    def forget(self, session_id: SessionId) -> None:
        self._arrived_s.pop(session_id, None)

    def call_came(self, session_id: SessionId, now_s: float) -> float:
        """Count a call; returns the session's arrival."""
        self._open[session_id] += 1
        if len(self._arrived_s) > _MOST_SESSIONS:  # sessions nobody ever ended: oldest first
            del self._arrived_s[next(iter(self._arrived_s))]
        return self._arrived_s.setdefault(session_id, now_s)

    def call_left(self, session_id: SessionId, *, forget: bool) -> None:
        self._open[session_id] -= 1
        if self._open[session_id] <= 0:
            del self._open[session_id]
            if forget:
                self.forget(session_id)

    def is_open(self, session_id: SessionId) -> bool:
        return session_id in self._open
