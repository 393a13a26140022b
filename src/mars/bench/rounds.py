"""The numbers of one round, or of several pooled: events in, `Figures` out. Pure.

Sums and counts of pooled rounds are totals over them; means and percentiles are taken over all
their sessions (calls, tools) as one sample. What was never seen is None, not 0.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar, cast

import msgspec

from mars.bench import phases
from mars.core import events as ev
from mars.core.ids import SessionId

E = TypeVar("E", bound=ev.Event)


@dataclass(frozen=True, kw_only=True)
class Round:
    policy: str
    repeat: int
    started_s: float
    ended_s: float
    events: Sequence[ev.Event]
    """In order of `at_s`."""

    @cached_property
    def _by_kind(self) -> dict[type[ev.Event], list[Any]]:
        kinds: dict[type[ev.Event], list[Any]] = defaultdict(list)
        for event in self.events:
            kinds[type(event)].append(event)
        return kinds

    def of(self, kind: type[E]) -> list[E]:
        """Its events of one kind."""
        return self._by_kind.get(cast(type[ev.Event], kind), [])

    @cached_property
    def spans(self) -> dict[SessionId, list[phases.Span]]:
        """Where each session's time went."""
        return phases.fold(self.events)


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    sessions: int
    mean_s: float
    """Mean session time, s: SessionEnded.at_s - SessionArrived.at_s, the gate included."""
    p50_s: float
    """Quantiles of the session time, s: linear between order statistics (`quantile`)."""
    p90_s: float
    p95_s: float
    phase_mean_s: dict[str, float]
    """Seconds a session spends in each phase (`phases.PHASES`), mean; they add up to `mean_s`."""
    gate_wait_mean_s: float
    """Seconds at the gate (phase `gated`), those after a pause included, over sessions."""
    gate_wait_p95_s: float
    throughput_sessions_per_s: float
    """sessions / sum over rounds of (last SessionEnded.at_s - first SessionArrived.at_s)."""
    output_tokens_per_s: float
    """sum made_tokens / the same seconds. Here and below: of calls served with ok."""
    calls: int
    """CallServed with ok."""
    calls_aborted: int
    """CallServed without ok; nothing else counts them."""
    calls_unaccounted: int
    """CallFinished with ok whose CallServed is not in the round: their tokens miss in all sums."""
    queue_wait_mean_s: float | None
    """CallServed.queued_s: from the engine's intake to the first start, s, over calls."""
    queue_wait_p95_s: float | None
    hit_frac: float | None
    """sum cached_tokens / sum prompt_tokens over calls (a share of 1)."""
    computed_tokens: int
    """sum computed_tokens over calls, tokens."""
    needed_tokens: int
    """Tokens an engine that forgets nothing computes: sum over calls k of a session, as served, of
    needed_k = max(0, prompt_k - kv_(k-1)) + max(0, made_k - 1), where
    kv_k = prompt_k + made_k - 1 (a call's last token is never run) and kv_0 = 0."""
    recomputed_tokens: int
    """sum over calls of max(0, computed_k - needed_k), tokens: work done a second time. What
    sessions share can make computed_k less than needed_k; that does not offset other calls. A call
    that starts a new context (or runs beside another of its session) looks shorter than it is:
    under every policy alike, it counts here."""
    preemptions: int
    """CallPreempted."""
    tool_calls: int
    """ToolStarted."""
    tool_wait_total_s: float
    """ToolStarted.wait_s: waiting for cores, s, over tool calls that started."""
    tool_wait_mean_s: float | None
    tool_wait_p95_s: float | None
    tool_run_total_s: float
    """ToolFinished.run_s, s, over tool calls that ran (exit_code is known)."""
    tool_run_mean_s: float | None
    holds: int
    """KvHeld."""
    holds_paid: int
    """KvReleased because the session returned."""
    holds_paid_frac: float | None
    """holds_paid / holds."""
    held_token_s: float
    """sum over KvReleased of kv_tokens x held_s, token-seconds."""
    releases: dict[str, int]
    """KvReleased, by why."""


def quantile(values: Sequence[float], share: float) -> float:
    """The value at rank share x (n - 1) of the sorted sample, linear between two ranks."""
    ordered = sorted(values)
    rank = share * (len(ordered) - 1)
    low, high = ordered[math.floor(rank)], ordered[math.ceil(rank)]
    return low + (high - low) * (rank - math.floor(rank))


def figures(rounds: Sequence[Round]) -> Figures:
    """Every round must hold at least one session, each with arrival, admission and end."""
    times_s = [t for r in rounds for t in session_times_s(r)]
    gate_s = [t for r in rounds for t in _gate_waits_s(r)]
    busy_s = sum(_busy_s(r) for r in rounds)
    served = [e for e in _all(rounds, ev.CallServed) if e.ok]
    queue_s = [e.queued_s for e in served]
    wait_s = [e.wait_s for e in _all(rounds, ev.ToolStarted)]
    run_s = [e.run_s for e in _all(rounds, ev.ToolFinished) if e.exit_code is not None]
    holds = len(_all(rounds, ev.KvHeld))
    released = _all(rounds, ev.KvReleased)
    releases = Counter(e.why for e in released)
    needed, recomputed = _work_tokens(rounds)
    return Figures(
        sessions=len(times_s),
        mean_s=sum(times_s) / len(times_s),
        p50_s=quantile(times_s, 0.50),
        p90_s=quantile(times_s, 0.90),
        p95_s=quantile(times_s, 0.95),
        phase_mean_s=_phase_mean_s(rounds),
        gate_wait_mean_s=sum(gate_s) / len(gate_s),
        gate_wait_p95_s=quantile(gate_s, 0.95),
        throughput_sessions_per_s=len(times_s) / busy_s,
        output_tokens_per_s=sum(e.made_tokens for e in served) / busy_s,
        calls=len(served),
        calls_aborted=len(_all(rounds, ev.CallServed)) - len(served),
        calls_unaccounted=sum(_unaccounted(r) for r in rounds),
        queue_wait_mean_s=_mean(queue_s),
        queue_wait_p95_s=quantile(queue_s, 0.95) if queue_s else None,
        hit_frac=_share(sum(e.cached_tokens for e in served), sum(e.prompt_tokens for e in served)),
        computed_tokens=sum(e.computed_tokens for e in served),
        needed_tokens=needed,
        recomputed_tokens=recomputed,
        preemptions=len(_all(rounds, ev.CallPreempted)),
        tool_calls=len(wait_s),
        tool_wait_total_s=sum(wait_s),
        tool_wait_mean_s=_mean(wait_s),
        tool_wait_p95_s=quantile(wait_s, 0.95) if wait_s else None,
        tool_run_total_s=sum(run_s),
        tool_run_mean_s=_mean(run_s),
        holds=holds,
        holds_paid=releases["returned"],
        holds_paid_frac=_share(releases["returned"], holds),
        held_token_s=sum(e.kv_tokens * e.held_s for e in released),
        releases=dict(sorted(releases.items())),
    )


def _all(rounds: Sequence[Round], kind: type[E]) -> list[E]:
    return [e for r in rounds for e in r.of(kind)]


def session_times_s(one: Round) -> list[float]:
    arrived = _at_s(one, ev.SessionArrived)
    return [at_s - arrived[sid] for sid, at_s in _at_s(one, ev.SessionEnded).items()]


def _gate_waits_s(one: Round) -> list[float]:
    return [
        sum(span.end_s - span.start_s for span in spans if span.phase == "gated")
        for spans in one.spans.values()
    ]


def _busy_s(one: Round) -> float:
    first_s = min(_at_s(one, ev.SessionArrived).values())
    return max(_at_s(one, ev.SessionEnded).values()) - first_s


Milestone = TypeVar("Milestone", ev.SessionArrived, ev.SessionEnded)


def _at_s(one: Round, kind: type[Milestone]) -> dict[SessionId, float]:
    return {e.session_id: e.at_s for e in _all([one], kind)}


def _unaccounted(one: Round) -> int:
    accounted = {(e.session_id, e.call_id) for e in _all([one], ev.CallServed)}
    finished = {(e.session_id, e.call_id) for e in _all([one], ev.CallFinished) if e.ok}
    return len(finished - accounted)


def _work_tokens(rounds: Sequence[Round]) -> tuple[int, int]:
    """(needed, recomputed) as `Figures` defines them."""
    needed_sum = recomputed_sum = 0
    for one in rounds:
        kv_tokens: dict[SessionId, int] = {}
        for call in _all([one], ev.CallServed):
            if not call.ok:
                continue
            fresh = max(0, call.prompt_tokens - kv_tokens.get(call.session_id, 0))
            needed = fresh + max(0, call.made_tokens - 1)
            needed_sum += needed
            recomputed_sum += max(0, call.computed_tokens - needed)
            kv_tokens[call.session_id] = call.prompt_tokens + call.made_tokens - 1
    return needed_sum, recomputed_sum


def _phase_mean_s(rounds: Sequence[Round]) -> dict[str, float]:
    total_s = dict.fromkeys(phases.PHASES, 0.0)
    sessions = 0
    for one in rounds:
        for spans in one.spans.values():
            sessions += 1
            for span in spans:
                total_s[span.phase] += span.end_s - span.start_s
    return {phase: seconds / sessions for phase, seconds in total_s.items()}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
