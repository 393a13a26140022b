"""The row of one simulated run: its figures, from its facts, beside its bounds.

    run_figures   the metrics of a Row (each is defined there; those of `bench.rounds` as there)
    row           all of it

What a simulation knows and a log does not is taken from its Outcome: first tokens, busy seconds.
"""

from math import inf
from typing import Any, Final

from mars.bench.rounds import Figures, Round, figures, quantile, session_times_s
from mars.compare.row import Row
from mars.core import events as ev
from mars.sim.bounds import Bounds
from mars.sim.run import Outcome
from mars.sim.settings import ToolSettings


def row(
    *,
    profile: str,
    workload: str,
    rho: float,
    step_factor: float,
    prefill_factor: float,
    host_gib: float = 0.0,
    policy: str,
    seed: int,
    rate_per_s: float,
    wall_s: float,
    tools: ToolSettings,
    bounds: Bounds,
    outcome: Outcome,
) -> Row:
    return Row(
        profile=profile,
        workload=workload,
        rho=rho,
        tool_cores=tools.cores,
        tool_share=tools.share,
        step_factor=step_factor,
        prefill_factor=prefill_factor,
        host_gib=host_gib,
        policy=policy,
        seed=seed,
        rate_per_s=rate_per_s,
        **run_figures(outcome, bounds, tools),
        isolated_mean_s=bounds.isolated_mean_s,
        clairvoyant_mean_s=bounds.clairvoyant_mean_s,
        kept_bound_per_s=_finite(bounds.kept_bound_per_s),
        kv_bound_per_s=_finite(bounds.kv_bound_per_s),
        gpu_bound_per_s=_finite(bounds.gpu_bound_per_s),
        cpu_bound_per_s=_finite(bounds.cpu_bound_per_s),
        wall_s=wall_s,
        steps=outcome.steps,
    )


def _finite(bound: float) -> float | None:
    return bound if bound < inf else None


_LEFT: Final = "client left"
"""Why the simulator ends a session whose client gives up."""
_OF_ROUNDS: Final = (
    *("sessions", "mean_s", "p50_s", "p90_s", "p95_s", "output_tokens_per_s"),
    *("gate_wait_mean_s", "queue_wait_mean_s", "hit_frac", "preemptions", "holds"),
    *("holds_paid_frac", "held_token_s", "tool_wait_mean_s", "tool_run_mean_s", "phase_mean_s"),
)
"""Fields of a Row that are those of `bench.rounds.Figures`."""


def run_figures(outcome: Outcome, bounds: Bounds, tools: ToolSettings) -> dict[str, Any]:
    """Fields of a Row, by name: all that are figures of the run."""
    events = outcome.events
    one = Round(policy="", repeat=0, started_s=0.0, ended_s=events[-1].at_s, events=events)
    of = figures([one])
    span_s = of.sessions / of.throughput_sessions_per_s
    return {
        **{name: getattr(of, name) for name in _OF_ROUNDS},
        "sessions_per_s": of.throughput_sessions_per_s,
        "recomputed_frac": _recomputed_frac(of),
        "loaded_frac": _loaded_frac(one),
        "p99_s": quantile(session_times_s(one), 0.99),
        **_against_alone(one, bounds, span_s),
        **_longest_waits(one),
        **_first_tokens(one, outcome),
        "gpu_busy_frac": outcome.engine_busy_s / span_s,
        "cpu_busy_frac": outcome.tool_cpu_s / (span_s * tools.cores),
    }


def _loaded_frac(one: Round) -> float | None:
    served = one.of(ev.CallServed)
    prompt_tokens = sum(e.prompt_tokens for e in served)
    return sum(e.loaded_tokens for e in served) / prompt_tokens if prompt_tokens else None


def _recomputed_frac(of: Figures) -> float | None:
    return of.recomputed_tokens / of.needed_tokens if of.needed_tokens else None


def _against_alone(one: Round, bounds: Bounds, span_s: float) -> dict[str, float]:
    """Latencies against the same session's alone; goodput is of sessions that were served whole."""
    arrived_s = {e.session_id: e.at_s for e in one.of(ev.SessionArrived)}
    ended = one.of(ev.SessionEnded)
    slow = [(e.at_s - arrived_s[e.session_id]) / bounds.isolated_s[e.session_id] for e in ended]
    served = [x for x, e in zip(slow, ended, strict=True) if e.why != _LEFT]
    return {
        "slowdown_mean": sum(slow) / len(slow),
        "slowdown_max": max(slow),
        "jain": sum(slow) ** 2 / (len(slow) * sum(x * x for x in slow)),
        **{f"goodput_{k}_per_s": sum(x <= k for x in served) / span_s for k in (2, 3, 5)},
    }


def _longest_waits(one: Round) -> dict[str, float | None]:
    arrived_s = {e.session_id: e.at_s for e in one.of(ev.SessionArrived)}
    admitted_s = {e.session_id: e.at_s for e in one.of(ev.SessionAdmitted)}
    queued_s = [e.queued_s for e in one.of(ev.CallServed) if e.ok]
    return {
        "gate_wait_max_s": max(at_s - arrived_s[sid] for sid, at_s in admitted_s.items()),
        "queue_wait_max_s": max(queued_s, default=None),
    }


def _first_tokens(one: Round, outcome: Outcome) -> dict[str, float | None]:
    warm: list[float] = []
    cold: list[float] = []
    for event in one.of(ev.CallServed):
        if event.ok:
            is_warm = 2 * event.cached_tokens >= event.prompt_tokens
            (warm if is_warm else cold).append(outcome.first_token_s[event.call_id])
    return {
        "first_token_warm_p50_s": quantile(warm, 0.5) if warm else None,
        "first_token_cold_p50_s": quantile(cold, 0.5) if cold else None,
    }
