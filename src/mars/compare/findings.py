"""What the cells say together: where the reference is behind and why, what each part of it brings,
retention without admission, long tools.

Over several cells a ratio is the geometric mean of the cells' ratios, with the least and the
largest of them: cells differ by design, so there is no interval.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec

from mars.bench.words import percent, seconds
from mars.compare.standing import REFERENCE, Cell, InCell, is_ablation
from mars.compare.stats import geometric_mean

WORST: Final = 1.02
"""The reference may be 2 % slower than the strongest baseline: the project's own bound."""

_MORE_OF: Final[Mapping[str, str]] = {
    "gated": "more waiting at the gate",
    "queued": "more waiting in the engine's queue",
    "running": "more time on the GPU",
    "tool waits": "more waiting for cores",
    "tool runs": "longer tool runs",
    "client": "more time at the client",
}
_NAMES_TOOLS: Final = re.compile(r"tools?[-_ ]?(mean)?[-_ ]?x?\d|tools?[-_ ]?long|long[-_ ]?tools?")
"""A workload named after the durations of its tools, such as swe-tools60."""


class Behind(msgspec.Struct, frozen=True, kw_only=True):
    """A cell that is lost, or even but behind by more than `WORST`."""

    cell: str
    winner: str
    ratio: float
    verdict: str
    phase: str
    """In which the reference spends most more than the winner."""
    phase_s: float
    winner_phase_s: float
    cause: str


class OverCells(msgspec.Struct, frozen=True, kw_only=True):
    """A ratio over the cells of one load."""

    policy: str
    rho: float
    cells: int
    ratio: float
    least: float
    largest: float
    p99_ratio: float | None


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """Holding KV while everybody enters: mean_s, above 1 is in favour of what is named last."""

    rho: float
    cells: int
    fcfs_to_open: float
    """fcfs / mars-no-admission."""
    open_to_reference: float
    """mars-no-admission / mars."""
    hit_fracs: list[float | None]
    """Of fcfs, mars-no-admission, mars."""
    paid_fracs: list[float | None]
    """Holds that paid, of mars-no-admission and mars."""


class LongTools(msgspec.Struct, frozen=True, kw_only=True):
    cell: str
    holds: int
    paid_frac: float | None
    strongest: str | None
    ratio: float | None
    no_hold_ratio: float | None
    """mars-no-hold / mars: above 1, holding helps."""


def behind(cells: Sequence[Cell]) -> list[Behind]:
    return [found for cell in cells if (found := _behind(cell))]


def _behind(cell: Cell) -> Behind | None:
    of = cell.against(cell.strongest)
    if cell.strongest is None or of is None:
        return None
    if of.verdict != "lost" and of.ratio >= 1 / WORST:
        return None
    ours, theirs = cell.policies[REFERENCE], cell.policies[cell.strongest]
    more_s = {p: s - theirs.phase_mean_s.get(p, 0) for p, s in ours.phase_mean_s.items()}
    phase = max(more_s, key=more_s.__getitem__)
    return Behind(
        cell=cell.label,
        winner=cell.strongest,
        ratio=of.ratio,
        verdict=of.verdict,
        phase=phase,
        phase_s=ours.phase_mean_s[phase],
        winner_phase_s=ours.phase_mean_s[phase] - more_s[phase],
        cause=_cause(phase, more_s[phase], ours, theirs),
    )


def _cause(phase: str, more_s: float, ours: InCell, theirs: InCell) -> str:
    if more_s <= 0:
        said = "No phase is longer in the mean over seeds"
    else:
        what = _MORE_OF.get(phase, f"more time {phase!r}").capitalize()
        ours_s = ours.phase_mean_s[phase]
        said = f"{what} ({seconds(ours_s)} a session against {seconds(ours_s - more_s)})"
    return (
        f"{said}. Prefix hits {percent(ours.hit_frac)} against {percent(theirs.hit_frac)}, run "
        f"twice {percent(ours.recomputed_frac)} against {percent(theirs.recomputed_frac)}, gate "
        f"wait {seconds(ours.gate_wait_mean_s)} against {seconds(theirs.gate_wait_mean_s)}."
    )


def ablations(cells: Sequence[Cell]) -> list[OverCells]:
    names = dict.fromkeys(p for cell in cells for p in cell.policies if is_ablation(p))
    return [over for name in names for over in over_loads(cells, name)]


def over_loads(cells: Sequence[Cell], policy: str) -> Iterator[OverCells]:
    """The policy's mean_s / the reference's, load by load."""
    for rho, some in _by_load(cells).items():
        ratios = [of.ratio for cell in some if (of := cell.against(policy))]
        tails = [of.ratio for cell in some if (of := cell.against(policy, "p99_s"))]
        if ratios:
            yield OverCells(
                policy=policy,
                rho=rho,
                cells=len(ratios),
                ratio=geometric_mean(ratios),
                least=min(ratios),
                largest=max(ratios),
                p99_ratio=geometric_mean(tails) if tails else None,
            )


def retention_alone(cells: Sequence[Cell]) -> list[Retention]:
    """Per load, over the cells that have all three; empty when none has."""
    three = ("fcfs", f"{REFERENCE}-no-admission", REFERENCE)
    found = []
    for rho, some in _by_load(cells).items():
        whole = [cell for cell in some if all(cell.against(p) for p in three[:2])]
        if whole:
            fcfs, alone = (_over(whole, policy) for policy in three[:2])
            hits = [_mean([c.policies[p].hit_frac for c in whole]) for p in three]
            paid = [_mean([c.policies[p].holds_paid_frac for c in whole]) for p in three[1:]]
            found.append(
                Retention(
                    rho=rho,
                    cells=len(whole),
                    fcfs_to_open=fcfs / alone,
                    open_to_reference=alone,
                    hit_fracs=hits,
                    paid_fracs=paid,
                )
            )
    return found


def long_tools(cells: Sequence[Cell]) -> list[LongTools]:
    found = []
    for cell in cells:
        ours = cell.policies.get(REFERENCE)
        if ours is None or not _NAMES_TOOLS.search(cell.workload):
            continue
        ratio, no_hold = cell.against(cell.strongest), cell.against(f"{REFERENCE}-no-hold")
        found.append(
            LongTools(
                cell=cell.label,
                holds=ours.holds,
                paid_frac=ours.holds_paid_frac,
                strongest=cell.strongest,
                ratio=ratio.ratio if ratio else None,
                no_hold_ratio=no_hold.ratio if no_hold else None,
            )
        )
    return found


def _by_load(cells: Sequence[Cell]) -> dict[float, list[Cell]]:
    loads = sorted({cell.rho for cell in cells})
    return {rho: [cell for cell in cells if cell.rho == rho] for rho in loads}


def _over(cells: Sequence[Cell], policy: str) -> float:
    return geometric_mean([of.ratio for cell in cells if (of := cell.against(policy))])


def _mean(values: Sequence[float | None]) -> float | None:
    seen = [value for value in values if value is not None]
    return sum(seen) / len(seen) if seen else None
