"""A grid's report as a Markdown file: `mars report FOLDER --markdown docs/results.md`."""

from collections.abc import Iterator
from pathlib import Path

from mars.bench.table import Grid
from mars.compare.provenance import told
from mars.compare.summary import Summary
from mars.compare.tables import means, numeric, tables


def write_markdown(summary: Summary, path: Path) -> None:
    path.write_text("\n".join(_lines(summary, path)) + "\n", encoding="utf-8")


def _lines(summary: Summary, path: Path) -> Iterator[str]:
    origin = summary.provenance
    yield f"# Results: {_text(origin.grid)}"
    yield ""
    yield "Simulated, not measured on a GPU. Written by the second of these commands, not by hand:"
    yield ""
    yield f"    mars compare GRID.toml --out {origin.folder}    # the grid {origin.grid}"
    yield f"    mars report {origin.folder} --markdown {path}"
    yield ""
    for name, value in told(origin, summary.rows, len(summary.cells)).items():
        yield f"* {_text(name)}: {_text(value)}"
    for note in summary.notes:
        yield ""
        yield f"> Note: {_text(note)}"
    for grid in tables(summary):
        yield from _section(grid, "##")
    yield ""
    yield "## Every policy"
    for grid in means(summary):
        yield from _section(grid, "###")


def _section(grid: Grid, level: str) -> Iterator[str]:
    yield ""
    yield f"{level} {_text(grid.title)}"
    yield ""
    if grid.rows:
        sides = ["---:" if numeric(grid, place) else "---" for place in range(len(grid.columns))]
        for row in (grid.columns, sides, *grid.rows):
            yield f"| {' | '.join(_text(cell) for cell in row)} |"
    else:
        yield "None."
    yield ""
    yield _text(grid.caption)


def _text(text: str) -> str:
    """Nothing in it is markup."""
    for sign in "\\|<*[`":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\n", "<br>")
