"""A grid's folder: what is run, the rows so far, and at the end a table of them.

    grid.toml       resolved settings, version, commit, what the files it names contained; first
    rows.jsonl      one Row for each run that has ended, in the order in which they did
    failures.jsonl  runs that could not be finished, of the last start
    rows.parquet    the rows in the grid's order, when all runs have been tried

A killed grid goes on where its journal ends. One `mars compare` at a time uses a folder.
"""

import fcntl
import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self, get_origin

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import tomli_w

from mars.bench.made_by import made_by
from mars.compare.row import Row
from mars.compare.settings import Grid
from mars.core.errors import InputError

_GRID, _JOURNAL, _FAILURES, _TABLE = "grid.toml", "rows.jsonl", "failures.jsonl", "rows.parquet"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    run: str
    error: str


class Store:
    """Open it before the first run; close it after the last."""

    def __init__(self, folder: Path, grid: Grid) -> None:
        """Raises InputError when the folder holds another grid, or is in use."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._journal = (folder / _JOURNAL).open("ab")
        try:
            _lock(self._journal.fileno(), folder)
            _claim(folder, grid)
            self.rows = {row.key: row for row in _whole_lines(folder / _JOURNAL)}
        except BaseException:
            self._journal.close()
            raise
        (folder / _TABLE).unlink(missing_ok=True)
        self._failures = (folder / _FAILURES).open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()
        self._failures.close()

    def add(self, row: Row) -> None:
        self.rows[row.key] = row
        self._journal.write(msgspec.json.encode(row) + b"\n")
        self._journal.flush()

    def add_failure(self, failure: Failure) -> None:
        self._failures.write(msgspec.json.encode(failure) + b"\n")
        self._failures.flush()

    def write_table(self, keys: Sequence[str]) -> None:
        """The rows with these keys, in this order."""
        rows = [self.rows[key] for key in keys if key in self.rows]
        half = self.folder / f"{_TABLE}.part"
        pq.write_table(_table(rows), half)
        half.replace(self.folder / _TABLE)


def read_rows(folder: Path) -> list[Row]:
    """Of the table, or of the journal of a grid that has not ended."""
    if (folder / _TABLE).is_file():
        return [_row_of(values) for values in pq.read_table(folder / _TABLE).to_pylist()]
    if (folder / _JOURNAL).is_file():
        return _rows_of(folder / _JOURNAL, (folder / _JOURNAL).read_bytes())
    raise InputError(f"{folder} holds no rows: give a folder that `mars compare` has written")


# -- the journal ----------------------------------------------------------------------------------


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of when the process ends
    except BlockingIOError:
        raise InputError(f"another `mars compare` is at work in {folder}") from None


def _whole_lines(path: Path) -> list[Row]:
    """Drop a last line that was not written to its end (a kill), and read the others."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    return _rows_of(path, data)


def _rows_of(path: Path, data: bytes) -> list[Row]:
    decoder = msgspec.json.Decoder(Row)
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            rows.append(decoder.decode(line))
        except ValueError as error:
            raise InputError(f"{path}:{number}: not a row: {error}") from None
    return rows


# -- what is run ----------------------------------------------------------------------------------


def _claim(folder: Path, grid: Grid) -> None:
    """Write grid.toml, or find that it says the same as ours."""
    path, ours = folder / _GRID, _resolved(grid)
    if not path.is_file():
        half = folder / f"{_GRID}.part"
        half.write_text(tomli_w.dumps(ours))
        half.replace(path)
        return
    try:
        theirs = tomllib.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if differing := [part for part in ours if theirs.get(part) != ours[part]]:
        raise InputError(
            f"{folder} holds the rows of another grid ({_GRID} differs in: {', '.join(differing)}):"
            " give another --out, or remove it"
        )


def _resolved(grid: Grid) -> dict[str, Any]:
    """As TOML knows it: without None."""
    settings: dict[str, Any] = _without_none(json.loads(msgspec.json.encode(grid)))
    return {"made_by": made_by(), "inputs": _digests(grid), **settings}


def _without_none(value: Any) -> Any:
    match value:
        case dict():
            return {key: _without_none(v) for key, v in value.items() if v is not None}
        case list():
            return [_without_none(v) for v in value]
        case _:
            return value


def _digests(grid: Grid) -> dict[str, str]:
    """SHA-256 of the files that the grid names."""
    named = [getattr(workload, "path", "") for workload in grid.workloads.values()]
    paths = {Path(name) for name in (*named, *grid.profiles) if name}
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
        if path.is_file()
    }


# -- the table ------------------------------------------------------------------------------------

_NUMBERS: Final = {int: pa.int64(), float: pa.float64(), float | None: pa.float64()}
_COLUMNS: Final = {f.name: _NUMBERS.get(f.type, pa.string()) for f in msgspec.structs.fields(Row)}
_DICTS: Final = [f.name for f in msgspec.structs.fields(Row) if get_origin(f.type) is dict]
"""Columns of JSON text."""


def _table(rows: Sequence[Row]) -> pa.Table:
    lines = [msgspec.structs.asdict(row) for row in rows]
    for line in lines:
        line |= {name: msgspec.json.encode(line[name]).decode() for name in _DICTS}
    return pa.Table.from_pylist(lines, schema=pa.schema(list(_COLUMNS.items())))


def _row_of(line: dict[str, Any]) -> Row:
    return msgspec.convert(line | {name: msgspec.json.decode(line[name]) for name in _DICTS}, Row)
