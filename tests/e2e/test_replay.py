"""`mars replay` and `mars report` as a user runs them, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mars.core import events as ev
from mars.stream.log import read_log

pytestmark = pytest.mark.timeout(500)


def mars(*arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mars", *arguments],
        capture_output=True, text=True, cwd=cwd, check=False, timeout=400,
    )  # fmt: skip


def test_a_replay_ends_in_a_table_a_page_and_figures_for_programs(tmp_path: Path) -> None:
    ran = mars(
        "replay", "coding", "--policies", "fcfs,mars", "--sessions", "3",
        "--load", "1", "--profile", "tiny-cpu", "--tools-factor", "0.5", "--repeat", "2",
        "--out", "run", cwd=tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "run" / "report.html").stat().st_size > 0
    figures = json.loads(mars("report", "run", "--json", cwd=tmp_path).stdout)
    assert set(figures["policies"]) == {"fcfs", "mars"}
    assert figures["policies"]["mars"]["mean_s"] > 0
    ratio = figures["ratio_to_mars"]["fcfs"]["mean"]
    assert ratio["pairs"] == 2
    assert ratio["min"] <= ratio["median"] <= ratio["max"]
    simulated = mars("fidelity", "run", "--profile", "tiny-cpu", cwd=tmp_path)
    assert "mean distance" in simulated.stdout, simulated.stderr
    again = mars("replay", "coding", "--out", "run", cwd=tmp_path)
    assert again.returncode == 2
    assert "already holds a run" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["replay", "coding", "--policies", "fcfs,best"], "unknown policy 'best'; one of: fcfs"),
        (["replay", "coding", "--set", "hold.most=3"], "unknown field `hold`"),
        (["replay", "coding", "--set", "tools.share=0"], "tools.share"),
        (["replay", "coding", "--agents", "2", "--rate", "1"], "exclude each other"),
        (["replay", "coding", "--load", "2"], "--load and --profile go together"),
        (["replay", "coding", "--load", "2", "--rate", "1"], "exclude each other"),
        (["replay", "nowhere.jsonl"], "no trace at nowhere.jsonl; bundled ones: airline, coding"),
        (["replay", "broken.jsonl"], "broken.jsonl:2: "),
        (["report", "nowhere"], "nowhere"),
        (["serve", "model", "--policy", "best"], "unknown policy 'best'"),
        (["serve", "model", "--", "--port", "1"], "mars sets --port itself"),
        (["gateway", "--upstream", "nonsense"], "nonsense"),
        (["exec", "--state", "nowhere.json", "--", "true"], "no tool server is running"),
    ],
)
def test_bad_input_is_named_and_ends_with_2(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    good = '{"request_id":"a","session_id":"s","input_length":9,"output_length":1,"timestamp":0}'
    (tmp_path / "broken.jsonl").write_text(f"{good}\n{good[:-20]}\n")
    ran = mars(*arguments, cwd=tmp_path)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert says in ran.stderr
    assert "Traceback" not in ran.stderr


def test_what_tools_do_to_engine_and_gateway_is_measured(tmp_path: Path) -> None:
    ran = mars("bench-tools", "--rounds", "1", "--per-core", "2", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = [line.split() for line in ran.stdout.splitlines()]
    figures = {
        row[1]: [float(cell) for cell in row[3:9:2]]
        for row in rows
        if row[:1] == ["│"] and row[1] != "│"
    }
    assert list(figures) == ["none", "leased", "free"]
    assert all(step_ms > 0 and call_ms > step_ms for step_ms, call_ms, _ in figures.values())
    events = read_log(next(tmp_path.glob("runs/bench-tools-*/events.jsonl")))[1]
    burnt = [e for e in events if isinstance(e, ev.ToolFinished)]
    assert burnt
    assert {e.why for e in burnt} == {"cancelled"}
