"""MARS's order of calls: who holds KV, then the session with the least work left.

    1. Waiting calls whose KV is held: memory that is taken should be used. (Calls that run go
       before any that waits in the engine anyway.)
    2. The others by

           index = E[calls left | calls made] * prompt tokens

       A call occupies KV, and its prompt must be computed again if that was lost: both grow with
       the prompt, so this is the work that a session still needs, up to a constant. Serving the
       least first is what keeps the mean low (SRPT); the number of calls left is learned from
       sessions that have ended, which is the Gittins index of a job whose size is unknown in all
       but its distribution, for hazards as smooth as those seen.
       A child (core.family) goes as its own index says, or as the last call of its parent did
       where that is less: the work left of the one includes that of the other.
    3. A session older than `patience` times the mean life of sessions that have ended goes before
       all younger ones: nobody is passed for ever.

The paper ranks by uncached tokens, which lets a newcomer's short prompt pass an old session whose
KV was lost: see docs/paper.md for what that costs.
"""

from typing import Final, TypeVar

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.policy.base import CallView, EngineEvent, Key, Stays, Steady
from mars.policy.learned import Sample
from mars.policy.settings import LeastLeftSettings

_MOST_SESSIONS: Final = 100_000

V = TypeVar("V")


class LeastLeftFirst(Steady):
    live = True  # a hold may end, and patience may, while a call waits

    def __init__(self, settings: LeastLeftSettings) -> None:
        self._set = settings
        self._calls: dict[SessionId, int] = {}
        """Calls made so far, by open session."""
        self._arrived_s: dict[SessionId, float] = {}
        self._parents: dict[SessionId, SessionId] = {}
        self._places: dict[SessionId, float] = {}
        """The index of each session's newest call."""
        self._lives = Sample()
        self._life_s = 0.0
        self._ended = 0
        self._ranks: dict[CallId, tuple[float, float]] = {}
        """(index, from when on the session goes first) of each open call, fixed when first asked:
        what others teach meanwhile must not turn the queue over."""

    def observe(self, event: EngineEvent) -> None:
        if isinstance(event, ev.CallServed):
            self._ranks.pop(event.call_id, None)
            if event.ok:
                self._calls[event.session_id] = self._calls.pop(event.session_id, 0) + 1
                _bound(self._calls)
        elif isinstance(event, ev.SessionArrived):
            if event.parent_id is None:
                self._arrived_s[event.session_id] = event.first_s
                _bound(self._arrived_s)
            else:
                self._parents[event.session_id] = event.parent_id
                _bound(self._parents)
        elif isinstance(event, ev.SessionEnded):
            self._end(event)

    def _end(self, event: ev.SessionEnded) -> None:
        self._parents.pop(event.session_id, None)
        self._places.pop(event.session_id, None)
        calls = self._calls.pop(event.session_id, 0)
        arrived_s = self._arrived_s.pop(event.session_id, None)
        if calls:
            self._lives.add(calls)
            if arrived_s is not None:
                self._ended += 1
                life_s = event.at_s - arrived_s
                self._life_s += (life_s - self._life_s) / min(self._ended, 100)  # it forgets

    def _rank(self, call: CallView) -> tuple[float, float]:
        rank = self._ranks.get(call.call_id)
        if rank is None:
            index, first_s = 0.0, call.session_arrived_s
            if len(self._lives) >= self._set.samples:
                left = self._lives.left(self._calls.get(call.session_id, 0))
                index = self._place(call.session_id, left * call.prompt_tokens)
                first_s += self._set.patience * self._life_s
            rank = self._ranks[call.call_id] = (index, first_s)
        return rank

    def _place(self, session_id: SessionId, index: float) -> float:
        parent_id = self._parents.get(session_id)
        if parent_id is not None:
            index = min(index, self._places.get(parent_id, index))
        self._places[session_id] = index
        _bound(self._places)
        return index

    def run_key(self, call: CallView, now_s: float) -> Key:
        takes = call.is_held and not call.kv_tokens  # memory that it has already
        index, first_s = self._rank(call)
        if now_s > first_s:
            index = 0.0
        return (not takes, index, call.session_arrived_s, call.queued_s)

    def stays(self, call: CallView, now_s: float) -> Stays:
        _, first_s = self._rank(call)
        return Stays(until_s=first_s) if now_s <= first_s else Stays()

    def victim_key(self, call: CallView, now_s: float) -> Key:
        _, index, *rest = self.run_key(call, now_s)
        return (index, *rest)


def _bound(book: dict[SessionId, V]) -> None:
    """Of sessions that nobody ends the oldest go first."""
    if len(book) > _MOST_SESSIONS:
        del book[next(iter(book))]
