"""Sessions through gate, engine and tools, in simulated time.

    Simulation   the shell around the control plane, as the gateway's desk is: it hands every fact
                 to the control plane, the engine and the log, and carries out what is decided
    simulate     sessions in, facts out

What clients do stands in mars.sim.agents.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final, NamedTuple, assert_never

import msgspec

from mars.core import events as ev
from mars.core.admission import Admission, Open
from mars.core.control import ControlPlane
from mars.core.decisions import Admit, Decision, FailOpen, Pause, Shut, said
from mars.core.errors import InputError
from mars.core.ids import CallId
from mars.core.quotas import Quotas
from mars.policy.base import Policy
from mars.policy.presets import Scheduling, build_admission, build_policy, build_tool_order
from mars.policy.tool_order import ToolOrder
from mars.sim.agenda import Agenda
from mars.sim.agents import Agents
from mars.sim.cost import Cost
from mars.sim.engine import SimEngine
from mars.sim.families import Spawn
from mars.sim.settings import SimSettings
from mars.sim.tools import ToolPool
from mars.workload.trace import Recorded


class Parts(NamedTuple):
    admission: Admission
    policy: Policy
    tool_order: ToolOrder

    @classmethod
    def of(cls, scheduling: Scheduling) -> "Parts":
        return cls(
            build_admission(scheduling), build_policy(scheduling), build_tool_order(scheduling)
        )


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
    parts: Parts | None = None,
) -> Outcome:
    """Play all sessions to their end.

    `agents`: closed loop, so many sessions are open at any time, in order, whatever their
    `arrives_s`; None: each arrives when it says. `spawns`: which of them are started by others, and
    when. `tenants`: whose a session is, by its id. `micro`: step by step, to test the strides.
    `parts`: instead of those of the scheduling's policy.
    Raises InputError when a session can never fit into the KV, or tenants' calls are limited.
    """
    return Simulation(
        sessions,
        cost,
        settings,
        agents=agents,
        spawns=spawns,
        tenants=tenants,
        micro=micro,
        parts=parts,
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
        parts: Parts | None = None,
        checks: bool = False,
    ) -> None:
        """`checks`: of every invariant after every event, not only in the end."""
        if settings.scheduling.tenants.bound_calls:
            raise InputError("the simulator limits no calls: leave `most_calls` of tenants out")
        self._agenda, self._checks = Agenda(), checks
        admission, policy, order = parts or Parts.of(settings.scheduling)
        bounds = msgspec.structs.replace(settings.scheduling.gate, blind_s=inf)
        self._control = ControlPlane(admission, bounds, Quotas(settings.scheduling.tenants))
        self._steers = not isinstance(admission, Open)
        """Who lets everybody in reads neither samples nor what sessions do."""
        self._engine = SimEngine(settings.engine, policy, cost, samples=self._steers, micro=micro)
        self._tools = ToolPool(settings.tools, order, emit=self._tell, at=self._agenda.at)
        self._agents = Agents(
            sessions,
            settings.engine,
            spawns=spawns,
            tenants=tenants or {},
            agenda=self._agenda,
            engine=self._engine,
            tools=self._tools,
            tell=self._tell,
            hear_engine=self._hear_engine,
        )
        self._facts: deque[ev.Event] = deque()
        self._reactions: dict[type[ev.Event], Callable[[Any], None]] = {
            ev.SessionAdmitted: self._agents.admitted,
            ev.CallServed: self._agents.served,
            ev.CallFinished: self._agents.finished,
            ev.ToolFinished: self._agents.tool_finished,
            ev.SessionArrived: self._tools.hear,
            ev.SessionEnded: self._tools.hear,
        }
        self._log: list[ev.Event] = []
        self._first_token_s: dict[CallId, float] = {}
        self._agents.start(agents)
        first_s = min((s.arrives_s for s in sessions), default=0.0)
        for every_s, ask in (
            (self._control.tick_s, self._control.tick),
            (self._control.watch_s, self._control.watch),
        ):
            if every_s is not None:
                self._ask_again(ask, first_s, every_s)

    def run(self) -> Outcome:
        agenda, engine = self._agenda, self._engine
        while self._agents.left:
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
            if isinstance(decision, Shut | FailOpen):
                self._tell(said(decision, now_s))
                continue
            play = self._agents.plays[decision.session_id]
            if play.is_over:  # its end is already on its way
                continue
            match decision:
                case Admit():
                    play.is_admitted = True
                    self._tell(
                        ev.SessionAdmitted(
                            at_s=now_s,
                            session_id=decision.session_id,
                            why=decision.why,
                            by=decision.by,
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

    def _hear_engine(self) -> None:
        facts, self._engine.facts[:] = self._engine.facts[:], []
        if self._checks:
            self._engine.batcher.check()
        for fact in facts:
            if isinstance(fact, ev.CallServed):
                self._note_first_token(fact)
            self._tell(fact)
        if self._checks:
            self._control.check()

    def _note_first_token(self, served: ev.CallServed) -> None:
        call = self._agents.plays[served.session_id].call
        if call is not None and call.first_token_s >= 0.0:
            self._first_token_s[served.call_id] = call.first_token_s - call.view.queued_s

    def _ask_again(
        self, ask: Callable[[float], Sequence[Decision]], last_s: float, every_s: float
    ) -> None:
        def again(now_s: float) -> None:
            self._carry_out(ask(now_s), now_s)
            self._ask_again(ask, now_s, every_s)

        self._agenda.at(last_s + every_s, again)
