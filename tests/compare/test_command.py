import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from tests.compare.grids import TEXT, grid_file

from mars.cli import main
from mars.compare.row import Row
from mars.compare.store import read_rows
from mars.core import events as ev
from mars.stream.log import read_log
from mars.workload.trace import Recorded, Turn, write_trace

SIMULATE = (
    "simulate", "--profile", "h100-nvl/qwen3-coder-30b", "--workload", "terminal",
    "--sessions", "5",
)  # fmt: skip


@pytest.fixture
def mars(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command: what it printed, or (it failed) its exit code and what it said."""

    def run(*argv: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mars", *map(str, argv)])
        monkeypatch.setenv("COLUMNS", "120")
        try:
            main()
        except SystemExit as ended:
            return f"exit {ended.code}: {capfd.readouterr().err}"
        return capfd.readouterr().out

    return run


Mars = Callable[..., str]

# -- simulate -------------------------------------------------------------------------------------


def test_a_column_for_each_policy_and_the_bounds_beside(mars: Mars) -> None:
    printed = mars(*SIMULATE, "--policy", "fcfs,mars", "--rate", "0.05")
    head = next(line for line in printed.splitlines() if "bounds" in line)
    assert head.split() == ["fcfs", "mars", "bounds"]
    mean = next(line for line in printed.splitlines() if "session time, mean" in line)
    fcfs_s, mars_s, clairvoyant_s = map(float, mean.split()[4:])
    assert 0 < clairvoyant_s <= min(fcfs_s, mars_s)
    carried = {line.split()[-1] for line in printed.splitlines() if "can carry" in line}
    assert len(carried) == 2
    assert all(float(bound) > 0 for bound in carried)
    assert "5 sessions, 3.00 per min (rho " in printed.replace("\n", " ")


def test_json_is_a_row_a_line(mars: Mars) -> None:
    lines = mars(*SIMULATE, "--policy", "fcfs,mars", "--rho", "0.7", "--json").splitlines()
    fcfs, ours = (msgspec.json.decode(line, type=Row) for line in lines)
    assert (fcfs.policy, ours.policy) == ("fcfs", "mars")
    assert fcfs.rho == ours.rho == 0.7
    assert fcfs.rate_per_s == ours.rate_per_s
    assert fcfs.sessions == 5


def test_the_log_tells_of_the_same_run(mars: Mars, tmp_path: Path) -> None:
    row = json.loads(mars(*SIMULATE, "--json", "--events", tmp_path / "e.jsonl"))
    head, events = read_log(tmp_path / "e.jsonl")
    assert head.settings["scheduling"]["policy"] == "mars"
    told = list(events)
    arrived = {e.session_id: e.at_s for e in told if isinstance(e, ev.SessionArrived)}
    times_s = [e.at_s - arrived[e.session_id] for e in told if isinstance(e, ev.SessionEnded)]
    assert len(times_s) == 5
    assert sum(times_s) / 5 == pytest.approx(row["mean_s"])


def test_settings_reach_the_policy(mars: Mars) -> None:
    crowded = (*SIMULATE, "--json", "--rate", "5", "--policy", "mars")
    plain = json.loads(mars(*crowded))
    narrowed = json.loads(mars(*crowded, "--set", "scheduling.residency.overcommit=0.01"))
    assert narrowed["gate_wait_mean_s"] > plain["gate_wait_mean_s"]


def test_a_workload_is_a_file_too(mars: Mars, tmp_path: Path) -> None:
    (tmp_path / "slow.toml").write_text(
        'kind = "synthetic"\nclass = "terminal"\ntools_mean_s = 60\n'
    )
    write_trace(
        tmp_path / "t.jsonl",
        [Recorded(session_id="a", turns=(Turn(new_tokens=50, output_tokens=5),))],
    )
    plain = json.loads(mars(*SIMULATE, "--json"))
    slow = json.loads(mars(*SIMULATE, "--json", "--workload", tmp_path / "slow.toml"))
    assert slow["workload"] == "slow"
    assert slow["isolated_mean_s"] > plain["isolated_mean_s"]
    trace = json.loads(mars(*SIMULATE, "--json", "--workload", tmp_path / "t.jsonl"))
    assert trace["workload"] == "t"
    assert trace["isolated_mean_s"] < 1.0
    assert trace["tool_run_mean_s"] is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--profile", "b300/qwen3-coder-30b"], "GPU 'b300'"),
        (["--profile", "h100-nvl/llama"], "model 'llama'"),
        (["--workload", "sve"], "--workload: 'sve' is no class of sessions (swe, "),
        (["--policy", "fcfs,mras"], "--policy: unknown policy 'mras'"),
        (["--tool-cores", "0"], "'--tool-cores'"),
        (["--rate", "-1"], "'--rate'"),
        (["--rate", "inf"], "rate_per_s is inf"),
        (["--rho", "0"], "'--rho'"),
        (["--rho", "-2"], "'--rho'"),
        (["--rho", "nan"], "nan"),
        (["--rho", "1", "--rate", "1"], "--rho (load over the knee) and --rate"),
        (["--sessions", "0"], "'--sessions'"),
        (["--seed", "-1"], "'--seed'"),
        (["--set", "scheduling.window.shrink=2"], "window.shrink"),
        (["--set", "tools.share=2"], "--set tools.share=2: write it as"),
        (["--policy", "fcfs,mars", "--events", "e.jsonl"], "--events: a log is of one policy"),
        (["--events", "/nowhere/e.jsonl"], "--events /nowhere/e.jsonl: No such file"),
    ],
)
def test_what_is_impossible_is_named(mars: Mars, options: list[str], says: str) -> None:
    said = mars(*SIMULATE, *options)
    assert said.startswith("exit 2:")
    assert says in said


def test_a_session_larger_than_the_kv_is_named(mars: Mars, tmp_path: Path) -> None:
    long = Recorded(session_id="long", turns=(Turn(new_tokens=300_000, output_tokens=5),))
    write_trace(tmp_path / "t.jsonl", [long])
    said = mars(*SIMULATE, "--workload", tmp_path / "t.jsonl")
    assert said.startswith("exit 2:")
    assert "session long has 300005 tokens, and the KV" in said


# -- compare --------------------------------------------------------------------------------------


def test_a_grid_says_where_its_rows_are(mars: Mars, tmp_path: Path) -> None:
    printed = mars("compare", grid_file(tmp_path), "--out", tmp_path / "run", "--jobs", 2)
    assert f"rows: {tmp_path / 'run' / 'rows.parquet'}" in printed
    assert len(read_rows(tmp_path / "run")) == 8


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ("h100-nvl/", "h100/", "GPU 'h100'"),
        ("sessions = 6", "sessions = -6", "sessions"),
        ('"mars"]', '"mras"]', "unknown policy 'mras'"),
        ('"synthetic"\nclass = "terminal"', '"trace"\npath = "none.jsonl"', "no trace at none"),
    ],
)
def test_a_wrong_grid_is_named_before_it_has_a_folder(
    mars: Mars, tmp_path: Path, was: str, now: str, says: str
) -> None:
    assert was in TEXT
    said = mars("compare", grid_file(tmp_path, TEXT.replace(was, now)), "--out", tmp_path / "run")
    assert said.startswith("exit 2:")
    assert says in said
    assert not (tmp_path / "run").exists()


LONG = TEXT.replace("sessions = 6", "sessions = 40")


@pytest.fixture
def under_way(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A grid of which some rows are there, in a process group of its own."""
    options = ["--out", str(tmp_path / "run"), "--jobs", "2"]
    # What a shell runs in the background ignores Ctrl-C, and so would its children.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "mars", "compare", str(grid_file(tmp_path, LONG)), *options],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    signal.signal(signal.SIGINT, ours)
    journal = tmp_path / "run" / "rows.jsonl"
    try:
        until(lambda: journal.is_file() and journal.read_bytes().count(b"\n") >= 2)
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        time.sleep(0.002)


def figures(folder: Path) -> list[Row]:
    return [msgspec.structs.replace(row, wall_s=0.0) for row in read_rows(folder)]


def test_a_killed_grid_goes_on_where_it_was(
    under_way: subprocess.Popen[bytes], mars: Mars, tmp_path: Path
) -> None:
    os.killpg(under_way.pid, signal.SIGKILL)
    under_way.wait()
    before = read_rows(tmp_path / "run")
    assert 2 <= len(before) < 8, "it was to be killed in the middle"
    config = grid_file(tmp_path, LONG)
    mars("compare", config, "--out", tmp_path / "run", "--jobs", 1)
    mars("compare", config, "--out", tmp_path / "unbroken", "--jobs", 1)
    assert figures(tmp_path / "run") == figures(tmp_path / "unbroken")
    wall_s = {row.key: row.wall_s for row in read_rows(tmp_path / "run")}
    assert all(wall_s[row.key] == row.wall_s for row in before), "they were not run again"


def test_no_process_outlives_a_killed_parent(under_way: subprocess.Popen[bytes]) -> None:
    lanes = psutil.Process(under_way.pid).children(recursive=True)
    assert len(lanes) >= 2
    under_way.kill()
    under_way.wait()
    until(lambda: not any(lane.is_running() for lane in lanes))


def test_ctrl_c_ends_it_cleanly(under_way: subprocess.Popen[bytes], tmp_path: Path) -> None:
    lanes = psutil.Process(under_way.pid).children(recursive=True)
    os.killpg(under_way.pid, signal.SIGINT)
    out, err = under_way.communicate(timeout=60)
    assert under_way.returncode == 130
    assert "of 8 rows are in" in out.decode()
    assert "Traceback" not in err.decode()
    until(lambda: not any(lane.is_running() for lane in lanes))
    assert len(read_rows(tmp_path / "run")) >= 2
