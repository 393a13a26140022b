"""All that a grid's report says, as one document (`mars report --json`)."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mars.compare.claims import Claim, claims
from mars.compare.findings import (
    Behind,
    LongTools,
    OverCells,
    Retention,
    ablations,
    behind,
    long_tools,
    retention_alone,
)
from mars.compare.gaps import gaps
from mars.compare.provenance import Provenance, provenance
from mars.compare.row import Row
from mars.compare.standing import REFERENCE, Cell, cells_of, in_order
from mars.core.errors import InputError


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    reference: str
    provenance: Provenance
    rows: int
    policies: list[str]
    cells: list[Cell]
    behind: list[Behind]
    ablations: list[OverCells]
    retention_alone: list[Retention]
    long_tools: list[LongTools]
    claims: list[Claim]
    notes: list[str]
    """What a reader has to know before believing the numbers."""


def summarise(folder: Path, rows: Sequence[Row]) -> Summary:
    """Raise InputError of no rows, ResultError of rows that cannot be compared."""
    if not rows:
        raise InputError(f"{folder} has no rows: run the grid first (`mars compare`)")
    cells, origin = cells_of(rows), provenance(folder, rows)
    return Summary(
        reference=REFERENCE,
        provenance=origin,
        rows=len(rows),
        policies=in_order(origin.policies),
        cells=cells,
        behind=behind(cells),
        ablations=ablations(cells),
        retention_alone=retention_alone(cells),
        long_tools=long_tools(cells),
        claims=claims(cells),
        notes=[*_failures(origin), *gaps(rows, cells, origin)],
    )


def _failures(origin: Provenance) -> Iterator[str]:
    for failure in origin.failures:
        yield f"a run failed: {failure}"
