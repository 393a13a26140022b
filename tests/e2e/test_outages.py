"""A real vLLM with the plugin: the gateway before it is killed under load, or it hangs itself."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest
from tests.gateway.processes import GatewayProcess, mars_gateway

from mars.bench.tiny import tiny_engine
from mars.config import load_settings
from mars.serve.parts import Part, Parts
from mars.serve.stack import StackOptions, engine_argv, free_ports

pytestmark = pytest.mark.timeout(400)

SESSIONS = ("a", "b", "c")
BUSY = (
    "mars_engine_running_calls",
    "mars_engine_waiting_calls",
    "mars_kv_used_ratio",
    "mars_kv_held_ratio",
)


@asynccontextmanager
async def vllm(folder: Path, publish: str, subscribe: str) -> AsyncIterator[tuple[str, str, int]]:
    """Its address, its model, and its process."""
    model, arguments, environment = tiny_engine()
    (port,) = free_ports(1)
    options = StackOptions(
        model=str(model),
        settings=load_settings(),
        folder=folder,
        events=folder / "events.jsonl",
        vllm_args=arguments,
    )
    plugin = {"publish": publish, "subscribe": [subscribe]}
    engine = Part(
        name="engine",
        argv=engine_argv(options, port, plugin),
        ready_url=f"http://127.0.0.1:{port}/health",
        log=folder / "engine.log",
        env=environment,
        end_s=20.0,
    )
    async with Parts() as parts:
        await parts.start(engine)
        await parts.ready(180.0)
        yield f"http://127.0.0.1:{port}", str(model), parts.pids[0]


async def ask(gateway: GatewayProcess, model: str, session: str, made: int) -> bytes:
    body = {"model": model, "prompt": [300] * 400, "max_tokens": made, "ignore_eos": True}
    async with gateway.http.post(
        f"{gateway.url}/v1/completions", json=body, headers={"X-Session-ID": session}
    ) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def gauge(gateway: GatewayProcess, name: str) -> float:
    lines = (await gateway.get("/metrics")).decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


async def until_gauge(gateway: GatewayProcess, name: str, value: float) -> None:
    async with asyncio.timeout(120):
        while await gauge(gateway, name) != value:
            pass


async def test_a_killed_gateway_leaves_nothing_in_the_engine_and_forgets_no_session(
    tmp_path: Path,
) -> None:
    engine, ours, log = f"ipc://{tmp_path}/e", f"ipc://{tmp_path}/g", tmp_path / "gateway.jsonl"
    options = ("--publish", ours, "--subscribe", engine)
    async with vllm(tmp_path, engine, ours) as (url, model, _):
        async with mars_gateway(url, *options, log=log) as gateway:
            for session in SESSIONS:
                await ask(gateway, model, session, 4)
            calls = [asyncio.create_task(ask(gateway, model, it, 3000)) for it in SESSIONS]
            await until_gauge(gateway, 'mars_sessions{phase="running"}', 3)
            await asyncio.to_thread(wait_for_calls, log, 2 * len(SESSIONS))
            await gateway.kill()
            for call in calls:
                with pytest.raises(aiohttp.ClientError):
                    await call
        async with mars_gateway(url, *options, log=log) as gateway:
            rows = await gateway.sessions()
            assert {name: (row.phase, row.turn) for name, row in rows.items()} == dict.fromkeys(
                SESSIONS, ("acting", 2)
            )
            await asyncio.wait_for(
                asyncio.gather(*(ask(gateway, model, it, 4) for it in SESSIONS)), 120
            )
            for session in SESSIONS:
                await gateway.http.delete(f"{gateway.url}/mars/sessions/{session}")
            await ask(gateway, model, "last", 4)
            await gateway.http.delete(f"{gateway.url}/mars/sessions/last")
            await until_idle(gateway, model)


async def test_an_engine_that_hangs_opens_the_gate_and_serves_all_when_it_goes_on(
    tmp_path: Path,
) -> None:
    """Calls then wait in the engine as they would without us: none is lost, none is answered."""
    engine, ours, log = f"ipc://{tmp_path}/e", f"ipc://{tmp_path}/g", tmp_path / "gateway.jsonl"
    options = ("--publish", ours, "--subscribe", engine, "--set", "scheduling.gate.blind_s=5")
    async with (
        vllm(tmp_path, engine, ours) as (url, model, pid),
        mars_gateway(url, *options, log=log) as gateway,
    ):
        calls = [asyncio.create_task(ask(gateway, model, "in", 1500))]
        await until_gauge(gateway, 'mars_sessions{phase="running"}', 1)
        for process in (stopped := whole(pid)):
            process.suspend()
        await until_gauge(gateway, 'mars_fail_open{cause="no samples"}', 1)
        calls += [asyncio.create_task(ask(gateway, model, f"s{it}", 4)) for it in range(9)]
        await until_gauge(gateway, 'mars_sessions{phase="queued"}', 9)
        assert (await gateway.status()).gated == 0
        assert not any(call.done() for call in calls)
        for process in stopped:
            process.resume()
        await asyncio.wait_for(asyncio.gather(*calls), 300)
        await until_gauge(gateway, 'mars_fail_open{cause="no samples"}', 0)
        assert await gauge(gateway, 'mars_calls_total{outcome="ok"') == 10


def whole(pid: int) -> list[psutil.Process]:
    """The engine and its workers, who come first to be stopped."""
    root = psutil.Process(pid)
    return [*root.children(recursive=True), root]


async def until_idle(gateway: GatewayProcess, model: str) -> None:
    """An engine tells what it has while it works: a call without a session makes it look."""
    async with asyncio.timeout(120):
        while True:
            body = {"model": model, "prompt": [301], "max_tokens": 1}
            async with gateway.http.post(f"{gateway.url}/v1/completions", json=body) as response:
                assert response.status == 200
            if not any([await gauge(gateway, name) for name in BUSY]):
                return


def wait_for_calls(log: Path, calls: int) -> None:
    while log.read_bytes().count(b"CallQueued") < calls:
        pass
