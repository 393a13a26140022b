import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.compare.grids import TEXT, mini

from mars.compare.cells import VERSION
from mars.compare.row import Row
from mars.compare.settings import Grid
from mars.compare.store import Store, read_rows
from mars.core.errors import InputError


def rows() -> st.SearchStrategy[Row]:
    number = st.floats(allow_nan=False, allow_infinity=False)
    of = {
        str: st.text(st.characters(codec="utf-8"), max_size=5),
        int: st.integers(0, 2**60),
        float: number,
        float | None: st.none() | number,
        dict[str, float]: st.dictionaries(st.sampled_from(["gate", "tool"]), number),
    }
    fields = {field.name: of[field.type] for field in msgspec.structs.fields(Row)}
    return st.builds(Row, **fields)


@given(st.lists(rows(), max_size=3, unique_by=lambda row: row.key))
def test_rows_come_back_from_journal_and_table(
    tmp_path_factory: pytest.TempPathFactory, some: list[Row]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with Store(folder / "r", mini(folder)) as store:
        for row in some:
            store.add(row)
        assert read_rows(folder / "r") == some
        store.write_table([row.key for row in reversed(some)])
    (folder / "r" / "rows.jsonl").unlink()
    assert read_rows(folder / "r") == some[::-1]


@pytest.fixture
def row() -> Row:
    values = {field.name: 0 for field in msgspec.structs.fields(Row)}
    texts = {"profile": "p", "workload": "w", "policy": "fcfs", "key": "k"}
    return msgspec.convert(values | texts | {"phase_mean_s": {"gate": 1.0}}, Row)


def test_a_torn_last_line_is_dropped(tmp_path: Path, row: Row) -> None:
    grid, journal = mini(tmp_path), tmp_path / "run" / "rows.jsonl"
    with Store(tmp_path / "run", grid) as store:
        store.add(row)
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:40])
    assert read_rows(tmp_path / "run") == [row]
    with Store(tmp_path / "run", grid) as store:
        assert list(store.rows) == ["k"]
        store.add(msgspec.structs.replace(row, key="l"))
    assert [each.key for each in read_rows(tmp_path / "run")] == ["k", "l"]


def test_a_broken_line_is_named(tmp_path: Path, row: Row) -> None:
    grid, journal = mini(tmp_path), tmp_path / "run" / "rows.jsonl"
    with Store(tmp_path / "run", grid) as store:
        store.add(row)
    journal.write_bytes(b'{"profile": 3}\n' + journal.read_bytes())
    with pytest.raises(InputError, match=r"rows.jsonl:1: not a row"):
        Store(tmp_path / "run", grid)


def test_a_started_grid_has_no_table(tmp_path: Path, row: Row) -> None:
    grid = mini(tmp_path)
    with Store(tmp_path / "run", grid) as store:
        store.add(row)
        store.write_table(["k", "never ended"])
    assert (tmp_path / "run" / "rows.parquet").is_file()
    with Store(tmp_path / "run", grid):
        assert not (tmp_path / "run" / "rows.parquet").exists()


def test_the_settings_are_written_first_and_are_the_grid(tmp_path: Path) -> None:
    text = TEXT + "[scheduling.mars.hold]\nmost_s = 5\n[[extra]]\ntool_cores = [4]\n"
    grid = mini(tmp_path, text)
    Store(tmp_path / "run", grid).__exit__()
    said = tomllib.loads((tmp_path / "run" / "grid.toml").read_text())
    made_by = said.pop("made_by")
    assert made_by["version"] == VERSION
    assert said.pop("inputs") == {}
    assert msgspec.convert(said, Grid) == grid


@pytest.mark.parametrize(
    ("was", "now", "part"),
    [("sessions = 6", "sessions = 7", "sessions"), ('"terminal"', '"swe"', "workloads")],
)
def test_a_folder_of_another_grid_is_refused(tmp_path: Path, was: str, now: str, part: str) -> None:
    Store(tmp_path / "run", mini(tmp_path)).__exit__()
    with pytest.raises(InputError, match=rf"another grid \(grid.toml differs in: {part}\)"):
        Store(tmp_path / "run", mini(tmp_path, TEXT.replace(was, now)))


def test_a_file_that_has_changed_makes_another_grid(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text("one\n")
    grid = mini(tmp_path, TEXT + f'[workloads.t]\nkind = "trace"\npath = "{trace}"\n')
    Store(tmp_path / "run", grid).__exit__()
    trace.write_text("two\n")
    with pytest.raises(InputError, match="differs in: inputs"):
        Store(tmp_path / "run", grid)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    grid = mini(tmp_path)
    with (
        Store(tmp_path / "run", grid),
        pytest.raises(InputError, match="another `mars compare` is at work"),
    ):
        Store(tmp_path / "run", grid)
    Store(tmp_path / "run", grid).__exit__()


def test_a_folder_without_rows_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no rows"):
        read_rows(tmp_path)
