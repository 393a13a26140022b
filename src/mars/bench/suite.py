"""Several runs side by side: `mars report FOLDER` of a folder whose subfolders are runs.

A line for each run, in order of their names; figures as `mars report` of each has them.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from mars.bench.calibrating import given
from mars.bench.grids import Grid, as_text, drawn, in_markdown
from mars.bench.measure import Ratio, Run, Spread, Summary, measure, read_run
from mars.bench.words import bare, listing, number, percent, ratio
from mars.core.errors import InputError, ResultError


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    run: Run
    summary: Summary


def runs_in(folder: Path) -> list[Path]:
    """None where the folder is a run itself, or is not there."""
    if (folder / "run.jsonl").exists() or not folder.is_dir():
        return []
    return sorted(path.parent for path in folder.glob("*/run.jsonl"))


def read_suite(folder: Path) -> list[Member]:
    """Raises what `read_run` raises, and ResultError when runs have another reference."""
    members = []
    for path in runs_in(folder):
        run = read_run(path)
        members.append(Member(path.name, run, measure(run)))
    if len(references := {member.summary.reference for member in members}) > 1:
        raise ResultError(f"{folder}: runs are measured against {listing(sorted(references))}")
    return members


def report_suite(folder: Path, *, as_json: bool, markdown: Path | None) -> None:
    """Print the table; with `as_json`, each run's figures by its name."""
    members = read_suite(folder)
    if markdown is not None:
        try:
            markdown.write_text("\n".join(_lines(folder, members, markdown)) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {markdown}: {error.strerror}") from None
    if as_json:
        figures = {member.name: member.summary.as_json() for member in members}
        sys.stdout.write(
            msgspec.json.format(msgspec.json.encode(figures), indent=2).decode() + "\n"
        )
        return
    console = Console(highlight=False)
    for grid in grids(members):
        console.print(drawn(grid), Text())


def grids(members: Sequence[Member]) -> Iterator[Grid]:
    reference = members[0].summary.reference
    yield Grid(
        "Runs",
        (
            "run", "KV\nblocks", "leases\na core", "load", "sessions", "repetitions",
            f"{reference} (s)", "noise", "strongest other",
        ),
        [
            [
                member.name,
                *_machine(member.run),
                str(member.run.settings["load"]),
                str(member.summary.sessions_per_round),
                str(len(member.summary.repeats)),
                bare(member.summary.policies[reference].mean_s),
                percent(member.summary.policies[reference].noise_frac),
                _strongest(member.summary),
            ]
            for member in members
        ],
        f"Mean session time of {reference}. Noise: (largest - least) / median of the mean over "
        "repetitions. Strongest: whose mean is the least. Leases a core: `tools.share`.",
    )  # fmt: skip
    for title, of in _FIGURES.items():
        yield _ratios(title, members, of)


def _machine(run: Run) -> tuple[str, str]:
    """-: not recorded, or vLLM's own choice."""
    blocks = given(run.settings.get("vllm_args", ()), "--num-gpu-blocks-override")
    share = run.settings.get("settings", {}).get("tools", {}).get("share")
    return str(blocks or "-"), str(share or "-")


_FIGURES: dict[str, Callable[[Ratio], Spread]] = {
    "Mean session time": lambda of: of.mean,
    "P95 of the session time": lambda of: of.p95,
}


def _ratios(title: str, members: Sequence[Member], of: Callable[[Ratio], Spread]) -> Grid:
    reference = members[0].summary.reference
    policies = list(dict.fromkeys(p for member in members for p in member.summary.ratios))
    rows = [
        [member.name, *(_cell(member.summary.ratios.get(policy), of) for policy in policies)]
        for member in members
    ]
    return Grid(
        f"{title} as a multiple of {reference}'s",
        ("run", *policies),
        rows,
        f"Median, least and largest over pairs (the same repetition). Above 1x: {reference} is "
        "faster. -: not run.",
    )


def _cell(found: Ratio | None, of: Callable[[Ratio], Spread]) -> str:
    if found is None:
        return "-"
    spread = of(found)
    return f"{ratio(spread.median)}\n({spread.min:.2f} to {spread.max:.2f})"


def _strongest(summary: Summary) -> str:
    if not summary.ratios:
        return "-"
    name, found = min(summary.ratios.items(), key=lambda item: item[1].mean.median)
    return f"{name}, {ratio(found.mean.median)}"


def _lines(folder: Path, members: Sequence[Member], path: Path) -> Iterator[str]:
    yield f"# Results on a real engine: {as_text(folder.name)}"
    yield ""
    yield "Measured, with a tiny model on a CPU. Written by this command, not by hand:"
    yield ""
    yield f"    mars report {folder} --markdown {path}"
    yield ""
    for said in dict.fromkeys(_origin(member.run) for member in members):
        yield f"* {as_text(said)}"
    for member in members:
        for note in member.summary.notes:
            yield ""
            yield f"> Note: {member.name}: {as_text(note)}"
    for grid in grids(members):
        yield from in_markdown(grid, "##")


def _origin(run: Run) -> str:
    head = run.settings
    made_by = head.get("made_by", {})
    return (
        f"mars {made_by.get('version', '(version not recorded)')}, commit "
        f"{made_by.get('commit') or 'not recorded'}: trace {head.get('trace', '-')}, tools times "
        f"{head.get('tools_factor', 1.0):g}, policies {listing(list(head['policies']))}, "
        f"{number(head['repeat'], 'repetition')}, interleaved"
    )
