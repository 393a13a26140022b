"""What goes through is what came in."""

import asyncio
import gzip
import io
import random

import aiohttp
import pytest
from tests.gateway.conftest import CHAT, Rig
from tests.gateway.scripted import DONE, JSON, STREAM, Engine, Exchange, event_of, hanging
from yarl import URL

from mars.core import events as ev
from mars.core.errors import InputError
from mars.gateway.settings import GatewaySettings
from mars.gateway.upstream import Upstream

PATHS = (CHAT, "/v1/completions", "/v1/responses", "/v1/messages")
"""Those through the gate."""
ODD = b'{ "messages" : [],\r\n"caf\xc3\xa9":1.50, "unknown":{"a":[1e3]},"unknown":2 }\n'


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_arrives_byte_by_byte(engine: Engine, rig: Rig, path: str) -> None:
    headers = {
        "X-Session-ID": "s",
        "Authorization": "Bearer x",
        "Content-Type": "application/json; odd=1",
        "X-Own-Thing": "caf\u00e9",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "for the gateway only",
        "TE": "trailers",
    }
    url = URL(rig.url + path + "?a=%2F&b", encoded=True)
    await (await rig.http.post(url, data=ODD, headers=headers)).read()
    assert engine.last.method == "POST"
    assert engine.last.target == path + "?a=%2F&b"
    assert engine.last.body == ODD
    assert engine.last.header("authorization") == "Bearer x"
    assert engine.last.header("content-type") == "application/json; odd=1"
    assert engine.last.header("x-own-thing") == "caf\u00e9"
    assert engine.last.header("x-session-id") == "s"
    assert engine.last.header("host") == engine.url.removeprefix("http://")
    assert engine.last.header("x-hop") is engine.last.header("te") is None


async def test_nothing_is_added_that_the_client_did_not_say(engine: Engine, rig: Rig) -> None:
    host, port = rig.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    names = {name for name, _ in engine.last.headers}
    assert names == {b"host", b"content-length", b"x-session-id", b"x-request-id"}
    assert str(engine.last.header("x-session-id")).startswith("anon-")


@pytest.mark.parametrize("size_bytes", [0, 1, 100_000, 3_000_000])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("headers", [{"X-Session-ID": "s"}, {}], ids=["named", "nameless"])
async def test_bodies_of_every_size_pass_both_ways(
    engine: Engine, rig: Rig, size_bytes: int, path: str, headers: dict[str, str]
) -> None:
    noise = random.Random(size_bytes).randbytes(size_bytes)

    async def echo(exchange: Exchange) -> None:
        await exchange.answer(200, JSON, exchange.body)

    engine.script = echo
    response = await rig.http.post(rig.url + path, data=io.BytesIO(noise), headers=headers)
    assert await response.read() == noise
    assert engine.last.body == noise


async def test_an_answer_returns_byte_by_byte(engine: Engine, rig: Rig) -> None:
    squeezed = gzip.compress(b"{}" * 100)
    own = [
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"x-odd", b"caf\xe9"),
        (b"keep-alive", b"timeout=5"),
    ]

    async def script(exchange: Exchange) -> None:
        await exchange.answer(207, JSON + own, squeezed)

    engine.script = script
    response = await rig.post("s")
    assert response.status == 207
    assert await response.read() == squeezed
    assert response.headers.getall("set-cookie") == ["a=1", "b=2"]
    assert (b"x-odd", b"caf\xe9") in response.raw_headers
    assert "keep-alive" not in response.headers
    assert response.headers["content-length"] == str(len(squeezed))


async def test_cookies_of_one_client_are_not_sent_for_another(engine: Engine, rig: Rig) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, [*JSON, (b"set-cookie", b"a=1; Path=/")], b"{}")

    engine.script = script
    for _ in range(2):
        async with aiohttp.ClientSession() as http:
            await (await http.post(rig.url + CHAT, json={})).read()
    assert [exchange.header("cookie") for exchange in engine.seen] == [None, None]


async def test_chunks_are_passed_on_as_they_come(engine: Engine, rig: Rig) -> None:
    """The engine sends each chunk only after the client has the one before."""
    arrived = asyncio.Semaphore(0)
    chunks = [event_of(text) for text in "abcde"] + [b"data: half an", b" event\n\n", DONE]

    async def script(exchange: Exchange) -> None:
        await exchange.begin(200, STREAM)
        for chunk in chunks:
            await exchange.write(chunk)
            await arrived.acquire()
        await exchange.write(b"", last=True)

    engine.script = script
    response = await rig.post("s", stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    for chunk in chunks:
        assert await response.content.readany() == chunk
        arrived.release()
    assert await response.content.read() == b""
    assert (await rig.finished(1)).ok


async def test_a_slow_client_slows_the_engine(engine: Engine, rig: Rig) -> None:
    """Nothing is piled up in the gateway beyond the buffers on the way."""
    written_bytes = 0

    async def script(exchange: Exchange) -> None:
        nonlocal written_bytes
        await exchange.begin(200, STREAM)
        for _ in range(2000):
            await exchange.write(b"x" * 50_000)
            written_bytes += 50_000
        await exchange.write(b"", last=True)

    engine.script = script
    response = await rig.post("s", stream=True)
    before = -1
    while before != written_bytes:  # until the engine is stuck
        before = written_bytes
        for _ in range(20):
            await rig.status()
    assert 0 < written_bytes < 60_000_000
    assert sum([len(chunk) async for chunk in response.content.iter_any()]) == 100_000_000


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
async def test_other_routes_pass_without_gate(engine: Engine, rig: Rig, method: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(418, JSON, b"" if exchange.method == "HEAD" else b"[1]")

    engine.script = script
    url = URL(rig.url + "/v1/models/a%2Fb?x=1", encoded=True)
    response = await rig.http.request(method, url)
    assert response.status == 418
    assert await response.read() == (b"" if method == "HEAD" else b"[1]")
    assert (engine.last.method, engine.last.target) == (method, "/v1/models/a%2Fb?x=1")
    assert rig.events == []


async def test_a_redirect_is_the_clients_to_follow(engine: Engine, rig: Rig) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(307, [(b"location", b"/elsewhere")], b"")

    engine.script = script
    response = await rig.http.get(rig.url + "/v1/models", allow_redirects=False)
    assert (response.status, response.headers["location"]) == (307, "/elsewhere")


@pytest.mark.parametrize("path", PATHS)
async def test_the_engines_refusal_passes_unchanged(engine: Engine, rig: Rig, path: str) -> None:
    refusal = b'{"error": {"message": "too long", "type": "BadRequestError", "code": 400}}'

    async def script(exchange: Exchange) -> None:
        await exchange.answer(400, JSON, refusal)

    engine.script = script
    response = await rig.http.post(rig.url + path, json={"messages": [{}], "stream": True})
    assert response.status == 400
    assert await response.read() == refusal
    finished = await rig.finished(1)
    assert (finished.ok, finished.why) == (False, "HTTP 400")


class TestCallId:
    @pytest.mark.parametrize("own", ["a", "A-b_c.9", "x" * 128])
    async def test_the_clients_own_is_kept(self, engine: Engine, rig: Rig, own: str) -> None:
        await rig.say("s", headers={"X-Request-Id": own})
        assert engine.last.header("x-request-id") == own
        assert rig.of(ev.CallQueued)[0].call_id == own

    @pytest.mark.parametrize("own", [None, "", "x" * 129, "a b", "a/b", "caf\u00e9"])
    async def test_what_cannot_be_one_is_replaced(
        self, engine: Engine, rig: Rig, own: str | None
    ) -> None:
        await rig.say("s", headers={} if own is None else {"X-Request-Id": own})
        made = str(engine.last.header("x-request-id"))
        assert len(made) == 32
        assert rig.of(ev.CallQueued)[0].call_id == made

    async def test_one_in_flight_is_not_given_twice(self, engine: Engine, rig: Rig) -> None:
        engine.script = hanging
        first = rig.post("s", headers={"X-Request-Id": "same"})
        await engine.called(1)
        second = rig.post("t", headers={"X-Request-Id": "same"})
        await engine.called(2)
        first_id, second_id = (str(it.header("x-request-id")) for it in engine.seen)
        assert first_id == "same"
        assert len(second_id) == 32
        for task in (first, second):
            task.cancel()
        await rig.finished(2)
        third = rig.post("u", headers={"X-Request-Id": "same"})
        assert (await engine.called(3)).header("x-request-id") == "same"
        third.cancel()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://"])
def test_an_address_that_cannot_be_one_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="http://host:port"):
        Upstream(url, GatewaySettings())
