"""`mars report RUN`: the numbers of a run folder on the terminal, as JSON, and as a page."""

import sys
from pathlib import Path

import msgspec
from rich.console import Console

from mars.bench.measure import Run, Summary, measure, read_run
from mars.bench.table import printed
from mars.core.errors import InputError


def report(folder: Path, *, as_json: bool, page: Path | None) -> None:
    """Print a run's figures and write its page: FOLDER/report.html where `page` names no other.

    With `as_json`, stdout is one JSON document and nothing else, and only a named page is written.
    Raises what `read_run` raises, and InputError when a named page cannot be written.
    """
    run = read_run(folder)
    summary = measure(run)
    if as_json:
        if page is not None:
            _write_page(run, summary, page)
        text = msgspec.json.format(msgspec.json.encode(summary.as_json()), indent=2)
        sys.stdout.write(text.decode() + "\n")
        return
    console = Console(highlight=False)
    console.print(printed(summary))
    try:
        path = page or folder / "report.html"
        _write_page(run, summary, path)
        said = f"page: {path.resolve()}"
    except InputError as error:
        if page is not None:
            raise
        said = f"no page: {error}"
    console.print(said, markup=False, soft_wrap=True)


def _write_page(run: Run, summary: Summary, path: Path) -> None:
    try:
        from mars.bench.page import write_page  # noqa: PLC0415  plotly is an extra
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}: pip install 'mars[report]'") from None
    try:
        write_page(run, summary, path)
    except OSError as error:
        raise InputError(f"cannot write the page {path}: {error.strerror}") from None
