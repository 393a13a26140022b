"""openai's client on /v1/responses, and the other paths that it has."""

import asyncio
from typing import Any

import msgspec
import openai
import pytest
from tests.gateway.conftest import ONE_AT_A_TIME, Rig, gateway
from tests.gateway.scripted import JSON, STREAM, Engine, Exchange, closed_port

from mars.core.ids import SessionId
from mars.gateway.settings import GatewaySettings

HOW: dict[str, Any] = {"model": "m", "input": "Hello?"}


def response(status: str, *said: str) -> dict[str, object]:
    content = [{"type": "output_text", "text": text, "annotations": []} for text in said]
    item = {"id": "i", "type": "message", "role": "assistant", "status": status, "content": content}
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": status,
        "output": [item] if said else [], "parallel_tool_calls": True, "tool_choice": "auto",
        "tools": [],
    }  # fmt: skip


def event(kind: str, **fields: object) -> bytes:
    data = msgspec.json.encode({"type": kind, **fields})
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


CREATED = event("response.created", sequence_number=0, response=response("in_progress"))
DELTA = event(
    "response.output_text.delta", sequence_number=1, item_id="i", output_index=0, content_index=0,
    delta="Hello", logprobs=[],
)  # fmt: skip
COMPLETED = event("response.completed", sequence_number=2, response=response("completed", "Hello"))


async def says_hello(exchange: Exchange) -> None:
    if msgspec.json.decode(exchange.body).get("stream"):
        await exchange.begin(200, STREAM)
        for chunk in (CREATED, DELTA, COMPLETED):
            await exchange.write(chunk)
        await exchange.write(b"", last=True)
    else:
        body = msgspec.json.encode(response("completed", "Hello"))
        await exchange.answer(200, JSON, body)


async def dies(exchange: Exchange) -> None:
    await exchange.begin(200, STREAM)
    await exchange.write(CREATED)


async def test_an_answer_is_a_call_of_its_session(engine: Engine, rig: Rig) -> None:
    engine.script = says_hello
    answer = await rig.openai("a").responses.create(**HOW, extra_body={"odd": [1]})
    assert answer.output_text == "Hello"
    assert engine.last.target == "/v1/responses"
    assert msgspec.json.decode(engine.last.body)["odd"] == [1]
    assert engine.last.header("x-session-id") == (await rig.finished(1)).session_id == "a"


async def test_a_stream(engine: Engine, rig: Rig) -> None:
    engine.script = says_hello
    stream = await rig.openai("a").responses.create(**HOW, stream=True)
    assert [it.type async for it in stream] == [
        "response.created",
        "response.output_text.delta",
        "response.completed",
    ]
    assert (await rig.finished(1)).ok


async def test_an_engine_that_is_not_there() -> None:
    async with gateway(closed_port()) as rig:
        with pytest.raises(openai.InternalServerError, match="cannot reach the engine"):
            await rig.openai().responses.create(**HOW)


async def test_an_engine_that_dies_within_a_stream(engine: Engine, rig: Rig) -> None:
    engine.script = dies
    stream = await rig.openai().responses.create(**HOW, stream=True)
    assert (await anext(stream)).type == "response.created"
    with pytest.raises(openai.APIError, match="broke off its answer"):
        await anext(stream)


async def test_the_error_is_where_codex_looks_for_it(engine: Engine, rig: Rig) -> None:
    engine.script = dies
    headers = {"X-Session-ID": "a"}
    raw = await rig.http.post(rig.url + "/v1/responses", json=HOW, headers=headers)
    said = (await raw.read()).removeprefix(CREATED)
    kind, data = said.decode().strip().split("\n")
    failed = msgspec.json.decode(data.removeprefix("data: "))
    assert kind == "event: response.failed"
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["code"] == "engine_died"
    assert "broke off" in failed["response"]["error"]["message"]


@pytest.mark.parametrize(
    ("said", "told"),
    [(b'{"error":{"message":"no"}}', "no"), (b'{"error":"no"}', "no"), (b"x", "x")],
)
async def test_after_a_long_wait_a_refusal_is_an_event(
    engine: Engine, said: bytes, told: str
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(400, JSON, said)

    async with gateway(engine.url, GatewaySettings(keepalive_s=0.01), ONE_AT_A_TIME) as rig:
        await rig.say("a")
        engine.script = script
        stream = await rig.openai("b").responses.create(**HOW, stream=True)
        rig.desk.end(SessionId("a"), "test")
        with pytest.raises(openai.APIError) as caught:
            await anext(stream)
        assert told in str(caught.value.body)


async def test_the_second_session_waits_and_is_kept_alive(engine: Engine) -> None:
    async with gateway(engine.url, GatewaySettings(keepalive_s=0.01), ONE_AT_A_TIME) as rig:
        await rig.say("a")
        engine.script = says_hello
        stream = await rig.openai("b").responses.create(**HOW, stream=True)
        assert rig.phases["b"] == "gated"
        asyncio.get_running_loop().call_later(0.05, rig.desk.end, SessionId("a"), "test")
        kinds = [it.type async for it in stream]
        assert kinds[-1] == "response.completed"


async def test_embeddings_and_earlier_responses_pass_without_gate(engine: Engine, rig: Rig) -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.target == "/v1/embeddings":
            one = {"object": "embedding", "index": 0, "embedding": [1.0, 2.0]}
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            said: dict[str, object] = {"object": "list", "data": [one], "model": "m"}
            said["usage"] = usage
        else:
            said = response("cancelled")
        await exchange.answer(200, JSON, msgspec.json.encode(said))

    engine.script = script
    client = rig.openai()
    embedded = await client.embeddings.create(model="m", input="a", encoding_format="float")
    assert embedded.data[0].embedding == [1.0, 2.0]
    assert (await client.responses.retrieve("resp_1")).status == "cancelled"
    assert (await client.responses.cancel("resp_1")).status == "cancelled"
    assert [it.target for it in engine.seen[1:]] == [
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
    ]
    assert rig.events == []
