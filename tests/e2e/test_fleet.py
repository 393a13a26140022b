"""A gateway before two stock vLLMs: who waits goes where there is room, and one of them is killed.

One test, since the engines take longest to start.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest
from openai import AsyncOpenAI

from mars.bench.tiny import tiny_engine
from mars.core.ids import SessionId
from mars.core.session import Phase
from mars.gateway.front import EngineRow
from mars.gateway.roster import SessionRow
from mars.serve.parts import Part, Parts
from mars.serve.stack import free_ports

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]
READY_S = 300.0
LARGE = 7000
"""Tokens of a prompt of which two fit into an engine's KV, and three do not."""
AGENTS = 12


@dataclass
class Two:
    """The gateway before two engines."""

    url: str
    model: str
    http: aiohttp.ClientSession
    client: AsyncOpenAI
    pids: list[int]

    async def rows(self) -> list[EngineRow]:
        async with self.http.get(self.url + "/mars/engines") as response:
            return msgspec.json.decode(await response.read(), type=list[EngineRow])

    async def until(self, holds: Callable[[list[EngineRow]], bool]) -> None:
        async with asyncio.timeout(READY_S):
            while not holds(await self.rows()):  # noqa: ASYNC110 another process has no event
                await asyncio.sleep(0.1)

    async def sessions(self) -> list[SessionRow]:
        async with self.http.get(self.url + "/mars/sessions") as response:
            return msgspec.json.decode(await response.read(), type=list[SessionRow])

    async def end(self, session: SessionId) -> None:
        """It may be over already: that of a client that left at the gate is."""
        async with self.http.delete(f"{self.url}/mars/sessions/{session}") as response:
            assert response.status in {200, 404}, await response.text()

    async def turn(self, agent: int, *, prompt: int = 200, tokens: int = 30) -> None:
        answer = await self.client.completions.create(
            model=self.model, prompt=[300 + agent] * prompt, max_tokens=tokens, temperature=0,
            extra_body={"ignore_eos": True}, extra_headers={"X-Session-ID": f"agent{agent}"},
        )  # fmt: skip
        assert answer.usage is not None
        assert answer.usage.completion_tokens == tokens


@asynccontextmanager
async def two_engines(folder: Path) -> AsyncIterator[Two]:
    model, arguments, environment = tiny_engine()
    *ports, port = free_ports(3)
    url, words = f"http://127.0.0.1:{port}", []
    async with Parts() as parts, aiohttp.ClientSession() as http:
        for number in ports:
            engine_url = f"http://127.0.0.1:{number}"
            argv = [
                sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry",
                "--model", model, "--port", str(number), "--host", "127.0.0.1", *arguments,
            ]  # fmt: skip
            log = folder / f"engine-{number}.log"
            await parts.start(Part("engine", argv, engine_url + "/health", log, env=environment))
            words += ["--upstream", engine_url]
        await parts.ready(READY_S)
        argv = [sys.executable, "-m", "mars", "gateway", *words, "--port", str(port)]
        await parts.start(Part("gateway", argv, url + "/health", folder / "gateway.log"))
        await parts.ready(READY_S)
        async with AsyncOpenAI(
            base_url=url + "/v1", api_key="none", max_retries=0, timeout=READY_S
        ) as client:
            yield Two(url, model, http, client, parts.pids)


async def one_is_brought_where_there_is_room(two: Two) -> None:
    await two.until(lambda rows: all(row.kv_frac is not None for row in rows))
    turns: dict[SessionId, asyncio.Task[None]] = {}
    for agent in range(6):
        turn = two.turn(agent, prompt=LARGE, tokens=600)
        turns[SessionId(f"agent{agent}")] = asyncio.create_task(turn)
        await two.until(lambda rows: sum(row.sessions for row in rows) == len(turns))
    await two.until(lambda rows: [row.waiting for row in rows] == [1, 1])
    first, second = await two.rows()
    sessions = await two.sessions()
    (waits,) = [it for it in sessions if it.engine == first.url and it.phase == Phase.GATED.value]
    for row in sessions:
        if row.engine == second.url:
            turns.pop(row.session_id).cancel()
            await two.end(row.session_id)
    await two.until(lambda rows: rows[1].sessions == 1)
    await asyncio.gather(*turns.values())
    places = {it.session_id: it.engine for it in await two.sessions()}
    assert places.keys() == turns.keys()
    assert [it for it in places if places[it] == second.url] == [waits.session_id]
    for session in turns:
        await two.end(session)


async def nothing_is_lost_when_one_is_killed(two: Two) -> None:
    await two.until(lambda rows: all(row.kv_frac == 0.0 for row in rows))
    await asyncio.gather(*(two.turn(agent) for agent in range(AGENTS)))
    assert all(row.sessions > 0 for row in await two.rows())
    turns = [asyncio.create_task(two.turn(agent, tokens=600)) for agent in range(AGENTS)]
    await two.until(lambda rows: sum(row.calls for row in rows) == AGENTS)
    os.kill(two.pids[0], signal.SIGKILL)
    await asyncio.gather(*turns)  # answers that are no streams have not begun
    await asyncio.gather(*(two.turn(agent) for agent in range(AGENTS)))
    first, second = await two.rows()
    assert (first.state, first.sessions) == ("down", 0)
    assert (second.state, second.sessions) == ("up", AGENTS)


async def test_two_stock_engines(tmp_path: Path) -> None:
    async with two_engines(tmp_path) as two:
        await one_is_brought_where_there_is_room(two)
        await nothing_is_lost_when_one_is_killed(two)
