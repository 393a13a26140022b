"""A grid's report as tables: one source for the terminal, the page and the Markdown file."""

from collections.abc import Iterator, Sequence

from mars.bench.grids import Grid
from mars.bench.words import bare, listing, percent, ratio
from mars.compare.claims import Claim
from mars.compare.findings import WORST
from mars.compare.standing import PAPER, REFERENCE, Cell, by_scene
from mars.compare.stats import FEWEST_SEEDS, RESAMPLES, Estimate
from mars.compare.summary import Summary


def tables(summary: Summary) -> Iterator[Grid]:
    yield _claims(summary)
    yield from _verdicts(summary.cells)
    yield _behind(summary)
    if summary.ablations:
        yield _ablations(summary)
    if summary.retention_alone:
        yield _retention(summary)
    if summary.long_tools:
        yield _long_tools(summary)


def means(summary: Summary) -> Iterator[Grid]:
    """Every policy's mean over load, scene by scene: of those that were run there."""
    for scene, cells in by_scene(summary.cells).items():
        here = [it for it in summary.policies if any(it in cell.policies for cell in cells)]
        rows = [
            ["alone on the machine", *(bare(cell.isolated_mean_s) for cell in cells)],
            ["oracle (clairvoyant)", *(bare(cell.clairvoyant_mean_s) for cell in cells)],
            *([p, *(_mean(cell, p) for cell in cells)] for p in here),
        ]
        yield Grid(
            scene,
            ["mean session time (s)", *(f"rho {cell.rho:g}" for cell in cells)],
            rows,
            "Geometric mean over seeds. -: not run.",
        )


def _claims(summary: Summary) -> Grid:
    return Grid(
        "Claims",
        ("claim", "", "figure"),
        [[claim.claim, *_claim(claim)] for claim in summary.claims],
        f"Ratios: the other's figure / {REFERENCE}'s; in brackets the interval. Above 1x: "
        f"{REFERENCE} is faster.",
    )


def _claim(of: Claim) -> tuple[str, str]:
    lacking = f". Not run, or not everywhere: {listing(of.not_run)}" if of.not_run else ""
    match of.holds:
        case None:
            said = "cannot be said"
        case True:
            said = "holds, of those run" if of.not_run else "holds"
        case False:
            said = "does not hold"
    return said, of.figure + lacking


def _verdicts(cells: Sequence[Cell]) -> Iterator[Grid]:
    for machine in dict.fromkeys(cell.machine for cell in cells):
        yield Grid(
            f"Session time against the strongest baseline: {machine}",
            (
                "workload", "rho", "cores", "alone\n(s)", "oracle\n(s)", f"{REFERENCE}\n(s)",
                "fcfs\n(s)", "strongest of\nthe paper's", "strongest\nof all", "verdict",
            ),
            [_verdict(cell) for cell in cells if cell.machine == machine],
            f"Means; the ratio of means strongest / {REFERENCE}, seed by seed, with its 95 % "
            f"interval (bootstrap over seeds, {RESAMPLES} resamples; of fewer than {FEWEST_SEEDS} "
            "seeds the least and the largest; of 5 it holds the truth about 5 times in 6). "
            f"Verdict for {REFERENCE} against the strongest of all: even when 1 is in the "
            f"interval. The paper's: {', '.join(PAPER)}. Alone: a session with the machine to "
            "itself; oracle: shortest remaining work first, lengths known. Cores: 4 x 2 take two "
            "leases at a time on each of four.",
        )  # fmt: skip


def _verdict(cell: Cell) -> list[str]:
    return [
        cell.workload,
        f"{cell.rho:g}",
        cell.cores,
        bare(cell.isolated_mean_s),
        bare(cell.clairvoyant_mean_s),
        _mean(cell, REFERENCE),
        _mean(cell, "fcfs"),
        _rival(cell, cell.strongest_paper),
        _rival(cell, cell.strongest),
        cell.verdict or "-",
    ]


def _rival(cell: Cell, policy: str | None) -> str:
    of = cell.against(policy)
    return f"{policy}\n{interval(of)}" if of else "-"


def interval(of: Estimate) -> str:
    spread = f" ({of.low:.2f}-{of.high:.2f})" if of.pairs > 1 else " (one seed)"
    return ratio(of.ratio) + spread


def _mean(cell: Cell, policy: str) -> str:
    found = cell.policies.get(policy)
    return bare(found.mean_s) if found else "-"


def _behind(summary: Summary) -> Grid:
    return Grid(
        f"Where {summary.reference} is behind",
        ("cell", "behind", "ratio", "verdict", "cause"),
        [[b.cell, b.winner, ratio(b.ratio), b.verdict, b.cause] for b in summary.behind],
        f"Every cell that is lost, or more than {(WORST - 1) * 100:.0f} % behind whatever the "
        f"interval: {len(summary.behind)} of {len(summary.cells)}. The cause is the phase in which "
        f"a session spends most more under {summary.reference}; figures against the other's.",
    )


def _ablations(summary: Summary) -> Grid:
    return Grid(
        f"What each part brings: ablations as a multiple of {summary.reference}",
        ("policy", "rho", "cells", "mean", "least cell", "largest cell", "p99"),
        [
            [
                of.policy, f"{of.rho:g}", str(of.cells), ratio(of.ratio), ratio(of.least),
                ratio(of.largest), "-" if of.p99_ratio is None else ratio(of.p99_ratio),
            ]
            for of in summary.ablations
        ],
        "Session time without the part / with it; geometric mean over the cells of a load. "
        "Above 1x: the part helps.",
    )  # fmt: skip


def _retention(summary: Summary) -> Grid:
    names = ("fcfs", "no admission", REFERENCE)
    return Grid(
        "Retention without admission",
        (
            "rho", "cells", "fcfs / no admission", f"no admission / {REFERENCE}",
            *(f"hits, {name}" for name in names), *(f"holds paid, {name}" for name in names[1:]),
        ),
        [
            [
                f"{of.rho:g}", str(of.cells), ratio(of.fcfs_to_open), ratio(of.open_to_reference),
                *(percent(frac) for frac in of.hit_fracs), *(percent(f) for f in of.paid_fracs),
            ]
            for of in summary.retention_alone
        ],
        f"Session time. No admission: {REFERENCE}-no-admission, which orders and holds as "
        f"{REFERENCE} does while everybody enters. Below 1x in the third column: holding alone is "
        "worse than stock vLLM.",
    )  # fmt: skip


def _long_tools(summary: Summary) -> Grid:
    return Grid(
        "Long tools",
        ("cell", "holds", "paid", "strongest", "ratio", "without holds"),
        [
            [
                of.cell, str(of.holds), percent(of.paid_frac), of.strongest or "-",
                *("-" if r is None else ratio(r) for r in (of.ratio, of.no_hold_ratio)),
            ]
            for of in summary.long_tools
        ],
        f"Workloads named after their tools. Holds of {REFERENCE} over all seeds, and the share "
        f"that paid. Ratio: strongest baseline / {REFERENCE}; without holds: {REFERENCE}-no-hold "
        f"/ {REFERENCE}.",
    )  # fmt: skip
