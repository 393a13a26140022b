"""Rounds of several policies, interleaved in one run, each policy on a real stack of its own.

All engines are started alike and alive during the whole run; rounds take turns (mars.bench.turns),
so that drift falls on everybody, one at a time: the others idle. `restart` starts an engine for
each round instead, where several do not fit on one machine.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from mars.bench.drive import Agent
from mars.bench.made_by import made_by
from mars.bench.turns import in_turn
from mars.config import Settings, as_dict
from mars.core.errors import InputError, MarsError, PartDiedError
from mars.core.ids import SessionId
from mars.serve.stack import Stack, StackOptions, running_stack
from mars.tools.client import ToolClient
from mars.workload.trace import Recorded, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    policies: Sequence[str]
    repeat: int
    settings: Settings
    model: str
    folder: Path
    vllm_args: Sequence[str] = ()
    engine_env: dict[str, str] = field(default_factory=dict)
    restart: bool = False

    def make_folder(self) -> None:
        """Raises InputError when it holds a run."""
        if (self.folder / "run.jsonl").exists():
            raise InputError(f"{self.folder} already holds a run: choose another --out")
        self.folder.mkdir(parents=True, exist_ok=True)

    def head(self) -> dict[str, Any]:
        """What its log says first."""
        return {
            "made_by": made_by(),
            "policies": list(self.policies),
            "repeat": self.repeat,
            "model": Path(self.model).name,
            "vllm_args": list(self.vllm_args),
            "restart": self.restart,
            "settings": as_dict(self.settings),
        }


class Watcher:
    """What a run tells while it goes on; the CLI draws it."""

    def say(self, text: str) -> None: ...
    def round_started(self, policy: str, repeat: int, sessions: int) -> None: ...
    def session_done(self, policy: str, took_s: float) -> None: ...


async def interleaved(
    plan: Plan, watcher: Watcher, play: Callable[[Stack, str, int], Awaitable[None]]
) -> None:
    """`play` a round on a stack, under a policy, as a repetition. Raises what `play` raises,
    InputError, PartDiedError (a server failed).
    """
    async with contextlib.AsyncExitStack() as alive:
        stacks: dict[str, Stack] = {}
        if not plan.restart:
            stacks = await _start_all(plan, alive, watcher)
        for repeat in range(plan.repeat):
            for policy in in_turn(plan.policies, repeat):
                async with _stack(plan, policy, repeat, stacks, watcher) as stack:
                    await play(stack, policy, repeat)


async def _start_all(
    plan: Plan, alive: contextlib.AsyncExitStack, watcher: Watcher
) -> dict[str, Stack]:
    """All engines at once: a start is mostly waiting."""
    contexts = {p: running_stack(_stack_options(plan, p), watcher.say) for p in plan.policies}
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
    plan: Plan, policy: str, repeat: int, stacks: dict[str, Stack], watcher: Watcher
) -> AsyncIterator[Stack]:
    if policy in stacks:
        yield stacks[policy]
        return
    once = _stack_options(plan, policy, f"-{repeat}")
    async with running_stack(once, watcher.say) as stack:
        yield stack


def _stack_options(plan: Plan, policy: str, suffix: str = "") -> StackOptions:
    scheduling = msgspec.structs.replace(plan.settings.scheduling, policy=policy)
    return StackOptions(
        model=plan.model,
        settings=msgspec.structs.replace(plan.settings, scheduling=scheduling),
        folder=plan.folder / f"{policy}{suffix}",
        events=plan.folder / f"{policy}{suffix}.jsonl",
        port=0,
        vllm_args=plan.vllm_args,
        # vLLM's own switch for POST /reset_prefix_cache
        engine_env={"VLLM_SERVER_DEV_MODE": "1", **plan.engine_env},
    )


async def while_alive(stack: Stack, work: Any) -> None:
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


async def start_alike(stack: Stack, model: str, like: Turn, number: int) -> None:
    """One call that no figure counts (an engine that has idled while others ran is slower at
    first), then an empty prefix cache.
    """
    first = msgspec.structs.replace(like, tools=(), think_s=0.0)
    async with (
        aiohttp.ClientSession() as http,
        ToolClient(stack.tools_url, stack.tools_token) as tools,
    ):
        agent = Agent(http, tools, stack.base_url, model)
        await agent.play(Recorded(session_id="", turns=(first,)), SessionId(f"warm-up#{number}"))
        await drained(stack)
        async with http.post(f"{stack.engine_url}/reset_prefix_cache") as response:
            if response.status != 200:  # noqa: PLR2004
                raise PartDiedError(f"the engine did not empty its cache: HTTP {response.status}")


async def drained(stack: Stack) -> None:
    """The gateway stamps a session's end after its client has the last byte: wait for the stamp."""
    async with asyncio.timeout(10.0), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{stack.gateway_url}/mars/status") as response:
                status: dict[str, Any] = await response.json()
            if status["sessions"] == 0:
                return
            await asyncio.sleep(0.01)
