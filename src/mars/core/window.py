"""A window of active sessions: additive increase, multiplicative decrease (paper: control plane).

The published loop ticks every 0.2 s and has faults that this one avoids:

* it falls from 30 to 4 in a second, while what it reacts to takes 10-30 s. Here the window moves at
  most once a *turnover* (as many finished calls as there are active sessions), and is not cut
  again while the last cut still drains;
* it grows while nobody waits. Here only a window that binds grows;
* it reads vLLM's usage, where an idle session's KV looks free. Here the contexts of all admitted
  sessions count as well;
* it admits whoever the window has room for. Here a newcomer's prompt must fit, and counts from the
  moment it enters: a burst of arrivals does not see an empty machine;
* it starts at 30, whatever the machine. Here the window doubles each turnover up to the first
  overload (TCP's slow start), then moves by `grow`, or by what would fit at today's pressure;
* when samples stop coming it goes on with the last one. Here the gate opens (core.failsafe): one
  that cannot see must not starve anybody.
"""

from collections.abc import Collection, Iterable
from itertools import islice

from mars.core import events as ev
from mars.core.admission import GatedView, Verdict, let_in
from mars.core.pressure import Hysteresis, Pressure
from mars.core.session import Session
from mars.core.settings import WindowSettings


class Window:
    steers = True
    tick_s: float | None = None

    def __init__(self, settings: WindowSettings) -> None:
        self._set = settings
        self._size = settings.first
        self._slow_start = True
        self._may_cut, self._may_grow = True, False
        self._finished = 0
        self._kv = Hysteresis(low=settings.kv_low_frac, high=settings.kv_high_frac)
        self._load = Hysteresis(low=settings.tool_load_low, high=settings.tool_load_high)
        self._wait = Hysteresis(low=settings.tool_wait_low_s, high=settings.tool_wait_high_s)

    def observe(self, event: ev.Event) -> None:
        if isinstance(event, ev.CallFinished) and event.ok:
            self._finished += 1

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        del now_s
        return self._choose(gated, len(active), pressure)

    def _choose(self, gated: Collection[GatedView], active: int, pressure: Pressure) -> Verdict:
        limit, over = self._overload(pressure)
        if self._finished >= max(1, active):
            self._finished = 0
            self._may_cut = self._may_grow = True
        if self._may_cut and over and active <= self._size and self._size > self._set.least:
            self._size = max(self._set.least, int(min(active, self._size) * self._set.shrink))
            self._slow_start = False
            self._moved()
        elif self._may_grow and not over and active >= self._size and gated:
            self._size += self._step(active, pressure)
            self._moved()
        room = max(0, (self._set.least if over else self._size) - active)
        why_not = over or f"{active} sessions are active, the window is {self._size}"
        fit = self._fit(islice(gated, room), active, pressure)
        if fit < min(room, len(gated)):
            why_not = f"KV is at {pressure.kv_frac:.0%} and the next session's prompt does not fit"
            limit = "room in KV"
        admit = let_in(islice(gated, fit), f"{active} active, window {self._size}")
        return Verdict(admit=admit, why_not=why_not, limit=limit, window=self._size)

    def _step(self, active: int, pressure: Pressure) -> int:
        """Doubling in slow start; later `grow`, or more while sessions like the present ones fit.

        A window cut when contexts were long is too small once those sessions have ended: with
        A sessions at pressure p below its limit P, about A * P / p of them fit.
        """
        if self._slow_start:
            return self._size
        fit = [
            min(2.0 * self._size, active * limit / now)
            for now, limit in (
                (pressure.kv_frac, self._set.kv_high_frac),
                (pressure.tool_load, self._set.tool_load_high),
            )
            if now > 0.0
        ]
        return max(self._set.grow, int(min(fit, default=0.0)) - self._size)

    def _moved(self) -> None:
        self._may_cut = self._may_grow = False
        self._finished = 0  # the next turnover is counted from this move

    def _fit(self, gated: Iterable[GatedView], active: int, pressure: Pressure) -> int:
        """How many of them, in order, have room for their prompts below the limit."""
        kv_frac, count = pressure.kv_frac, 0
        for view in gated:
            kv_frac += view.prompt_bytes * pressure.kv_frac_per_byte
            if kv_frac > self._set.kv_high_frac and active + count >= self._set.least:
                break
            count += 1
        return count

    def _overload(self, pressure: Pressure) -> tuple[ev.Limit, str]:
        """What is overloaded, by kind and in words; when nothing is, the window and no words."""
        kv = self._kv.update(pressure.kv_frac)
        load = self._load.update(pressure.tool_load)
        wait = self._wait.update(pressure.tool_wait_s)
        if kv:
            why = f"KV is at {pressure.kv_frac:.0%} (limit {self._set.kv_high_frac:.0%})"
            return "KV pressure", why
        if load or wait:
            return "tool pressure", (
                f"tools: {pressure.tool_load:.1f} a slot, "
                f"{pressure.tool_wait_s:.1f} s of waiting for cores"
            )
        return "window", ""
