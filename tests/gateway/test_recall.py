"""A request that goes on from an answer finds the session that the answer was given to."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.conftest import Rig
from tests.gateway.scripted import JSON, STREAM, Engine, Exchange

from mars.core import events as ev
from mars.core.ids import SessionId
from mars.gateway import recall as module
from mars.gateway.recall import Recall, ResponseHead

HOW: dict[str, Any] = {"model": "m", "input": "Hello?"}
S = SessionId("s")
PLAIN = b'{"id":"resp_1","object":"response","output":[{"id":"msg_1"}]}'
STREAMED = (
    b'event: response.created\ndata: {"type":"response.created","response":{ "id" : "resp_1"}}'
)


def response(exchange: Exchange, number: int) -> bytes:
    said = {
        "id": f"resp_{number}", "object": "response", "created_at": 1, "model": "m",
        "status": "completed", "output": [], "parallel_tool_calls": True, "tool_choice": "auto",
        "tools": [],
    }  # fmt: skip
    if not msgspec.json.decode(exchange.body).get("stream"):
        return msgspec.json.encode(said)
    event = {"type": "response.completed", "sequence_number": 0, "response": said}
    return b"event: response.completed\ndata: " + msgspec.json.encode(event) + b"\n\n"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("session_id", [None, "own"])
async def test_a_chain_of_responses_is_one_session(
    engine: Engine, rig: Rig, session_id: str | None, *, stream: bool
) -> None:
    async def script(exchange: Exchange) -> None:
        said = response(exchange, len(engine.seen))
        await exchange.answer(200, STREAM if stream else JSON, said)

    engine.script = script
    client, unnamed = rig.openai(session_id), rig.openai(None)
    for previous in (None, "resp_1", "resp_2"):
        asking = (client if previous is None else unnamed).responses
        if stream:
            events = await asking.create(**HOW, stream=True, previous_response_id=previous)
            assert [it.type async for it in events] == ["response.completed"]
        else:
            await asking.create(**HOW, previous_response_id=previous)
    sessions = [it.session_id for it in rig.of(ev.CallQueued)]
    assert len(sessions) == 3
    assert len(set(sessions)) == 1
    assert [exchange.header("x-session-id") for exchange in engine.seen] == sessions
    assert sessions[0] == session_id or session_id is None


async def test_another_chain_is_another_session(engine: Engine, rig: Rig) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(200, JSON, response(exchange, len(engine.seen)))

    engine.script = script
    client = rig.openai(None)
    for previous in (None, None, "resp_1", "resp_2", "resp_unknown"):
        await client.responses.create(**HOW, previous_response_id=previous)
    first, second, *more = [it.session_id for it in rig.of(ev.CallQueued)]
    assert more[:2] == [first, second]
    assert more[2] not in {first, second}
    assert first != second


@given(st.sampled_from([PLAIN, STREAMED]), st.integers(1, 90))
def test_the_id_is_found_however_the_answer_is_cut(answer: bytes, size: int) -> None:
    recall = Recall()
    head = ResponseHead(recall, S)
    for start in range(0, len(answer), size):
        head.read(answer[start : start + size], last=False)
    assert recall.session_of("resp_1") == S
    assert recall.session_of("msg_1") is None


def test_an_answer_without_an_id_costs_no_memory() -> None:
    recall = Recall()
    head = ResponseHead(recall, S)
    for _ in range(1000):
        head.read(b"x" * 1000, last=False)
    head.read(PLAIN, last=True)
    assert recall.session_of("resp_1") is None


def test_what_is_remembered_is_bounded_and_the_oldest_goes() -> None:
    recall = Recall()
    for number in range(module._MOST + 5):
        recall.remember(f"resp_{number}", S)
        recall.remember("resp_0", S)
        recall.remember_answer(b"%d" % number, S)
    assert recall.session_of("resp_0") == S
    assert recall.session_of("resp_1") is None
    assert recall.go_on_from(b"1") is None
    assert recall.go_on_from(b"5") == S
    assert recall.session_of(f"resp_{module._MOST + 4}") == S


def test_each_of_equal_answers_is_gone_on_from_once() -> None:
    recall = Recall()
    for number in range(1000):
        recall.remember_answer(b"same", SessionId(f"s{number}"))
    found = [recall.go_on_from(b"same") for _ in range(100)]
    assert found[: module._MOST_ALIKE] == [f"s{999 - it}" for it in range(module._MOST_ALIKE)]
    assert set(found[module._MOST_ALIKE :]) == {None}
    recall.give_back(b"same", S)
    recall.give_back(b"", S)
    assert (recall.go_on_from(b"same"), recall.go_on_from(b"")) == (S, None)
