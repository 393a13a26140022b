"""What the engine knows of sessions, what it hears and what it tells: the facts of calls and holds.

The simulated side of the plugin's books (mars.vllm_plugin.calls, mars.vllm_plugin.kept).
"""

from collections.abc import Callable

from mars.core import events as ev
from mars.core.estimate import PrefillRate
from mars.core.ids import SessionId
from mars.policy.base import EngineEvent, Policy, needed_by
from mars.policy.holds import Holds
from mars.sim.call import Call
from mars.sim.kv import Chain
from mars.sim.pool import Held, Pool
from mars.sim.waiting import WaitingLine


class Accounts:
    def __init__(
        self,
        *,
        pool: Pool,
        policy: Policy,
        rate: PrefillRate,
        waiting: WaitingLine,
        running_tokens: Callable[[], int],
        emit: Callable[[ev.Event], None],
    ) -> None:
        self._pool, self._policy, self._waiting, self._tell = pool, policy, waiting, emit
        self.holds = Holds(
            capacity_tokens=(pool.blocks + 1) * pool.block_tokens,  # one is vLLM's null block
            retention=policy.retention,
            rate=rate,
            running_tokens=running_tokens,
            emit=self._emit,
        )
        self._held: dict[SessionId, Held] = {}
        self._calls: dict[SessionId, Call] = {}

    def is_open(self, session_id: SessionId) -> bool:
        """Has this session a call here?"""
        return session_id in self._calls

    def hear(self, event: EngineEvent, now_s: float) -> None:
        """A fact of another process."""
        self._policy.observe(event)
        match event:
            case ev.ToolQueued() | ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                self.holds.hear(event, now_s)
            case ev.SessionEnded():
                self.holds.forget(event.session_id, now_s)
            case _:
                pass
        self._touched(event.session_id)

    def came(self, call: Call) -> None:
        self._calls[call.view.session_id] = call
        call.view.is_held = call.view.session_id in self.holds

    def takes_over(self, session_id: SessionId, chain: Chain) -> None:
        """A call is about to own this context: its hold, if there is one, no longer does."""
        held = self._held.get(session_id)
        if held is not None:
            held.take_over(chain)

    def returned(self, call: Call, now_s: float) -> None:
        """A call owns the memory that it will run in: a hold of its session is over."""
        if call.view.session_id in self.holds:
            self.holds.release(call.view.session_id, now_s, "returned")

    def started(self, call: Call, now_s: float) -> None:
        view = call.view
        self.returned(call, now_s)
        self.holds.call_moved()
        self._emit(
            ev.CallStarted(
                at_s=now_s,
                session_id=view.session_id,
                call_id=view.call_id,
                prompt_tokens=call.tokens,
                cached_tokens=call.start_tokens,
            )
        )

    def preempted(self, call: Call, asking: Call, kv_tokens: int, now_s: float) -> None:
        self._emit(
            ev.CallPreempted(
                at_s=now_s,
                session_id=call.view.session_id,
                call_id=call.view.call_id,
                lost_tokens=kv_tokens,
                why=needed_by(asking.view, call.view),
            )
        )

    def served(self, call: Call, now_s: float, *, ok: bool) -> None:
        view = call.view
        del self._calls[view.session_id]
        self.holds.call_moved()
        self._emit(
            ev.CallServed(
                at_s=now_s,
                session_id=view.session_id,
                call_id=view.call_id,
                prompt_tokens=view.prompt_tokens,
                cached_tokens=call.cached_tokens,
                loaded_tokens=call.loaded_tokens,
                computed_tokens=call.spent_tokens,
                made_tokens=call.made,
                queued_s=max(0.0, call.started_s - view.queued_s),
                ok=ok,
            )
        )

    def hold(self, call: Call, kv_tokens: int, now_s: float) -> bool:
        """Keep the KV of a call that has ended, if the policy wants it kept."""
        view = call.view
        kept = self._pool.kept(call.chain, kv_tokens // self._pool.block_tokens)
        if not self.holds.left(
            view.session_id,
            kept,
            own_tokens=kv_tokens,
            arrived_s=view.session_arrived_s,
            now_s=now_s,
        ):
            return False
        self._held[view.session_id] = kept
        return True

    def _emit(self, event: ev.Event) -> None:
        match event:
            case ev.CallStarted() | ev.CallServed():
                self._policy.observe(event)
                self._touched(event.session_id)
            case ev.KvHeld() | ev.KvReleased():
                if isinstance(event, ev.KvReleased):
                    self._held.pop(event.session_id, None)
                if call := self._calls.get(event.session_id):
                    call.view.is_held = isinstance(event, ev.KvHeld)
                self._touched(event.session_id)
            case _:
                pass
        self._tell(event)

    def _touched(self, session_id: SessionId) -> None:
        """What a policy has observed may change the key of a waiting call of this session."""
        if call := self._calls.get(session_id):
            self._waiting.touched(call.chain)
