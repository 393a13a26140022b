"""`mars replay`: the same recorded sessions under several policies, interleaved in one run.

Each policy has an engine of its own, all started alike and all alive during the whole run; rounds
go A B C, C B A, A B C ... (so that drift falls on everybody), one at a time: the others idle.
Before each round its engine answers one call that no figure counts (an engine that has idled while
others ran is slower at first) and its prefix cache is emptied. `restart` starts an engine for each
round instead, where several do not fit on one machine.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from mars.bench import record
from mars.bench.arrivals import Load
from mars.bench.drive import Agent, Answered
from mars.config import Settings, as_dict
from mars.core.errors import InputError, MarsError, PartDiedError, ResultError
from mars.core.ids import SessionId
from mars.serve.stack import Stack, StackOptions, running_stack
from mars.stream.log import LogWriter
from mars.tools.client import ToolClient
from mars.workload.trace import Recorded


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    trace: Path
    sessions: Sequence[Recorded]
    policies: Sequence[str]
    repeat: int
    load: Load
    settings: Settings
    model: str
    folder: Path
    vllm_args: Sequence[str] = ()
    engine_env: dict[str, str] = field(default_factory=dict)
    restart: bool = False


class Watcher:
    """What a replay tells while it runs; the CLI draws it."""

    def say(self, text: str) -> None: ...
    def round_started(self, policy: str, repeat: int, sessions: int) -> None: ...
    def session_done(self, policy: str, took_s: float) -> None: ...


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
    if (options.folder / "run.jsonl").exists():
        raise InputError(f"{options.folder} already holds a run: choose another --out")
    options.folder.mkdir(parents=True, exist_ok=True)
    log = LogWriter(options.folder / "run.jsonl", _head(options))
    answers = Answers()
    try:
        async with contextlib.AsyncExitStack() as alive:
            stacks: dict[str, Stack] = {}
            if not options.restart:
                stacks = await _start_all(options, alive, watcher)
            for repeat in range(options.repeat):
                order = options.policies if repeat % 2 == 0 else options.policies[::-1]
                for policy in order:
                    async with _stack(options, policy, repeat, stacks, watcher) as stack:
                        await _round(
                            options=options,
                            policy=policy,
                            repeat=repeat,
                            stack=stack,
                            log=log,
                            answers=answers,
                            watcher=watcher,
                        )
    finally:
        log.close()


async def _start_all(
    options: ReplayOptions, alive: contextlib.AsyncExitStack, watcher: Watcher
) -> dict[str, Stack]:
    """All engines at once: a start is mostly waiting."""
    contexts = {p: running_stack(_stack_options(options, p), watcher.say) for p in options.policies}
    opened = await asyncio.gather(
        *(alive.enter_async_context(context) for context in contexts.values()),
        return_exceptions=True,
    )
    for result in opened:
        if isinstance(result, BaseException):
            raise result
    stacks = dict(zip(contexts, opened, strict=True))
    return {policy: stack for policy, stack in stacks.items() if isinstance(stack, Stack)}


@asynccontextmanager
async def _stack(
    options: ReplayOptions, policy: str, repeat: int, stacks: dict[str, Stack], watcher: Watcher
) -> AsyncIterator[Stack]:
    if policy in stacks:
        yield stacks[policy]
        return
    once = _stack_options(options, policy, f"-{repeat}")
    async with running_stack(once, watcher.say) as stack:
        yield stack


def _stack_options(options: ReplayOptions, policy: str, suffix: str = "") -> StackOptions:
    scheduling = msgspec.structs.replace(options.settings.scheduling, policy=policy)
    return StackOptions(
        model=options.model,
        settings=msgspec.structs.replace(options.settings, scheduling=scheduling),
        folder=options.folder / f"{policy}{suffix}",
        events=options.folder / f"{policy}{suffix}.jsonl",
        port=0,
        vllm_args=options.vllm_args,
        # vLLM's own switch for POST /reset_prefix_cache
        engine_env={"VLLM_SERVER_DEV_MODE": "1", **options.engine_env},
    )


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
        await _warm_up(agent, options.sessions[0], repeat)
        await _drained(http, stack)
        await _empty_cache(http, stack)
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

        await _while_alive(stack, options.load.run(options.sessions, play))
        await _drained(http, stack)
        log.write(record.RoundEnded(at_s=time.monotonic(), **who))
        log.flush()


async def _while_alive(stack: Stack, work: Any) -> None:
    """Do the work; a part that ends in the meantime ends the work and is what the error names."""
    watch = asyncio.ensure_future(stack.parts.watch())
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({watch, working}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
        if (error := None if working.cancelled() else working.exception()) is not None:
            await asyncio.wait({watch}, timeout=1.0)  # did a part die under it?
            if watch.done():
                watch.result()
            raise first_of(error)
        if watch.done():
            watch.result()
    finally:
        watch.cancel()


def first_of(error: BaseException) -> BaseException:
    """Of a group of errors the first of ours."""
    while isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(MarsError)
        error = (ours or error).exceptions[0]
    return error


async def _warm_up(agent: Agent, like: Recorded, repeat: int) -> None:
    first = msgspec.structs.replace(like.turns[0], tools=(), think_s=0.0)
    await agent.play(Recorded(session_id="", turns=(first,)), SessionId(f"warm-up#{repeat}"))


async def _empty_cache(http: aiohttp.ClientSession, stack: Stack) -> None:
    async with http.post(f"{stack.engine_url}/reset_prefix_cache") as response:
        if response.status != 200:  # noqa: PLR2004
            raise PartDiedError(f"the engine did not empty its cache: HTTP {response.status}")


async def _drained(http: aiohttp.ClientSession, stack: Stack) -> None:
    """The gateway stamps a session's end after its client has the last byte: wait for the stamp."""
    async with asyncio.timeout(10.0):
        while True:
            async with http.get(f"{stack.gateway_url}/mars/status") as response:
                status: dict[str, Any] = await response.json()
            if status["sessions"] == 0:
                return
            await asyncio.sleep(0.01)


def _head(options: ReplayOptions) -> dict[str, Any]:
    return {
        "trace": options.trace.name,
        "sessions": len(options.sessions),
        "turns": sum(len(s.turns) for s in options.sessions),
        "policies": list(options.policies),
        "repeat": options.repeat,
        "load": options.load.describe(),
        "model": Path(options.model).name,
        "vllm_args": list(options.vllm_args),
        "restart": options.restart,
        "settings": as_dict(options.settings),
    }
