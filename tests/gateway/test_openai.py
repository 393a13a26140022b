"""The real client, through the gateway."""

from openai.types.chat import ChatCompletionMessageParam
from tests.gateway.conftest import Rig
from tests.gateway.scripted import Engine, Exchange

from mars.core import events as ev

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello?"}]


async def test_an_answer(engine: Engine, rig: Rig) -> None:
    answer = await rig.openai("a").chat.completions.create(model="m", messages=ASK)
    assert answer.choices[0].message.content == "Hello, world"
    assert engine.last.header("x-session-id") == "a"


async def test_a_stream(engine: Engine, rig: Rig) -> None:
    stream = await rig.openai("a").chat.completions.create(model="m", messages=ASK, stream=True)
    said = [chunk.choices[0].delta.content async for chunk in stream]
    assert said == ["Hello", ", ", "world"]
    assert (await rig.finished(1)).ok


async def test_fields_that_nobody_knows_pass(engine: Engine, rig: Rig) -> None:
    extra = {"vllm_xargs": {"session_id": "x", "more": 1}, "top_k": 3}
    await rig.openai(None).chat.completions.create(model="m", messages=ASK, extra_body=extra)
    assert b'"top_k":3' in engine.last.body.replace(b" ", b"")
    assert engine.last.header("x-session-id") == "x"
    assert rig.of(ev.SessionArrived)[0].rule == "body vllm_xargs.session_id"
    assert rig.of(ev.SessionArrived)[0].prompt_bytes == len(engine.last.body)


async def test_models(engine: Engine, rig: Rig) -> None:
    async def script(exchange: Exchange) -> None:
        model = b'{"id": "m", "object": "model", "created": 1, "owned_by": "x"}'
        await exchange.answer(
            200, [(b"content-type", b"application/json")], b'{"data":[%s]}' % model
        )

    engine.script = script
    assert [model.id async for model in rig.openai().models.list()] == ["m"]


async def test_turns_are_counted(engine: Engine, rig: Rig) -> None:
    for _ in range(3):
        await rig.openai("a").chat.completions.create(model="m", messages=ASK)
    assert [call.turn for call in rig.of(ev.CallQueued)] == [1, 2, 3]
    assert len(rig.of(ev.SessionArrived)) == 1
    assert rig.phases == {"a": "acting"}
