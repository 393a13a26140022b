"""The gateway as it is run: real server, log, stream between processes, signals."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.gateway.conftest import CHAT, ONE_AT_A_TIME, kv_sample
from tests.gateway.scripted import Engine, hanging, on_cue, until

from mars.core import events as ev
from mars.core.errors import InputError
from mars.core.ids import SessionId
from mars.gateway.keys import make_key
from mars.gateway.run import serve
from mars.gateway.settings import GatewaySettings
from mars.gateway.shown import Status
from mars.policy.presets import Scheduling
from mars.stream.link import Publisher, Subscriber
from mars.stream.log import read_log


class Running:
    def __init__(self, task: "asyncio.Task[None]", url: str, http: aiohttp.ClientSession) -> None:
        self.task = task
        self.url = url
        self.http = http

    def post(self, session_id: str, **fields: Any) -> "asyncio.Task[aiohttp.ClientResponse]":
        request = self.http.post(self.url + CHAT, json=fields, headers={"X-Session-ID": session_id})
        return asyncio.ensure_future(request.__aenter__())

    async def status(self) -> Status:
        async with self.http.get(self.url + "/mars/status") as response:
            return msgspec.json.decode(await response.read(), type=Status)

    async def stop(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task


def start(upstream: str | list[str], on_listening: Callable[[str], None], **changes: Any) -> Any:
    how: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "upstream": [upstream] if isinstance(upstream, str) else upstream,
        "scheduling": Scheduling(policy="fcfs"),
        "settings": GatewaySettings(),
        "log": None,
        "publish": None,
        "subscribe": [],
        "log_settings": {},
    }
    return serve(**how | changes, on_listening=on_listening)


@asynccontextmanager
async def running(upstream: str, **changes: Any) -> AsyncIterator[Running]:
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(start(upstream, url.set_result, **changes))
    async with aiohttp.ClientSession() as http:
        await asyncio.wait({task, url}, return_when=asyncio.FIRST_COMPLETED)
        gateway = Running(task, await url, http)
        try:
            yield gateway
        finally:
            task.cancel()
            await asyncio.wait({task})


async def test_a_run_is_logged_from_its_head_to_its_last_end(
    engine: Engine, tmp_path: Path
) -> None:
    log = tmp_path / "run.jsonl"
    async with running(engine.url, log=log, log_settings={"policy": "fcfs"}) as gateway:
        assert (await gateway.post("a")).status == 200
        await until(lambda: b"CallFinished" in log.read_bytes())  # flushed while it runs
        await gateway.stop()
    head, events = read_log(log)
    assert head.settings == {"policy": "fcfs"}
    kinds = [type(event).__name__ for event in events]
    assert kinds == [
        "SessionArrived",
        "SessionAdmitted",
        "CallQueued",
        "CallFinished",
        "SessionEnded",
    ]


async def test_facts_go_out_and_come_in(engine: Engine, tmp_path: Path) -> None:
    ours, theirs = f"ipc://{tmp_path}/gateway", f"ipc://{tmp_path}/engine"
    publisher, subscriber = Publisher(theirs), Subscriber([ours])
    heard: list[ev.Event] = []
    try:
        async with running(
            engine.url, publish=ours, subscribe=[theirs], scheduling=ONE_AT_A_TIME
        ) as gateway:
            while (await gateway.status()).pressure.kv_used_frac < 1:  # until they are connected
                publisher.send([kv_sample(100)])
            idle = ev.ToolsSampled(
                at_s=0.0, running=0, waiting=0, slots=1, wait_s=0.0, controls="cores 1 by affinity"
            )
            while (await gateway.status()).tool_controls != "cores 1 by affinity":
                publisher.send([idle])
            number = 0
            while not heard:
                number += 1
                await (await gateway.post(f"first-{number}")).read()
                await gateway.http.delete(f"{gateway.url}/mars/sessions/first-{number}")
                heard += subscriber.drain()
            await (await gateway.post("a")).read()
            call_id = engine.last.header("x-request-id")
            publisher.send([served("a", str(call_id)), foreign_end("a")])
            rows: list[dict[str, Any]] = []
            while not any(row["context_tokens"] == 120 for row in rows):
                async with gateway.http.get(gateway.url + "/mars/sessions") as response:
                    rows = await response.json()
            assert [row["session_id"] for row in rows] == ["a"], "only we can end it"
            await gateway.http.delete(gateway.url + "/mars/sessions/a")

            def a_ended() -> bool:
                heard.extend(subscriber.drain())
                return ended(heard, "a") == 1

            await until(a_ended)
            assert not any(isinstance(event, ev.EngineSampled) for event in heard), "not ours"
    finally:
        publisher.close()
        subscriber.close()


def served(session_id: str, call_id: str) -> ev.CallServed:
    counts = {"prompt_tokens": 100, "made_tokens": 20, "cached_tokens": 0, "computed_tokens": 120}
    common = {"at_s": 0.0, "session_id": session_id, "call_id": call_id, "queued_s": 0.0}
    return msgspec.convert(common | counts | {"ok": True, "event": "CallServed"}, ev.CallServed)


def foreign_end(session_id: str) -> ev.SessionEnded:
    return ev.SessionEnded(at_s=0.0, session_id=SessionId(session_id), why="not theirs to say")


def ended(events: list[ev.Event], session_id: str) -> int:
    return sum(isinstance(it, ev.SessionEnded) and it.session_id == session_id for it in events)


async def test_a_stop_tells_everybody(engine: Engine, tmp_path: Path) -> None:
    """Who streams gets an error, who waits gets a 503, and the log has their ends."""
    engine.script = hanging
    log = tmp_path / "run.jsonl"
    async with running(engine.url, log=log) as gateway:
        call = gateway.post("a", stream=True)
        await engine.called(1)
        await gateway.stop()
        response = await call
        assert response.status == 502
        assert "broke off" in (await response.json())["error"]["message"]
    await asyncio.wait_for(engine.last.closed.wait(), 5)
    kinds = [type(event).__name__ for event in read_log(log)[1]]
    assert kinds.count("SessionEnded") == kinds.count("SessionArrived") == 1
    assert kinds.count("CallFinished") == kinds.count("CallQueued") == 1


async def test_a_stop_empties_the_gate(engine: Engine, tmp_path: Path) -> None:
    engine.script = on_cue
    theirs = f"ipc://{tmp_path}/engine"
    publisher = Publisher(theirs)
    try:
        async with running(engine.url, subscribe=[theirs], scheduling=ONE_AT_A_TIME) as gateway:
            while (await gateway.status()).pressure.kv_used_frac < 1:
                publisher.send([kv_sample(100)])
            first = gateway.post("a")
            exchange = await engine.called(1)
            second = gateway.post("b")
            while (await gateway.status()).gated < 1:
                pass
            gateway.task.cancel()
            response = await second
            assert response.status == 503
            assert (await response.json())["error"]["type"] == "gateway_stopped"
            exchange.cue.set()  # within the time of grace
            assert (await first).status == 200
    finally:
        publisher.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_stop_it_cleanly(
    engine: Engine, tmp_path: Path, number: signal.Signals
) -> None:
    log = tmp_path / "run.jsonl"
    async with running(engine.url, log=log) as gateway:
        await (await gateway.post("a")).read()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(gateway.task, 10)
    assert "the gateway stops" in log.read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"log": Path("/nowhere/run.jsonl")}, "/nowhere/run.jsonl"),
        ({"publish": "ipc:///nowhere/at/all"}, "ipc:///nowhere/at/all"),
        ({"upstream": "localhost"}, "localhost"),
    ],
)
async def test_what_cannot_be_used_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        await start(changes.pop("upstream", "http://x"), print, **changes)


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}"):
            await start("http://x", print, port=port)


async def test_a_full_disk_costs_the_log_and_not_the_traffic(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(engine.url, log=Path("/dev/full")) as gateway:
        while "the event log cannot be written" not in caplog.text:
            assert (await gateway.post("a")).status == 200
        assert (await gateway.post("a")).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])  # noqa: S104
@pytest.mark.parametrize("keys", [0, 1])
async def test_a_port_that_all_can_reach_without_a_key_is_warned_of(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture, host: str, keys: int
) -> None:
    settings = GatewaySettings()
    if keys:
        make_key(tmp_path / "keys", name="ci", tenant="", admin=False)
        settings = GatewaySettings(keys_file=str(tmp_path / "keys"))
    async with running(engine.url, host=host, settings=settings):
        warned = "no key is asked for" in caplog.text
        assert warned is (host != "127.0.0.1" and not keys)


async def test_a_key_that_is_taken_back_opens_nothing_more(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    secret = make_key(path, name="ci", tenant="", admin=False)
    make_key(path, name="other", tenant="", admin=False)
    headers = {"Authorization": f"Bearer {secret}"}
    async with running(engine.url, settings=GatewaySettings(keys_file=str(path))) as gateway:

        async def status() -> int:
            async with gateway.http.get(gateway.url + "/v1/models", headers=headers) as response:
                return response.status

        assert await status() == 200
        path.write_text(path.read_text().splitlines()[1] + "\n")
        async with asyncio.timeout(60):
            while (found := await status()) == 200:
                pass
        assert found == 401
