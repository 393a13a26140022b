"""The numbers as tables, for a terminal and for the page: one source for the text of both."""

from collections.abc import Iterator
from typing import Final, Literal

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mars.bench.grids import Grid
from mars.bench.measure import PolicyFigures, Spread, Summary
from mars.bench.why import why
from mars.bench.words import bare, count, number, percent, ratio

_TIMES: Final = (
    "policy", "mean (s)", "noise", "p50 (s)", "p90 (s)", "p95 (s)", "gate (s)", "per min",
    "tokens /s",
)  # fmt: skip
_CAUSES: Final = (
    "policy", "prefix hits", "tokens run", "run twice", "preempted", "call waits (s)",
    "tool waits (s)", "holds paid",
)  # fmt: skip


def grids(summary: Summary) -> Iterator[Grid]:
    rounds, sessions = len(summary.repeats), summary.sessions_per_round
    yield Grid(
        "Session time",
        _TIMES,
        [_times(policy, of) for policy, of in summary.policies.items()],
        f"{number(sessions, 'session')} x {number(rounds, 'repetition')} per policy. Noise: "
        "(largest - least) / median of the mean over repetitions. Gate: mean wait there, part of "
        "the session time. Per min: sessions finished.",
    )
    if summary.ratios:
        yield Grid(
            f"Session time as a multiple of {summary.reference}'s",
            ("policy", "mean", "over pairs", "p95", "over pairs", "pairs"),
            [
                [policy, *_spread(of.mean), *_spread(of.p95), str(of.mean.pairs)]
                for policy, of in summary.ratios.items()
            ],
            f"Median, least and largest over pairs (the same repetition). Above 1x: "
            f"{summary.reference} is faster.",
        )
    yield Grid(
        "What happened inside",
        _CAUSES,
        [_causes(policy, of) for policy, of in summary.policies.items()],
        "Tokens the model was run on, those run a second time, preemptions and holds: totals over "
        "all repetitions. Waits: mean per call in the engine's queue, per tool call for cores.",
    )


def _times(policy: str, of: PolicyFigures) -> list[str]:
    return [
        policy,
        bare(of.mean_s),
        percent(of.noise_frac) if len(of.rounds) > 1 else "-",
        bare(of.p50_s),
        bare(of.p90_s),
        bare(of.p95_s),
        bare(of.gate_wait_mean_s),
        bare(of.throughput_sessions_per_s * 60),
        count(of.output_tokens_per_s),
    ]


def _causes(policy: str, of: PolicyFigures) -> list[str]:
    return [
        policy,
        percent(of.hit_frac),
        count(of.computed_tokens),
        count(of.recomputed_tokens),
        count(of.preemptions),
        bare(of.queue_wait_mean_s),
        bare(of.tool_wait_mean_s),
        f"{of.holds_paid}/{of.holds}" if of.holds else "-",
    ]


def _spread(of: Spread) -> tuple[str, str]:
    return ratio(of.median), f"{ratio(of.min)} to {ratio(of.max)}" if of.pairs > 1 else "-"


def printed(summary: Summary) -> Group:
    """For a rich console."""
    parts: list[Table | Text | Padding] = []
    for grid in grids(summary):
        table = Table(title=grid.title, caption=grid.caption, title_justify="left", box=box.SIMPLE)
        table.padding = (0, 1, 0, 0)  # nine columns go into 80 characters
        table.title_style, table.caption_style, table.caption_justify = "bold", "dim", "left"
        for place, column in enumerate(grid.columns):
            longest = max(len(word) for word in column.split())  # wrap at blanks only
            side: Literal["right", "left"] = "right" if place else "left"
            table.add_column(column, justify=side, no_wrap=not place, min_width=longest)
        for row in grid.rows:
            table.add_row(*(Text(cell) for cell in row))  # Text: a name is no markup
        parts += [table, Text()]
    parts += [Padding(Text(" ".join(why(summary))), (0, 1))]
    parts += [
        Padding(Text(f"Note: {note}", style="yellow"), (1, 1, 0, 1)) for note in summary.notes
    ]
    return Group(*parts)
