"""What a client hears while it waits at the gate, and what becomes of errors then."""

import asyncio

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tests.gateway.conftest import ONE_AT_A_TIME, gateway
from tests.gateway.scripted import (
    DONE,
    JSON,
    STREAM,
    Engine,
    Exchange,
    answer_of,
    event_of,
    on_cue,
)

from mars.core.ids import SessionId
from mars.gateway.settings import GatewaySettings

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello?"}]
FINAL = {"X-Session-Final": "1"}


class TestKeepAlive:
    async def test_a_waiting_stream_is_kept_alive(self, engine: Engine) -> None:
        async def script(exchange: Exchange) -> None:
            if exchange.header("x-session-id") == "a":
                await on_cue(exchange)
            else:
                await exchange.begin(200, STREAM)
                await exchange.write(event_of("Hello"))
                await exchange.write(DONE, last=True)

        engine.script = script
        async with gateway(engine.url, GatewaySettings(keepalive_s=0.02), ONE_AT_A_TIME) as rig:
            first = rig.post("a", headers=FINAL)
            await engine.called(1)
            response = await rig.post("b", stream=True)  # returns: the headers are out
            assert response.headers["content-type"].startswith("text/event-stream")
            for _ in range(3):
                assert await response.content.readuntil(b"\n\n") == b": queued\n\n"
            assert rig.phases["b"] == "gated"
            engine.seen[0].cue.set()
            await first
            rest = await response.read()
            assert rest.replace(b": queued\n\n", b"") == event_of("Hello") + DONE

    async def test_openai_reads_past_the_comments(self, engine: Engine) -> None:
        async with gateway(engine.url, GatewaySettings(keepalive_s=0.01), ONE_AT_A_TIME) as rig:
            await rig.say("a")
            stream = await rig.openai("b").chat.completions.create(
                model="m", messages=ASK, stream=True
            )
            asyncio.get_running_loop().call_later(0.05, rig.desk.end, SessionId("a"), "test")
            said = [chunk.choices[0].delta.content async for chunk in stream]
            assert said == ["Hello", ", ", "world"]

    async def test_a_short_wait_leaves_the_engines_error_as_it_is(self, engine: Engine) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.answer(400, JSON, b'{"error": {"message": "no"}}')

        async with gateway(engine.url, GatewaySettings(keepalive_s=60), ONE_AT_A_TIME) as rig:
            await rig.say("a")
            engine.script = script
            second = rig.post("b", stream=True)
            await rig.gated("b")
            rig.desk.end(SessionId("a"), "test")
            response = await second
            assert (response.status, await response.read()) == (
                400,
                b'{"error": {"message": "no"}}',
            )

    @pytest.mark.parametrize(
        ("said", "told"),
        [(b'{"error":{"message":\n"no"}}', '"no"'), (b"so sorry", "so sorry"), (b"{}", "{}")],
    )
    async def test_after_a_long_wait_the_error_is_an_event(
        self, engine: Engine, said: bytes, told: str
    ) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.answer(400, JSON, said)

        async with gateway(engine.url, GatewaySettings(keepalive_s=0.01), ONE_AT_A_TIME) as rig:
            await rig.say("a")
            engine.script = script
            client = rig.openai("b")
            stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
            rig.desk.end(SessionId("a"), "test")
            with pytest.raises(openai.APIError) as caught:
                await anext(stream)
            assert told.strip('"') in str(caught.value)
            assert (await rig.finished(2)).why == "HTTP 400"

    async def test_a_plain_request_waits_in_silence(self, engine: Engine) -> None:
        async with gateway(engine.url, GatewaySettings(keepalive_s=0.01), ONE_AT_A_TIME) as rig:
            await rig.say("a")
            plain, stream = rig.post("b"), rig.post("c", stream=True)
            response = await stream
            for _ in range(3):
                await response.content.readuntil(b"\n\n")
            assert not plain.done()
            rig.desk.end(SessionId("a"), "test")
            assert await (await plain).read() == answer_of("Hello, world")

    async def test_a_client_that_leaves_between_comments(self, engine: Engine) -> None:
        async with gateway(engine.url, GatewaySettings(keepalive_s=0.01), ONE_AT_A_TIME) as rig:
            await rig.say("a")
            response = await rig.post("b", stream=True)
            await response.content.readuntil(b"\n\n")
            response.close()
            assert await rig.ended("b") == "client left at the gate"
            assert len(engine.seen) == 1
