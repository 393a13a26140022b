"""Anthropic's client on /v1/messages: answers, streams, and errors in the form that it reads."""

import asyncio
from typing import Any

import anthropic
import msgspec
import pytest
from anthropic.types import Message, MessageParam
from tests.gateway.conftest import ONE_AT_A_TIME, Rig, gateway
from tests.gateway.scripted import JSON, STREAM, Engine, Exchange, closed_port, polite

from mars.core import events as ev
from mars.core.ids import SessionId
from mars.gateway.settings import GatewaySettings

ASK: list[MessageParam] = [{"role": "user", "content": "Hello?"}]
HOW: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": ASK}
MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
    "usage": {"input_tokens": 1, "output_tokens": 1},
}  # fmt: skip


def event(kind: str, **fields: object) -> bytes:
    data = msgspec.json.encode({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def events_of(text: str) -> list[bytes]:
    return [
        event("message_start", message={**MESSAGE, "content": []}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}),
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1}),
        event("message_stop"),
    ]


async def says_hello(exchange: Exchange) -> None:
    if msgspec.json.decode(exchange.body).get("stream"):
        await exchange.begin(200, STREAM)
        for chunk in events_of("Hello"):
            await exchange.write(chunk)
        await exchange.write(b"", last=True)
    else:
        content = [{"type": "text", "text": "Hello"}]
        await exchange.answer(200, JSON, msgspec.json.encode({**MESSAGE, "content": content}))


async def dies(exchange: Exchange) -> None:
    await exchange.begin(200, STREAM)
    for chunk in events_of("Hello")[:3]:
        await exchange.write(chunk)


async def refuses(exchange: Exchange) -> None:
    said = {"type": "error", "error": {"type": "BadRequestError", "message": "too long"}}
    await exchange.answer(400, JSON, msgspec.json.encode(said))


async def test_an_answer_is_a_call_of_its_session(engine: Engine, rig: Rig) -> None:
    engine.script = says_hello
    answer = await rig.anthropic("a").messages.create(**HOW, extra_body={"top_k": 3, "odd": [1]})
    assert [block.text for block in answer.content if block.type == "text"] == ["Hello"]
    assert engine.last.target == "/v1/messages"
    assert msgspec.json.decode(engine.last.body)["odd"] == [1]
    assert engine.last.header("x-session-id") == "a"
    assert engine.last.header("x-request-id") == (await rig.finished(1)).call_id


async def test_a_stream(engine: Engine, rig: Rig) -> None:
    engine.script = says_hello
    async with rig.anthropic("a").messages.stream(**HOW) as stream:
        assert await stream.get_final_text() == "Hello"
    assert (await rig.finished(1)).ok


@pytest.mark.parametrize("stream", [False, True])
async def test_without_an_id_a_talk_is_one_session(
    engine: Engine, rig: Rig, *, stream: bool
) -> None:
    engine.script = says_hello
    client, talk = rig.anthropic(None), [*ASK]
    for _ in range(3):
        if stream:
            async with client.messages.stream(**HOW | {"messages": talk}) as events:
                message: Message = await events.get_final_message()
        else:
            message = await client.messages.create(**HOW | {"messages": talk})
        talk += [{"role": "assistant", "content": message.content}, *ASK]
    assert len({it.session_id for it in rig.of(ev.CallQueued)}) == 1
    assert [it.rule for it in rig.of(ev.SessionArrived)] == ["none", "messages"]


async def test_tokens_are_counted_without_gate(engine: Engine, rig: Rig) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, JSON, b'{"input_tokens": 7}')

    engine.script = script
    counted = await rig.anthropic().messages.count_tokens(model="m", messages=ASK)
    assert counted.input_tokens == 7
    assert engine.last.target == "/v1/messages/count_tokens"
    assert rig.events == []


async def test_the_engines_refusal_passes_unchanged(engine: Engine, rig: Rig) -> None:
    engine.script = refuses
    with pytest.raises(anthropic.BadRequestError) as caught:
        await rig.anthropic().messages.create(**HOW)
    assert caught.value.body == {
        "type": "error",
        "error": {"type": "BadRequestError", "message": "too long"},
    }


class TestOwnErrors:
    async def test_an_engine_that_is_not_there(self) -> None:
        async with gateway(closed_port()) as rig:
            with pytest.raises(anthropic.InternalServerError, match="cannot reach") as caught:
                await rig.anthropic().messages.create(**HOW)
            assert (caught.value.status_code, caught.value.type) == (502, "api_error")
            with pytest.raises(anthropic.InternalServerError, match="cannot reach"):
                await rig.anthropic().messages.count_tokens(model="m", messages=ASK)

    async def test_an_id_that_cannot_be_one(self, engine: Engine, rig: Rig) -> None:
        with pytest.raises(anthropic.BadRequestError, match="256 is the most") as caught:
            await rig.anthropic("x" * 257).messages.create(**HOW)
        assert caught.value.type == "invalid_request_error"

    async def test_a_body_that_is_too_large(self, engine: Engine) -> None:
        async with gateway(engine.url, GatewaySettings(body_bytes=10)) as rig:
            with pytest.raises(anthropic.RequestTooLargeError, match="body_bytes") as caught:
                await rig.anthropic().messages.create(**HOW)
            assert "'type': 'request_too_large'" in str(caught.value.body)

    async def test_a_session_that_is_ended_at_the_gate(self, engine: Engine) -> None:
        async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
            await rig.say("a")
            asked = asyncio.ensure_future(rig.anthropic("b").messages.create(**HOW))
            await rig.gated("b")
            rig.desk.end(SessionId("b"), "test")
            with pytest.raises(anthropic.APIStatusError, match="was ended") as caught:
                await asked
            assert (caught.value.status_code, caught.value.type) == (410, "api_error")

    async def test_a_gateway_that_stops(self, engine: Engine) -> None:
        async with gateway(engine.url) as rig:
            rig.desk.close("test")
            with pytest.raises(anthropic.ServiceUnavailableError) as caught:
                await rig.anthropic().messages.create(**HOW)
            assert caught.value.type == "overloaded_error"

    async def test_an_engine_that_dies_within_a_stream(self, engine: Engine, rig: Rig) -> None:
        engine.script = dies
        stream = await rig.anthropic().messages.create(**HOW, stream=True)
        for _ in range(3):
            await anext(stream)
        with pytest.raises(anthropic.APIStatusError, match="broke off") as caught:
            await anext(stream)
        assert caught.value.type == "api_error"


class TestAtTheGate:
    async def test_it_reads_past_the_comments(self, engine: Engine) -> None:
        async with gateway(engine.url, GatewaySettings(keepalive_s=0.01), ONE_AT_A_TIME) as rig:
            await rig.say("a")
            engine.script = says_hello
            stream = await rig.anthropic("b").messages.create(**HOW, stream=True)
            assert rig.phases["b"] == "gated"
            rig.desk.end(SessionId("a"), "test")
            kinds = [it.type async for it in stream]
            assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")

    @pytest.mark.parametrize(
        ("script", "told"), [(refuses, "too long"), (polite, "Hello, world")], ids=["error", "odd"]
    )
    async def test_after_a_long_wait_a_refusal_is_an_event(
        self, engine: Engine, script: Any, told: str
    ) -> None:
        async def not_a_stream(exchange: Exchange) -> None:
            exchange.body = b"{}"
            await script(exchange)

        async with gateway(engine.url, GatewaySettings(keepalive_s=0.01), ONE_AT_A_TIME) as rig:
            await rig.say("a")
            engine.script = not_a_stream
            stream = await rig.anthropic("b").messages.create(**HOW, stream=True)
            rig.desk.end(SessionId("a"), "test")
            with pytest.raises(anthropic.APIStatusError, match=told):
                await anext(stream)

    async def test_the_second_session_waits(self, engine: Engine) -> None:
        engine.script = says_hello
        async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
            await rig.anthropic("a").messages.create(**HOW)
            asked = asyncio.ensure_future(rig.anthropic("b").messages.create(**HOW))
            await rig.gated("b")
            assert len(engine.seen) == 1
            rig.desk.end(SessionId("a"), "test")
            assert (await asked).content
            assert [it.session_id for it in rig.of(ev.CallQueued)] == ["a", "b"]
