"""What the project set out to reach, each with the figure that decides it.

Session latency; strongest baseline / reference. A cell is loaded from rho 0.7 on. 1.44x and 5.94x
are the least and the largest gain of MARS (arXiv 2604.26963) over its baselines.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from mars.compare.findings import WORST
from mars.compare.standing import PAPER, REFERENCE, Cell, is_baseline
from mars.compare.stats import ROUNDING, Estimate
from mars.policy.presets import PRESETS

LOADED_RHO: Final = 0.7
_PAPER_LEAST: Final = 1.44
_PAPER_LARGEST: Final = 5.94
_THROUGHPUT: Final = 0.98
_NEAR: Final = 1.5
_NEAR_RHOS: Final = (0.7, 0.9)


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    claim: str
    holds: bool | None
    """By the ratios themselves, whatever their intervals. None: the cells for it were not run."""
    figure: str
    """What decides it."""
    not_run: list[str]
    """Baselines that some cell lacks: what holds, holds against the others."""


def claims(cells: Sequence[Cell]) -> list[Claim]:
    return list(_claims(cells))


def _claims(cells: Sequence[Cell]) -> Iterator[Claim]:
    loaded = [cell for cell in cells if cell.rho >= LOADED_RHO]
    strongest = _Measure(lambda cell: cell.strongest, "mean_s")
    paper = _Measure(lambda cell: cell.strongest_paper, "mean_s")
    of_paper, of_all = _not_run(cells, PAPER), _not_run(cells, _known_baselines())
    yield _least(
        f"Paper's baselines: {_PAPER_LEAST}x or more in every cell from rho {LOADED_RHO} on",
        paper.of(loaded), _PAPER_LEAST, of_paper,
    )  # fmt: skip
    yield _largest(
        f"Paper's baselines: beyond {_PAPER_LARGEST}x in the best cell",
        paper.of(cells), _PAPER_LARGEST, of_paper,
    )  # fmt: skip
    yield _least(
        f"All baselines: faster in every cell from rho {LOADED_RHO} on",
        strongest.of(loaded), 1, of_all, above=True,
    )  # fmt: skip
    yield _least(
        f"All baselines: nowhere more than {(WORST - 1) * 100:.0f} % slower",
        strongest.of(cells), 1 / WORST, of_all,
    )  # fmt: skip
    yield _least(
        "P99 nowhere worse than fcfs's",
        _Measure(lambda _: "fcfs", "p99_s").of(cells), 1, [],
    )  # fmt: skip
    yield _throughput(cells, of_all)
    yield _near_bound(cells)
    yield _sign(cells)


_Found = list[tuple[Cell, str, Estimate]]
"""Cell, the policy compared with, its figure / the reference's."""


class _Measure:
    def __init__(self, rival: Callable[[Cell], str | None], metric: str) -> None:
        self._rival, self._metric = rival, metric

    def of(self, cells: Sequence[Cell]) -> _Found:
        found = ((c, self._rival(c), c.against(self._rival(c), self._metric)) for c in cells)
        return [(cell, rival, of) for cell, rival, of in found if rival and of]


def _least(
    claim: str, found: _Found, bound: float, not_run: list[str], *, above: bool = False
) -> Claim:
    """Holds when the least ratio reaches the bound (`above`: passes it)."""
    if not found:
        return _unknown(claim)

    def reaches(value: float) -> bool:
        return value > bound + ROUNDING if above else value >= bound - ROUNDING

    short = [one for one in found if not reaches(one[2].ratio)]
    sure = sum(of.high < bound - ROUNDING for _, _, of in short)
    said = f"least {_said(*min(found, key=lambda one: one[2].ratio))}"
    if short:
        said += f"; short of it: {len(short)} of {len(found)} cells, {sure} beyond the interval"
        if closed := sum(_bound_ratio(cell, rival) < bound for cell, rival, _ in short):
            said += f"; in {closed} any schedule is (oracle)"
    else:
        said += f"; {len(found)} cells"
    return Claim(claim=claim, holds=not short, figure=said, not_run=not_run)


def _largest(claim: str, found: _Found, bound: float, not_run: list[str]) -> Claim:
    if not found:
        return _unknown(claim)
    best = max(found, key=lambda one: one[2].ratio)
    said = f"largest {_said(*best)}"
    return Claim(claim=claim, holds=best[2].ratio > bound, figure=said, not_run=not_run)


def _throughput(cells: Sequence[Cell], not_run: list[str]) -> Claim:
    """Sessions a second, reference / the most of any baseline, in the cell where that is least."""
    claim = f"Throughput at least {_THROUGHPUT} of the best baseline's"
    found: list[tuple[float, str, Cell]] = []
    for cell in cells:
        ratios = {p: cell.against(p, "sessions_per_s") for p in cell.policies if is_baseline(p)}
        rates = {policy: of.ratio for policy, of in ratios.items() if of and of.ratio}
        if rates:
            best = max(rates, key=rates.__getitem__)
            found.append((1 / rates[best], best, cell))
    if not found:
        return _unknown(claim)
    share, best, cell = min(found, key=lambda one: one[0])
    short = sum(share < _THROUGHPUT for share, _, _ in found)
    said = f"least {share:.3f}, {cell.label}, against {best}"
    said += f"; short of it: {short} of {len(found)} cells" if short else f"; {len(found)} cells"
    return Claim(claim=claim, holds=not short, figure=said, not_run=not_run)


def _near_bound(cells: Sequence[Cell]) -> Claim:
    """Mean of the reference / that of the clairvoyant bound, which no schedule may reach."""
    rhos = " and ".join(map(str, _NEAR_RHOS))
    claim = f"Mean within {_NEAR}x of the oracle's at rho {rhos}"
    ratios = [
        (_bound_ratio(cell, REFERENCE), cell)
        for cell in cells
        if cell.rho in _NEAR_RHOS and REFERENCE in cell.policies
    ]
    if not ratios:
        return _unknown(claim)
    most, cell = max(ratios, key=lambda one: one[0])
    short = sum(ratio > _NEAR for ratio, _ in ratios)
    said = f"most {most:.3f}x, {cell.label}"
    said += f"; beyond it: {short} of {len(ratios)} cells" if short else f"; {len(ratios)} cells"
    return Claim(claim=claim, holds=not short, figure=said, not_run=[])


def _sign(cells: Sequence[Cell]) -> Claim:
    """Nobody who is behind the reference in the middle of the cost band is ahead at a corner of it,
    nor the other way round.
    """
    claim = "Who is ahead of whom, the same at all corners of the cost band"
    middles = {_place(cell): cell for cell in cells if not _is_corner(cell)}
    found: _Found = []
    turned = 0
    for cell in filter(_is_corner, cells):
        middle = middles.get(_place(cell))
        for policy in filter(is_baseline, cell.policies):
            here, there = cell.against(policy), middle.against(policy) if middle else None
            if here and there:
                found.append((cell, policy, here))
                turned += _side(here) * _side(there) < 0
    if not found:
        return Claim(claim=claim, holds=None, figure="no corner of it was run", not_run=[])
    said = f"least {_said(*min(found, key=lambda one: one[2].ratio))}"
    said += f"; turned: {turned} of {len(found)}" if turned else f"; none of {len(found)} turned"
    return Claim(claim=claim, holds=not turned, figure=said, not_run=[])


def _side(of: Estimate) -> int:
    return (of.ratio > 1 + ROUNDING) - (of.ratio < 1 - ROUNDING)


def _is_corner(cell: Cell) -> bool:
    return (cell.step_factor, cell.prefill_factor) != (1, 1)


def _place(cell: Cell) -> tuple[object, ...]:
    """All but the costs."""
    machine = cell.profile, cell.host_gib, cell.tool_cores, cell.tool_share
    return *machine, cell.workload, cell.rho


def _bound_ratio(cell: Cell, policy: str) -> float:
    return cell.policies[policy].mean_s / cell.clairvoyant_mean_s


def _said(cell: Cell, rival: str, of: Estimate) -> str:
    interval = f" ({of.low:.3f} to {of.high:.3f})" if of.pairs > 1 else ""
    return f"{of.ratio:.3f}x{interval}, {cell.label}, against {rival}"


def _unknown(claim: str) -> Claim:
    figure = f"no cell has {REFERENCE} and a baseline for it"
    return Claim(claim=claim, holds=None, figure=figure, not_run=[])


def _known_baselines() -> list[str]:
    return [p for p in PRESETS if is_baseline(p) and not p.endswith("-released")]


def _not_run(cells: Sequence[Cell], policies: Sequence[str]) -> list[str]:
    """In some cell or in all."""
    return [p for p in policies if any(p not in cell.policies for cell in cells)]
