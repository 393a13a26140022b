"""What the plugin remembers of each open call and each session, and what it tells of them."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from mars.core import events as ev
from mars.core.family import start_s
from mars.core.ids import CallId, SessionId
from mars.policy.base import CallView, Key, needed_by

_MOST_SESSIONS: Final = 100_000
_API_ID: Final = re.compile(
    r"^(?:(?:chatcmpl|cmpl)-(?P<ours>.+?)(?:-\d+)?|(?P<own>resp_.+)_\d+)-[0-9a-f]{8}$"
)


def call_id_of(request_id: str) -> CallId:
    """What the HTTP request is called, out of vLLM's internal id.

    vLLM 0.32 makes `chatcmpl-<X-Request-Id>-<8 hex>` (of Anthropic's messages, too), for
    completions `cmpl-<X-Request-Id>-<index of the prompt>-<8 hex>`, and for responses, whose
    X-Request-Id it does not read, `<id of the response>_<index of the request>-<8 hex>`.
    """
    match = _API_ID.match(request_id)
    return CallId(match["ours"] or match["own"] if match else request_id)


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
    """When each session's root arrived, and how many calls it has open."""

    def __init__(self) -> None:
        self._arrived_s: dict[SessionId, float] = {}
        self._open: Counter[SessionId] = Counter()

    def hear_arrived(self, event: ev.SessionArrived) -> None:
        self._arrived_s[event.session_id] = start_s(event, self._arrived_s)

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


class Calls:
    """The open calls by vLLM's request id; emits what befalls them."""

    def __init__(self, emit: Callable[[ev.Event], None]) -> None:
        self._emit = emit
        self._open: dict[str, OpenCall] = {}
        self._intake = 0

    def __getitem__(self, request_id: str) -> OpenCall:
        return self._open[request_id]

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def __len__(self) -> int:
        return len(self._open)

    def take_in(self, request: Any, sessions: Sessions, now_s: float) -> None:
        named = bool(request.session_id)
        session_id = SessionId(request.session_id or request.request_id)
        view = CallView(
            call_id=call_id_of(request.request_id),
            session_id=session_id,
            queued_s=now_s,
            session_arrived_s=sessions.call_came(session_id, now_s),
            prompt_tokens=request.num_prompt_tokens,
        )
        self._intake += 1
        self._open[request.request_id] = OpenCall(
            view=view, order=self._intake, named=named, prompt_tokens=request.num_prompt_tokens
        )

    def started(self, request: Any, now_s: float) -> None:
        """To be told before this step's tokens are added to `num_computed_tokens`."""
        call = self._open[request.request_id]
        call.begin(now_s, request.num_computed_tokens)
        self._emit(
            ev.CallStarted(
                at_s=now_s,
                session_id=call.view.session_id,
                call_id=call.view.call_id,
                prompt_tokens=request.num_tokens,
                cached_tokens=request.num_computed_tokens,
            )
        )

    def preempted(self, request: Any, asking: CallView | None, now_s: float) -> None:
        """To be told before vLLM resets the request."""
        call = self._open[request.request_id]
        call.stop(request.num_computed_tokens)
        self._emit(
            ev.CallPreempted(
                at_s=now_s,
                session_id=call.view.session_id,
                call_id=call.view.call_id,
                lost_tokens=request.num_computed_tokens,
                why=needed_by(asking, call.view),
            )
        )

    def left(self, request: Any, now_s: float, *, ok: bool) -> OpenCall:
        call = self._open.pop(request.request_id)
        self._emit(
            ev.CallServed(
                at_s=now_s,
                session_id=call.view.session_id,
                call_id=call.view.call_id,
                prompt_tokens=call.prompt_tokens,
                cached_tokens=call.cached_tokens,
                computed_tokens=call.stop(request.num_computed_tokens),
                made_tokens=request.num_output_tokens,
                queued_s=call.queued_s,
                ok=ok,
            )
        )
        return call
