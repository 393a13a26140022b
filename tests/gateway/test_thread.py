"""Requests without any id: each conversation is one session, and no two are."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from tests.gateway.conftest import ONE_AT_A_TIME, Rig, gateway
from tests.gateway.scripted import DONE, JSON, STREAM, Engine, Exchange, until
from tests.gateway.test_speech import (
    chat,
    chat_stream,
    items,
    response,
    response_stream,
    tool_call,
)

from mars.core import events as ev
from mars.core.ids import SessionId
from mars.gateway.identity import identify
from mars.gateway.recall import Recall
from mars.gateway.settings import GatewaySettings

SYSTEM = {"role": "system", "content": "You are an agent."}
TASK = {"role": "user", "content": "Mend it."}
TOOLS: Any = [{"type": "function", "function": {"name": "sh", "parameters": {"type": "object"}}}]


class Answers:
    """An engine that says what it is told to, in turn."""

    def __init__(self, engine: Engine, *messages: dict[str, Any]) -> None:
        self._rest = list(messages)
        engine.script = self

    async def __call__(self, exchange: Exchange) -> None:
        message = {"role": "assistant", **self._rest.pop(0)}
        if msgspec.json.decode(exchange.body).get("stream"):
            await exchange.answer(200, STREAM, chat_stream(message))
        else:
            await exchange.answer(200, JSON, chat(message))


async def turns(rig: Rig, number: int, *, stream: bool = False) -> list[Any]:
    """An agent of the official client, which repeats what it was told and adds what a tool gave."""
    messages: list[Any] = [SYSTEM, TASK]
    client = rig.openai(None)
    for _ in range(number):
        if stream:
            streamed = client.chat.completions.stream(model="m", messages=messages, tools=TOOLS)
            async with streamed as events:
                whole: ChatCompletion = await events.get_final_completion()
        else:
            whole = await client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
        said = whole.choices[0].message
        messages.append(said.model_dump(exclude_none=True, exclude={"parsed"}))
        results = [(it.id, "done") for it in said.tool_calls or []]
        messages += [{"role": "tool", "tool_call_id": it, "content": gave} for it, gave in results]
        if not said.tool_calls:
            messages.append({"role": "user", "content": "Go on."})
    return messages


def sessions(rig: Rig) -> list[str]:
    return [it.session_id for it in rig.of(ev.CallQueued)]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_with_tools_is_one_session(
    engine: Engine, rig: Rig, *, stream: bool
) -> None:
    Answers(
        engine,
        {"content": "I look.", "tool_calls": [tool_call("t1"), tool_call("t2")]},
        {"content": None, "tool_calls": [tool_call("t3")]},
        {"content": "Done."},
    )
    messages = await turns(rig, 3, stream=stream)
    assert len(set(sessions(rig))) == 1
    assert [it.rule for it in rig.of(ev.SessionArrived)] == ["none"], "it stays while tools run"
    assert rig.ends(sessions(rig)[0]) == ["its final request is answered"], "and no longer"
    Answers(engine, {"content": "More."})
    await rig.openai(None).chat.completions.create(model="m", messages=messages, tools=TOOLS)
    assert len(set(sessions(rig))) == 1, "who goes on all the same comes back as itself"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_talk_without_tools_comes_back_as_itself(
    engine: Engine, rig: Rig, *, stream: bool
) -> None:
    Answers(engine, {"content": " One. "}, {"content": "Two."}, {"content": "Three."})
    await turns(rig, 3, stream=stream)
    assert len(set(sessions(rig))) == 1
    assert [it.rule for it in rig.of(ev.SessionArrived)] == ["none", "messages"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_agent_on_responses_is_one_session(
    engine: Engine, rig: Rig, *, stream: bool
) -> None:
    """One that sends all items again, as OpenAI's Agents SDK does, and one that does not."""
    answers = [items("I look.", ["t1", "t2"]), items("", ["t3"]), items("Done.", [])]

    async def script(exchange: Exchange) -> None:
        said = answers[(len(engine.seen) - 1) % 3]
        body = response_stream(said) if stream else msgspec.json.encode(response(said))
        await exchange.answer(200, STREAM if stream else JSON, body)

    engine.script = script
    talk: list[Any] = [TASK]
    for output in answers:
        how = {"model": "m", "input": talk, "stream": stream}
        await (await rig.http.post(rig.url + "/v1/responses", json=how)).read()
        gave = [
            {"type": "function_call_output", "call_id": it["call_id"], "output": "done"}
            for it in output
            if it["type"] == "function_call"
        ]
        talk += [*output, *(gave or [TASK])]
    await rig.openai(None).responses.create(model="m", input="Another one.")
    one, *_, other = sessions(rig)
    assert sessions(rig) == [one, one, one, other]
    assert one != other
    assert [it.rule for it in rig.of(ev.SessionArrived)] == ["none", "none"]


async def test_agents_with_one_task_and_equal_answers_are_two_sessions(
    engine: Engine, rig: Rig
) -> None:
    Answers(engine, *[{"content": None, "tool_calls": [tool_call("call_0")]}] * 6)
    await asyncio.gather(turns(rig, 3), turns(rig, 3))
    found = sessions(rig)
    assert sorted(map(found.count, set(found))) == [3, 3]


async def told(rig: Rig, messages: list[Any]) -> list[Any]:
    """The messages and the answer to them."""
    whole = msgspec.json.decode(await rig.say(None, messages=messages))
    return [*messages, whole["choices"][0]["message"]]


async def test_who_was_not_answered_is_found_again(engine: Engine, rig: Rig) -> None:
    async def busy(exchange: Exchange) -> None:
        await exchange.answer(503, [], b"busy")

    Answers(engine, {"content": "One."}, {"content": "Two."})
    messages = [*await told(rig, [TASK]), TASK]
    answers, engine.script = engine.script, busy
    assert (await rig.post(None, messages=messages)).status == 503
    engine.script = answers
    await rig.say(None, messages=messages)
    assert len(set(sessions(rig))) == 1
    assert len(sessions(rig)) == 3


async def test_who_leaves_at_the_gate_is_found_again(engine: Engine) -> None:
    Answers(engine, {"content": "One."}, *[{"content": "Two."}] * 2)
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        messages = [*await told(rig, [TASK]), TASK]
        await rig.say("other")
        leaves = rig.post(None, messages=messages)
        await rig.gated(sessions(rig)[0])
        leaves.cancel()
        await until(lambda: "client left at the gate" in rig.ends(sessions(rig)[0]))
        rig.desk.end(SessionId("other"), "test")
        await rig.say(None, messages=messages)
        assert sessions(rig)[2] == sessions(rig)[0]


async def test_another_answer_is_another_s(engine: Engine, rig: Rig) -> None:
    Answers(engine, {"content": "One."}, {"content": "Two."})
    *asked, said = await told(rig, [SYSTEM, TASK])
    await rig.say(None, messages=[*asked, {**said, "content": "Not this."}, TASK])
    assert len(set(sessions(rig))) == 2


async def test_it_can_be_switched_off(engine: Engine) -> None:
    Answers(engine, {"content": "One."}, {"content": "Two."})
    async with gateway(engine.url, GatewaySettings(infer_sessions=False)) as rig:
        await turns(rig, 2)
        assert len(set(sessions(rig))) == 2
        assert {it.why for it in rig.of(ev.SessionEnded)} == {"its final request is answered"}


async def test_a_request_that_says_it_is_the_last_ends_its_session(
    engine: Engine, rig: Rig
) -> None:
    Answers(engine, *[{"tool_calls": [tool_call(f"t{it}")]} for it in range(2)])
    messages = await told(rig, [TASK])
    await rig.say(None, messages=[*messages, TASK], last_step=True)
    assert len(set(sessions(rig))) == 1
    assert [it.why for it in rig.of(ev.SessionEnded)] == ["its final request is answered"]


@pytest.mark.parametrize("answer", [b"{", b'{"choices":3}', b"data: {\n\n", b"[" * 9 + DONE])
async def test_an_answer_that_cannot_be_read_passes_all_the_same(
    engine: Engine, rig: Rig, answer: bytes
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, JSON, answer)

    engine.script = script
    assert await rig.say(None, messages=[TASK]) == answer


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["assistant", "text", "x"]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["role", "content", "type", "text", "id", "tool_calls"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_no_shape_of_messages_raises(messages: object) -> None:
    asked = msgspec.json.encode({"messages": messages})
    assert identify([], asked, Recall(infers=True)).rule == "none"


def test_letters_that_are_none_do_not_raise() -> None:
    asked = b'{"messages":[{"role":"user","content":"\xff"},{"role":"assistant","content":"\xff"}]}'
    assert identify([], asked, Recall(infers=True)).rule == "none"
