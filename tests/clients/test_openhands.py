"""The unmodified OpenHands SDK through gateway, tool server and a real vLLM."""

import json
import time
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from tests.clients.conftest import Fleet

from mars.bench.forcing import Answer
from mars.bench.tiny import BLOCK_TOKENS
from mars.core import events as ev
from mars.core.context import Context

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


async def test_a_condensed_conversation_is_the_same_session_with_a_shorter_context(
    fleet: Fleet, tmp_path: Path
) -> None:
    counts = [Answer("I count.", [types(f"seq {n} 300")]) for n in range(5)]
    answers = {
        "Count it.": counts,
        "Now summarize the events": [Answer("Up to here everything was counted.")],
        "everything was counted": [counts[-1], Answer("Again.", [types("seq 1 9")]), FINISH],
    }
    async with fleet.forcing(answers) as url:
        ran = await fleet.python(CONVERSE, url, fleet.served.model, "Count it.", "10", cwd=tmp_path)
    assert ran.code == 0, ran.complained
    session = ran.said.split()[-1]
    assert len(fleet.of(ev.SessionArrived, session)) == 1
    *_, longest, summary, condensed, last = calls = fleet.of(ev.CallServed, session)
    assert len(calls) == 5 + 1 + 2
    assert summary.prompt_tokens < condensed.prompt_tokens < longest.prompt_tokens
    # what the condensed one begins with is there, and that is all that it has in common
    assert abs(condensed.cached_tokens - calls[0].prompt_tokens) < 2 * BLOCK_TOKENS
    context, foreseen = Context(), []
    for call in calls:
        context.served(call)
        foreseen.append(context.tokens)
    assert foreseen == [
        *(call.prompt_tokens + call.made_tokens for call in calls[:5]),
        longest.prompt_tokens + longest.made_tokens,
        condensed.prompt_tokens + condensed.made_tokens,
        last.prompt_tokens + last.made_tokens,
    ]
    assert last.cached_tokens > foreseen[-2] - 2 * BLOCK_TOKENS
    end_s = time.monotonic() + 10
    while foreseen[-1] not in contexts(fleet, session):
        assert time.monotonic() < end_s, "the gateway says something else"


def contexts(fleet: Fleet, session: str) -> list[int]:
    rows = httpx.get(f"{fleet.served.root}/mars/sessions").json()
    return [row["context_tokens"] for row in rows if row["session_id"] == session]


async def test_parallel_calls_have_a_lease_each_and_all_end(fleet: Fleet, tmp_path: Path) -> None:
    def meets(mine: str, other: str) -> str:
        """Ends well only if both run at once."""
        wait = f"until [ -e {tmp_path}/{other} ]; do sleep 0.1; done"
        return f"touch {tmp_path}/{mine}; timeout 60 sh -c '{wait}'"

    def delegates(prompt: str) -> tuple[str, dict[str, object]]:
        return ("task", {"prompt": prompt, "subagent_type": "bash-runner"})

    answers = {
        "Do all at once.": [
            Answer(
                "Four things at once.",
                [types("echo 1"), delegates("Meet Bob."), delegates("Meet Ann."), types("false")],
            ),
            FINISH,
        ],
        "Meet Bob.": [Answer("I meet Bob.", [types(meets("ann", "bob"))]), FINISH],
        "Meet Ann.": [Answer("I meet Ann.", [types(meets("bob", "ann"))]), FINISH],
    }
    async with fleet.forcing(answers) as url:
        ran = await fleet.python(CONVERSE, url, fleet.served.model, "Do all at once.", cwd=tmp_path)
    assert ran.code == 0, ran.complained
    parent = ran.said.split()[-1]
    arrivals = [e for e in fleet.served.events() if isinstance(e, ev.SessionArrived)]
    children = [e.session_id for e in arrivals if e.parent_id == parent]
    assert len(children) == 2
    ended = {s: fleet.of(ev.ToolFinished, s) for s in (parent, *children)}
    assert sorted((e.tool, e.exit_code) for e in ended[parent]) == [("echo", 0), ("false", 1)]
    assert [[(e.tool, e.exit_code) for e in ended[child]] for child in children] == [
        [("touch", 0)],
        [("touch", 0)],
    ]
    for session, over in ended.items():
        began = fleet.of(ev.ToolStarted, session)
        assert sorted(e.tool_id for e in began) == sorted(e.tool_id for e in over)
        assert {e.cores for e in fleet.of(ev.ToolQueued, session)} == {1}
    end_s = time.monotonic() + 10
    while fleet.last(ev.ToolsSampled).running:
        assert time.monotonic() < end_s, "a lease is not back"
