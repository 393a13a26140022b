"""The unmodified mini-swe-agent through gateway, tool server and a real vLLM."""

import json
from pathlib import Path

import pytest
from tests.clients.conftest import Fleet

from mars.bench.forcing import Answer
from mars.core import events as ev

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def runs(command: str) -> Answer:
    return Answer("I run it.", [("bash", {"command": command})])


SUBMIT = runs("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")


async def test_its_own_configuration_puts_calls_in_a_session_and_commands_under_leases(
    fleet: Fleet, tmp_path: Path
) -> None:
    answers = [
        runs("cd / && (echo out; echo err >&2; echo out again) | cat; exit 3"),
        runs("echo started; sleep 600"),
        runs(f"pwd > {tmp_path}/where; taskset -cp $$"),
        SUBMIT,
    ]
    async with fleet.forcing({"Do as told.": answers}) as url:
        own = {
            "model": {
                "model_class": "mars.clients.miniswe.SessionModel",
                "model_name": f"openai/{fleet.served.model}",
                "model_kwargs": {"api_base": url, "api_key": "none"},
                "session_id": "mini",
                "cost_tracking": "ignore_errors",
            },
            "environment": {
                "environment_class": "mars.clients.miniswe.LeasedEnvironment",
                "cwd": str(tmp_path),
                "timeout": 2,
            },
        }
        (tmp_path / "own.yaml").write_text(json.dumps(own))  # JSON is YAML
        solve = str(Path(__file__).with_name("solve.py"))
        ran = await fleet.python(solve, "own.yaml", "Do as told.", cwd=tmp_path)
    assert (ran.code, ran.said) == (0, "Submitted\n"), ran.complained
    [arrived] = fleet.of(ev.SessionArrived, "mini")
    assert arrived.rule == "header x-session-id"
    finished = fleet.of(ev.ToolFinished, "mini")
    assert [(e.tool, e.why) for e in finished] == [
        ("echo", "ended"),
        ("echo", "timeout"),
        ("pwd", "ended"),
        ("echo", "ended"),
    ]
    assert finished[0].exit_code == 3
    assert (tmp_path / "where").read_text() == f"{tmp_path}\n"
    assert len(fleet.of(ev.CallServed, "mini")) == len(answers)


async def test_the_command_works_on_tasks(fleet: Fleet, tmp_path: Path) -> None:
    task = {"task": "Write a greeting.", "workspace": str(tmp_path)}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task))
    answers = [runs("echo hello > greeting"), SUBMIT]
    async with fleet.forcing({task["task"]: answers}) as url:
        ran = await fleet.python(
            "-m", "mars", "miniswe", "tasks.jsonl", "--base-url", url,
            "--model", fleet.served.model, cwd=tmp_path,
        )  # fmt: skip
    assert ran.code == 0, ran.complained
    done = json.loads(ran.said)
    assert done["status"] == "finished"
    assert (tmp_path / "greeting").read_text() == "hello\n"
    ended = fleet.of(ev.SessionEnded, done["conversation_id"])
    assert [e.why for e in ended] == ["ended by request"]
