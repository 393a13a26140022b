"""One line of a grid's result: the setting of one simulated run, its figures and its bounds."""

from typing import Any

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, tokens and shares of 1 throughout. None: never seen in this run."""

    # the cell
    profile: str
    """Cost profile, for example h100-nvl/qwen3-coder-30b."""
    workload: str
    """Its name in the configuration."""
    rho: float
    """Arrival rate / Bounds.knee_per_s."""
    tool_cores: int
    step_factor: float
    """Corner of the cost band: all step costs, and the prefill part, so much dearer."""
    prefill_factor: float
    host_gib: float = 0.0
    """Host memory behind the KV."""
    tool_share: int = 1
    """Leases that may be on one core at once: 1 in rows that do not say."""
    # the run
    policy: str
    seed: int
    sessions: int
    rate_per_s: float
    # session latency = end - arrival, gate wait included
    mean_s: float
    p50_s: float
    p90_s: float
    p95_s: float
    p99_s: float
    slowdown_mean: float
    """Of latency / the same session's latency alone on the machine (Bounds.isolated_s)."""
    slowdown_max: float
    jain: float
    """(sum x)^2 / (n sum x^2) over slowdowns x: 1 is fair."""
    goodput_2_per_s: float
    """Sessions a second that end within 2 x their isolated latency."""
    goodput_3_per_s: float
    goodput_5_per_s: float
    sessions_per_s: float
    """sessions / (last end - first arrival)."""
    output_tokens_per_s: float
    gate_wait_mean_s: float
    gate_wait_max_s: float
    queue_wait_mean_s: float | None
    """In the engine's queue, per call."""
    queue_wait_max_s: float | None
    first_token_warm_p50_s: float | None
    """From the engine's intake to the first token, of calls with a prefix hit of half their prompt
    or more; cold: of the others."""
    first_token_cold_p50_s: float | None
    hit_frac: float | None
    recomputed_frac: float | None
    """Tokens run a second time / tokens needed."""
    loaded_frac: float | None = None
    """Tokens loaded from host memory / prompt tokens."""
    preemptions: int
    holds: int
    holds_paid_frac: float | None
    held_token_s: float
    tool_wait_mean_s: float | None
    tool_run_mean_s: float | None
    gpu_busy_frac: float
    cpu_busy_frac: float
    phase_mean_s: dict[str, float]
    """Seconds a session spends in each phase, mean."""
    # bounds
    isolated_mean_s: float
    clairvoyant_mean_s: float
    """Mean session latency under a clairvoyant shortest-remaining-work order, per resource."""
    kept_bound_per_s: float | None
    """Sessions a second; None: not bound by this. What `rho` is measured by is the least of this,
    the GPU's and the cores' (Bounds.knee_per_s)."""
    kv_bound_per_s: float | None
    gpu_bound_per_s: float | None
    cpu_bound_per_s: float | None
    # cost of the simulation
    wall_s: float
    steps: int
    key: str = ""
    """Of the run's resolved settings and the package's version (`mars.compare.cells.Run.key`)."""

    @property
    def cell(self) -> tuple[Any, ...]:
        """What rows of different policies and seeds are compared within."""
        return (
            self.profile,
            self.workload,
            self.rho,
            self.tool_cores,
            self.step_factor,
            self.prefill_factor,
            self.host_gib,
            self.tool_share,
        )
