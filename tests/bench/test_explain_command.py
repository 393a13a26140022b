import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from tests.bench.conftest import MARS

from mars.cli import main
from mars.stream.log import LogWriter

Mars = Callable[..., str]


@pytest.fixture
def mars(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Mars:
    """Runs a command: what it printed, or (it failed) its exit code and what it said."""

    def run(*argv: object) -> str:
        monkeypatch.setattr(sys, "argv", ["mars", *map(str, argv)])
        try:
            main()
        except SystemExit as ended:
            return f"exit {ended.code}: {capfd.readouterr().err}"
        return capfd.readouterr().out

    return run


@pytest.fixture
def simulated(mars: Mars, tmp_path: Path) -> Path:
    """12 sessions at twice the knee under mars, as `mars simulate` logs them."""
    path = tmp_path / "events.jsonl"
    mars(
        "simulate", "--profile", "h100-nvl/qwen3-coder-30b", "--workload", "swe",
        "--sessions", 12, "--rho", 2, "--events", path,
    )  # fmt: skip
    return path


def test_a_simulated_run_from_its_list_to_a_life(mars: Mars, simulated: Path) -> None:
    listed = json.loads(mars("explain", simulated, "--json"))
    assert len(listed) == 12
    assert [of["total_s"] for of in listed] == sorted(
        (of["total_s"] for of in listed), reverse=True
    )
    assert {of["policy"] for of in listed} == {"mars"}
    slowest = listed[0]["session_id"]
    rows = [line.split() for line in mars("explain", simulated).splitlines()]
    assert [row[0] for row in rows if row and row[0].startswith("swe-")] == [
        of["session_id"] for of in listed
    ]
    assert "12 sessions under mars" in mars("explain", simulated)
    printed = mars("explain", simulated, slowest)
    assert f"session {slowest}\npolicy mars; " in printed
    assert "on the GPU (prefill, decode)" in printed
    assert "Folded: --all" in printed
    told = json.loads(mars("explain", simulated, slowest, "--json"))
    assert sum(of["total_s"] for of in told["phases"]) == pytest.approx(listed[0]["total_s"])
    assert len(told["lines"]) > 60, "JSON is not folded"
    times = re.findall(
        r"^ +(\d+\.\d{3}) ", mars("explain", simulated, slowest, "--all"), re.MULTILINE
    )
    assert [float(at_s) for at_s in times] == [
        pytest.approx(line["at_s"], abs=0.001) for line in told["lines"]
    ]


def test_a_part_of_it(mars: Mars, simulated: Path) -> None:
    (whole, last, around) = (
        json.loads(mars("explain", simulated, "swe-3", "--json", *options))["lines"]
        for options in ((), ("--last", 3), ("--around", 0))
    )
    assert last == whole[-3:]
    assert around == whole[:10]


def test_the_folder_of_a_service_is_its_log(mars: Mars, simulated: Path) -> None:
    assert mars("explain", simulated.parent) == mars("explain", simulated)


def test_a_replay_has_several_rounds(mars: Mars, folder: Path) -> None:
    listed = json.loads(mars("explain", folder, "--json"))
    assert len(listed) == 8
    assert len(json.loads(mars("explain", folder, "--json", "--policy", "mars"))) == 4
    told = json.loads(mars("explain", folder, "b", "--policy", "mars", "--repeat", 1, "--json"))
    assert (told["session_id"], told["policy"], told["repeat"]) == ("b#1", "mars", 1)
    assert told["total_s"] == pytest.approx(9.5 * 1.25)
    assert told["arrived_s"] == pytest.approx(2 * 1.25)


def test_a_beginning_is_enough_and_an_id_goes_before_it(
    mars: Mars, folder: Path, simulated: Path
) -> None:
    assert "session b#1\n" in mars("explain", folder, "b#", "--policy", "mars", "--repeat", 1)
    assert "session swe-1\n" in mars("explain", simulated, "swe-1")  # swe-10 begins with it
    assert "session swe-10\n" in mars("explain", simulated, "swe-10")


def test_one_log_of_a_replay_that_did_not_end(mars: Mars, folder: Path) -> None:
    run = folder / "run.jsonl"
    lines = run.read_text().splitlines(keepends=True)
    run.write_text("".join(line for line in lines if "RoundEnded" not in line))
    said = mars("explain", folder)
    assert said.startswith("exit 2:")
    assert f"one policy's log can be explained alone: {folder}/POLICY.jsonl" in said
    assert "session b#1\n" in mars("explain", folder / "mars.jsonl", "b#1")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["b#1"], "session b#1 is in several rounds, name one: --policy fcfs --repeat 1 and "),
        (["b"], "'b' may be any of b#0 and b#1: give more of the id"),
        (["c#1"], "no session 'c#1' among 4; close to it: "),
        (["--policy", "mras"], "has no such round; it has --policy fcfs --repeat 0, "),
        (["--repeat", "2"], "has no such round"),
        (["b#1", "--policy", "mars", "--stay", "2"], "--stay 2: session b#1 came 1 time"),
        (["b#1", "--last", "2", "--around", "3"], "--around (a time of its life) and --last"),
        (["--last", "2"], "name it after RUN"),
    ],
)
def test_what_cannot_be_told_is_named(
    mars: Mars, folder: Path, options: list[str], says: str
) -> None:
    said = mars("explain", folder, *options)
    assert said.startswith("exit 2:")
    assert says in said


def test_no_log_is_named(mars: Mars, tmp_path: Path) -> None:
    assert "has no event log: neither events.jsonl" in mars("explain", tmp_path)
    assert "no event log at" in mars("explain", tmp_path / "nothing.jsonl")
    LogWriter(tmp_path / "empty.jsonl", {}).close()
    assert "has no events" in mars("explain", tmp_path / "empty.jsonl")


def test_the_last_stay_is_told_unless_another_is_named(mars: Mars, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogWriter(path, {})
    for start_s in (0.0, 100.0):
        for event in sorted(MARS, key=lambda event: event.at_s):
            log.write(msgspec.structs.replace(event, at_s=start_s + event.at_s))
    log.close()
    assert "this id came 2 times: this is --stay 2" in mars("explain", path, "a")
    told = json.loads(mars("explain", path, "a", "--stay", 1, "--json"))
    assert (told["stay"], told["arrived_s"]) == (1, 0)
