"""The engine fails: the client sees an error, never a short answer that looks whole."""

import asyncio

import aiohttp
import msgspec
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.gateway.conftest import Rig, gateway
from tests.gateway.scripted import (
    JSON,
    STREAM,
    Engine,
    Exchange,
    answer_of,
    closed_port,
    event_of,
    hanging,
)

from mars.core import events as ev
from mars.gateway.settings import GatewaySettings

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello?"}]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_is_not_there(*, stream: bool) -> None:
    url = closed_port()
    async with gateway(url) as rig:
        response = await rig.post("s", stream=stream)
        assert response.status == 502
        error = msgspec.json.decode(await response.read())["error"]
        assert (error["type"], error["code"]) == ("engine_unreachable", 502)
        assert url in error["message"]
        assert "curl" in error["message"]
        finished = await rig.finished(1)
        assert not finished.ok
        assert "cannot reach the engine" in finished.why
        with pytest.raises(openai.InternalServerError, match="cannot reach the engine"):
            await rig.openai().chat.completions.create(model="m", messages=ASK)


async def test_an_engine_that_cuts_before_it_answers() -> None:
    async def cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with (
        server,
        gateway(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as rig,
    ):
        response = await rig.post("s")
        assert response.status == 502
        error = msgspec.json.decode(await response.read())["error"]
        assert error["type"] == "engine_died"
        assert "broke off" in error["message"]


async def test_an_engine_that_does_not_accept() -> None:
    """A full backlog: the connection is never made."""
    import socket  # noqa: PLC0415

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)  # noqa: FBT003
            filler.connect_ex(address)
        async with gateway(f"http://127.0.0.1:{address[1]}", GatewaySettings(connect_s=0.1)) as rig:
            response = await rig.post("s")
            assert response.status == 502
            assert (
                msgspec.json.decode(await response.read())["error"]["type"] == "engine_unreachable"
            )
        for filler in fillers:
            filler.close()


async def test_a_stream_that_dies_ends_with_an_error(engine: Engine, rig: Rig) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin(200, STREAM)
        await exchange.write(event_of("Hel"))

    engine.script = script
    said = await (await rig.post("s", stream=True)).read()
    whole, error = said.split(b"\n\n", 1)
    assert whole + b"\n\n" == event_of("Hel")
    assert error.startswith(b"data: ")
    assert error.endswith(b"\n\n")
    told = msgspec.json.decode(error.removeprefix(b"data: "))["error"]
    assert told["type"] == "engine_died"
    assert told["code"] == 502
    assert b"[DONE]" not in said
    finished = await rig.finished(1)
    assert not finished.ok
    assert "broke off" in finished.why


async def test_an_error_is_an_event_of_its_own_after_half_an_event(
    engine: Engine, rig: Rig
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin(200, STREAM)
        await exchange.write(b'data: {"cho')

    engine.script = script
    said = await (await rig.post("s", stream=True)).read()
    assert said.startswith(b'data: {"cho\n\ndata: {"error"')


async def test_openai_sees_the_error_of_a_stream(engine: Engine, rig: Rig) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.begin(200, STREAM)
        await exchange.write(event_of("Hel"))

    engine.script = script
    stream = await rig.openai().chat.completions.create(model="m", messages=ASK, stream=True)
    said: list[str | None] = []
    with pytest.raises(openai.APIError, match="broke off"):  # noqa: PT012
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content)  # noqa: PERF401
    assert said == ["Hel"]


@pytest.mark.parametrize("sized", [False, True])
async def test_openai_sees_that_an_answer_is_short(
    engine: Engine, rig: Rig, *, sized: bool
) -> None:
    whole = answer_of("Hello")

    async def script(exchange: Exchange) -> None:
        length = [(b"content-length", str(len(whole)).encode())] if sized else []
        await exchange.begin(200, JSON + length)
        await exchange.write(whole[: len(whole) // 2])

    engine.script = script
    with pytest.raises(openai.APIConnectionError):
        await rig.openai().chat.completions.create(model="m", messages=ASK)
    with pytest.raises(aiohttp.ClientPayloadError):
        await (await rig.post("s")).read()
    finished = await rig.finished(2)
    assert not finished.ok


class TestDisconnect:
    """A client that leaves takes its call with it, wherever the call is."""

    @pytest.mark.parametrize("size", [10, 300_000], ids=["short", "that stopped the reading"])
    async def test_before_the_first_byte(self, engine: Engine, rig: Rig, size: int) -> None:
        engine.script = hanging
        call = rig.post("s", messages=[{"role": "user", "content": "x" * size}])
        exchange = await engine.called(1)
        assert rig.phases == {"s": "queued"}
        call.cancel()
        await asyncio.wait_for(exchange.closed.wait(), 5)
        finished = await rig.finished(1)
        assert (finished.ok, finished.why) == (False, "client disconnected")

    async def test_in_mid_stream(self, engine: Engine, rig: Rig) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.begin(200, STREAM)
            await exchange.write(event_of("Hel"))
            await exchange.hang()

        engine.script = script
        response = await rig.post("s", stream=True)
        assert await response.content.readany() == event_of("Hel")
        response.close()
        await asyncio.wait_for(engine.last.closed.wait(), 5)
        finished = await rig.finished(1)
        assert (finished.ok, finished.why) == (False, "client disconnected")

    async def test_while_it_does_not_read(self, engine: Engine, rig: Rig) -> None:
        """The gateway is stuck in writing when its client goes."""

        async def script(exchange: Exchange) -> None:
            await exchange.begin(200, STREAM)
            for _ in range(1000):
                await exchange.write(b"x" * 100_000)
            await exchange.hang()

        engine.script = script
        response = await rig.post("s", stream=True)
        for _ in range(50):
            await rig.status()
        response.close()
        assert (await rig.finished(1)).why == "client disconnected"
        await asyncio.wait_for(engine.last.closed.wait(), 5)

    async def test_in_its_own_body(self, engine: Engine, rig: Rig) -> None:
        host, port = rig.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await rig.say("s")
        assert len(engine.seen) == 1
        assert [call.session_id for call in rig.of(ev.CallQueued)] == ["s"]

    async def test_of_a_route_without_gate(self, engine: Engine, rig: Rig) -> None:
        engine.script = hanging
        call = asyncio.ensure_future(rig.http.get(rig.url + "/v1/models").__aenter__())
        exchange = await engine.called(1)
        call.cancel()
        await asyncio.wait_for(exchange.closed.wait(), 5)
