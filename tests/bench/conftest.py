"""Runs made by hand, small enough to be checked with pencil and paper.

A *story* is one round as a list of events that starts at 0 s; `write_run` tells it again for each
repetition, slower by that repetition's factor, and writes a run folder with the real log writer.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mars.bench import record
from mars.core import events as ev
from mars.core.ids import CallId, SessionId, ToolId
from mars.stream.log import LogWriter

A, B = SessionId("a"), SessionId("b")
A1, A2, B1, B2 = CallId("a1"), CallId("a2"), CallId("b1"), CallId("b2")
TA, TB = ToolId("ta"), ToolId("tb")

Story = Sequence[ev.Event]
WriteRun = Callable[..., Path]


def _call(
    session: SessionId, call: CallId, at_s: tuple[float, float, float], tokens: tuple[int, ...]
) -> list[ev.Event]:
    """`at_s` queued, started, served; `tokens` prompt, cached, computed, made."""
    queued_s, started_s, served_s = at_s
    prompt, cached, computed, made = tokens
    of: dict[str, Any] = {"session_id": session, "call_id": call}
    return [
        ev.CallQueued(at_s=queued_s, turn=0, **of),
        ev.CallStarted(at_s=started_s, prompt_tokens=prompt, cached_tokens=cached, **of),
        ev.CallServed(
            at_s=served_s,
            prompt_tokens=prompt,
            cached_tokens=cached,
            computed_tokens=computed,
            made_tokens=made,
            queued_s=started_s - queued_s,
            ok=True,
            **of,
        ),
        ev.CallFinished(at_s=served_s, ok=True, **of),
    ]


def _tool(session: SessionId, tool: ToolId, at_s: tuple[float, float, float]) -> list[ev.Event]:
    """`at_s` queued, started, finished."""
    queued_s, started_s, finished_s = at_s
    return [
        ev.ToolQueued(at_s=queued_s, session_id=session, tool_id=tool, tool="make", cores=1),
        ev.ToolStarted(
            at_s=started_s,
            session_id=session,
            tool_id=tool,
            tool="make",
            cores=(0,),
            wait_s=started_s - queued_s,
        ),
        ev.ToolFinished(
            at_s=finished_s,
            session_id=session,
            tool_id=tool,
            tool="make",
            run_s=finished_s - started_s,
            cpu_s=1.0,
            peak_memory_bytes=1,
            exit_code=0,
        ),
    ]


def _life(session: SessionId, at_s: tuple[float, float, float]) -> list[ev.Event]:
    """`at_s` arrived, admitted, ended."""
    return [
        ev.SessionArrived(at_s=at_s[0], session_id=session),
        ev.SessionAdmitted(at_s=at_s[1], session_id=session, why="room"),
        ev.SessionEnded(at_s=at_s[2], session_id=session, why="done"),
    ]


def _samples(used: Sequence[int], held: int) -> list[ev.Event]:
    found: list[ev.Event] = []
    for second, blocks in enumerate(used):
        found += [
            ev.EngineSampled(
                at_s=second,
                kv_used_blocks=blocks,
                kv_held_blocks=min(held, blocks),
                kv_total_blocks=20,
                block_tokens=16,
                running_calls=1,
                waiting_calls=0,
            ),
            ev.ToolsSampled(at_s=second, running=1, waiting=second % 2, slots=1, wait_s=0.0),
        ]
    return found


FCFS: Story = [
    *_life(A, (0, 0, 10)),
    *_call(A, A1, (0, 1, 4), (100, 0, 110, 11)),
    *_tool(A, TA, (4, 4, 6)),
    *_call(A, A2, (6, 9, 10), (150, 0, 325, 21)),
    ev.CallStarted(at_s=7, session_id=A, call_id=A2, prompt_tokens=150, cached_tokens=0),
    ev.CallPreempted(at_s=8, session_id=A, call_id=A2, lost_tokens=155),
    *_life(B, (2, 2, 16)),
    *_call(B, B1, (2, 5, 8), (200, 64, 136, 1)),
    *_tool(B, TB, (8, 11, 15)),
    ev.CallQueued(at_s=15, session_id=B, call_id=B2, turn=1),
    ev.CallServed(
        at_s=15.5,
        session_id=B,
        call_id=B2,
        prompt_tokens=300,
        cached_tokens=0,
        computed_tokens=0,
        made_tokens=0,
        queued_s=0.5,
        ok=False,
    ),
    ev.CallFinished(at_s=15.5, session_id=B, call_id=B2, ok=False, why="client gone"),
    *_samples([0, 8, 16, 20, 12], held=0),
]
"""a: 10 s = 3 queued + 5 running + 2 tool runs; b: 14 s = 3.5 queued + 3 running + 3 tool waits
+ 4 tool runs + 0.5 client. One preemption, one aborted call."""

MARS: Story = [
    *_life(A, (0, 0, 6.5)),
    *_call(A, A1, (0, 0.5, 2.5), (100, 0, 110, 11)),
    ev.KvHeld(at_s=2.5, session_id=A, kv_tokens=110, keep_s=5, why="short tool"),
    *_tool(A, TA, (2.5, 2.5, 4.5)),
    ev.KvReleased(at_s=4.5, session_id=A, kv_tokens=110, held_s=2, why="returned"),
    *_call(A, A2, (4.5, 4.5, 6.5), (150, 96, 74, 21)),
    *_life(B, (2, 4, 11.5)),
    *_call(B, B1, (4, 5, 7), (200, 64, 136, 1)),
    ev.KvHeld(at_s=7, session_id=B, kv_tokens=200, keep_s=1, why="short tool"),
    *_tool(B, TB, (7, 7.5, 11.5)),
    ev.KvReleased(at_s=8, session_id=B, kv_tokens=200, held_s=1, why="expired"),
    *_samples([0, 6, 14, 16, 10], held=7),
]
"""a: 6.5 s = 0.5 queued + 4 running + 2 tool runs; b: 9.5 s = 2 gated + 1 queued + 2 running
+ 0.5 tool waits + 4 tool runs. Two holds, one of which paid off."""

_GATEWAY = (
    ev.SessionArrived,
    ev.SessionAdmitted,
    ev.CallQueued,
    ev.CallFinished,
    ev.SessionEnded,
)
_DURATIONS = ("queued_s", "wait_s", "run_s", "held_s")


def _told(story: Story, start_s: float, slower: float, repeat: int) -> list[ev.Event]:
    """As a gateway logs it: its own facts first, other processes' facts late."""
    told = []
    for event in sorted(story, key=lambda e: (not isinstance(e, _GATEWAY), e.at_s)):
        changes: dict[str, Any] = {"at_s": start_s + slower * event.at_s}
        for name in _DURATIONS:
            if hasattr(event, name):
                changes[name] = slower * getattr(event, name)
        if hasattr(event, "session_id"):
            changes["session_id"] = f"{event.session_id}#{repeat}"
        told.append(msgspec.structs.replace(event, **changes))
    return told


def _write_run(
    folder: Path,
    stories: Mapping[str, tuple[Story, Sequence[float]]],
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """`stories`: of each policy its story and the factor of each repetition."""
    folder.mkdir()
    told = dict(settings or {"seed": 7})
    run = LogWriter(folder / "run.jsonl", told)
    logs = {policy: LogWriter(folder / f"{policy}.jsonl", told) for policy in stories}
    start_s = 1000.0
    for repeat in range(len(next(iter(stories.values()))[1])):
        for policy, (story, slower) in stories.items():
            of: dict[str, Any] = {"policy": policy, "repeat": repeat}
            run.write(record.RoundStarted(at_s=start_s, sessions=2, **of))
            for event in _told(story, start_s, slower[repeat], repeat):
                logs[policy].write(event)
            for session in (A, B):
                run.write(
                    record.SessionAnswered(
                        at_s=start_s + 90,
                        session_id=SessionId(f"{session}#{repeat}"),
                        recorded_id=session,
                        answer_tokens=1,
                        answers_sha256=f"digest of {session}",
                        **of,
                    )
                )
            run.write(record.RoundEnded(at_s=start_s + 90, **of))
            start_s += 100
    for log in (run, *logs.values()):
        log.close()
    return folder


@pytest.fixture
def write_run() -> WriteRun:
    return _write_run


@pytest.fixture
def stories() -> dict[str, tuple[Story, Sequence[float]]]:
    """Of mars, faster in both repetitions: means 8 and 10 s against 12 and 18 s."""
    return {"fcfs": (FCFS, (1, 1.5)), "mars": (MARS, (1, 1.25))}


@pytest.fixture
def folder(tmp_path: Path, stories: dict[str, tuple[Story, Sequence[float]]]) -> Path:
    return _write_run(tmp_path / "run", stories)
