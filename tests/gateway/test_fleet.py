"""Several engines behind one gateway, as real processes."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.gateway.pair import FOUR_PLACES, Pair, eventually
from tests.gateway.test_run import start

from mars.core.errors import InputError
from mars.gateway.front import EngineRow
from mars.gateway.vllm_metrics import sample_of

pytestmark = pytest.mark.timeout(240)
OPEN = ("--policy", "mars-no-admission", "--set", "gateway.health_s=0.2")
DONE = b"data: [DONE]\n\n"


class Two(Pair):
    async def rows(self) -> list[EngineRow]:
        async with self.http.get(self.url + "/mars/engines") as response:
            return msgspec.json.decode(await response.read(), type=list[EngineRow])

    async def row(self, number: int) -> EngineRow:
        return next(row for row in await self.rows() if row.url == self.engine_urls[number])

    async def sessions(self) -> dict[str, str]:
        """Session to engine."""
        async with self.http.get(self.url + "/mars/sessions") as response:
            return {row["session_id"]: row["engine"] for row in await response.json()}

    async def until_state(self, number: int, state: str) -> None:
        async def is_so() -> bool:
            return (await self.row(number)).state == state

        await eventually(is_so)

    async def empty(self) -> None:
        async def is_empty() -> bool:
            return all((row.sessions, row.calls) == (0, 0) for row in await self.rows())

        await eventually(is_empty)
        for url in self.engine_urls:
            async with self.http.get(f"{self.url}/mars/status?engine={url}") as response:
                status = await response.json()
            assert (status["active"], status["gated"], status["faults"]) == (0, 0, 0)

    async def tell(self, method: str, path: str, **how: Any) -> int:
        async with self.http.request(method, self.url + path, **how) as response:
            return response.status

    async def turn(self, session: str, **how: Any) -> None:
        """A whole turn, which must go well."""
        response = await self.post(session, **how)
        assert response.status == 200, await response.text()
        assert (await response.read()).endswith(DONE)


@asynccontextmanager
async def two(folder: Path, *options: str) -> AsyncIterator[Two]:
    fleet = Two(folder, *(options or OPEN), engines=2)
    try:
        await fleet.start()
        yield fleet
    finally:
        await fleet.end()


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Two]:
    async with two(tmp_path) as fleet:
        yield fleet


async def test_sessions_stay_where_they_are_and_are_spread(fleet: Two) -> None:
    streams = [await fleet.post(f"s{n}", chunks=100, gap_ms=50) for n in range(20)]
    homes = await fleet.sessions()
    assert Counter(homes.values()) == dict.fromkeys(fleet.engine_urls, 10)
    for stream in streams:
        stream.close()
    for _ in range(3):
        await asyncio.gather(*(fleet.turn(f"s{number}") for number in range(20)))
        assert await fleet.sessions() == homes
    await asyncio.gather(*(fleet.turn(f"s{number}", final=True) for number in range(20)))
    await fleet.empty()


async def test_an_engine_killed_under_load(fleet: Two) -> None:
    """No client sees an error but those whose streams had begun; it comes back, and gets work."""
    begun_then_failed = 0
    stop = asyncio.Event()

    async def agent(number: int) -> None:
        nonlocal begun_then_failed
        while not stop.is_set():
            response = await fleet.post(f"agent{number}", chunks=4, gap_ms=20)
            assert response.status == 200, await response.text()
            said = await response.read()
            if not said.endswith(DONE):
                assert said.startswith(b"data: {"), "it had begun"
                assert b"engine_died" in said
                begun_then_failed += 1

    agents = [asyncio.create_task(agent(number)) for number in range(40)]

    async def both_work() -> bool:
        return all(row.sessions >= 10 for row in await fleet.rows())

    await eventually(both_work)
    fleet.engines[1].end()
    await fleet.until_state(1, "down")
    await fleet.turn("new")

    async def all_on_one() -> bool:
        return set((await fleet.sessions()).values()) == {fleet.engine_urls[0]}

    await eventually(all_on_one)
    fleet.engines[1].start()
    await fleet.until_state(1, "up")
    for number in range(40):
        await fleet.turn(f"late{number}")
    assert (await fleet.row(1)).sessions > 0
    stop.set()
    await asyncio.gather(*agents)
    assert begun_then_failed <= 40
    ends = [*(f"agent{number}" for number in range(40)), *(f"late{n}" for n in range(40)), "new"]
    await asyncio.gather(*(fleet.turn(session, final=True) for session in ends))
    await fleet.empty()


async def test_who_waits_at_the_gate_of_an_engine_that_dies_goes_on_elsewhere(
    tmp_path: Path,
) -> None:
    options = (*FOUR_PLACES, "--set", "gateway.health_s=0.2", "--set", "gateway.keepalive_s=0.1")
    async with two(tmp_path, *options) as fleet:
        streams = [await fleet.post(f"s{n}", chunks=100, gap_ms=100, final=True) for n in range(8)]
        gated = [fleet.post(f"g{number}", final=True) for number in range(10)]

        async def all_wait() -> bool:
            return [row.waiting for row in await fleet.rows()] == [5, 5]

        await eventually(all_wait)
        responses = await asyncio.gather(*gated)  # with the comments of streams that wait
        fleet.engines[1].end()
        for response in responses:
            assert (await response.read()).endswith(DONE)
        whole = [(await stream.read()).endswith(DONE) for stream in streams]
        assert whole.count(True) == 4
        await fleet.empty()


async def test_a_hung_engine_s_sessions_go_on_elsewhere(fleet: Two) -> None:
    for number in range(10):
        await fleet.turn(f"s{number}")
    fleet.engines[0].send(signal.SIGSTOP)
    await fleet.until_state(0, "down")
    await asyncio.gather(*(fleet.turn(f"s{number}", final=True) for number in range(10)))
    fleet.engines[0].send(signal.SIGCONT)
    await fleet.until_state(0, "up")
    await fleet.empty()


async def test_an_engine_that_drains_ends_its_calls_and_gets_no_more(fleet: Two) -> None:
    streams = [await fleet.post(f"s{n}", chunks=40, gap_ms=50, final=True) for n in range(6)]
    drained = fleet.engine_urls[0]
    assert await fleet.tell("POST", "/mars/engines/drain", json={"url": drained}) == 200
    assert (await fleet.row(0)).calls == 3
    for number in range(6):
        await fleet.turn(f"new{number}")
    assert set((await fleet.sessions()).values()) == {fleet.engine_urls[1]}
    for stream in streams:
        assert (await stream.read()).endswith(DONE)
    assert await fleet.tell("POST", "/mars/engines", json={"url": drained}) == 200
    assert (await fleet.row(0)).state == "up"
    for number in range(6):
        await fleet.turn(f"new{number}", final=True)
    await fleet.empty()


async def test_engines_come_and_go_at_run_time(fleet: Two) -> None:
    first, second = fleet.engine_urls
    stream = await fleet.post("s", chunks=40, gap_ms=50, final=True)
    home = (await fleet.sessions())["s"]
    assert await fleet.tell("DELETE", f"/mars/engines?url={home}") == 200
    assert (await fleet.rows())[0].state == "draining", "as long as its call lasts"
    assert (await stream.read()).endswith(DONE)

    async def is_gone() -> bool:
        return [row.url for row in await fleet.rows()] == [second if home == first else first]

    await eventually(is_gone)
    await fleet.turn("t")
    assert await fleet.tell("POST", "/mars/engines", json={"url": home}) == 200
    assert {row.state for row in await fleet.rows()} == {"up"}
    await fleet.turn("t", final=True)
    await fleet.empty()
    assert await fleet.tell("DELETE", "/mars/engines?url=http://nowhere") == 404
    for wrong in ({"url": "nowhere"}, {"uri": home}, {"url": 7}):
        assert await fleet.tell("POST", "/mars/engines", json=wrong) == 400


async def test_without_an_engine_a_client_is_told_and_when_to_come_back(fleet: Two) -> None:
    for number in (0, 1):
        fleet.engines[number].end()
        await fleet.until_state(number, "down")
    response = await fleet.post("s")
    assert response.status == 503
    assert response.headers["retry-after"] == "5"
    said = (await response.json())["error"]
    assert said["type"] == "no_engine"
    assert all(url in said["message"] for url in fleet.engine_urls)
    assert await fleet.tell("GET", "/health") == 503
    fleet.engines[0].start()
    await fleet.until_state(0, "up")
    await fleet.turn("s", final=True)


async def test_a_body_that_is_too_large_or_broken_off(tmp_path: Path) -> None:
    async with two(tmp_path, *OPEN, "--set", "gateway.body_bytes=1000") as fleet:
        url = fleet.url + "/v1/chat/completions"
        async with fleet.http.post(url, data=b"x" * 5000) as response:
            assert response.status == 413
        host, port = fleet.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await fleet.turn("s", final=True)
        await fleet.empty()


async def test_a_session_ended_at_the_gate_stays_ended(tmp_path: Path) -> None:
    async with two(tmp_path, *FOUR_PLACES, "--set", "gateway.health_s=0.2") as fleet:
        streams = [await fleet.post(f"s{n}", chunks=400, gap_ms=50, final=True) for n in range(8)]
        waiting = fleet.post("g")

        async def waits() -> bool:
            return "g" in await fleet.sessions()

        await eventually(waits)
        assert await fleet.tell("DELETE", "/mars/sessions/g") == 200
        assert (await waiting).status == 410
        for stream in streams:
            stream.close()


async def test_an_engine_named_twice_is_refused() -> None:
    one = "http://127.0.0.1:9"
    with pytest.raises(InputError, match="is named twice"):
        await start([one, one + "/"], print)


VLLM = """\
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:cache_config_info{block_size="32",cache_dtype="auto",num_gpu_blocks="640"} 1.0
"""


def test_what_a_stock_vllm_tells() -> None:
    sample = sample_of(VLLM, 5.0)
    assert sample is not None
    assert (sample.at_s, sample.kv_used_blocks, sample.kv_total_blocks) == (5.0, 160, 640)
    assert (sample.block_tokens, sample.running_calls, sample.waiting_calls) == (32, 3, 2)
    assert sample_of("{}", 5.0) is None
    assert sample_of(VLLM.replace('"640"', '"None"'), 5.0) is None
