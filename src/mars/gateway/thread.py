"""What a request without a name goes on from: messages are append-only.

An agent's next request is its last one, the answer to that, and what has come since. So an answer
is remembered under the messages it answers and what its client will repeat of it: its text, and
the ids of the tool calls it asks for. Requests that share a system prompt or their first messages
differ in the answer; where even that is the same, each answer is gone on from once (`recall`), so
no two conversations become one session. Where a client changes what was said (a summary in place
of the start, a cache mark that moves), nothing is found, and the request is a session of its own.

Such a session lasts while its answers ask for tools: their results will come. One that asks for
none after tools have run is taken for the last; who goes on all the same comes back as itself.
Where no tools are seen, a session lasts from its second request on, until it is silent too long.
"""

import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from mars.gateway.recall import Recall
from mars.gateway.stay import Call

_LOOK_BACK: Final = 64
"""Messages looked at for the last answer: tools called side by side give one each."""
_ANSWERS: Final = frozenset({"function_call", "reasoning"})
"""Items of a response that are an assistant's without saying so."""
_MOST: Final = 1 << 20
"""Kept of one answer while it goes by, in bytes and characters; a longer one is not remembered."""
_DATA: Final = re.compile(rb"^data: ?(\{.*)$", re.MULTILINE)
_LAST: Final = (b"data: [DONE]", b"event: message_stop")
"""A client may go on as soon as it has read one of these."""


class Asked(msgspec.Struct, frozen=True):
    """Of one request's messages."""

    said: bytes
    """Digest of them all."""
    goes_on_from: bytes
    """Key of the answer that is the last of an assistant among them; empty: there is none."""
    after_tools: bool
    """That answer asked for tools."""


class Said(msgspec.Struct, frozen=True):
    """Of an answer, what its client sends again."""

    text: str
    tool_ids: tuple[str, ...]

    def key(self, answered: bytes) -> bytes:
        """`answered`: digest of the messages before it."""
        return blake2b(answered + msgspec.json.encode(self), digest_size=16).digest()


class _Tool(msgspec.Struct):
    id: str | None = None


class _Message(msgspec.Struct):
    """Of a chat, or an item of a response: there each tool call is one of its own."""

    role: str = ""
    type: str = ""
    content: object = None
    tool_calls: list[_Tool] | None = None
    call_id: str | None = None


def _said_by(messages: Sequence[_Message]) -> Said | None:
    texts: list[str] = []
    tool_ids: list[str] = []
    for message in messages:
        content = message.content
        parts = content if isinstance(content, list) else [content]
        texts += [it for part in parts if isinstance(it := _text(part), str)]
        tool_ids += [it.id for it in message.tool_calls or () if it.id]
        tool_ids += [it for part in parts if isinstance(it := _tool_id(part), str)]
        tool_ids += [message.call_id] if message.call_id else []
    return _said(texts, tool_ids)


def _said(texts: Sequence[str], tool_ids: Sequence[str]) -> Said | None:
    """None: nothing that tells it from others."""
    text = "".join(texts).strip()
    return Said(text, tuple(tool_ids)) if text or tool_ids else None


def _text(part: object) -> object:
    if isinstance(part, dict):
        return part.get("text") if part.get("type") in {"text", "output_text"} else None
    return part


def _tool_id(part: object) -> object:
    is_call = isinstance(part, dict) and part.get("type") == "tool_use"
    return part.get("id") if is_call and isinstance(part, dict) else None


class _Kind(msgspec.Struct):
    """A message whose content is not looked at."""

    role: str = ""
    type: str = ""


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None


class _Whole(_Message):
    """An answer in one piece: a chat's choices, a response's output, or Anthropic's message."""

    choices: list[_Choice] | None = None
    output: list[_Message] | None = None

    def said(self) -> Said | None:
        if self.choices:
            return _said_by([first] if (first := self.choices[0].message) else [])
        return _said_by([self] if self.output is None else self.output)


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    id: str | None = None


class _Event(msgspec.Struct):
    """Of a stream: of a chat's choices, of a response (whole in the last one), or Anthropic's."""

    choices: list[_Choice] | None = None
    response: _Whole | None = None
    content_block: _Block | None = None
    delta: _Block | str | None = None


_message = msgspec.json.Decoder(_Message)
_kind = msgspec.json.Decoder(_Kind)
_whole = msgspec.json.Decoder(_Whole)
_event = msgspec.json.Decoder(_Event)


def read_messages(messages: Sequence[msgspec.Raw], tenant: str) -> Asked:
    start, said = _last_answer(messages)
    digest, goes_on_from = blake2b(tenant.encode(), digest_size=16), b""
    for place, message in enumerate(messages):
        if said and place == start:
            goes_on_from = said.key(digest.digest())
        digest.update(message)
        digest.update(b",")
    return Asked(digest.digest(), goes_on_from, after_tools=bool(said and said.tool_ids))


def _last_answer(messages: Sequence[msgspec.Raw]) -> tuple[int, Said | None]:
    """Where it begins, and what it says."""
    answer: list[_Message] = []
    place = len(messages)
    try:
        for place in range(len(messages) - 1, max(-1, len(messages) - 1 - _LOOK_BACK), -1):
            kind = _kind.decode(messages[place])
            if kind.role == "assistant" or kind.type in _ANSWERS:
                answer.insert(0, _message.decode(messages[place]))
            elif answer:
                return place + 1, _said_by(answer)
    except (ValueError, RecursionError):
        return -1, None  # the engine says so better than we could
    return (place, _said_by(answer)) if place == 0 else (-1, None)


class AnswerReader:
    """Reads an answer that goes by, and remembers it before its client has it whole."""

    def __init__(self, asked: Asked, recall: Recall, call: Call) -> None:
        self._asked = asked
        self._recall = recall
        self._call = call
        self._speech: Speech | None = Speech()
        """None: nothing more to read."""

    def read(self, chunk: bytes, *, last: bool) -> None:
        speech, said = self._speech, None
        if speech is None:
            return
        try:
            speech.add(chunk)
            over = last or speech.is_whole or any(mark in chunk for mark in _LAST)
            said = speech.said() if over else None
        except (ValueError, RecursionError):
            over = True
        if over or speech.size > _MOST:
            self._speech = None
        if said:
            self._recall.remember_answer(said.key(self._asked.said), self._call.stay.session_id)
            if said.tool_ids or self._asked.after_tools:
                self._call.final = not said.tool_ids


class Speech:
    """What an answer says so far, plain or a stream. Raises ValueError for what nobody can read."""

    def __init__(self) -> None:
        self._rest = b""
        self._texts: list[str] = []
        self._text_chars = 0
        self._tool_ids: list[str] = []
        self._response: _Whole | None = None

    @property
    def is_whole(self) -> bool:
        """Nothing more can come."""
        return self._response is not None

    @property
    def size(self) -> int:
        """What is kept of it, in bytes and characters."""
        return len(self._rest) + self._text_chars

    def add(self, chunk: bytes) -> None:
        self._rest += chunk
        end = -1 if self._rest.startswith(b"{") else self._rest.rfind(b"\n\n")
        if end >= 0:
            self._hear(self._rest[:end])
            self._rest = self._rest[end:]

    def said(self) -> Said | None:
        """Of a whole answer. None: nothing that tells it from others."""
        if self._rest.startswith(b"{"):
            return _whole.decode(self._rest).said()
        self._hear(self._rest)
        if self._response is not None:
            return self._response.said()
        return _said(self._texts, self._tool_ids)

    def _hear(self, events: bytes) -> None:
        for data in _DATA.findall(events):
            event = _event.decode(data)
            for choice in event.choices or ():
                if choice.index == 0 and (delta := choice.delta):
                    self._add_text(delta.content)
                    self._tool_ids += [it.id for it in delta.tool_calls or () if it.id]
            if event.response and event.response.output:
                self._response = event.response
            block = event.content_block or event.delta
            if isinstance(block, _Block):
                self._add_text(block.text)
                self._tool_ids += [block.id] if block.type == "tool_use" and block.id else []

    def _add_text(self, text: object) -> None:
        if isinstance(text, str):
            self._texts.append(text)
            self._text_chars += len(text)
