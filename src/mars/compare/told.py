"""A schedule that is told the future: a figure to read the bounds by, never a policy.

`mars`'s own mechanisms (gate by room in KV, order of calls, holds, order of tools), with the truth
where `mars` has what it has learned: what is left of a session, how long a gap will be, what a tool
will take. So of the distance between `mars` and the bound

    mars .. told     is what knowing the future would bring
    told .. bound    is left however much is known: a loose bound, or mechanisms that are missing

It is neither an optimum nor a bound. It is made of the workload, so it stands beside the bounds,
and no preset leads to it: a live system could not build it.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from math import inf
from operator import mul
from typing import Final, NamedTuple

import msgspec

from mars.core import events as ev
from mars.core.admission import GatedView
from mars.core.ids import CallId, SessionId, ToolId
from mars.core.residency import Residency
from mars.policy.base import CallView, EngineEvent, Hold, IdleView, Key, Policy, Steady
from mars.policy.presets import Scheduling
from mars.policy.tool_order import ToolCallView, ToolOrderEvent
from mars.sim.prices import Prices
from mars.sim.run import Parts
from mars.sim.settings import EngineSettings, ToolSettings
from mars.workload.trace import Recorded, Tool

TOLD: Final = "told-the-future"
_LATE_S: Final = 60.0
"""A hold lasts so much longer than its gap alone: the tool may have to wait for cores."""


class ToldTheFuture(Scheduling, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What such a run has for its scheduling. Settings of a live system are a `Scheduling`."""

    policy: str = TOLD

    def __post_init__(self) -> None:
        """Its name is no preset's."""


def named(policy: str, given: Scheduling) -> Scheduling:
    """These settings, for a policy or for what is told the future."""
    parts = msgspec.structs.asdict(given) | {"policy": policy}
    return ToldTheFuture(**parts) if policy == TOLD else Scheduling(**parts)


class Turn(NamedTuple):
    """A turn, and what is left of its session from this call on."""

    gap_s: float
    """From its call's end to the next call, if no tool waits for cores; inf: there is none."""
    leases_s: tuple[float, ...]
    """Core seconds that each of its tools leases."""
    kv_s: float
    """Left: seconds of the whole KV. A gap takes them, or the GPU's to compute its prompt again."""
    core_s: float
    """Left: core seconds."""


class Future:
    def __init__(
        self,
        sessions: Sequence[Recorded],
        prices: Prices,
        engine: EngineSettings,
        tools: ToolSettings,
    ) -> None:
        self._prices, self._engine, self._cores = prices, engine, tools.cores
        self._turns = {SessionId(s.session_id): list(self._of(s)) for s in sessions}

    def turn(self, call_id: CallId) -> Turn:
        session_id, _, number = call_id.rpartition("/")
        return self._turns[SessionId(session_id)][int(number)]

    def first(self, session_id: SessionId) -> Turn:
        return self._turns[session_id][0]

    def tool(self, tool_id: ToolId) -> tuple[float, Turn]:
        """Core seconds that it leases, and its turn."""
        call_id, _, nth = tool_id.rpartition(".")
        turn = self.turn(CallId(call_id))
        return turn.leases_s[int(nth) - 1], turn

    def _of(self, session: Recorded) -> Iterator[Turn]:
        capacity_tokens = self._engine.kv_blocks * self._engine.block_tokens
        gaps_s, leases_s, kv_s = [], [], []
        context_tokens = warm_tokens = session.shared_tokens
        for number, turn in enumerate(session.turns, 1):
            if turn.reset or number == 1:
                context_tokens, warm_tokens = 0, session.shared_tokens
            context_tokens += turn.new_tokens
            call_s = self._prompt_s(context_tokens - warm_tokens, warm_tokens)
            call_s += turn.output_tokens * self._decode_s(context_tokens)
            wall_s = [self._wall_s(tool) for tool in turn.tools]
            gap_s = sum(wall_s) + turn.think_s if number < len(session.turns) else inf
            own_tokens = context_tokens - session.shared_tokens
            share = own_tokens / capacity_tokens
            again_s = self._prompt_s(own_tokens, session.shared_tokens)
            kv_s.append(share * call_s + (min(share * gap_s, again_s) if gap_s < inf else 0.0))
            gaps_s.append(gap_s)
            cores = (min(tool.cores, self._cores) for tool in turn.tools)
            leases_s.append(tuple(map(mul, cores, wall_s)))
            context_tokens += turn.output_tokens
            warm_tokens = context_tokens
        left_s = list(accumulate(reversed(kv_s)))[::-1]
        cores_s = list(accumulate(map(sum, reversed(leases_s))))[::-1]
        return map(Turn, gaps_s, leases_s, left_s, cores_s)

    def _prompt_s(self, tokens: int, after_tokens: int) -> float:
        return self._prices.prompt(tokens, tokens * (after_tokens + tokens / 2.0))

    def _decode_s(self, context_tokens: int) -> float:
        price = self._prices
        return price.decode_s + (price.own_token_s + price.context_token_s) * context_tokens

    def _wall_s(self, tool: Tool) -> float:
        return max(tool.run_s, tool.cpu_s / min(tool.cores, self._cores))


def told(future: Future, scheduling: Scheduling) -> Parts:
    ordering, retention = LeastLeft(future), KeepIfItPays(future, scheduling.worth.price)

    def least_first(gated: Collection[GatedView], now_s: float) -> Sequence[GatedView]:
        del now_s
        return sorted(gated, key=lambda view: future.first(view.session_id).kv_s)

    gate = Residency(scheduling.residency, in_order=least_first)  # room as under `mars`
    return Parts(gate, Policy(ordering, retention), LeastCores(future))


class LeastLeft(Steady):
    """Who holds KV, then the session that has least left."""

    live = True  # a hold may end while a call waits

    def __init__(self, future: Future) -> None:
        self._future = future

    def run_key(self, call: CallView, now_s: float) -> Key:
        takes = call.is_held and not call.kv_tokens
        return (not takes, *self.victim_key(call, now_s))

    def victim_key(self, call: CallView, now_s: float) -> Key:
        del now_s
        return (self._future.turn(call.call_id).kv_s, call.session_arrived_s, call.queued_s)


class KeepIfItPays:
    """Through the gap that comes, or not at all."""

    def __init__(self, future: Future, price: float) -> None:
        self._future, self._price = future, price
        self._turns: dict[SessionId, Turn] = {}

    def observe(self, event: EngineEvent) -> None:
        if isinstance(event, ev.CallStarted):
            self._turns[event.session_id] = self._future.turn(event.call_id)

    def hold(self, idle: IdleView) -> Hold:
        gap_s = self._turns[idle.session_id].gap_s
        if gap_s == inf:
            return Hold(keep_s=0.0, why="no call will come")
        share = idle.context_tokens / idle.kv_capacity_tokens
        if idle.stage != "tool ended" and self._price * share * gap_s >= idle.refill_s:
            return Hold(keep_s=0.0, why=f"the gap will be {gap_s:.1f} s")
        why = f"the gap will be {gap_s:.1f} s, to save {idle.refill_s:.1f} s"
        return Hold(
            keep_s=gap_s + _LATE_S,
            value=-idle.session_arrived_s,
            spared_s=idle.refill_s,
            why=why,
        )

    def takes_held_at_s(self, call: CallView) -> float:
        del call
        return inf


class LeastCores:
    """Few core seconds first, both of the call and of what is left of its session."""

    def __init__(self, future: Future) -> None:
        self._future = future

    def observe(self, event: ToolOrderEvent) -> None:
        del event

    def key(self, call: ToolCallView, now_s: float) -> Key:
        del now_s
        lease_s, turn = self._future.tool(call.tool_id)
        return (lease_s * turn.core_s, call.queued_s)
