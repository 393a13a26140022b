"""A gateway before two stock vLLMs, one of which is killed in the middle."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest
from openai import AsyncOpenAI

from mars.bench.tiny import tiny_engine
from mars.gateway.front import EngineRow
from mars.serve.parts import Part, Parts
from mars.serve.stack import free_ports

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
READY_S = 300.0
AGENTS = 12


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(READY_S):
        while not await holds():  # noqa: ASYNC110 another process has no event to wait for
            await asyncio.sleep(0.1)


async def test_two_stock_engines_of_which_one_is_killed(tmp_path: Path) -> None:
    model, arguments, environment = tiny_engine()
    *ports, port = free_ports(3)
    urls = [f"http://127.0.0.1:{number}" for number in ports]
    url = f"http://127.0.0.1:{port}"
    async with Parts() as parts, aiohttp.ClientSession() as http:

        async def rows() -> list[EngineRow]:
            async with http.get(url + "/mars/engines") as response:
                return msgspec.json.decode(await response.read(), type=list[EngineRow])

        for number, engine_url in zip(ports, urls, strict=True):
            argv = [
                sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry",
                "--model", model, "--port", str(number), "--host", "127.0.0.1", *arguments,
            ]  # fmt: skip
            log = tmp_path / f"engine-{number}.log"
            await parts.start(Part("engine", argv, engine_url + "/health", log, env=environment))
        await parts.ready(READY_S)
        upstreams = [word for engine_url in urls for word in ("--upstream", engine_url)]
        argv = [sys.executable, "-m", "mars", "gateway", *upstreams, "--port", str(port)]
        await parts.start(Part("gateway", argv, url + "/health", tmp_path / "gateway.log"))
        await parts.ready(READY_S)

        async def both_told_of_kv() -> bool:
            return all(row.kv_frac is not None for row in await rows())

        await until(both_told_of_kv)
        client = AsyncOpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=READY_S)

        async def turn(agent: int, tokens: int = 30) -> None:
            answer = await client.completions.create(
                model=model, prompt=[300 + agent] * 200, max_tokens=tokens, temperature=0,
                extra_body={"ignore_eos": True}, extra_headers={"X-Session-ID": f"agent{agent}"},
            )  # fmt: skip
            assert answer.usage is not None
            assert answer.usage.completion_tokens == tokens

        await asyncio.gather(*(turn(agent) for agent in range(AGENTS)))
        assert all(row.sessions > 0 for row in await rows())
        turns = [asyncio.create_task(turn(agent, 600)) for agent in range(AGENTS)]

        async def all_are_open() -> bool:
            return sum(row.calls for row in await rows()) == AGENTS

        await until(all_are_open)
        os.kill(parts.pids[0], signal.SIGKILL)
        await asyncio.gather(*turns)  # answers that are no streams have not begun
        await asyncio.gather(*(turn(agent) for agent in range(AGENTS)))
        first, second = await rows()
        assert (first.state, first.sessions) == ("down", 0)
        assert (second.state, second.sessions) == ("up", AGENTS)
        await client.close()
