"""Autellix (arXiv 2502.13965), PLAS: programs that have had little of the GPU so far go first.

    S   service: tokens the model was run on for the calls of the program (a session) so far
    W   time its calls have waited; T  time its calls have been served

A call enters the queue of its program's S, and falls one queue for each quantum of its prompt that
is computed. When it ends, S = max(S, S when it started + its own tokens), so parallel calls do not
add up. A waiting call goes to the top as soon as W / T > beta, its own wait included, and that
wait is then forgiven. Within a queue: order of arrival.

Tokens, thresholds and quanta are as the MARS paper's preview code ran it. Ours: T is the time from
the (last) start of a call to its end, W the time from its intake to its first start; the wait of a
preempted call counts from its intake, since nobody tells an ordering of preemptions; a call's
first chunk is cut by the queue of its S alone, and a preempted call starts from there again.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from math import inf
from typing import Final

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.policy.base import FOR_EVER, CallView, EngineEvent, Key, Stays
from mars.policy.settings import AutellixSettings

_MOST_PROGRAMS: Final = 100_000


@dataclass(slots=True)
class _Run:
    started_s: float
    service_tokens: int
    """S of its program when it first started."""
    cached_tokens: int


@dataclass(slots=True)
class _Program:
    service_tokens: int = 0
    service_s: float = 0.0
    wait_s: float = 0.0
    runs: dict[CallId, _Run] = field(default_factory=dict)


class LeastServed:
    live = True
    by_cache = False

    def __init__(self, settings: AutellixSettings) -> None:
        self._set = settings
        self._programs: dict[SessionId, _Program] = {}

    def observe(self, event: EngineEvent) -> None:
        if isinstance(event, ev.CallStarted):
            program = self._programs.setdefault(event.session_id, _Program())
            before = program.runs.get(event.call_id)
            service_tokens = before.service_tokens if before else program.service_tokens
            run = _Run(event.at_s, service_tokens, event.cached_tokens)
            program.runs[event.call_id] = run
            if len(self._programs) > _MOST_PROGRAMS:  # programs nobody ever ended: oldest first
                del self._programs[next(iter(self._programs))]
        elif isinstance(event, ev.CallServed):
            self._served(event)
        elif isinstance(event, ev.SessionEnded):
            self._programs.pop(event.session_id, None)

    def _served(self, event: ev.CallServed) -> None:
        program = self._programs.get(event.session_id)
        run = program.runs.pop(event.call_id, None) if program else None
        if program is None or run is None:
            return
        was_promoted = self._queue(program) > 0 and event.queued_s > self._patience_s(program)
        if not was_promoted:
            program.wait_s += event.queued_s
        program.service_s += event.at_s - run.started_s
        own_tokens = run.service_tokens + event.computed_tokens
        program.service_tokens = max(program.service_tokens, own_tokens)

    def run_key(self, call: CallView, now_s: float) -> Key:
        return (self._level(call, now_s), call.queued_s)

    def victim_key(self, call: CallView, now_s: float) -> Key:
        return self.run_key(call, now_s)

    def stays(self, call: CallView, now_s: float) -> Stays:
        program = self._programs.get(call.session_id)
        if program is None or self._queue(program) == 0:
            return FOR_EVER
        promoted_s = call.queued_s + self._patience_s(program)
        return FOR_EVER if now_s > promoted_s else Stays(until_s=promoted_s)

    def chunk_tokens(self, call: CallView, kv_used_frac: float) -> int | None:
        del kv_used_frac
        if not self._set.cut_chunks:
            return None
        return self._set.quantum_tokens[self._level(call, -inf)]

    def _level(self, call: CallView, now_s: float) -> int:
        """A running call was promoted, or not, when it started: no matter when one asks."""
        program = self._programs.get(call.session_id)
        if program is None:
            return 0
        run = program.runs.get(call.call_id) if call.kv_tokens else None
        asked_s = run.started_s if run else now_s
        is_promoted = asked_s > call.queued_s + self._patience_s(program)
        level = 0 if is_promoted else self._queue(program)
        if run is None:
            return level
        # Its answer is left out, for a decode's key must not change.
        left_tokens = min(call.kv_tokens, call.prompt_tokens) - run.cached_tokens
        for quantum_tokens in self._set.quantum_tokens[level:-1]:
            left_tokens -= quantum_tokens
            if left_tokens < 0:
                break
            level += 1
        return level

    def _queue(self, program: _Program) -> int:
        return bisect_right(self._set.level_tokens, program.service_tokens)

    def _patience_s(self, program: _Program) -> float:
        """How long a call may wait until W / T is beta."""
        return max(0.0, self._set.beta * program.service_s - program.wait_s)
