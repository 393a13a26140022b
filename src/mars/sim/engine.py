"""The simulated engine in time: how long the batcher's steps take, and when it schedules the next.

    lag 0   schedule, run, update, schedule ...
    lag 1   asynchronous scheduling: while a step runs, the next one is already scheduled, so what
            comes during a step is seen one step later

Steps that are alike are taken at once (mars.sim.strides), up to the next thing that could change
them: an event outside, the end of a hold, a key that ages, a sample that is due.
"""

from collections import deque
from dataclasses import dataclass
from math import inf

from mars.core import events as ev
from mars.core.estimate import PrefillRate
from mars.policy.base import CallView, EngineEvent, Policy
from mars.sim.call import Batch, Call
from mars.sim.cost import Cost
from mars.sim.groups import make_batcher
from mars.sim.kv import Chain
from mars.sim.settings import EngineSettings
from mars.sim.strides import Strides, within


@dataclass(slots=True)
class _Flight:
    """Scheduled steps that are not over."""

    batch: Batch
    start_s: float
    end_s: float
    last_start_s: float
    """When the last of them starts."""


class SimEngine:
    def __init__(
        self,
        settings: EngineSettings,
        policy: Policy,
        cost: Cost,
        *,
        samples: bool = True,
        micro: bool = False,
    ) -> None:
        """`samples`: tell of the memory every `sample_s`, not only when all work is done.
        `micro`: one step at a time, for the test that it makes no difference.
        """
        self._set, self._policy, self._cost, self._micro = settings, policy, cost, micro
        self._rate = PrefillRate()
        self.facts: list[ev.Event] = []
        """What has happened since somebody last emptied this list."""
        self.batcher = make_batcher(settings, policy, self._rate, self.facts.append)
        self.pool = self.batcher.pool
        self._strides = Strides(self.batcher, policy)
        self._inbox: list[EngineEvent] = []
        self._flights: deque[_Flight] = deque()
        self._taken: deque[tuple[float, int, float]] = deque()
        """Large steps that are not over: end, tokens, seconds; for the estimate of the rate."""
        self._free_s = 0.0
        self._schedule_s = inf
        self.due_s = inf
        """When the engine next does something; inf: it is idle."""
        self._sampled_s = 0.0
        self._sample_s = settings.sample_s if samples else inf
        self.busy_s = 0.0
        self.steps = 0
        self.macro_steps = 0

    def submit(self, view: CallView, chain: Chain, output_tokens: int, now_s: float) -> Call:
        self._read_inbox(now_s)
        call = self.batcher.add(view, chain, output_tokens)
        if not self._flights:
            self._schedule_s = self.due_s = now_s
        return call

    def abort(self, call: Call, now_s: float) -> None:
        self.batcher.abort(call, now_s)

    def hear(self, event: EngineEvent) -> None:
        """A fact of another process: read at the next intake or step."""
        self._inbox.append(event)

    def act(self, horizon_s: float) -> None:
        """Do what is due at `due_s`, up to the first fact; outside nothing will happen before
        `horizon_s`.
        """
        now_s, flights = self.due_s, self._flights
        while True:
            if flights and flights[0].end_s <= now_s:
                self._update(flights.popleft(), now_s)
            else:
                self._schedule(now_s, horizon_s)
            self.due_s = self._schedule_s
            if flights and flights[0].end_s < self.due_s:
                self.due_s = flights[0].end_s
            if self.due_s != now_s or self.facts:
                return

    def _observe_rate(self, now_s: float) -> None:
        taken = self._taken
        while taken and taken[0][0] <= now_s:
            _, tokens, took_s = taken.popleft()
            self._rate.observe(tokens, took_s)

    def _read_inbox(self, now_s: float) -> None:
        if not self._inbox:
            return
        self._observe_rate(now_s)
        for event in self._inbox:
            self.batcher.hear(event, now_s)
        self._inbox.clear()

    def _schedule(self, now_s: float, horizon_s: float) -> None:
        self._schedule_s = inf
        self._read_inbox(now_s)
        batch = self.batcher.schedule(now_s)
        if batch.is_empty:
            if not self._flights and not self.batcher.is_idle:
                next_s = self._strides.next_try_s(now_s)
                self._schedule_s = now_s if batch.preempted else next_s
            return
        flight = self._fly(batch, now_s, horizon_s)
        self.busy_s += flight.end_s - flight.start_s
        self.steps += batch.steps
        self.macro_steps += 1
        self._flights.append(flight)
        self._free_s = flight.end_s
        self._next(now_s)

    def _fly(self, batch: Batch, now_s: float, horizon_s: float) -> _Flight:
        """When this step runs, and with it all that follow before anything is to be decided."""
        start_s = max(now_s, self._free_s)
        flight = _Flight(batch, start_s, start_s, start_s)
        self._add_step(flight)
        if not (self._micro or batch.ended or batch.preempted) and not (
            self._flights and self._flights[-1].batch.ended
        ):
            self._stride(flight, min(horizon_s, self._strides.next_change_s(now_s)))
        return flight

    def _add_step(self, flight: _Flight) -> None:
        batch = flight.batch
        took_s = self._cost.step_s(batch.decodes, batch.context_tokens, batch.chunks)
        flight.last_start_s = flight.end_s
        flight.end_s += took_s
        if (tokens := batch.all_tokens) >= self._rate.least_tokens:
            self._taken.append((flight.end_s, tokens, took_s))
        for call in batch.complete:
            if call.first_token_s < 0.0:
                call.first_token_s = flight.end_s

    def _next(self, now_s: float) -> None:
        """When to schedule again."""
        if len(self._flights) > self._set.lag or self.batcher.is_idle:
            return
        after_s = self._flights[-1].last_start_s if self._flights else now_s
        self._schedule_s = max(now_s, after_s)

    def _stride(self, flight: _Flight, seen_s: float) -> None:
        """A step is scheduled when the one before it ends; with a lag, when that one starts."""
        batch, sample_s = flight.batch, self._sampled_s + self._sample_s
        alike = 0 if batch.chunks or batch.complete else 1
        while self.batcher.running.prefills:
            next_s = flight.last_start_s if self._set.lag else flight.end_s
            if flight.end_s >= sample_s or next_s >= seen_s:
                return
            if not self._strides.chunks(batch, next_s):
                return
            self._add_step(flight)
            alike = 0
            if batch.ended:
                return
        self._stride_decodes(flight, alike, seen_s, sample_s)

    def _stride_decodes(self, flight: _Flight, alike: int, seen_s: float, sample_s: float) -> None:
        """All steps from now on, and `alike` (0 or 1) of those that are there, are of the same B
        decodes. Of these step i takes p + q (i - 1): p = a + b S with the contexts S of the first,
        q = b B. The first m take D(m) = p m + q m (m - 1) / 2.
        """
        next_s = flight.last_start_s if self._set.lag else flight.end_s
        most = self._strides.most_decodes(flight.batch)
        if not most or flight.end_s >= sample_s or next_s >= seen_s:
            return
        decodes = self.batcher.running.decodes
        count, context_tokens = decodes.count, decodes.context_tokens
        a, b = self._cost.decode_line(count)
        start_s = flight.last_start_s if alike else flight.end_s
        p, q = a + b * (context_tokens if alike else context_tokens + count), b * count
        most += alike - 1  # beside the first
        if most and seen_s < inf:
            lag = self._set.lag if seen_s > start_s else 0
            most = min(most, within(p, q, seen_s - start_s, most) + lag)
        if most and sample_s < inf:
            most = within(p, q, sample_s - start_s, most)
        steps = self._strides.decodes(flight.batch, most + 1 - alike, next_s)
        if not steps:
            return
        m = alike + steps
        flight.end_s = start_s + p * m + q * m * (m - 1) / 2.0
        flight.last_start_s = flight.end_s - (p + q * (m - 1))
        if count >= self._rate.least_tokens:
            for i in range(alike, m):
                end_s = start_s + p * (i + 1) + q * (i + 1) * i / 2.0
                self._taken.append((end_s, count, p + q * i))

    def _update(self, flight: _Flight, now_s: float) -> None:
        self._observe_rate(now_s)
        self.batcher.update(flight.batch, now_s)
        idle = self.batcher.is_idle and not self._flights
        if idle or now_s - self._sampled_s >= self._sample_s:
            self._sample(now_s)
        self._next(now_s)

    def _sample(self, now_s: float) -> None:
        self._sampled_s = now_s
        batcher = self.batcher
        self.facts.append(
            ev.EngineSampled(
                at_s=now_s,
                kv_used_blocks=batcher.used_blocks,
                kv_held_blocks=batcher.holds.blocks,
                kv_total_blocks=self.pool.blocks,
                block_tokens=self._set.block_tokens,
                running_calls=len(batcher.running.calls),
                waiting_calls=batcher.waiting_calls,
                host_total_blocks=batcher.host_blocks,
            )
        )
