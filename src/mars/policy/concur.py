"""CONCUR (arXiv 2601.22705): agents as flows, KV as the link, a window by congestion control.

Every `every_s`, with U the share of KV in use and H the share of prompt tokens that were found in
the prefix cache by the calls of the last `hits_s`:

    W <- W + 2          when U < 0.2                       the cache is empty
    W <- max(1, W / 2)  when U > 0.5 and H < 0.2           it is full, and of no use
    W                   else

Who is active stays so: a window that was cut drains.
"""

from collections import deque
from collections.abc import Collection
from itertools import islice

from mars.core import events as ev
from mars.core.admission import Beat, GatedView, Verdict, let_in
from mars.core.pressure import Pressure
from mars.core.session import Session
from mars.policy.settings import ConcurSettings


class Concur:
    steers = True

    def __init__(self, settings: ConcurSettings) -> None:
        self._set = settings
        self.tick_s: float | None = settings.every_s
        self._beat = Beat(settings.every_s)
        self._size = settings.first
        self._calls: deque[tuple[float, int, int]] = deque()
        """(time, prompt, cached) tokens of the calls that count for H."""
        self._prompt_tokens = 0
        self._cached_tokens = 0

    def observe(self, event: ev.Event) -> None:
        if isinstance(event, ev.CallServed) and event.ok:
            self._calls.append((event.at_s, event.prompt_tokens, event.cached_tokens))
            self._prompt_tokens += event.prompt_tokens
            self._cached_tokens += event.cached_tokens

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        if self._beat.due(now_s):
            self._move(pressure.kv_used_frac, now_s)
        room = max(0, self._size - len(active))
        why = f"{len(active)} sessions are active, the window is {self._size}"
        admit = let_in(islice(gated, room), why)
        return Verdict(admit=admit, why_not=why, limit="window", window=self._size)

    def _move(self, used_frac: float, now_s: float) -> None:
        if used_frac < self._set.kv_low_frac:
            self._size += self._set.grow
        elif used_frac > self._set.kv_high_frac and self._hit_frac(now_s) < self._set.hit_frac:
            self._size = max(1, int(self._size * self._set.shrink))

    def _hit_frac(self, now_s: float) -> float:
        """H; 1 when no call has ended: nothing says that the cache is of no use."""
        while self._calls and self._calls[0][0] < now_s - self._set.hits_s:
            _, prompt_tokens, cached_tokens = self._calls.popleft()
            self._prompt_tokens -= prompt_tokens
            self._cached_tokens -= cached_tokens
        return self._cached_tokens / self._prompt_tokens if self._prompt_tokens else 1.0
