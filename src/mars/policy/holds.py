"""KV kept for sessions that are off the GPU: the book of holds, for any engine.

The engine lends its memory as a `Kept`; when to keep, for how long and what goes first under
pressure is asked of the policy's retention, again whenever a tool starts or ends.

A waiting call for which there is no room may take what is held from `opens_at_s` on:

    its own session's   at once
    while others run    when the retention says
    while nobody runs   after the engine has idled for as long as the hold that goes first is
                        spared: its session may be back by then, and find it (docs/adr/0023)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol

from mars.core import events as ev
from mars.core.estimate import PrefillRate
from mars.core.ids import SessionId, ToolId
from mars.policy.base import CallView, Hold, IdleStage, IdleView, Retention

Why = Literal["returned", "expired", "pressure", "tool", "ended", "replaced", "reset"]


class Kept(Protocol):
    """KV of one session in an engine's own form."""

    @property
    def blocks(self) -> int: ...

    @property
    def tokens(self) -> int:
        """Of the context how much the next call finds by it."""

    @property
    def stored_tokens(self) -> int:
        """Of these the first that are in host memory as well."""

    @property
    def reload_s(self) -> float:
        """What it takes to load those from there."""

    def keep(self) -> None:
        """Keep it from being evicted."""

    def let_go(self) -> None:
        """Give back what `keep` took: free, still warm, tail first."""


@dataclass(slots=True)
class _Held:
    kept: Kept
    arrived_s: float
    since_s: float
    until_s: float = 0.0
    value: float = 0.0
    spared_s: float = 0.0

    def renew(self, hold: Hold, now_s: float) -> None:
        self.until_s, self.value, self.spared_s = now_s + hold.keep_s, hold.value, hold.spared_s


class Holds:
    def __init__(
        self,
        *,
        capacity_tokens: int,
        retention: Retention,
        rate: PrefillRate,
        running_tokens: Callable[[], int],
        emit: Callable[[ev.Event], None],
    ) -> None:
        """`running_tokens` tells the KV of the calls that run now."""
        self._capacity_tokens = capacity_tokens
        self._retention = retention
        self._rate = rate
        self._running_tokens = running_tokens
        self._emit = emit
        self._held: dict[SessionId, _Held] = {}
        self._tools: dict[SessionId, set[ToolId]] = {}
        self._due_s = inf
        self._idles_since_s: float | None = None
        """When a waiting call first found no room while nothing ran; None: no call has since one
        started or left."""
        self.blocks = 0
        """Blocks under a hold, each counted once per hold."""

    def __bool__(self) -> bool:
        return bool(self._held)

    def __contains__(self, session_id: SessionId) -> bool:
        return session_id in self._held

    def __iter__(self) -> Iterator[SessionId]:
        return iter(self._held)

    def left(
        self, session_id: SessionId, kept: Kept, *, own_tokens: int, arrived_s: float, now_s: float
    ) -> bool:
        """A call of this session has ended; `own_tokens` of the running KV were its own.

        True when its KV is held.
        """
        if session_id in self._held:
            self.release(session_id, now_s, "replaced")
        held = _Held(kept, arrived_s, now_s)
        others_tokens = self._running_tokens() - own_tokens
        hold = self._ask(session_id, held, "left", "", others_tokens=others_tokens, now_s=now_s)
        if hold.keep_s <= 0.0:
            self._drop(session_id, kept, hold, now_s)
            return False
        kept.keep()
        self.blocks += kept.blocks
        held.renew(hold, now_s)
        self._held[session_id] = held
        self._due_s = min(self._due_s, held.until_s)
        self._emit(
            ev.KvHeld(
                at_s=now_s,
                session_id=session_id,
                kv_tokens=kept.tokens,
                keep_s=hold.keep_s,
                why=hold.why,
            )
        )
        return True

    def _drop(self, session_id: SessionId, kept: Kept, hold: Hold, now_s: float) -> None:
        if hold.why:  # a policy that keeps nothing has nothing to say
            self._emit(
                ev.KvDropped(at_s=now_s, session_id=session_id, kv_tokens=kept.tokens, why=hold.why)
            )

    def hear(self, event: ev.ToolEvent, now_s: float) -> None:
        """Ask again: a tool that starts has a name, one that ends brings its session back."""
        running = self._tools.setdefault(event.session_id, set())
        match event:
            case ev.ToolQueued() | ev.ToolProgressed():
                running.add(event.tool_id)
            case ev.ToolStarted():
                running.add(event.tool_id)
                self._ask_again(event, "tool started", now_s)
            case ev.ToolFinished():
                running.discard(event.tool_id)
                if not running:
                    self._ask_again(event, "tool ended", now_s)
        if not running:
            del self._tools[event.session_id]

    def expire(self, now_s: float, is_back: Callable[[SessionId], bool]) -> None:
        """Let go of holds past their time, but not of a session whose next call already waits."""
        if now_s < self._due_s:
            return
        past = [s for s, held in self._held.items() if held.until_s <= now_s and not is_back(s)]
        for session_id in past:
            self.release(session_id, now_s, "expired")
        self._due_s = min((h.until_s for h in self._held.values()), default=inf)

    def next_expiry_s(self, now_s: float) -> float:
        """When the next hold ends that has not ended yet."""
        if self._due_s > now_s:
            return self._due_s
        return min((h.until_s for h in self._held.values() if h.until_s > now_s), default=inf)

    def opens_at_s(self, call: CallView, now_s: float, *, idle: bool) -> float:
        """From when on a waiting call without room may take what is held, of which there is some;
        not after `now_s`: at once. `idle`: nothing runs.
        """
        if not idle:
            self._idles_since_s = None
        if call.session_id in self._held:
            return now_s
        if not idle:
            return self._retention.takes_held_at_s(call)
        if self._idles_since_s is None:
            self._idles_since_s = now_s
        return self._idles_since_s + self._held[self._least(call.session_id)].spared_s

    def call_moved(self) -> None:
        """A call has started, or left the engine: if it idles from now on it idles anew."""
        self._idles_since_s = None

    def release_least(self, besides: SessionId, now_s: float) -> bool:
        """Under pressure: the hold worth least goes, the asking session's own last of all."""
        if not self._held:
            return False
        because = f"session {besides} needed the room"
        if self._idles_since_s is not None and now_s > self._idles_since_s:
            because += f", and nothing had run for {now_s - self._idles_since_s:.1f} s"
        self.release(self._least(besides), now_s, "pressure", because=because)
        return True

    def _least(self, besides: SessionId) -> SessionId:
        # rounded: what is worth the same must not be told apart by the last bit of a clock
        return min(self._held, key=lambda s: (s == besides, round(self._held[s].value, 6), s))

    def release_all(self, now_s: float, why: Why) -> None:
        for session_id in list(self._held):
            self.release(session_id, now_s, why)

    def release(self, session_id: SessionId, now_s: float, why: Why, *, because: str = "") -> None:
        held = self._held.pop(session_id)
        self.blocks -= held.kept.blocks
        self._emit(
            ev.KvReleased(
                at_s=now_s,
                session_id=session_id,
                kv_tokens=held.kept.tokens,
                held_s=now_s - held.since_s,
                why=why,
                because=because,
            )
        )
        held.kept.let_go()

    def forget(self, session_id: SessionId, now_s: float) -> None:
        """The session is over."""
        self._tools.pop(session_id, None)
        if session_id in self._held:
            self.release(session_id, now_s, "ended")

    def _ask_again(
        self, event: ev.ToolStarted | ev.ToolFinished, stage: IdleStage, now_s: float
    ) -> None:
        held = self._held.get(event.session_id)
        if held is None:
            return
        hold = self._ask(
            event.session_id,
            held,
            stage,
            event.tool,
            others_tokens=self._running_tokens(),
            now_s=now_s,
        )
        if hold.keep_s <= 0.0:
            self.release(event.session_id, now_s, "tool", because=hold.why)
            return
        held.renew(hold, now_s)
        self._due_s = min(self._due_s, held.until_s)

    def _ask(
        self,
        session_id: SessionId,
        held: _Held,
        stage: IdleStage,
        tool: str,
        *,
        others_tokens: int,
        now_s: float,
    ) -> Hold:
        kept = held.kept
        compute_s = self._rate.seconds(kept.tokens)
        return self._retention.hold(
            IdleView(
                session_id=session_id,
                stage=stage,
                tool=tool,
                session_arrived_s=held.arrived_s,
                context_tokens=kept.tokens,
                others_tokens=others_tokens,
                kv_capacity_tokens=self._capacity_tokens,
                compute_s=compute_s,
                refill_s=self._refill_s(kept, compute_s),
                idle_s=now_s - held.since_s,
            )
        )

    def _refill_s(self, kept: Kept, compute_s: float) -> float:
        """Computed again, or loaded as far as it is stored."""
        if not (stored_tokens := kept.stored_tokens):
            return compute_s
        return min(compute_s, kept.reload_s + self._rate.seconds(kept.tokens - stored_tokens))
