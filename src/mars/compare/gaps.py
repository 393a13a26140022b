"""What a grid lacks, in words: nothing that was not run goes unsaid."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from mars.bench.words import listing, number
from mars.compare.provenance import Provenance
from mars.compare.row import Row
from mars.compare.standing import Cell, by_scene
from mars.compare.stats import FEWEST_SEEDS

_MOST_NAMED: Final = 3


def gaps(rows: Sequence[Row], cells: Sequence[Cell], asked: Provenance) -> Iterator[str]:
    """What was asked for, or run in some cell, should be there in all."""
    yield from _twice(rows)
    yield from _loads(cells)
    yield from _policies(asked.policies, cells)
    yield from _seeds(asked.seeds, cells)
    few = [cell.label for cell in cells if _most_seeds(cell) < FEWEST_SEEDS]
    if few:
        yield (
            f"fewer than {FEWEST_SEEDS} seeds {_where(few)}: in place of an interval stand the "
            "least and the largest ratio, and a verdict says nothing of other seeds"
        )


def _twice(rows: Sequence[Row]) -> Iterator[str]:
    times = Counter((*row.cell, row.policy, row.seed) for row in rows)
    again = sum(n - 1 for n in times.values())
    if again:
        yield f"{number(again, 'row')} of a run that has a later row left out"


def _loads(cells: Sequence[Cell]) -> Iterator[str]:
    all_of_them, without = {cell.rho for cell in cells}, []
    for scene, of in by_scene(cells).items():
        missing = sorted(all_of_them - {cell.rho for cell in of})
        if missing:
            without.append(f"{scene}: {listing([f'{rho:g}' for rho in missing])}")
    if without:
        more = len(without) - _MOST_NAMED
        named = "; ".join(without[:_MOST_NAMED]) + (f"; {more} more curves" if more > 0 else "")
        yield f"not every curve has every rho; without: {named}"


def _policies(asked: Sequence[str], cells: Sequence[Cell]) -> Iterator[str]:
    """Policies that lack the same cells share a line."""
    together: dict[tuple[str, ...], list[str]] = {}
    for policy in asked:
        without = tuple(cell.label for cell in cells if policy not in cell.policies)
        if without:
            together.setdefault(without, []).append(policy)
    for without, policies in together.items():
        were = "was" if len(policies) == 1 else "were"
        yield f"{listing(policies)} {were} not run {_where(without)}"


def _seeds(asked: Sequence[int], cells: Sequence[Cell]) -> Iterator[str]:
    """Policies that lack the same seeds of the same cells share a line."""
    lacking: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for cell in cells:
        for policy, of in cell.policies.items():
            missing = tuple(sorted(set(asked).difference(of.seeds)))
            if missing:
                lacking.setdefault((policy, missing), []).append(cell.label)
    together: dict[tuple[tuple[int, ...], tuple[str, ...]], list[str]] = {}
    for (policy, missing), labels in lacking.items():
        together.setdefault((missing, tuple(labels)), []).append(policy)
    for (missing, where), policies in together.items():
        which = listing([str(seed) for seed in missing])
        seeds = f"seed {which}" if len(missing) == 1 else f"seeds {which}"
        yield f"{listing(policies)}: {seeds} not run {_where(where)}; ratios are over the others"


def _most_seeds(cell: Cell) -> int:
    return max(len(of.seeds) for of in cell.policies.values())


def _where(labels: Sequence[str]) -> str:
    if len(labels) == 1:
        return f"in one cell ({labels[0]})"
    more = len(labels) - _MOST_NAMED
    named = "; ".join(labels[:_MOST_NAMED]) + (f"; {more} more" if more > 0 else "")
    return f"in {len(labels)} cells ({named})"
