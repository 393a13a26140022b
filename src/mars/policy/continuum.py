"""Continuum (arXiv 2511.02230): programs in order of arrival, their KV pinned for a time to live.

Static (as released): 2 s, unless the tool is known to take longer than that on average. Dynamic:

    tau* = argmax_tau  P(t <= tau) * (T * eta + reload) - tau

    P       share of the tool's durations seen so far; of all tools' until it has more than K = 100
            of its own; until all have: the static 2 s
    T       mean wait of calls whose KV was evicted
    eta     -corr(k, N - k) over all calls of finished programs: k turns done of N. 1: who has
            done much has little left, so serving programs in order pays; 0: it does not
    reload  time to compute the context again

Ours: an engine learns of a tool when it starts, not from the answer's text. So a time to live is
set when the call ends (all tools' durations) and again when the tool starts (its own run time),
and a reported end of the tool keeps the KV `return_s` longer. A call's KV counts as evicted when
less than 0.9 of the program's last prompt was cached. That the latest program goes first when
memory must be had is the paper's; that a preempted call goes before all others is left out.
"""

from bisect import bisect_left, insort
from collections import deque
from math import inf, sqrt
from typing import Final

from mars.core import events as ev
from mars.core.ids import SessionId
from mars.policy.base import CallView, EngineEvent, Hold, IdleView, Key, Steady
from mars.policy.settings import ContinuumSettings

_FOUND_FRAC: Final = 0.9
_NEWEST: Final = 1000
_MOST_PROGRAMS: Final = 100_000


class HeldFirst(Steady):
    """Sessions with held KV, then the older session. The youngest gives up its memory first."""

    live = True  # a hold may end while its call waits

    def run_key(self, call: CallView, now_s: float) -> Key:
        del now_s
        waits_held = call.is_held and not call.kv_tokens
        return (not waits_held, call.session_arrived_s, call.queued_s)

    def victim_key(self, call: CallView, now_s: float) -> Key:
        del now_s
        return (call.session_arrived_s, call.queued_s)


class StaticTtl:
    def __init__(self, settings: ContinuumSettings) -> None:
        self._set = settings
        self._runs: dict[str, tuple[float, int]] = {}
        """Sum and number of each tool's durations."""

    def observe(self, event: EngineEvent) -> None:
        if isinstance(event, ev.ToolFinished) and event.exit_code is not None:
            sum_s, runs = self._runs.get(event.tool, (0.0, 0))
            self._runs[event.tool] = (sum_s + event.run_s, runs + 1)

    def hold(self, idle: IdleView) -> Hold:
        if idle.context_tokens <= 0:
            return Hold(keep_s=0.0, why="nothing to keep")
        ended = idle.stage == "tool ended"
        keep_s = self._set.return_s if ended else self._live_s(idle)
        why = "its tool has ended" if ended else f"lives {keep_s:.1f} s"
        return Hold(keep_s=keep_s, value=-idle.session_arrived_s, why=why)

    def takes_held_at_s(self, call: CallView) -> float:
        """Never: a pin ends with its time to live, or when nothing runs."""
        del call
        return inf

    def _live_s(self, idle: IdleView) -> float:
        sum_s, runs = self._runs.get(idle.tool, (0.0, 0))
        return 0.0 if sum_s > self._set.hold_s * runs else self._set.hold_s


class DynamicTtl(StaticTtl):
    def __init__(self, settings: ContinuumSettings) -> None:
        super().__init__(settings)
        self._all = _Durations()
        self._by_tool: dict[str, _Durations] = {}
        self._waits_s: deque[float] = deque(maxlen=settings.wait_samples)
        self._open: dict[SessionId, tuple[int, int]] = {}
        """Of each program: turns so far, prompt tokens of the last one."""
        self._order = _OrderPays()

    def observe(self, event: EngineEvent) -> None:
        if isinstance(event, ev.ToolFinished) and event.exit_code is not None:
            self._all.add(event.run_s)
            self._by_tool.setdefault(event.tool, _Durations()).add(event.run_s)
        elif isinstance(event, ev.CallServed) and event.ok:
            turns, before_tokens = self._open.get(event.session_id, (0, 0))
            if event.cached_tokens < _FOUND_FRAC * before_tokens:
                self._waits_s.append(event.queued_s)
            self._open[event.session_id] = (turns + 1, event.prompt_tokens)
            if len(self._open) > _MOST_PROGRAMS:  # programs nobody ever ended: oldest first
                del self._open[next(iter(self._open))]
        elif isinstance(event, ev.SessionEnded):
            turns, _ = self._open.pop(event.session_id, (0, 0))
            self._order.add(turns)

    def _live_s(self, idle: IdleView) -> float:
        enough = self._set.tool_samples
        if len(self._all) <= enough:
            return self._set.hold_s
        own = self._by_tool.get(idle.tool)
        seen = own if own is not None and len(own) > enough else self._all
        price = self._set.reload_s_per_token
        reload_s = idle.refill_s if price is None else price * idle.context_tokens
        wait_s = sum(self._waits_s) / len(self._waits_s) if self._waits_s else 0.0
        return seen.best_s(wait_s * self._order.eta + reload_s)


class _Durations:
    """The newest durations, sorted (the paper keeps all; this bounds the work)."""

    def __init__(self) -> None:
        self._newest: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._newest)

    def add(self, run_s: float) -> None:
        if len(self._newest) == _NEWEST:
            del self._sorted[bisect_left(self._sorted, self._newest.popleft())]
        self._newest.append(run_s)
        insort(self._sorted, run_s)

    def best_s(self, gain_s: float) -> float:
        """argmax_tau P(t <= tau) * gain - tau: one of the durations, or 0; none beyond the gain."""
        best_s, most_s, all_of_them = 0.0, 0.0, len(self._sorted)
        for number, tau_s in enumerate(self._sorted, 1):
            if tau_s >= gain_s:
                break
            worth_s = number / all_of_them * gain_s - tau_s
            if worth_s > most_s:
                best_s, most_s = tau_s, worth_s
        return best_s


class _OrderPays:
    """eta = -corr(k, N - k), from sums over k = 0 .. N-1 of each finished program of N turns."""

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._yy = self._xy = 0

    def add(self, turns: int) -> None:
        for done in range(turns):
            left = turns - done
            self._n += 1
            self._x += done
            self._y += left
            self._xx += done * done
            self._yy += left * left
            self._xy += done * left

    @property
    def eta(self) -> float:
        """1 until it is known (released code)."""
        x = self._n * self._xx - self._x * self._x
        y = self._n * self._yy - self._y * self._y
        return -(self._n * self._xy - self._x * self._y) / sqrt(x * y) if x and y else 1.0
