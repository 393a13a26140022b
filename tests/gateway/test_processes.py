"""Faults of real processes: killed, hung, gone, slow, and a disk that is full (docs/faults.md)."""

import asyncio
import io
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import aiohttp
import msgspec
import pytest
from tests.gateway.pair import FOUR_PLACES, PATIENCE_S, Pair, eventually

from mars.gateway.protocol import HEAD_BYTES
from mars.stream.log import read_log

pytestmark = pytest.mark.timeout(240)
Start = Callable[..., Awaitable[Pair]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def make(*options: str) -> Pair:
            pair = Pair(tmp_path, *options)
            stack.push_async_callback(pair.end)
            await pair.start()
            return pair

        yield make


def error_of(said: bytes) -> str:
    return str(msgspec.json.decode(said)["error"]["type"])


async def sessions(pair: Pair, count: int) -> None:
    async def are_there() -> bool:
        return (await pair.status()).sessions == count

    await eventually(are_there)


class TestEngine:
    async def test_killed_in_prefill(self, start: Start) -> None:
        """Before the first byte: an answer with a status, and the session goes on, cold."""
        pair = await start("--policy", "fcfs")
        pair.engine.send(signal.SIGSTOP)
        calls = [pair.post(f"s{number}") for number in range(20)]
        await sessions(pair, 20)
        pair.engine.end()
        for call in calls:
            response = await call
            assert response.status == 502
            assert error_of(await response.read()) in {"engine_died", "engine_unreachable"}
        pair.engine.start()
        await pair.ready()
        for number in range(20):
            assert (await pair.post(f"s{number}", final=True)).status == 200
        await pair.empty()

    async def test_killed_in_decode_while_sessions_are_gated(self, start: Start) -> None:
        """Streams end with an error; who waited gets its turn, and hears of the engine then."""
        pair = await start(*FOUR_PLACES)
        streams = [await pair.post(f"s{n}", chunks=600, gap_ms=50, final=True) for n in range(4)]
        for stream in streams:
            await stream.content.readuntil(b"\n\n")
        gated = [pair.post(f"g{number}", final=True) for number in range(20)]
        await sessions(pair, 24)
        assert (await pair.status()).gated == 20
        pair.engine.end()
        for stream in streams:
            said = await stream.read()
            assert b'"engine_died"' in said.splitlines()[-2]
            assert b"[DONE]" not in said
        for call in gated:
            assert (await call).status == 502
        await pair.empty()
        pair.engine.start()
        await pair.ready()
        assert (await pair.post("s", final=True)).status == 200
        await pair.empty()

    async def test_hung(self, start: Start) -> None:
        """It costs nothing but time: what goes on goes on whole, who leaves gives all back."""
        pair = await start(
            "--policy", "fcfs", "--set", "gateway.connect_s=0.2", "--set", "gateway.gone_s=0.2"
        )
        stream = await pair.post("stays", chunks=40, gap_ms=50, final=True)
        await stream.content.readuntil(b"\n\n")
        pair.engine.send(signal.SIGSTOP)
        leaving = [pair.post(f"leaves{number}") for number in range(20)]
        await sessions(pair, 21)
        async with pair.http.get(pair.url + "/health") as response:
            assert response.status == 503
        for call in leaving:
            call.cancel()
        await sessions(pair, 1)
        pair.engine.send(signal.SIGCONT)
        assert (await stream.read()).endswith(b"data: [DONE]\n\n")
        await pair.empty()

        async def all_closed() -> bool:
            return (
                pair.engine.connections <= 2
            )  # ours of /health and of the stream, kept for a while

        await eventually(all_closed)


async def test_the_gateway_killed_and_started_again_under_load(start: Start) -> None:
    """Clients that try again all come to their end, and nothing of the first life is left."""
    pair = await start(*FOUR_PLACES)

    async def agent(number: int) -> int:
        """Its failed calls."""
        turn = failed = 0
        while turn < 20:
            try:
                call = pair.post(f"agent{number}", chunks=4, gap_ms=20, final=turn == 19)
                turn += (await (await call).read()).endswith(b"data: [DONE]\n\n")
            except aiohttp.ClientError:
                failed += 1
                await asyncio.sleep(0.1)
        return failed

    agents = [asyncio.create_task(agent(number)) for number in range(12)]

    async def is_under_way() -> bool:
        return pair.log.exists() and pair.log.read_bytes().count(b"CallFinished") > 20

    await eventually(is_under_way)
    pair.gateway.end()
    first_life = pair.told()
    assert first_life["CallFinished"] > 20, "the log can be read to its last whole line"
    pair.gateway.start()
    failed = await asyncio.gather(*agents)
    assert sum(failed) > 0
    await pair.empty()


async def test_500_clients_vanish_at_once(start: Start) -> None:
    pair = await start("--set", "gateway.gone_s=0.2")
    before = pair.gateway.connections
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FIVE_HUNDRED, pair.url, stdout=asyncio.subprocess.PIPE
    )
    assert client.stdout is not None
    assert await client.stdout.readline() == b"open\n"
    assert (await pair.status()).sessions == 500
    client.kill()
    await client.wait()
    await pair.empty()

    async def all_closed() -> bool:
        return pair.gateway.connections <= before + 2 and pair.engine.connections <= 2

    await eventually(all_closed)

    async def all_told() -> bool:
        told = pair.told()
        calls = told["CallFinished"] == told["CallQueued"] == 500
        return calls and told["SessionEnded"] == told["SessionArrived"] == 500

    await eventually(all_told)


_FIVE_HUNDRED = """
import asyncio, sys
from mars.bench.streams import Load, held_open
async def main():
    load = Load(model="stub-1000ms", streams=500, body_bytes=2000, lasts_s=60, chunks=600)
    async with held_open(sys.argv[1], load, "s"):
        print("open", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


async def test_slow_readers_cost_no_memory_and_nobody_else_s_time(start: Start) -> None:
    pair = await start()
    chunks = 20_000  # 4 MB each
    slow = [await pair.post(f"slow{n}", chunks=chunks, final=True) for n in range(20)]
    assert (await pair.post("quick", final=True)).status == 200
    before_bytes = pair.gateway.rss_bytes
    for _ in range(50):
        assert (await (await pair.post("quick", final=True)).read()).endswith(b"[DONE]\n\n")
    assert pair.gateway.rss_bytes - before_bytes < 20_000_000
    for response in slow:
        assert (await response.read()).count(b"data: ") == chunks + 1
    await pair.empty()


@pytest.mark.parametrize("flood", ["one", "many", "url"])
async def test_a_flood_of_headers_is_refused(start: Start, flood: str) -> None:
    """Httptools would collect them without end."""
    pair = await start()
    host, port = pair.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    line = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
    piece = {"one": b"x" * 4096, "many": b"X-A: b\r\n" * 512, "url": b"x" * 4096}[flood]
    writer.write({"one": line + b"X-A: ", "many": line, "url": b"POST /"}[flood])
    sent = 0
    with pytest.raises(ConnectionError):  # noqa: PT012
        while sent < 100 * HEAD_BYTES:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            await asyncio.sleep(0)
    with suppress(ConnectionError):  # the answer may be lost where the client goes on sending
        assert (await reader.read()).startswith((b"HTTP/1.1 431", b""))
    writer.close()
    assert (await pair.post("s", final=True)).status == 200
    await pair.empty()


async def test_a_disk_that_fills_keeps_what_was_written_and_the_traffic(start: Start) -> None:
    """A file that may not grow beyond 64 KiB, as on a disk without room, and then may again."""
    pair = await start()
    pair.gateway.end()
    pair.gateway.start("prlimit", "--fsize=65536:unlimited")
    await pair.ready()

    asked = 0

    async def ask(*, final: bool = False) -> None:
        nonlocal asked
        asked += 1
        assert (await (await pair.post("s", final=final)).read()).endswith(b"[DONE]\n\n")

    async def is_full() -> bool:
        await ask()
        return pair.log.stat().st_size > 65_000

    await eventually(is_full)
    for _ in range(200):
        await ask()
    await ask(final=True)
    await pair.empty()
    assert 100 < pair.told()["CallQueued"] < asked, "what is there can be read"
    assert pair.gateway.popen is not None
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(pair.gateway.popen.pid, resource.RLIMIT_FSIZE, unlimited)
    await ask(final=True)

    async def is_whole() -> bool:
        return pair.told()["CallQueued"] == asked

    await eventually(is_whole)
    async with pair.http.get(pair.url + "/metrics") as response:
        assert "mars_log_lost_facts_total 0.0" in await response.text()


async def test_a_clock_that_steps_changes_nothing(start: Start, tmp_path: Path) -> None:
    """Sessions and their timers live by the monotonic clock; the calendar's may jump by days."""
    pair = await start("--set", "gateway.idle_s=3600")
    pair.gateway.end()
    shift = tmp_path / "shift"
    shift.write_text("+0")
    clock = [
        f"FAKETIME_TIMESTAMP_FILE={shift}", "FAKETIME_NO_CACHE=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1", "LD_PRELOAD=libfaketimeMT.so.1",
        "LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/faketime:/usr/lib/aarch64-linux-gnu/faketime",
    ]  # fmt: skip
    pair.gateway.start("env", *clock)
    await pair.ready()
    assert (await pair.post("rests")).status == 200
    stream = await pair.post("streams", chunks=60, gap_ms=50, final=True)
    for step in ("+2d", "-2d", "+0"):
        await stream.content.readuntil(b"\n\n")
        shift.write_text(step)
        assert (await pair.post("rests")).status == 200
    assert (await stream.read()).endswith(b"data: [DONE]\n\n")
    assert (await pair.status()).sessions == 1
    assert (await pair.post("rests", final=True)).status == 200
    await pair.empty()
    pair.gateway.end(signal.SIGTERM)
    head, events = read_log(pair.log)
    at_s = [event.at_s for event in events]
    assert head.at_s <= at_s[0]
    assert at_s == sorted(at_s)
    assert at_s[-1] - at_s[0] < PATIENCE_S


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "stub-0ms", "max_tokens": 20, "stream": tru',
        b'{"model": "stub-0ms", "max_tokens": 20, "user": "\xff\xfe\x00"}',
        b"\x00" * 1000,
        b'{"model": "stub-0ms", "max_tokens": 20, "user": "' + b"x" * 20_000_000 + b'"}',
    ],
    ids=["malformed", "broken UTF-8", "zeros", "20 MB"],
)
async def test_bodies_that_are_none_pass_to_the_engine(start: Start, body: bytes) -> None:
    """Each is a session of its own that ends with its call; the next one is served."""
    pair = await start()
    for _ in range(3):
        url = pair.url + "/v1/chat/completions"
        async with pair.http.post(url, data=io.BytesIO(body)) as response:
            assert response.status == 200  # the stub is not particular
            await response.read()
    await pair.empty()
    assert (await pair.post("s", final=True)).status == 200
    await pair.empty()
