"""`mars report FOLDER` of a simulated grid: on the terminal, as JSON, as a page, as Markdown."""

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mars.bench.grids import drawn
from mars.compare.markdown import write_markdown
from mars.compare.provenance import told
from mars.compare.summary import Summary, summarise
from mars.compare.tables import tables
from mars.core.errors import InputError

_WIDTH = 100


def is_grid(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("rows.parquet", "rows.jsonl"))


def report_grid(
    folder: Path, *, as_json: bool = False, page: Path | None = None, markdown: Path | None = None
) -> None:
    """Print a grid's tables and write its page: FOLDER/report.html where `page` names no other.

    With `as_json`, stdout is one JSON document and nothing else, and only named files are written.
    Raises InputError of a folder that cannot be read or a named file that cannot be written, and
    ResultError of rows that cannot be compared.
    """
    try:
        from mars.compare.store import read_rows  # noqa: PLC0415  pyarrow is an extra
    except ModuleNotFoundError as error:
        raise InputError(f"rows need {error.name}: pip install 'mars[compare]'") from None
    summary = summarise(folder, read_rows(folder))
    if markdown is not None:
        _written("the Markdown file", markdown, lambda: write_markdown(summary, markdown))
    if as_json:
        if page is not None:
            _write_page(summary, page)
        text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
        sys.stdout.write(text.decode() + "\n")
        return
    console = Console(highlight=False)
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    console.print(printed(summary))
    try:
        path = page or folder / "report.html"
        _write_page(summary, path)
        said = f"page: {path.resolve()}"
    except InputError as error:
        if page is not None:
            raise
        said = f"no page: {error}"
    console.print(said, markup=False, soft_wrap=True)


def printed(summary: Summary) -> Group:
    """For a rich console of 100 columns."""
    parts: list[Table | Text | Padding] = [
        Text(f"{name}: {value}", style="dim")
        for name, value in told(summary.provenance, summary.rows, len(summary.cells)).items()
    ]
    parts.append(Text("Simulated, not measured on a GPU.", style="dim"))
    for grid in tables(summary):
        parts += [Text(), drawn(grid)]
    parts += [
        Padding(Text(f"Note: {note}", style="yellow"), (1, 1, 0, 1)) for note in summary.notes
    ]
    return Group(*parts)


def _write_page(summary: Summary, path: Path) -> None:
    try:
        from mars.compare.grid_page import write_page  # noqa: PLC0415  plotly is an extra
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}: pip install 'mars[report]'") from None
    _written("the page", path, lambda: write_page(summary, path))


def _written(what: str, path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise InputError(f"cannot write {what} {path}: {error.strerror}") from None
