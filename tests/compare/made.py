"""Rows made by hand: every ratio is known before it is computed."""

from pathlib import Path
from typing import Any

import msgspec

from mars.compare.row import Row
from mars.compare.summary import Summary
from mars.compare.tables import means, tables

SEEDS = (1, 2, 3, 4)
NOISE = {1: 0.96, 2: 1 / 0.96, 3: 1.04, 4: 1 / 1.04}
"""Its geometric mean is 1, so the ratio over seeds is the factor below."""
FACTORS = {
    "fcfs": 4.0,
    "autellix": 3.0,
    "infercept": 5.0,
    "continuum": 2.0,
    "continuum-dynamic": 2.5,
    "session_fcfs": 1.5,
    "mars": 1.0,
    "mars-no-admission": 3.2,
    "mars-no-hold": 1.25,
}
LOST = ("swe", 0.5)
"""Here session_fcfs takes 0.8 of mars's time."""


def row(workload: str, rho: float, policy: str, seed: int, **changes: Any) -> Row:
    factor = FACTORS[policy]
    if (workload, rho) == LOST and policy == "session_fcfs":
        factor = 0.8
    noise = 1.0 if policy == "mars" else NOISE[seed]
    mean_s = 100 * rho * seed * factor * noise
    gated_s = 30 * rho * seed if policy == "mars" else 0.0
    of: dict[str, Any] = {
        "profile": "h100-nvl/qwen3-coder-30b",
        "workload": workload,
        "rho": rho,
        "tool_cores": 16,
        "step_factor": 1.0,
        "prefill_factor": 1.0,
        "policy": policy,
        "seed": seed,
        "sessions": 200,
        "rate_per_s": rho / 10,
        "mean_s": mean_s,
        **{f"p{p}_s": mean_s * (1 + p / 100) for p in (50, 90, 95, 99)},
        "slowdown_mean": 2.0,
        "slowdown_max": 5.0,
        "jain": 0.9,
        **{f"goodput_{n}_per_s": n / 100 / factor for n in (2, 3, 5)},
        "sessions_per_s": rho / 10 if policy == "mars" else rho / 11,
        "output_tokens_per_s": 900.0,
        "gate_wait_mean_s": gated_s,
        "gate_wait_max_s": 2 * gated_s,
        "queue_wait_mean_s": 1.0,
        "queue_wait_max_s": 9.0,
        "first_token_warm_p50_s": 0.2,
        "first_token_cold_p50_s": None,
        "hit_frac": 0.9 if policy == "mars" else 0.6,
        "recomputed_frac": 0.02 if policy == "mars" else 0.3,
        "preemptions": 3,
        "holds": 50 if policy.startswith("mars") else 0,
        "holds_paid_frac": 0.8 if policy.startswith("mars") else None,
        "held_token_s": 1e6,
        "tool_wait_mean_s": 0.5,
        "tool_run_mean_s": 8.0,
        "gpu_busy_frac": 0.8,
        "cpu_busy_frac": 0.4,
        "phase_mean_s": {
            "gated": gated_s,
            "queued": (mean_s - gated_s) / 2,
            "running": (mean_s - gated_s) / 2,
        },
        "isolated_mean_s": 50.0 * seed,
        "clairvoyant_mean_s": 70.0 * seed,
        "kept_bound_per_s": 0.15,
        "kv_bound_per_s": 0.2,
        "gpu_bound_per_s": 0.1,
        "cpu_bound_per_s": 0.3,
        "wall_s": 1.0,
        "steps": 1000,
    }
    return Row(**of | changes)


def rows(workloads: tuple[str, ...] = ("swe", "swe-tools60")) -> list[Row]:
    return [
        row(workload, rho, policy, seed)
        for workload in workloads
        for rho in (0.5, 0.9)
        for policy in FACTORS
        for seed in SEEDS
    ]


def written(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_bytes(b"".join(msgspec.json.encode(r) + b"\n" for r in rows))
    return folder


def texts(summary: Summary) -> list[str]:
    grids = [*tables(summary), *means(summary)]
    return [cell for grid in grids for row in grid.rows for cell in row]
