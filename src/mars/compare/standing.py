"""The rows of a grid, cell by cell: what each policy took, against what the reference took.

A *cell* is one setting of everything but policy and seed; a *scene* is a cell without its rho, so
its cells make a curve over load. What a cell's ratios are stands in `mars.compare.stats`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Final

import msgspec

from mars.bench.phases import PHASES
from mars.compare.row import Row
from mars.compare.stats import Estimate, Verdict, estimate, geometric_mean, paired
from mars.compare.told import TOLD
from mars.core.errors import ResultError

REFERENCE: Final = "mars"
PAPER: Final = ("fcfs", "autellix", "infercept", "continuum", "continuum-dynamic")
"""The baselines of MARS (arXiv 2604.26963), calibrated; `-released` ones run with the figures of
the paper's preview code."""
METRICS: Final = ("mean_s", "p95_s", "p99_s", "goodput_3_per_s", "sessions_per_s")
_SAME_WORK: Final = ("sessions", "rate_per_s", "isolated_mean_s")
_SAME: Final = 1e-6


class InCell(msgspec.Struct, frozen=True, kw_only=True):
    """One policy in one cell. Seconds: geometric mean over seeds; all else: arithmetic mean."""

    seeds: list[int]
    mean_s: float
    p95_s: float
    p99_s: float
    goodput_3_per_s: float
    sessions_per_s: float
    hit_frac: float | None
    recomputed_frac: float | None
    gate_wait_mean_s: float
    holds: int
    """Sum over seeds."""
    holds_paid_frac: float | None
    """Of all holds of all seeds."""
    phase_mean_s: dict[str, float]
    ratios: dict[str, Estimate | None]
    """This policy's figure / the reference's; empty for the reference. None: no pair of seeds."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    profile: str
    workload: str
    rho: float
    tool_cores: int
    step_factor: float
    prefill_factor: float
    host_gib: float
    tool_share: int
    isolated_mean_s: float
    clairvoyant_mean_s: float
    policies: dict[str, InCell]
    strongest_paper: str | None
    """Of PAPER, the baseline of least mean_s; picked by the same runs, which favours it."""
    strongest: str | None
    """Of all baselines."""
    verdict: Verdict | None
    """Of the reference against `strongest`; None: one of the two was not run."""

    @property
    def scene(self) -> str:
        return f"{self.machine}, {self.workload}, {self.cores} tool cores"

    @property
    def cores(self) -> str:
        """As in "4 x 2": two leases at a time on each of four."""
        return f"{self.tool_cores}" + (f" x {self.tool_share}" if self.tool_share > 1 else "")

    @property
    def machine(self) -> str:
        corner = f" (steps x{self.step_factor:g}, prefill x{self.prefill_factor:g})"
        host = f" + {self.host_gib:g} GiB host" if self.host_gib else ""
        return self.profile + corner * ((self.step_factor, self.prefill_factor) != (1, 1)) + host

    @property
    def label(self) -> str:
        return f"{self.scene}, rho {self.rho:g}"

    def against(self, policy: str | None, metric: str = "mean_s") -> Estimate | None:
        found = self.policies.get(policy) if policy else None
        return found.ratios.get(metric) if found else None


def is_ablation(policy: str) -> bool:
    return policy.startswith(f"{REFERENCE}-")


def is_baseline(policy: str) -> bool:
    return policy not in (REFERENCE, TOLD) and not is_ablation(policy)


def in_order(policies: Sequence[str]) -> list[str]:
    """Told the future, the reference, the paper's baselines, others, as released, ablations."""

    def place(policy: str) -> tuple[bool, bool, bool, bool, int, str]:
        rank = PAPER.index(policy) if policy in PAPER else len(PAPER)
        released = policy.endswith("-released")
        told = policy == TOLD
        return not told, policy != REFERENCE, is_ablation(policy), released, rank, policy

    return sorted(set(policies), key=place)


def cells_of(rows: Sequence[Row]) -> list[Cell]:
    """By scene, then by load. Of two rows of one run the later counts.

    Raise ResultError when two rows of a cell and a seed are not of the same sessions.
    """
    runs: dict[tuple[object, ...], dict[str, dict[int, Row]]] = {}
    for row in sorted(rows, key=lambda row: (row.profile, row.workload, *row.cell[3:], row.rho)):
        runs.setdefault(row.cell, {}).setdefault(row.policy, {})[row.seed] = row
    return [_cell(of) for of in runs.values()]


def by_scene(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    scenes: dict[str, list[Cell]] = {}
    for cell in cells:
        scenes.setdefault(cell.scene, []).append(cell)
    return scenes


_Runs = Mapping[int, Row]
"""Of one policy in one cell, by seed."""


def _cell(runs: Mapping[str, _Runs]) -> Cell:
    one_of_each_seed = {seed: row for of in runs.values() for seed, row in of.items()}
    first = next(iter(one_of_each_seed.values()))
    for of in runs.values():
        for seed, row in of.items():
            _check_same_work(row, one_of_each_seed[seed])
    reference = runs.get(REFERENCE, {})
    policies = {policy: _in_cell(policy, runs[policy], reference) for policy in in_order([*runs])}
    strongest = _strongest(policies, [p for p in policies if is_baseline(p)])
    ratio = policies[strongest].ratios["mean_s"] if strongest else None
    return Cell(
        profile=first.profile,
        workload=first.workload,
        rho=first.rho,
        tool_cores=first.tool_cores,
        step_factor=first.step_factor,
        prefill_factor=first.prefill_factor,
        host_gib=first.host_gib,
        tool_share=first.tool_share,
        isolated_mean_s=_over(one_of_each_seed, "isolated_mean_s"),
        clairvoyant_mean_s=_over(one_of_each_seed, "clairvoyant_mean_s"),
        policies=policies,
        strongest_paper=_strongest(policies, PAPER),
        strongest=strongest,
        verdict=ratio.verdict if ratio else None,
    )


def _check_same_work(one: Row, other: Row) -> None:
    for name in _SAME_WORK:
        a, b = getattr(one, name), getattr(other, name)
        if not math.isclose(a, b, rel_tol=_SAME):
            raise ResultError(
                f"{one.profile}, {one.workload}, rho {one.rho:g}, seed {one.seed}: `{name}` is "
                f"{a:g} under {one.policy} and {b:g} under {other.policy}: policies that did "
                "different work cannot be compared; run the grid again into a new folder"
            )


def _in_cell(policy: str, runs: _Runs, reference: _Runs) -> InCell:
    holds = sum(row.holds for row in runs.values())
    paid = sum(row.holds * (row.holds_paid_frac or 0) for row in runs.values())
    ratios = {metric: estimate(_pairs(runs, reference, metric)) for metric in METRICS}
    phases = dict.fromkeys([*PHASES, *(p for row in runs.values() for p in row.phase_mean_s)])
    return InCell(
        seeds=sorted(runs),
        mean_s=_over(runs, "mean_s"),
        p95_s=_over(runs, "p95_s"),
        p99_s=_over(runs, "p99_s"),
        goodput_3_per_s=fmean(row.goodput_3_per_s for row in runs.values()),
        sessions_per_s=fmean(row.sessions_per_s for row in runs.values()),
        hit_frac=_seen(row.hit_frac for row in runs.values()),
        recomputed_frac=_seen(row.recomputed_frac for row in runs.values()),
        gate_wait_mean_s=fmean(row.gate_wait_mean_s for row in runs.values()),
        holds=holds,
        holds_paid_frac=paid / holds if holds else None,
        phase_mean_s={p: fmean(r.phase_mean_s.get(p, 0) for r in runs.values()) for p in phases},
        ratios=ratios if policy != REFERENCE else {},
    )


def _pairs(runs: _Runs, reference: _Runs, metric: str) -> list[float]:
    of, other = ({s: getattr(r, metric) for s, r in some.items()} for some in (runs, reference))
    return paired(of, other)


def _over(runs: _Runs, metric: str) -> float:
    return geometric_mean([getattr(row, metric) for row in runs.values()])


def _seen(values: Iterator[float | None]) -> float | None:
    seen = [value for value in values if value is not None]
    return fmean(seen) if seen else None


def _strongest(policies: Mapping[str, InCell], candidates: Sequence[str]) -> str | None:
    """Least ratio over pairs: with all seeds there, the same as the least geometric mean."""
    ratios = {p: policies[p].ratios["mean_s"] for p in candidates if p in policies}
    found = {policy: of.ratio for policy, of in ratios.items() if of}
    return min(found, key=found.__getitem__, default=None)
