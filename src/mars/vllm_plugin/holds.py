"""KV kept for sessions that are off the GPU.

A hold owns one reference on each hash-complete block of a finished call, taken before vLLM drops
the call's own. Nothing is freed twice: release gives back that one reference, and the blocks return
to the LRU queue still hashed, tail first, as stock would have left them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mars.core import events as ev
from mars.core.estimate import PrefillRate
from mars.core.ids import SessionId, ToolId
from mars.policy.base import Hold, IdleStage, IdleView, Retention

Release = Callable[[SessionId, int, float, str], None]


@dataclass(slots=True)
class _Held:
    blocks: list[Any]
    since_s: float
    until_s: float
    value: float


class Holds:
    def __init__(
        self,
        *,
        pool: Any,
        block_tokens: int,
        retention: Retention,
        rate: PrefillRate,
        emit: Callable[[ev.Event], None],
    ) -> None:
        self._pool = pool
        self._block_tokens = block_tokens
        self._retention = retention
        self._rate = rate
        self._emit = emit
        self._held: dict[SessionId, _Held] = {}
        self._tools: dict[SessionId, set[ToolId]] = {}
        self._due_s = float("inf")
        self.blocks = 0
        """Blocks under a hold, each counted once per hold."""

    def __bool__(self) -> bool:
        return bool(self._held)

    def __contains__(self, session_id: SessionId) -> bool:
        return session_id in self._held

    def sessions(self) -> Iterator[SessionId]:
        return iter(self._held)

    def left(self, session_id: SessionId, blocks: list[Any], now_s: float) -> None:
        """A call of this session has ended; `blocks` are its hash-complete ones."""
        if session_id in self._held:
            self.release(session_id, now_s, "replaced")
        hold = self._ask(session_id, len(blocks), "left", "", 0.0)
        if hold.keep_s <= 0.0:
            return
        self._pool.touch(blocks)
        self.blocks += len(blocks)
        self._held[session_id] = _Held(blocks, now_s, now_s + hold.keep_s, hold.value)
        self._due_s = min(self._due_s, now_s + hold.keep_s)
        self._emit(
            ev.KvHeld(
                at_s=now_s,
                session_id=session_id,
                kv_tokens=len(blocks) * self._block_tokens,
                keep_s=hold.keep_s,
                why=hold.why,
            )
        )

    def hear(self, event: ev.ToolEvent, now_s: float) -> None:
        """Ask again: a tool that starts has a name, one that ends brings its session back."""
        self._retention.observe(event)
        running = self._tools.setdefault(event.session_id, set())
        match event:
            case ev.ToolQueued():
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
        self._due_s = min((h.until_s for h in self._held.values()), default=float("inf"))

    def release_least(self, besides: SessionId, now_s: float) -> bool:
        """Under pressure: the hold worth least goes, the asking session's own last of all."""
        if not self._held:
            return False
        least = min(self._held, key=lambda s: (s == besides, self._held[s].value, s))
        self.release(least, now_s, "pressure")
        return True

    def release_all(self, now_s: float, why: str) -> None:
        for session_id in list(self._held):
            self.release(session_id, now_s, why)

    def release(self, session_id: SessionId, now_s: float, why: Any) -> None:
        held = self._held.pop(session_id)
        self.blocks -= len(held.blocks)
        self._pool.free_blocks(reversed(held.blocks))
        self._emit(
            ev.KvReleased(
                at_s=now_s,
                session_id=session_id,
                kv_tokens=len(held.blocks) * self._block_tokens,
                held_s=now_s - held.since_s,
                why=why,
            )
        )

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
        idle_s = now_s - held.since_s
        hold = self._ask(event.session_id, len(held.blocks), stage, event.tool, idle_s)
        if hold.keep_s <= 0.0:
            self.release(event.session_id, now_s, "tool")
            return
        held.until_s, held.value = now_s + hold.keep_s, hold.value
        self._due_s = min(self._due_s, held.until_s)

    def _ask(
        self, session_id: SessionId, blocks: int, stage: IdleStage, tool: str, idle_s: float
    ) -> Hold:
        tokens = blocks * self._block_tokens
        return self._retention.hold(
            IdleView(
                session_id=session_id,
                stage=stage,
                tool=tool,
                context_tokens=tokens,
                kv_capacity_tokens=self._pool.num_gpu_blocks * self._block_tokens,
                refill_s=self._rate.seconds(tokens),
                idle_s=idle_s,
            )
        )
