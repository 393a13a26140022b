"""What an answer says is read alike from every API, plain and streamed, however it is cut."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.scripted import DONE

from mars.gateway.thread import Said, Speech


def tool_call(call_id: str) -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": "sh", "arguments": "{}"}}


def chat(message: dict[str, object]) -> bytes:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": "m"}
    return msgspec.json.encode(head | {"choices": [choice]})


def chat_stream(message: dict[str, Any]) -> bytes:
    """The message in deltas: text letter by letter, a tool call's id and then its arguments."""
    deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": letter} for letter in message.get("content") or ""]
    for index, call in enumerate(message.get("tool_calls", [])):
        deltas.append({"tool_calls": [{**call, "index": index}]})
        more = {"index": index, "function": {"arguments": "{}"}}
        deltas.append({"tool_calls": [more]})
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    chunks = [head | {"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return b"".join(b"data: " + msgspec.json.encode(it) + b"\n\n" for it in chunks) + DONE


def message_stream(text: str, tool_ids: list[str]) -> bytes:
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"content": []}}]
    events.append({"type": "content_block_start", "content_block": {"type": "text", "text": ""}})
    events += [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": it}} for it in text
    ]
    for tool_id in tool_ids:
        block = {"type": "tool_use", "id": tool_id, "name": "sh", "input": {}}
        events.append({"type": "content_block_start", "content_block": block})
        delta = {"type": "input_json_delta", "partial_json": "{}"}
        events.append({"type": "content_block_delta", "delta": delta})
    events.append({"type": "message_delta", "delta": {"stop_reason": "tool_use"}})
    lines = [f"event: {it['type']}\ndata: {msgspec.json.encode(it).decode()}\n\n" for it in events]
    return "".join(lines).encode() + b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def items(text: str, tool_ids: list[str]) -> list[dict[str, Any]]:
    """A response's output."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    said = {"id": "msg_1", "type": "message", "role": "assistant", "content": content}
    calls = [
        {"type": "function_call", "id": f"fc_{it}", "call_id": it, "name": "sh", "arguments": "{}"}
        for it in tool_ids
    ]
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "content": []}
    return [thought, *([said] if text else []), *calls]


def response(output: list[dict[str, Any]]) -> dict[str, Any]:
    head = {"id": f"resp_{id(output)}", "object": "response", "created_at": 1, "model": "m"}
    settings = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return {**head, **settings, "status": "completed", "output": output}


def response_stream(output: list[dict[str, Any]]) -> bytes:
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response([])},
        {"type": "response.output_text.delta", "delta": "Hello", "item_id": "msg_1"},
        {"type": "response.completed", "response": response(output)},
    ]
    said = [f"event: {it['type']}\ndata: {msgspec.json.encode(it).decode()}\n\n" for it in events]
    return "".join(said).encode()


SAID = Said("Hello there", ("t1", "t2"))
MESSAGE: dict[str, Any] = {
    "content": " Hello there",
    "tool_calls": [tool_call("t1"), tool_call("t2")],
}
BLOCKS: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "hm"},
    {"type": "text", "text": " Hello there"},
    *({"type": "tool_use", "id": it, "name": "sh", "input": {}} for it in SAID.tool_ids),
]


EVERY_API = {
    "chat": chat(MESSAGE),
    "parts": chat({**MESSAGE, "content": [{"type": "text", "text": " Hello there"}]}),
    "chat stream": chat_stream(MESSAGE),
    "kept alive": b": queued\n\n" + chat_stream(MESSAGE),
    "other ends of lines": chat_stream(MESSAGE).replace(b"\n", b"\r\n"),
    "message": msgspec.json.encode({"type": "message", "role": "assistant", "content": BLOCKS}),
    "message stream": message_stream(" Hello there", ["t1", "t2"]),
    "response": msgspec.json.encode(response(items(" Hello there", ["t1", "t2"]))),
    "response stream": response_stream(items(" Hello there", ["t1", "t2"])),
}


@pytest.mark.parametrize("api", EVERY_API)
@given(size=st.integers(1, 700))
def test_every_api_says_the_same_however_it_is_cut(api: str, size: int) -> None:
    speech, answer = Speech(), EVERY_API[api]
    for start in range(0, len(answer), size):
        speech.add(answer[start : start + size])
    assert speech.said() == SAID


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"{}", b"x", b'{"choices":[]}', b'{"choices":[{}]}', b"data: {}\n\n", DONE),
        *(chat({}), chat({"content": ""}), chat({"content": 7})),
    ],
)
def test_an_answer_that_says_nothing_is_not_remembered(answer: bytes) -> None:
    speech = Speech()
    speech.add(answer)
    assert speech.said() is None
