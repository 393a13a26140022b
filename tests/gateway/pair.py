"""A gateway and its engines as processes of their own, to be stopped, killed and started again."""

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import msgspec
import psutil

from mars.gateway.shown import Status
from mars.serve.stack import free_ports
from mars.stream.log import read_log

PATIENCE_S = 60.0
"""For conditions on processes of a machine that may be busy."""
FOUR_PLACES = (
    "--policy", "mars",
    "--set", "scheduling.residency.first=4",
    "--set", "scheduling.gate.blind_s=1000000",
)  # fmt: skip
"""Before an engine that tells nothing, four sessions are let in."""


class Process:
    def __init__(self, *argv: str) -> None:
        self._argv = argv
        self.popen: subprocess.Popen[bytes] | None = None

    def start(self, *before: str) -> None:
        """`before` is a command that runs what follows it."""
        self.popen = subprocess.Popen([*before, sys.executable, "-m", *self._argv])

    def send(self, number: signal.Signals) -> None:
        assert self.popen is not None
        self.popen.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.popen is not None:
            self.popen.send_signal(number)
            self.popen.wait(timeout=PATIENCE_S)
            self.popen = None

    @property
    def connections(self) -> int:
        """Established ones."""
        assert self.popen is not None
        found = psutil.Process(self.popen.pid).net_connections("tcp")
        return sum(one.status == psutil.CONN_ESTABLISHED for one in found)

    @property
    def rss_bytes(self) -> int:
        assert self.popen is not None
        return int(psutil.Process(self.popen.pid).memory_info().rss)


class Pair:
    """A gateway before one engine or several (the stub of mars.bench)."""

    def __init__(self, folder: Path, *options: str, engines: int = 1) -> None:
        port, *engine_ports = free_ports(1 + engines)
        self.engine_urls = [f"http://127.0.0.1:{engine_port}" for engine_port in engine_ports]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "events.jsonl"
        self.engines = [Process("mars.bench.stub_engine", str(number)) for number in engine_ports]
        upstreams = [word for url in self.engine_urls for word in ("--upstream", url)]
        self.gateway = Process(
            "mars", "gateway", *upstreams, "--port", str(port), "--events", str(self.log), *options
        )
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))

    @property
    def engine(self) -> Process:
        return self.engines[0]

    async def start(self) -> None:
        """The engines first: to a gateway before several, one that is late is one that is down."""
        for engine in self.engines:
            engine.start()
        for url in self.engine_urls:
            await self.ready(url)
        self.gateway.start()
        await self.ready()

    async def end(self) -> None:
        await self.http.close()
        self.gateway.end()
        for engine in self.engines:
            engine.end()

    async def ready(self, url: str = "") -> None:
        """Until the gateway, or who else is there, is well."""

        async def is_ready() -> bool:
            try:
                async with self.http.get((url or self.url) + "/health") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await eventually(is_ready)

    async def status(self) -> Status:
        async with self.http.get(self.url + "/mars/status") as response:
            return msgspec.json.decode(await response.read(), type=Status)

    async def empty(self) -> None:
        """Until nobody is in and nobody waits; asserts that all was well with the control plane."""

        async def is_empty() -> bool:
            return (await self.status()).sessions == 0

        await eventually(is_empty)
        status = await self.status()
        assert (status.active, status.gated, status.paused, status.faults) == (0, 0, 0, 0)

    def post(
        self,
        session: str,
        *,
        chunks: int = 20,
        gap_ms: int = 0,
        final: bool = False,
        tenant: str = "",
    ) -> "asyncio.Task[aiohttp.ClientResponse]":
        """A stream of the stub; the task is done with the headers of its answer."""
        body = {"model": f"stub-{gap_ms}ms", "max_tokens": chunks, "stream": True}
        headers = {"X-Session-ID": session} | ({"X-Session-Final": "1"} if final else {})
        headers |= {"X-Tenant": tenant} if tenant else {}
        request = self.http.post(self.url + "/v1/chat/completions", json=body, headers=headers)
        return asyncio.ensure_future(request.__aenter__())

    def told(self) -> Counter[str]:
        """How often each kind of fact stands in the log."""
        return Counter(type(event).__name__ for event in read_log(self.log)[1])


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110 another process has no event to wait for
            await asyncio.sleep(0.05)
