"""The control loop of the published MARS preview, as it was released: who enters.

Every 0.2 s, with W the window in sessions, U the share of KV blocks in use, P = 30, L = 4:

    KV overloaded    set at U >= 0.90, cleared at U <= 0.85
    CPU overloaded   set at load >= high or wait >= 5 s, cleared at load <= low and wait <= 2 s
                     (load: tool calls, running or waiting, per slot; wait: moving average of the
                     time that tools waited for cores, the newest counting alpha = 0.2)
    W <- max(L, floor(0.7 W))  overloaded
    W <- W + 1                 load and wait at their low marks, U <= 0.85, 1 - U - 0.10 > 0
    sessions <= W, <= kv_cap when U > 0.85: linear from P there to L at 0.90,
               <= ceil(slots * (low + high) / 2) when the CPU is overloaded, but L in any case

Who enters is decided at every event, its numbers move with the tick. Order: `_line`. A prompt is
known in bytes: it is long from `long_bytes` on, and takes bytes * `pressure.kv_frac_per_byte`.
"""

from collections.abc import Collection, Iterator
from itertools import islice
from math import ceil, inf

from mars.core import events as ev
from mars.core.admission import Beat, GatedView, Verdict, let_in
from mars.core.pressure import Hysteresis, Pressure
from mars.core.session import Session
from mars.policy.settings import PreviewWindowSettings


class PreviewWindow:
    steers = True

    def __init__(self, settings: PreviewWindowSettings) -> None:
        self._set = settings
        self.tick_s: float | None = settings.every_s
        self._beat = Beat(settings.every_s)
        self._size = settings.first
        self._kv = Hysteresis(low=settings.kv_low_frac, high=settings.kv_high_frac)
        self._load = Hysteresis(low=settings.tool_load_low, high=settings.tool_load_high)
        self._wait = Hysteresis(low=settings.tool_wait_low_s, high=settings.tool_wait_high_s)
        self._wait_s = 0.0
        self._slots = 0
        self._short_at_s = -inf
        """When a short one was last seen to wait."""
        self._long_left = 0
        """Long ones that may still enter at this look."""

    def observe(self, event: ev.Event) -> None:
        match event:
            case ev.ToolStarted():
                self._wait_s += self._set.tool_wait_alpha * (event.wait_s - self._wait_s)
            case ev.ToolsSampled():
                self._slots = event.slots
            case _:
                pass

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        if self._beat.due(now_s):
            self._move(pressure)
            self._long_left = self._set.long_at_once
        limit = self._limit(pressure)
        room = max(0, limit - len(active))
        why = f"{len(active)} sessions are active, the window is {self._size}, its limit {limit}"
        admit = []
        if gated and room:
            admit = let_in(islice(self._line(gated, pressure, now_s), room), why)
        if gated and not (admit or active):
            admit = let_in(islice(gated, 1), "nobody else is active")
        return Verdict(admit=admit, why_not=why, limit="window", window=limit)

    def _move(self, pressure: Pressure) -> None:
        kv = self._kv.update(pressure.kv_used_frac)
        load = self._load.update(pressure.tool_load)
        wait = self._wait.update(self._wait_s)
        if kv or load or wait:
            self._size = max(self._set.least, int(self._size * self._set.shrink))
        elif self._is_calm(pressure) and 1 - pressure.kv_used_frac > self._set.kv_reserve_frac:
            self._size += self._set.grow

    def _is_calm(self, pressure: Pressure) -> bool:
        return (
            pressure.kv_used_frac <= self._set.kv_low_frac
            and pressure.tool_load <= self._set.tool_load_low
            and self._wait_s <= self._set.tool_wait_low_s
        )

    def _limit(self, pressure: Pressure) -> int:
        limit, used_frac = self._size, pressure.kv_used_frac
        low, high, least = self._set.kv_low_frac, self._set.kv_high_frac, self._set.least
        if used_frac > low:
            left = max(0.0, high - used_frac) / max(high - low, 1e-9)
            limit = min(limit, least + int(left * (self._set.first - least)))
        if (self._load.on or self._wait.on) and self._slots:
            loads = (self._set.tool_load_low + self._set.tool_load_high) / 2
            limit = min(limit, ceil(self._slots * loads))
        return max(least, limit)

    def _line(
        self, gated: Collection[GatedView], pressure: Pressure, now_s: float
    ) -> Iterator[GatedView]:
        """In order of arrival while all is calm; the long first while the CPU is overloaded;
        else the short, and the long only when no short one has waited for a while: at most
        `long_at_once` of them a look, and as many as the KV has room for.
        """
        if self._load.on or self._wait.on:
            return iter(sorted(gated, key=lambda view: -view.prompt_bytes))
        if not self._kv.on and self._is_calm(pressure):
            return iter(gated)
        short = [view for view in gated if view.prompt_bytes <= self._set.long_bytes]
        if short:
            self._short_at_s = now_s
            return iter(short)
        if now_s - self._short_at_s < self._set.long_after_s:
            return iter(())
        return self._packed(gated, pressure)

    def _packed(self, gated: Collection[GatedView], pressure: Pressure) -> Iterator[GatedView]:
        free_frac = 1.0 - self._set.kv_reserve_frac - pressure.kv_used_frac
        for view in gated:
            if free_frac <= 0.0 or not self._long_left:
                return
            frac = view.prompt_bytes * pressure.kv_frac_per_byte
            if frac <= free_frac:
                free_frac -= frac
                self._long_left -= 1
                yield view
