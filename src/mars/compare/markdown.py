"""A grid's report as a Markdown file: `mars report FOLDER --markdown docs/results.md`."""

from collections.abc import Iterator
from pathlib import Path

from mars.bench.grids import as_text, in_markdown
from mars.compare.provenance import told
from mars.compare.summary import Summary
from mars.compare.tables import means, tables


def write_markdown(summary: Summary, path: Path) -> None:
    path.write_text("\n".join(_lines(summary, path)) + "\n", encoding="utf-8")


def _lines(summary: Summary, path: Path) -> Iterator[str]:
    origin = summary.provenance
    yield f"# Results: {as_text(origin.grid)}"
    yield ""
    yield "Simulated, not measured on a GPU. Written by the second of these commands, not by hand:"
    yield ""
    yield f"    mars compare GRID.toml --out {origin.folder}    # the grid {origin.grid}"
    yield f"    mars report {origin.folder} --markdown {path}"
    yield ""
    for name, value in told(origin, summary.rows, len(summary.cells)).items():
        yield f"* {as_text(name)}: {as_text(value)}"
    for note in summary.notes:
        yield ""
        yield f"> Note: {as_text(note)}"
    for grid in tables(summary):
        yield from in_markdown(grid, "##")
    yield ""
    yield "## Every policy"
    for grid in means(summary):
        yield from in_markdown(grid, "###")
