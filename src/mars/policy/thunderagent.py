"""ThunderAgent (arXiv 2602.13692; its router, mode `tr`): sends sessions back when KV is too small.

Every `every_s`, with C_i the context of active session i and b the room for its next tokens,

    used = sum(C_i + b) - what is marked                               K: KV of the machine, tokens
    resume   while used + C + b <= K: returning > new > acting, in each the smallest first
    pause    while used > K: acting, smallest first; then mark reasoning ones, smallest first

A marked session is paused when its call ends. Between two such rounds a new session enters at once
if nobody waits and it fits. Ours: an empty machine takes whoever is next, as vLLM judges what fits.
"""

from collections.abc import Collection, Iterator

from mars.core import events as ev
from mars.core.admission import Beat, GatedView, Verdict
from mars.core.decisions import Admit, Pause
from mars.core.ids import SessionId
from mars.core.pressure import Pressure
from mars.core.session import Phase, Session
from mars.policy.settings import ThunderAgentSettings

_Ranked = tuple[int, float, SessionId]


class ThunderAgent:
    steers = True

    def __init__(self, settings: ThunderAgentSettings) -> None:
        self._set = settings
        self.tick_s: float | None = settings.every_s
        self._beat = Beat(settings.every_s)
        self._capacity_tokens = 0
        self._marked: dict[SessionId, Session] = {}
        self._away: dict[SessionId, Session] = {}
        """Paused, and not back yet."""

    def observe(self, event: ev.Event) -> None:
        match event:
            case ev.EngineSampled():
                self._capacity_tokens = event.kv_total_blocks * event.block_tokens
            case ev.SessionReturned():
                self._away.pop(event.session_id, None)
            case ev.SessionEnded():
                self._away.pop(event.session_id, None)
                self._marked.pop(event.session_id, None)
            case _:
                pass

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        done = [s for s in self._marked.values() if s.phase is Phase.ACTING]
        pause = [self._send_back(s, "marked when contexts exceeded KV") for s in done]
        free = self._free_tokens(active, pressure) + sum(map(self._room, done))
        admit: list[Admit] = []
        is_round = self._capacity_tokens > 0 and self._beat.due(now_s)
        if is_round or (self._capacity_tokens and len(gated) == 1 and not self._away):
            admit = list(self._resume(gated, free, pressure, now_s))
        if is_round and not admit:
            pause += self._make_room(active, -free)
        if gated and not admit and len(active) == len(pause):
            first = min(self._ranked(gated, pressure))
            admit = [Admit(session_id=first[2], why="nobody else is active")]
        why_not = f"contexts leave {free:.0f} of {self._capacity_tokens} tokens of KV"
        return Verdict(admit=admit, pause=pause, why_not=why_not, limit="room in KV", window=None)

    def _free_tokens(self, active: Collection[Session], pressure: Pressure) -> float:
        used = pressure.kv_session_frac * self._capacity_tokens
        used += self._set.buffer_tokens * len(active) - sum(map(self._room, self._marked.values()))
        return self._capacity_tokens - used

    def _room(self, session: Session) -> int:
        return session.context_tokens + self._set.buffer_tokens

    def _ranked(self, gated: Collection[GatedView], pressure: Pressure) -> Iterator[_Ranked]:
        tokens_per_byte = pressure.kv_frac_per_byte * self._capacity_tokens
        for view in gated:
            tokens = max(view.context_tokens, view.prompt_bytes * tokens_per_byte)
            yield (0 if view.returning else 1, tokens, view.session_id)

    def _resume(
        self, gated: Collection[GatedView], free: float, pressure: Pressure, now_s: float
    ) -> Iterator[Admit]:
        acting = [(2, float(s.context_tokens), s.session_id) for s in self._away.values()]
        late_s = now_s - self._set.most_wait_s
        overdue = {view.session_id for view in gated if view.arrived_s < late_s}
        for _, tokens, session_id in sorted([*self._ranked(gated, pressure), *acting]):
            room = tokens + self._set.buffer_tokens
            if room <= free or session_id in overdue:
                free -= room
                self._away.pop(session_id, None)
                yield Admit(session_id=session_id, why=f"{room:.0f} tokens fit")

    def _make_room(self, active: Collection[Session], over: float) -> Iterator[Pause]:
        there = [s for s in active if s.session_id not in self._away]
        acting = (s for s in there if s.phase is Phase.ACTING)
        for session in sorted(acting, key=_size):
            if over <= 0:
                return
            over -= self._room(session)
            yield self._send_back(session, "contexts exceed KV")
        reasoning = (s for s in there if s.phase in {Phase.QUEUED, Phase.RUNNING})
        for session in sorted(reasoning, key=_size):
            if over <= 0:
                return
            if session.session_id not in self._marked:
                over -= self._room(session)
                self._marked[session.session_id] = session

    def _send_back(self, session: Session, why: str) -> Pause:
        self._marked.pop(session.session_id, None)
        self._away[session.session_id] = session
        return Pause(session_id=session.session_id, why=why)


def _size(session: Session) -> tuple[int, SessionId]:
    return session.context_tokens, session.session_id
