"""The unmodified OpenHands SDK through gateway, tool server and a real vLLM."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from tests.clients.conftest import Fleet

from mars.bench.forcing import Answer
from mars.bench.tiny import BLOCK_TOKENS
from mars.core import events as ev

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def types(command: str, **more: object) -> tuple[str, dict[str, object]]:
    return ("terminal", {"command": command, **more})


FINISH = Answer("All is done.", [("finish", {"message": "done"})])
CONVERSE = str(Path(__file__).with_name("converse.py"))


async def test_tasks_are_worked_on_under_leases_in_sessions_that_nobody_named(
    fleet: Fleet, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    task = {"task": "Write a greeting.", "workspace": str(tmp_path / "work")}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task))
    answers = [
        Answer("I look around, " * 60 + "and stop.", [types("cd / && ls -a | head -3")]),
        Answer("I write it.", [types(f"cat > {tmp_path}/work/greeting <<'X'\nhello\nX")]),
        Answer("I look at it.", [types("false")]),
        FINISH,
    ]
    async with fleet.forcing({task["task"]: answers}) as url:
        ran = await fleet.python(
            "-m", "mars", "openhands", "tasks.jsonl", "--base-url", url,
            "--model", fleet.served.model, cwd=tmp_path,
        )  # fmt: skip
    assert ran.code == 0, ran.complained
    done = json.loads(ran.said)
    assert done["status"] == "finished"
    assert (tmp_path / "work" / "greeting").read_text() == "hello\n"
    session = done["conversation_id"]
    [arrived] = fleet.of(ev.SessionArrived, session)
    assert arrived.rule == "header x-litellm-session-id"
    assert [e.why for e in fleet.of(ev.SessionEnded, session)] == ["ended by request"]
    tools = [(e.tool, e.exit_code) for e in fleet.of(ev.ToolFinished, session)]
    assert tools == [("ls", 0), ("cat", 0), ("false", 1)]
    calls = fleet.of(ev.CallServed, session)
    assert len(calls) == len(answers)
    for before, after in pairwise(calls):  # the next turn finds the answer as the model made it
        kv_tokens = before.prompt_tokens + before.made_tokens - 1
        assert after.cached_tokens > kv_tokens - 2 * BLOCK_TOKENS
    assert calls[0].made_tokens > 4 * BLOCK_TOKENS


async def test_a_command_that_is_given_up_waiting_for_keeps_its_lease(
    fleet: Fleet, tmp_path: Path
) -> None:
    answers = [
        Answer("This takes a while.", [types("sleep 4; echo over")]),
        Answer("I wait.", [types("", is_input=True, timeout=30)]),
        FINISH,
    ]
    async with fleet.forcing({"Be patient.": answers}) as url:
        ran = await fleet.python(CONVERSE, url, fleet.served.model, "Be patient.", cwd=tmp_path)
    assert ran.code == 0, ran.complained
    session = ran.said.split()[-1]
    assert [e.exit_code for e in fleet.of(ev.ToolFinished, session)] == [-1, 0]
    given_up, _ = fleet.of(ev.ToolFinished, session)
    started, joined = fleet.of(ev.ToolStarted, session)
    assert joined.cores == started.cores
    assert joined.wait_s == 0
    between = [
        event.running
        for event in fleet.served.events()
        if isinstance(event, ev.ToolsSampled) and given_up.at_s < event.at_s < joined.at_s
    ]
    assert 0 not in between, "nobody else could have had the core"


async def test_a_sub_agent_is_a_child_with_leases_of_its_own(fleet: Fleet, tmp_path: Path) -> None:
    answers = {
        "Delegate it.": [
            Answer(
                "Somebody else can do that.",
                [("task", {"prompt": "List the files.", "subagent_type": "bash-runner"})],
            ),
            FINISH,
        ],
        "List the files.": [Answer("I list them.", [types("ls")]), FINISH],
    }
    async with fleet.forcing(answers) as url:
        ran = await fleet.python(CONVERSE, url, fleet.served.model, "Delegate it.", cwd=tmp_path)
    assert ran.code == 0, ran.complained
    parent = ran.said.split()[-1]
    arrivals = [e for e in fleet.served.events() if isinstance(e, ev.SessionArrived)]
    [child] = [e.session_id for e in arrivals if e.parent_id == parent]
    assert [e.tool for e in fleet.of(ev.ToolFinished, child)] == ["ls"]
    assert fleet.of(ev.ToolFinished, parent) == []
