"""The clients of a simulation: what agents do about facts, and when their sessions do what next.

What a session is to do next stands in its `Play`, and nobody else looks there.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from mars.core import events as ev
from mars.core.errors import InputError
from mars.core.ids import CallId, SessionId, ToolId
from mars.policy.base import CallView
from mars.sim.agenda import Agenda
from mars.sim.engine import SimEngine
from mars.sim.families import Families, Spawn
from mars.sim.kv import Prefix
from mars.sim.play import Play, check_fits
from mars.sim.settings import EngineSettings
from mars.sim.tools import ToolPool
from mars.workload.trace import Recorded

BYTES_PER_TOKEN = 4
"""English text; a gateway knows a newcomer's prompt in bytes only."""


class Agents:
    def __init__(
        self,
        sessions: Sequence[Recorded],
        settings: EngineSettings,
        *,
        spawns: Sequence[Spawn],
        tenants: Mapping[str, str],
        agenda: Agenda,
        engine: SimEngine,
        tools: ToolPool,
        tell: Callable[[ev.Event], None],
        hear_engine: Callable[[], None],
    ) -> None:
        """`hear_engine` has what the engine has to tell told now. Raises InputError when a session
        can never fit into the KV, or is no family's.
        """
        self._settings, self._tenants = settings, tenants
        self._agenda, self._engine, self._tools = agenda, engine, tools
        self._tell, self._hear_engine = tell, hear_engine
        self.plays = plays_of(sessions, settings)
        self._families = Families(spawns, self.plays)
        self.left = len(sessions)
        """Sessions that have not ended."""
        self._later: deque[Play] = deque()
        """Closed loop: sessions that wait for an agent."""

    def start(self, agents: int | None) -> None:
        """All sessions come as they say, or (closed loop) so many are open at any time."""
        roots = [play for play in self.plays.values() if not self._families.parent_of(play)]
        for number, play in enumerate(roots):
            if agents is None:
                self._agenda.at(play.recorded.arrives_s, self._arriver(play))
            elif number < agents:
                # no two clients come at the very same time: who came first is what some rank by
                self._agenda.at(number * 1e-6, self._arriver(play))
            else:
                self._later.append(play)

    # -- what agents do about a fact --------------------------------------------------------------

    def admitted(self, event: ev.SessionAdmitted) -> None:
        play = self.plays[event.session_id]
        if play.waits:
            play.waits = False
            self._ask(play, event.at_s)

    def served(self, event: ev.CallServed) -> None:
        if not event.ok:
            return
        self.plays[event.session_id].call = None
        self._tell(
            ev.CallFinished(
                at_s=event.at_s, session_id=event.session_id, call_id=event.call_id, ok=True
            )
        )

    def finished(self, event: ev.CallFinished) -> None:
        play = self.plays[event.session_id]
        if not event.ok:
            return
        if play.number + 1 == len(play.recorded.turns):
            self._end(play, event.at_s, "its final request is answered")
        else:
            self._act(play, event.at_s)

    def tool_finished(self, event: ev.ToolFinished) -> None:
        if event.why == "ended":
            self._act(self.plays[event.session_id], event.at_s)

    # -- a session's life -------------------------------------------------------------------------

    def _arriver(self, play: Play) -> Callable[[float], None]:
        def arrive(now_s: float) -> None:
            if play.is_over:
                return  # the parent's client left, and took it along
            parent = self._families.parent_of(play)
            play.waits, play.arrived_s = True, parent.arrived_s if parent else now_s
            self._tell(
                ev.SessionArrived(
                    at_s=now_s,
                    session_id=play.session_id,
                    rule="simulated",
                    prompt_bytes=play.recorded.turns[0].new_tokens * BYTES_PER_TOKEN,
                    parent_id=parent.session_id if parent else None,
                    tenant=self._tenants.get(play.session_id, ""),
                )
            )
            if play.recorded.leaves_s is not None:
                self._agenda.at(
                    now_s + play.recorded.leaves_s, lambda at_s: self._leave(play, at_s)
                )

        return arrive

    def _come_back(self, play: Play, now_s: float) -> None:
        """The next call of a session that was in before."""
        if play.is_over:
            return
        if play.is_admitted:
            self._ask(play, now_s)
            return
        play.waits = True
        prompt_tokens = play.context_tokens + play.recorded.turns[play.number + 1].new_tokens
        self._tell(
            ev.SessionReturned(
                at_s=now_s,
                session_id=play.session_id,
                prompt_bytes=prompt_tokens * BYTES_PER_TOKEN,
            )
        )

    def _ask(self, play: Play, now_s: float) -> None:
        play.number += 1
        play.tools = 0
        turn = play.turn
        if turn.reset and play.number:
            play.context_tokens = 0
            play.chain = play.fresh_chain()
        play.context_tokens += turn.new_tokens
        call_id = CallId(f"{play.session_id}/{play.number}")
        prompt_tokens = play.context_tokens
        play.context_tokens += turn.output_tokens
        self._tell(
            ev.CallQueued(
                at_s=now_s,
                session_id=play.session_id,
                call_id=call_id,
                turn=play.number + 1,
                prompt_bytes=prompt_tokens * BYTES_PER_TOKEN,
            )
        )
        number = play.number

        def submit(at_s: float) -> None:
            if play.is_over or play.number != number:
                return
            view = CallView(
                call_id=call_id,
                session_id=play.session_id,
                queued_s=at_s,
                session_arrived_s=play.arrived_s,
                prompt_tokens=prompt_tokens,
            )
            play.call = self._engine.submit(view, play.chain, turn.output_tokens, at_s)

        settings = self._settings
        if api_s := settings.api_s + settings.api_token_s * prompt_tokens:
            self._agenda.at(now_s + api_s, submit)
        else:
            submit(now_s)

    def _act(self, play: Play, now_s: float) -> None:
        """The next tool of this turn; after the last one its sub-agents; then the client thinks."""
        play.tool_id = None
        tools = play.turn.tools
        if play.tools < len(tools):
            tool = tools[play.tools]
            play.tools += 1
            play.tool_id = ToolId(f"{play.session_id}/{play.number}.{play.tools}")
            self._tools.ask(play.session_id, play.tool_id, tool, now_s)
        elif children := self._families.of_turn(play):
            for child in children:
                self._agenda.at(now_s, self._arriver(child))
        else:
            self._think(play, now_s)

    def _think(self, play: Play, now_s: float) -> None:
        """The client thinks, then comes back."""
        if play.turn.think_s > 0.0:
            self._agenda.at(now_s + play.turn.think_s, lambda at_s: self._come_back(play, at_s))
        else:
            self._come_back(play, now_s)

    def _leave(self, play: Play, now_s: float) -> None:
        """The client gives up, and its sub-agents with it, also those that have not come yet."""
        if play.is_over:
            return
        if play.has_come:
            self._give_up(play, now_s)
        else:
            play.is_over = True
            self.left -= 1
        for child in self._families.all_of(play):
            self._leave(child, now_s)

    def _give_up(self, play: Play, now_s: float) -> None:
        """Whatever is under way for it ends."""
        if play.tool_id is not None:
            self._tools.cancel(play.tool_id, now_s)
        call_id = CallId(f"{play.session_id}/{play.number}")
        if play.call is not None:
            self._engine.abort(play.call, now_s)
            play.call = None
            self._hear_engine()
            self._tell(
                ev.CallFinished(
                    at_s=now_s,
                    session_id=play.session_id,
                    call_id=call_id,
                    ok=False,
                    why="client left",
                )
            )
        self._end(play, now_s, "client left", "client gone")

    def _end(self, play: Play, now_s: float, why: str, by: ev.End = "final request") -> None:
        play.is_over = True
        self.left -= 1
        self._tell(ev.SessionEnded(at_s=now_s, session_id=play.session_id, why=why, by=by))
        if (waiting := self._families.ended(play)) and not waiting.is_over:
            self._think(waiting, now_s)
        if self._later and self._families.parent_of(play) is None:
            self._agenda.at(now_s, self._arriver(self._later.popleft()))


def plays_of(sessions: Sequence[Recorded], settings: EngineSettings) -> dict[SessionId, Play]:
    """Raises InputError when a session can never fit into the KV, or two have the same name."""
    plays: dict[SessionId, Play] = {}
    prefixes: dict[str, Prefix] = {}
    for recorded in sessions:
        session_id = SessionId(recorded.session_id)
        if session_id in plays:
            raise InputError(f"two sessions are called {session_id!r}")
        check_fits(recorded, settings)
        prefix = None
        if blocks := recorded.shared_tokens // settings.block_tokens:
            prefix = prefixes.setdefault(recorded.shared_prefix, Prefix(blocks))
        plays[session_id] = Play(recorded, session_id, prefix)
    return plays
