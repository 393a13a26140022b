"""`mars bench-tools`: what tools do to the engine and to the gateway, leased and not.

    none     no tool runs
    leased   so many a lent core burn CPU, through the tool server
    free     as many, started beside it, on whatever core the system gives them

Cores of engine and gateway are not lent (`tools.kept_cores`), so `leased` should be as `none`.
"""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

from rich.console import Console
from rich.table import Table

from mars.bench import burn
from mars.bench.own_stack import offered, own_stack
from mars.bench.points import Server, call, http_to_engine, random_prompt, stream
from mars.bench.turns import in_turn
from mars.bench.words import ratio
from mars.tools.client import ToolClient
from mars.tools.wire import RunRequest

CONDITIONS: Final = ("none", "leased", "free")
_BURN: Final = [sys.executable, "-I", "-S", str(Path(burn.__file__)), "1e9", "1e9"]
_ANSWER_TOKENS: Final = 256
_PROMPT_TOKENS: Final = 64
_CALLS: Final = 40
"""Through the gateway, and as many past it."""
_ASK_S: Final = 0.01
_FEW_CALLS: Final = 4
"""Before those that count: connections are opened by them."""


@dataclass(frozen=True, slots=True)
class Seen:
    step_s: float
    """Of a lone answer, between two tokens; mean."""
    call_s: float
    """A call for one token with a cached prompt, through the gateway; median."""
    gateway_s: float
    """By how much that is longer than past the gateway; difference of medians."""


def bench_tools_command(
    *,
    model: str | None,
    folder: Path,
    per_core: int,
    rounds: int,
    overrides: tuple[str, ...],
    vllm_args: tuple[str, ...],
) -> None:
    """Raises InputError, PartDiedError."""
    overrides = (*overrides, f"tools.share={per_core}")
    seen, controls = asyncio.run(_bench(model, folder, rounds, overrides, vllm_args))
    table = Table("tools", "step (ms)", "call (ms)", "gateway adds (ms)", "step", "call")
    for condition in CONDITIONS:
        table.add_row(
            condition,
            *(f"{_median(seen[condition], of) * 1e3:.2f}" for of in (_step, _call, _gateway)),
            *(_ratios(seen[condition], seen["none"], of) for of in (_step, _call)),
        )
    console = Console()
    console.print(f"{per_core} commands a lent core; {controls}; {rounds} rounds, interleaved")
    console.print(table)
    console.print("step, call: as a multiple of none, round by round: median (least to largest)")


def _step(seen: Seen) -> float:
    return seen.step_s


def _call(seen: Seen) -> float:
    return seen.call_s


def _gateway(seen: Seen) -> float:
    return seen.gateway_s


def _median(seen: Sequence[Seen], of: Callable[[Seen], float]) -> float:
    return statistics.median(map(of, seen))


def _ratios(seen: Sequence[Seen], base: Sequence[Seen], of: Callable[[Seen], float]) -> str:
    found = [of(one) / of(other) for one, other in zip(seen, base, strict=True)]
    return f"{ratio(statistics.median(found))} ({ratio(min(found))} to {ratio(max(found))})"


async def _bench(
    model: str | None,
    folder: Path,
    rounds: int,
    overrides: tuple[str, ...],
    vllm_args: tuple[str, ...],
) -> tuple[dict[str, list[Seen]], str]:
    async with AsyncExitStack() as exits:
        http = await exits.enter_async_context(http_to_engine())
        stack, _ = await exits.enter_async_context(own_stack(model, folder, vllm_args, overrides))
        served, _ = await offered(http, stack.base_url)
        through, past = (
            Server(http, url, stack.engine_url, served, step_tokens=0)
            for url in (stack.base_url, f"{stack.engine_url}/v1")
        )
        tools = await exits.enter_async_context(ToolClient(stack.tools_url, stack.tools_token))
        health = await tools.health()
        loads = {
            "none": partial(_leased, tools, 0),
            "leased": partial(_leased, tools, health.slots),
            "free": partial(_free, health.slots),
        }
        seen: dict[str, list[Seen]] = {condition: [] for condition in CONDITIONS}
        for number in range(rounds):
            for condition in in_turn(CONDITIONS, number):
                async with loads[condition]():
                    seen[condition].append(await _look(through, past))
        return seen, health.controls


@asynccontextmanager
async def _leased(tools: ToolClient, commands: int) -> AsyncIterator[None]:
    request = RunRequest(argv=_BURN, session_id="bench", tool="burn")
    runs = [asyncio.ensure_future(tools.run(request)) for _ in range(commands)]
    await _running(tools, commands)
    try:
        yield
    finally:
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)
        await _running(tools, 0)


async def _running(tools: ToolClient, commands: int) -> None:
    while (await tools.health()).running != commands:  # noqa: ASYNC110 another process's
        await asyncio.sleep(_ASK_S)


@asynccontextmanager
async def _free(commands: int) -> AsyncIterator[None]:
    runs = [await asyncio.create_subprocess_exec(*_BURN) for _ in range(commands)]
    try:
        yield
    finally:
        for run in runs:
            run.kill()
            await run.wait()


async def _look(through: Server, past: Server) -> Seen:
    text = random_prompt(Random(1), _PROMPT_TOKENS)
    for server in (through, past) * _FEW_CALLS:
        await call(server, text, 1)
    came_s = await stream(through, text, _ANSWER_TOKENS, [])
    took_s: dict[Server, list[float]] = {through: [], past: []}
    for server in (through, past) * _CALLS:
        start_s = time.monotonic()
        await call(server, text, 1)
        took_s[server].append(time.monotonic() - start_s)
    call_s, past_s = (statistics.median(took_s[server]) for server in (through, past))
    return Seen((came_s[-1] - came_s[0]) / (_ANSWER_TOKENS - 1), call_s, call_s - past_s)
