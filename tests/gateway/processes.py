"""The gateway and an engine's stream as processes of their own, to be stopped and killed."""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from tests.gateway.conftest import CHAT

from mars.gateway.roster import SessionRow
from mars.gateway.shown import Status

_SAMPLES = """
import sys, time
from mars.core.events import EngineSampled
from mars.stream.link import Publisher

publisher = Publisher(sys.argv[1])
while True:
    publisher.send([EngineSampled(
        at_s=time.monotonic(), kv_used_blocks=100, kv_held_blocks=0, kv_total_blocks=100,
        block_tokens=16, running_calls=1, waiting_calls=0,
    )])
    time.sleep(0.05)
"""
ONE_AT_A_TIME = ("--policy", "mars-aimd", "--set", "scheduling.window.first=1")
"""While the engine's KV is full, as its samples say."""


@dataclass
class GatewayProcess:
    process: asyncio.subprocess.Process
    url: str
    http: aiohttp.ClientSession

    def post(self, session_id: str, **fields: object) -> "asyncio.Task[aiohttp.ClientResponse]":
        request = self.http.post(self.url + CHAT, json=fields, headers={"X-Session-ID": session_id})
        return asyncio.ensure_future(request.__aenter__())

    async def status(self) -> Status:
        return msgspec.json.decode(await self.get("/mars/status"), type=Status)

    async def sessions(self) -> dict[str, SessionRow]:
        rows = msgspec.json.decode(await self.get("/mars/sessions"), type=list[SessionRow])
        return {row.session_id: row for row in rows}

    async def get(self, path: str) -> bytes:
        async with self.http.get(self.url + path) as response:
            assert response.status == 200
            return await response.read()

    async def stop(self) -> None:
        """As an operator does; what it has told is in its log then."""
        self.process.terminate()
        assert await asyncio.wait_for(self.process.wait(), 60) == 0

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def mars_gateway(
    upstream: str, *options: str, log: Path | None = None, port: int = 0
) -> AsyncIterator[GatewayProcess]:
    """Killed at the end, if it still runs."""
    events = () if log is None else ("--events", str(log))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mars", "gateway", "--upstream", upstream, "--port", str(port),
        *events, *options, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 120)).decode()
        found = re.match(r"gateway: (\S+) ->", line)
        assert found, line
        async with aiohttp.ClientSession() as http:
            yield GatewayProcess(process, found[1], http)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def sampling(endpoint: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """An engine's stream: KV is full."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _SAMPLES, endpoint)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.wait()


async def heard(gateway: GatewayProcess) -> None:
    """Until the gateway has the engine's samples."""
    while (await gateway.status()).engine_sample_age_s is None:
        pass


async def waits(gateway: GatewayProcess, session_id: str) -> None:
    """Until the session is at the gate."""
    while (rows := await gateway.sessions()).get(session_id) is None or (
        rows[session_id].phase != "gated"
    ):
        pass
