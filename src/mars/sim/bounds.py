"""What no schedule can beat: printed beside every simulated result, and the measure of its load.

    bounds(...)      all of it, for one workload on one machine
    isolated_s(...)  a session alone on the machine
    rate_for(...)    sessions a second for a load rho

The least work of each session is in `needs`, what it costs at the least in `prices`. A session that
leaves early (`leaves_s`) may have needed nothing: its work counts 0.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from mars.sim.cost import Cost
from mars.sim.needs import Need, need_of
from mars.sim.prices import Prices, prices_of
from mars.sim.settings import EngineSettings, ToolSettings
from mars.workload.trace import Recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    isolated_s: dict[str, float]
    """By session (`isolated_s`)."""
    isolated_mean_s: float
    kv_bound_per_s: float
    """Memory for KV and the GPU together (`_shared`): not above the GPU's own bound."""
    gpu_bound_per_s: float
    """sessions / least GPU seconds of all of them."""
    cpu_bound_per_s: float
    """sessions / max(core-seconds leased / (cores * share), CPU seconds / cores), memory apart.
    A lease takes its cores for all of its wall time."""
    kept_bound_per_s: float
    """K / E[integral over a session's life of its own KV tokens], alone on the machine and kept
    through its tools. Bounds only schedules that never give KV up: others pass it (long tools)."""
    clairvoyant_mean_s: float
    """No schedule has a lower mean latency (`_clairvoyant_mean_s`)."""

    @property
    def knee_per_s(self) -> float:
        """The least rate bound of a machine that keeps the KV of every open session: where queues
        begin to grow, and what the load rho is measured by.
        """
        return min(self.kept_bound_per_s, self.gpu_bound_per_s, self.cpu_bound_per_s)


def rate_for(rho: float, of: Bounds) -> float:
    """Sessions a second at load rho = rate / knee."""
    return rho * of.knee_per_s


def bounds(
    sessions: Sequence[Recorded], cost: Cost, engine: EngineSettings, tools: ToolSettings
) -> Bounds:
    """Of at least one session; all in a few tens of milliseconds for 200 of them."""
    needs = [need_of(session, cost, engine, tools) for session in sessions]
    prices = prices_of(needs, cost, engine)
    gpu_s = [prices.of(need) for need in needs]
    block = engine.block_tokens
    prompts = {s.shared_prefix: s.shared_tokens // block for s in sessions if s.leaves_s is None}
    once_s = sum(prices.prompt(n * block, (n * block) ** 2 / 2.0) for n in prompts.values())
    capacity_tokens = engine.kv_blocks * engine.block_tokens
    kv_s, both_s = _shared(needs, gpu_s, once_s, prices, capacity_tokens)
    lease_s = [need.lease_core_s / (tools.cores * tools.share) for need in needs]
    burn_s = [need.cpu_s / tools.cores for need in needs]
    cpu_s = max(lease_s, burn_s, key=sum)
    isolated = {s.session_id: n.isolated_s for s, n in zip(sessions, needs, strict=True)}
    return Bounds(
        isolated_s=isolated,
        isolated_mean_s=sum(isolated.values()) / len(needs),
        kv_bound_per_s=_rate(len(needs), kv_s),
        gpu_bound_per_s=_rate(len(needs), sum(gpu_s) + once_s),
        cpu_bound_per_s=_rate(len(needs), sum(cpu_s)),
        kept_bound_per_s=_rate(
            len(needs),
            sum(need.call_token_s + need.gap_token_s for need in needs) / capacity_tokens,
        ),
        clairvoyant_mean_s=_clairvoyant_mean_s(sessions, needs, (gpu_s, both_s), cpu_s),
    )


def _rate(sessions: int, needed_s: float) -> float:
    return sessions / needed_s if needed_s else inf


def isolated_s(session: Recorded, cost: Cost, engine: EngineSettings, tools: ToolSettings) -> float:
    """Latency of a session alone on the machine, its system prompt not yet computed, what it has
    computed cached as far as whole blocks go: prompts in chunks of `step_tokens`, one decode at a
    time, tools alone on their cores, think times. With the system prompt warm it can be faster.
    """
    return need_of(session, cost, engine, tools).isolated_s


def _shared(
    needs: Sequence[Need],
    gpu_s: Sequence[float],
    once_s: float,
    prices: Prices,
    capacity_tokens: int,
) -> tuple[float, list[float]]:
    """(seconds of the machine that all sessions need, those of each), memory and GPU together.

    In T seconds there are T of the GPU and K T token-seconds of KV, so for any w in 0..1

        T >= w GPU seconds + (1 - w) KV token-seconds / K

    Through a gap a schedule keeps a session's KV or computes it again: for given w the cheaper one.
    w is the one that asks for most. KV of a shared prefix is left out: it is there once for all.
    """
    gaps = [(g.token_s / capacity_tokens, prices.prompt(*g[1:])) for n in needs for g in n.gaps]
    gaps = sorted((gap for gap in gaps if gap[1] > 0.0), key=lambda gap: gap[0] / gap[1])
    calls_s = sum(need.call_token_s for need in needs) / capacity_tokens
    kept_s, again_s = 0.0, sum(again for _, again in gaps)
    work_s = sum(gpu_s) + once_s
    best = max((work_s, 1.0), (calls_s, 0.0))
    for keep_s, recompute_s in gaps:  # gaps before this one are kept, the others are not
        w = keep_s / (keep_s + recompute_s)
        best = max(best, (w * (work_s + again_s) + (1.0 - w) * (calls_s + kept_s), w))
        kept_s, again_s = kept_s + keep_s, again_s - recompute_s
    most_s, w = best
    each = [
        w * own_s
        + (1.0 - w) * need.call_token_s / capacity_tokens
        + sum(
            min((1.0 - w) * gap.token_s / capacity_tokens, w * prices.prompt(*gap[1:]))
            for gap in need.gaps
        )
        for need, own_s in zip(needs, gpu_s, strict=True)
    ]
    return most_s, each


def _clairvoyant_mean_s(
    sessions: Sequence[Recorded],
    needs: Sequence[Need],
    gpu_s: Sequence[Sequence[float]],
    cpu_s: Sequence[float],
) -> float:
    """The largest of some lower bounds of the mean latency: no session waits for another, or all
    wait for one resource only, which serves the one with the least work left (SRPT is optimal for
    a preemptive server). Tool cores count as one server of their joint speed; what a session does
    alone before its first and after its last tool is added.
    """
    arrives_s = [session.arrives_s for session in sessions]
    totals_s = [sum(need.alone_s for need in needs)]
    for works_s in gpu_s:
        # a session that leaves has no work: it is there for as long as it is alone
        heads_s = [need.alone_s if not need.prompt_tokens else 0.0 for need in needs]
        totals_s.append(_srpt_total_s(arrives_s, heads_s, works_s))
    heads_s = [need.before_tools_s for need in needs]
    tails_s = sum(need.after_tools_s for need in needs)
    totals_s.append(_srpt_total_s(arrives_s, heads_s, cpu_s) + tails_s)
    return max(totals_s) / len(sessions)


def _srpt_total_s(
    arrives_s: Sequence[float], heads_s: Sequence[float], works_s: Sequence[float]
) -> float:
    """Sum of end - arrival; a session's work can be done from arrival + head on."""
    jobs = sorted((a + h, work) for a, h, work in zip(arrives_s, heads_s, works_s, strict=True))
    ends_s = now_s = 0.0
    left: list[float] = []
    for until_s, work_s in [*jobs, (inf, 0.0)]:
        while left and now_s + left[0] <= until_s:
            now_s += heapq.heappop(left)
            ends_s += now_s
        if left:
            heapq.heapreplace(left, left[0] - (until_s - now_s))
        now_s = until_s
        if until_s < inf:
            heapq.heappush(left, work_s)
    return ends_s - sum(arrives_s)
