"""Sessions through gate, engine and tools, in simulated time.

    Simulation   the shell around the control plane, as the gateway's desk is: it hands every fact
                 to the control plane, the engine and the log, and carries out what is decided
    simulate     sessions in, facts out

What a session is to do next stands in its `Play`, and nobody else looks there.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, assert_never

import msgspec

from mars.core import events as ev
from mars.core.admission import Open
from mars.core.control import ControlPlane
from mars.core.decisions import Admit, Decision, Pause, Shut
from mars.core.errors import InputError
from mars.core.ids import CallId, SessionId, ToolId
from mars.policy.base import CallView
from mars.policy.presets import Scheduling, build_admission, build_policy, build_tool_order
from mars.sim.agenda import Agenda
from mars.sim.cost import Cost
from mars.sim.engine import EngineSettings, SimEngine
from mars.sim.families import Families, Spawn
from mars.sim.kv import Prefix
from mars.sim.play import Play, check_fits
from mars.sim.tools import ToolPool, ToolSettings
from mars.workload.trace import Recorded

BYTES_PER_TOKEN = 4
"""English text; a gateway knows a newcomer's prompt in bytes only."""


class SimSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    engine: EngineSettings
    scheduling: Scheduling = Scheduling()
    tools: ToolSettings = ToolSettings()


_MILESTONES: Final = frozenset({ev.SessionArrived, ev.SessionAdmitted, ev.SessionEnded})
_FOR_THE_ENGINE: Final = frozenset(
    {
        ev.SessionArrived,
        ev.SessionEnded,
        ev.ToolQueued,
        ev.ToolStarted,
        ev.ToolFinished,
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    events: list[ev.Event]
    """All facts, in time order: what a live run would have logged."""
    first_token_s: dict[CallId, float]
    """From the engine's intake of a call to its first token, s."""
    engine_busy_s: float
    tool_cpu_s: float
    steps: int
    macro_steps: int


def simulate(
    sessions: Sequence[Recorded],
    cost: Cost,
    settings: SimSettings,
    *,
    agents: int | None = None,
    spawns: Sequence[Spawn] = (),
    tenants: Mapping[str, str] | None = None,
    micro: bool = False,
) -> Outcome:
    """Play all sessions to their end.

    `agents`: closed loop, so many sessions are open at any time, in order, whatever their
    `arrives_s`; None: each arrives when it says. `spawns`: which of them are started by others, and
    when. `tenants`: whose a session is, by its id. `micro`: step by step, to test the strides.
    Raises InputError when a session can never fit into the KV.
    """
    return Simulation(
        sessions, cost, settings, agents=agents, spawns=spawns, tenants=tenants, micro=micro
    ).run()


class Simulation:
    def __init__(
        self,
        sessions: Sequence[Recorded],
        cost: Cost,
        settings: SimSettings,
        *,
        agents: int | None = None,
        spawns: Sequence[Spawn] = (),
        tenants: Mapping[str, str] | None = None,
        micro: bool = False,
    ) -> None:
        self._set = settings
        self._tenants = tenants or {}
        self._agenda = Agenda()
        admission = build_admission(settings.scheduling)
        self._control = ControlPlane(admission)
        policy = build_policy(settings.scheduling)
        self._steers = not isinstance(admission, Open)
        """Who lets everybody in reads neither samples nor what sessions do."""
        self._engine = SimEngine(settings.engine, policy, cost, samples=self._steers, micro=micro)
        order = build_tool_order(settings.scheduling)
        self._tools = ToolPool(settings.tools, order, emit=self._tell, at=self._agenda.at)
        self._prefixes: dict[str, Prefix] = {}
        self._plays: dict[SessionId, Play] = {}
        self._facts: deque[ev.Event] = deque()
        self._reactions: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.SessionAdmitted: self._admitted,
            ev.CallServed: self._served,
            ev.CallFinished: self._finished,
            ev.ToolFinished: self._tool_finished,
            ev.SessionArrived: self._tools.hear,
            ev.SessionEnded: self._tools.hear,
        }
        self._log: list[ev.Event] = []
        self._first_token_s: dict[CallId, float] = {}
        self._left = len(sessions)
        self._later: deque[Play] = deque()
        """Closed loop: sessions that wait for an agent."""
        for recorded in sessions:
            play = self._play_of(recorded)
            self._plays[play.session_id] = play
        self._families = Families(spawns, self._plays)
        roots = [play for play in self._plays.values() if not self._families.parent_of(play)]
        for number, play in enumerate(roots):
            if agents is None:
                self._agenda.at(play.recorded.arrives_s, self._arriver(play))
            elif number < agents:
                # no two clients come at the very same time: who came first is what some rank by
                self._agenda.at(number * 1e-6, self._arriver(play))
            else:
                self._later.append(play)
        if (tick_s := self._control.tick_s) is not None:
            first_s = min((s.arrives_s for s in sessions), default=0.0)
            self._agenda.at(first_s + tick_s, self._ticker(tick_s))

    def run(self) -> Outcome:
        agenda, engine = self._agenda, self._engine
        while self._left:
            next_s, due_s = agenda.next_s, engine.due_s
            if next_s <= due_s:
                if next_s == inf:
                    raise AssertionError("sessions are left, and nothing happens")
                agenda.take()
            else:
                agenda.now_s = due_s
                engine.act(next_s)
                if engine.facts:
                    self._hear_engine()
        engine.batcher.check()
        return Outcome(
            events=self._log,
            first_token_s=self._first_token_s,
            engine_busy_s=engine.busy_s,
            tool_cpu_s=self._tools.busy_core_s,
            steps=engine.steps,
            macro_steps=engine.macro_steps,
        )

    # -- facts ------------------------------------------------------------------------------------

    def _tell(self, fact: ev.Event) -> None:
        """Hand a fact to all who need it, and the facts that follow from it."""
        facts = self._facts
        facts.append(fact)
        if len(facts) > 1:
            return  # somebody below us on the stack is at it
        while facts:
            event = facts[0]
            self._log.append(event)
            decisions: Sequence[Decision] = ()
            if self._steers or type(event) in _MILESTONES:
                decisions = self._control.handle(event)
            if type(event) in _FOR_THE_ENGINE:
                self._engine.hear(event)  # type: ignore[arg-type]  # of these types
            if decisions:
                self._carry_out(decisions, event.at_s)
            if (react := self._reactions.get(type(event))) is not None:
                react(event)
            facts.popleft()

    def _carry_out(self, decisions: Sequence[Decision], now_s: float) -> None:
        for decision in decisions:
            if isinstance(decision, Shut):
                self._tell(
                    ev.GateShut(
                        at_s=now_s, limit=decision.limit, why=decision.why, waiting=decision.waiting
                    )
                )
                continue
            play = self._plays[decision.session_id]
            if play.is_over:  # its end is already on its way
                continue
            match decision:
                case Admit():
                    play.is_admitted = True
                    self._tell(
                        ev.SessionAdmitted(
                            at_s=now_s, session_id=decision.session_id, why=decision.why
                        )
                    )
                case Pause():
                    play.is_admitted = False
                    self._tell(
                        ev.SessionPaused(
                            at_s=now_s, session_id=decision.session_id, why=decision.why
                        )
                    )
                case _:
                    assert_never(decision)

    # What the gateway and the agents do about a fact.

    def _admitted(self, event: ev.SessionAdmitted) -> None:
        play = self._plays[event.session_id]
        if play.waits:
            play.waits = False
            self._ask(play, event.at_s)

    def _served(self, event: ev.CallServed) -> None:
        if not event.ok:
            return
        self._plays[event.session_id].call = None
        self._tell(
            ev.CallFinished(
                at_s=event.at_s, session_id=event.session_id, call_id=event.call_id, ok=True
            )
        )

    def _finished(self, event: ev.CallFinished) -> None:
        play = self._plays[event.session_id]
        if not event.ok:
            return
        if play.number + 1 == len(play.recorded.turns):
            self._end(play, event.at_s, "its final request is answered")
        else:
            self._act(play, event.at_s)

    def _tool_finished(self, event: ev.ToolFinished) -> None:
        if event.why == "ended":
            self._act(self._plays[event.session_id], event.at_s)

    def _hear_engine(self) -> None:
        facts, self._engine.facts[:] = self._engine.facts[:], []
        for fact in facts:
            if isinstance(fact, ev.CallServed):
                self._note_first_token(fact)
            self._tell(fact)

    def _note_first_token(self, served: ev.CallServed) -> None:
        call = self._plays[served.session_id].call
        if call is not None and call.first_token_s >= 0.0:
            self._first_token_s[served.call_id] = call.first_token_s - call.view.queued_s

    # -- a session's life -------------------------------------------------------------------------

    def _play_of(self, recorded: Recorded) -> Play:
        session_id = SessionId(recorded.session_id)
        if session_id in self._plays:
            raise InputError(f"two sessions are called {session_id!r}")
        check_fits(recorded, self._set.engine)
        prefix = None
        if blocks := recorded.shared_tokens // self._set.engine.block_tokens:
            prefix = self._prefixes.setdefault(recorded.shared_prefix, Prefix(blocks))
        return Play(recorded, session_id, prefix)

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

    def _ticker(self, tick_s: float) -> Callable[[float], None]:
        def tick(now_s: float) -> None:
            self._carry_out(self._control.tick(now_s), now_s)
            self._agenda.at(now_s + tick_s, tick)

        return tick

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

        engine = self._set.engine
        if api_s := engine.api_s + engine.api_token_s * prompt_tokens:
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
            self._left -= 1
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
        self._end(play, now_s, "client left")

    def _end(self, play: Play, now_s: float, why: str) -> None:
        play.is_over = True
        self._left -= 1
        self._tell(ev.SessionEnded(at_s=now_s, session_id=play.session_id, why=why))
        if (waiting := self._families.ended(play)) and not waiting.is_over:
            self._think(waiting, now_s)
        if self._later and self._families.parent_of(play) is None:
            self._agenda.at(now_s, self._arriver(self._later.popleft()))
