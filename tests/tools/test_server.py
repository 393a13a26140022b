"""Refusals, health, and the life of the server's process."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest
from tests.tools.conftest import TOKEN, all_gone, request, serving, until

from mars.core.errors import InputError, PartDiedError
from mars.core.events import ToolFinished, ToolQueued
from mars.stream.link import Subscriber
from mars.tools.client import ToolClient, find_server
from mars.tools.settings import ToolSettings, lendable

GOOD = {"argv": ["true"], "session_id": "s"}


BAD_BEARERS = (None, "", "Bearer", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN}2", "Bearer ünlike")
BAD_BODIES: tuple[tuple[dict[str, object], str], ...] = (
    ({"argv": []}, "argv"),
    ({"argv": [""]}, "argv[0]"),
    ({"argv": "ls"}, "Expected `array`"),
    ({"argv": ["a\0b"]}, "NUL"),
    ({"session_id": ""}, "session_id"),
    ({"cores": 0}, "cores"),
    ({"cores": 2}, "lends 1"),
    ({"timeout_s": 0}, "timeout_s"),
    ({"env": {"A=B": "c"}}, "'='"),
    ({"env": {"A": "\ud800"}}, "Input data"),
    ({"shell": True}, "shell"),
)


async def test_wrong_token() -> None:
    async with serving() as rig, aiohttp.ClientSession() as http:
        for bearer in BAD_BEARERS:
            headers = {} if bearer is None else {"Authorization": bearer}
            async with http.post(rig.url + "/run", json=GOOD, headers=headers) as answer:
                assert answer.status == 401
                assert "token" in (await answer.json())["error"]
        assert rig.events == []


async def test_bad_bodies() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with serving() as rig, aiohttp.ClientSession(headers=headers) as http:
        for change, says in BAD_BODIES:
            async with http.post(rig.url + "/run", json=GOOD | change) as answer:
                assert answer.status == 400
                assert says in (await answer.json())["error"]
        assert rig.events == []


async def test_other_refusals_are_json_too() -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with serving() as rig, aiohttp.ClientSession(headers=headers) as http:
        async with http.post(rig.url + "/run", data=b"{") as answer:
            assert (answer.status, list(await answer.json())) == (400, ["error"])
        async with http.get(rig.url + "/run") as answer:
            assert (answer.status, list(await answer.json())) == (405, ["error"])
        async with http.post(rig.url + "/stop") as answer:
            assert (answer.status, list(await answer.json())) == (404, ["error"])


async def test_health_needs_no_token() -> None:
    async with serving(cores=(0, 1), share=2) as rig, aiohttp.ClientSession() as http:
        call = asyncio.create_task(rig.sh("sleep 1000"))
        await rig.started(1)
        async with http.get(rig.url + "/health") as answer:
            health = {"cores": [0, 1], "slots": 4, "running": 1, "waiting": 0}
            controls = {"controls": str(rig.runtime.controls)}
            assert await answer.json() == health | controls
        call.cancel()


def test_cores_are_what_affinity_and_quota_leave_without_those_kept() -> None:
    usable = sorted(os.sched_getaffinity(0))
    assert lendable(ToolSettings(), None) == tuple(usable[1:] or usable)
    assert lendable(ToolSettings(kept_cores=0), None) == tuple(usable)
    assert lendable(ToolSettings(kept_cores=0), 1.9) == (usable[-1],)
    assert lendable(ToolSettings(kept_cores=0), 0.5) == (usable[-1],)
    assert lendable(ToolSettings(kept_cores=99), None) == (usable[-1],)
    assert lendable(ToolSettings(cores=(1, 0, 1)), None) == (0, 1)
    with pytest.raises(InputError, match="core 4096"):
        lendable(ToolSettings(cores=(4096,)), None)


@dataclass
class ServerProcess:
    process: asyncio.subprocess.Process
    state_file: Path
    endpoint: str


@contextlib.asynccontextmanager
async def server_process(folder: Path) -> AsyncIterator[ServerProcess]:
    state_file = folder / "run" / "tools.json"
    endpoint = f"ipc://{folder}/events"
    text = f"""
import uvloop
from pathlib import Path
from mars.policy.tool_order import Fifo
from mars.tools.server import serve
from mars.tools.settings import ToolSettings
uvloop.run(serve(ToolSettings(cores=(0,), grace_s=0.3), Fifo(), host="127.0.0.1", port=0,
                 token="secret", publish={endpoint!r}, state_file=Path({str(state_file)!r}),
                 tell=lambda line: None))
print("ended well")
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", text, env=env, stdout=asyncio.subprocess.PIPE
    )
    try:
        await until(state_file.exists)
        yield ServerProcess(process, state_file, endpoint)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await until(all_gone)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_serve_ends_its_commands(tmp_path: Path, number: signal.Signals) -> None:
    async with server_process(tmp_path) as server:
        assert stat.S_IMODE(server.state_file.stat().st_mode) == 0o600
        subscriber = Subscriber([server.endpoint])
        url, token = find_server(server.state_file)
        async with ToolClient(url, token) as client:
            assert (await client.run(request("true"))).exit_code == 0
            running = asyncio.create_task(client.run(request("sh", "-c", "trap '' TERM; sleep 99")))
            waiting = asyncio.create_task(client.run(request("true", tool="waits")))
            await until(lambda: _seen(subscriber, "waits"))
            tree = psutil.Process(server.process.pid).children(recursive=True)
            server.process.send_signal(number)
            assert (await running).why == "cancelled"
            assert (await waiting).why == "cancelled"
            assert await server.process.wait() == 0
            assert not any(process.is_running() for process in tree)
            assert not server.state_file.exists()
            assert list(server.state_file.parent.iterdir()) == []
            with pytest.raises(PartDiedError, match="does not answer"):
                await client.run(request("true"))
        subscriber.close()
        assert server.process.stdout is not None
        assert await server.process.stdout.read() == b"ended well\n"


def _seen(subscriber: Subscriber, tool: str) -> bool:
    return any(isinstance(e, ToolQueued) and e.tool == tool for e in subscriber.drain())


async def test_events_are_published(tmp_path: Path) -> None:
    async with server_process(tmp_path) as server:
        subscriber = Subscriber([server.endpoint])
        url, token = find_server(server.state_file)
        async with ToolClient(url, token) as client:
            codes: list[int | None] = []
            while not codes:  # until the subscription has arrived there
                await client.run(request("sh", "-c", "exit 9"))
                codes = [e.exit_code for e in subscriber.drain() if isinstance(e, ToolFinished)]
        assert codes[0] == 9
        subscriber.close()


async def test_a_server_that_dies_mid_way(tmp_path: Path) -> None:
    async with server_process(tmp_path) as server:
        url, token = find_server(server.state_file)
        assert json.loads(server.state_file.read_text())["token"] == token == "secret"
        async with ToolClient(url, token) as client:
            running = asyncio.create_task(client.run(request("sleep", "1000")))
            await until(lambda: psutil.Process(server.process.pid).children(recursive=True) != [])
            server.process.kill()
            with pytest.raises(PartDiedError, match="ended while the command ran"):
                await running
