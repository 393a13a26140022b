"""Several runs side by side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mars.bench.suite import report_suite, runs_in
from mars.core.errors import InputError, ResultError

WriteRun = Callable[..., Path]
HEAD = {
    "made_by": {"version": "1", "commit": "c0ffee"},
    "load": "closed loop, 4 agents",
    "policies": ["fcfs", "mars"],
    "repeat": 2,
    "trace": "coding",
    "tools_factor": 0.3,
    "vllm_args": ["--num-gpu-blocks-override", "999", "--num-gpu-blocks-override", "320"],
    "settings": {"tools": {"share": 4}},
}


@pytest.fixture
def suite(tmp_path: Path, write_run: WriteRun, stories: dict[str, Any]) -> Path:
    (tmp_path / "suite").mkdir()
    write_run(tmp_path / "suite" / "heavy", stories, HEAD)
    write_run(tmp_path / "suite" / "light", {"mars": stories["mars"], "one": stories["mars"]}, HEAD)
    return tmp_path / "suite"


def test_each_run_has_a_line_in_both_tables(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_suite(suite, as_json=False, markdown=suite / "all.md")
    lines = (suite / "all.md").read_text().splitlines()
    alike = "| 320 | 4 | closed loop, 4 agents | 2 | 2 | 9.00 | 22.2 % |"
    assert f"| heavy {alike} fcfs, 1.65x |" in lines
    assert f"| light {alike} one, 1.00x |" in lines
    means, p95 = (lines[i:] for i, line in enumerate(lines) if line.startswith("| run | fcfs"))
    assert means[2] == "| heavy | 1.65x<br>(1.50 to 1.80) | - |"
    assert means[3] == "| light | - | 1.00x<br>(1.00 to 1.00) |"
    assert p95[2] == "| heavy | 1.62x<br>(1.48 to 1.77) | - |"
    origin = "* mars 1, commit c0ffee: trace coding, tools times 0.3, policies fcfs and mars, "
    assert [x for x in lines if x[:2] == "* "] == [f"{origin}2 repetitions, interleaved"]
    assert "(1.50 to 1.80)" in capsys.readouterr().out


def test_programs_get_every_runs_figures_by_its_name(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_suite(suite, as_json=True, markdown=None)
    built = json.loads(capsys.readouterr().out)
    assert list(built) == ["heavy", "light"]
    assert built["heavy"]["ratio_to_mars"]["fcfs"]["mean"]["median"] == pytest.approx(1.65)


def test_a_run_is_no_suite_and_a_folder_of_runs_is(suite: Path) -> None:
    assert runs_in(suite / "heavy") == []
    assert runs_in(suite / "nowhere") == []
    assert [path.name for path in runs_in(suite)] == ["heavy", "light"]


def test_runs_that_are_measured_against_different_policies_are_not_put_together(
    suite: Path, write_run: WriteRun, stories: dict[str, Any]
) -> None:
    write_run(suite / "odd", {"fcfs": stories["fcfs"]}, HEAD)
    with pytest.raises(ResultError, match="runs are measured against fcfs and mars"):
        report_suite(suite, as_json=True, markdown=None)


def test_a_file_that_cannot_be_written_is_named(suite: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*all.md: No such file"):
        report_suite(suite, as_json=True, markdown=suite / "none" / "all.md")
