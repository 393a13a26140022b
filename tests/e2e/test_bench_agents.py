"""`mars bench-agents` as a user runs it, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.clients.conftest import PYTHON

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
ROUNDS = ("fcfs", "fcfs+own", "mars", "mars+own")


def mars(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "mars", *arguments],
        capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip


def test_agents_leave_the_same_repositories_under_every_policy(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ran = mars(
        "bench-agents", "--client", "miniswe", "--policies", "fcfs,mars", "--agents", "2",
        "--tools", "leased,own", "--repeat", "1", "--kv-blocks", "900",
        "--python", str(PYTHON), "--out", str(run),
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = [json.loads(line) for line in (run / "run.jsonl").read_text().splitlines()[1:]]
    left = [
        {e["recorded_id"]: e["answers_sha256"] for e in lines if e.get("policy") == policy
         and e["event"] == "SessionAnswered"}
        for policy in ROUNDS
    ]  # fmt: skip
    assert all(trees == left[0] for trees in left)
    assert len(set(left[0].values())) == 2
    figures = json.loads(mars("report", str(run), "--json").stdout)
    assert set(figures["policies"]) == set(ROUNDS)
    for policy in ROUNDS:
        of = figures["policies"][policy]
        assert of["sessions"] == 2
        seen = 0 if policy.endswith("+own") else of["calls"]
        assert of["tool_calls"] == seen, "every answer is a command"
        assert of["calls_aborted"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--client", "codex"], "--client codex: one of openhands, miniswe"),
        (["--python", "nowhere"], "no agents' environment"),
        (["--policies", "best"], "unknown policy 'best'"),
        (["--tools", "mine"], "--tools mine: leased, own, or leased,own"),
        (["--model", "m", "--kv-blocks", "9", "--python", sys.executable], "--kv-blocks is the"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: list[str], says: str) -> None:
    known = ["--python", str(PYTHON), "--out", str(tmp_path / "run")]
    ran = mars("bench-agents", *known, *arguments)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert says in ran.stderr
