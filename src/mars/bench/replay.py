"""`mars replay`: the same recorded sessions under several policies, interleaved in one run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from mars.bench import record
from mars.bench.arrivals import Load
from mars.bench.drive import Agent, Answered
from mars.bench.interleave import Plan, Watcher, drained, interleaved, start_alike, while_alive
from mars.core.errors import ResultError
from mars.core.ids import SessionId
from mars.serve.stack import Stack
from mars.stream.log import LogWriter
from mars.tools.client import ToolClient
from mars.workload.trace import Recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions(Plan):
    trace: Path
    sessions: Sequence[Recorded]
    """As they are played: `tools_factor` is in their tools already."""
    tools_factor: float = 1.0
    load: Load


class Answers:
    """Greedy answers must not depend on the policy, nor on the repetition."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, Answered]] = {}

    def check(self, policy: str, recorded_id: str, answered: Answered) -> None:
        first_policy, first = self._first.setdefault(recorded_id, (policy, answered))
        if (first.tokens, first.sha256) != (answered.tokens, answered.sha256):
            raise ResultError(
                f"session {recorded_id}: its answers under {policy} differ from those under "
                f"{first_policy}: the run is not valid"
            )


async def replay(options: ReplayOptions, watcher: Watcher) -> None:
    """Run it all and leave a run folder (mars.bench.record).

    Raises InputError, PartDiedError (a server failed), ResultError (answers differ).
    """
    options.make_folder()
    log = LogWriter(options.folder / "run.jsonl", _head(options))
    answers = Answers()

    async def play(stack: Stack, policy: str, repeat: int) -> None:
        await _round(
            options=options,
            policy=policy,
            repeat=repeat,
            stack=stack,
            log=log,
            answers=answers,
            watcher=watcher,
        )

    try:
        await interleaved(options, watcher, play)
    finally:
        log.close()


async def _round(
    *,
    options: ReplayOptions,
    policy: str,
    repeat: int,
    stack: Stack,
    log: LogWriter,
    answers: Answers,
    watcher: Watcher,
) -> None:
    who: dict[str, Any] = {"policy": policy, "repeat": repeat}
    timeout = aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http,
        ToolClient(stack.tools_url, stack.tools_token) as tools,
    ):
        agent = Agent(http, tools, stack.base_url, options.model)
        await start_alike(stack, options.model, options.sessions[0].turns[0], repeat)
        watcher.round_started(policy, repeat, len(options.sessions))
        log.write(record.RoundStarted(at_s=time.monotonic(), sessions=len(options.sessions), **who))

        async def play(recorded: Recorded) -> None:
            start_s = time.monotonic()
            session_id = SessionId(f"{recorded.session_id}#{repeat}")
            answered = await agent.play(recorded, session_id)
            answers.check(policy, recorded.session_id, answered)
            log.write(
                record.SessionAnswered(
                    at_s=time.monotonic(),
                    session_id=session_id,
                    recorded_id=recorded.session_id,
                    answer_tokens=answered.tokens,
                    answers_sha256=answered.sha256,
                    **who,
                )
            )
            watcher.session_done(policy, time.monotonic() - start_s)

        await while_alive(stack, options.load.run(options.sessions, play))
        await drained(stack)
        log.write(record.RoundEnded(at_s=time.monotonic(), **who))
        log.flush()


def _head(options: ReplayOptions) -> dict[str, Any]:
    return {
        "trace": options.trace.name,
        "sessions": len(options.sessions),
        "turns": sum(len(s.turns) for s in options.sessions),
        "tools_factor": options.tools_factor,
        "load": options.load.describe(),
        **options.head(),
    }
