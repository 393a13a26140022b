"""What a request without a name goes on from: messages are append-only.

An agent's next request is its last one, the answer to that, and what has come since. So an answer
is remembered under the messages it answers and what its client will repeat of it: its text, and
the ids of the tool calls it asks for. Requests that share a system prompt or their first messages
differ in the answer; where even that is the same, each answer is gone on from once (`recall`), so
no two conversations become one session. Where a client changes what was said (a summary in place
of the start, a cache mark that moves), nothing is found, and the request is a session of its own.
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
    role: str = ""
    content: object = None
    tool_calls: list[_Tool] | None = None

    def said(self) -> Said | None:
        """None: nothing that tells it from others."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        texts = [it for part in parts if isinstance(it := _text(part), str)]
        ids = [it.id for it in self.tool_calls or () if it.id]
        ids += [it for part in parts if isinstance(it := _tool_id(part), str)]
        return _said(texts, ids)


def _text(part: object) -> object:
    if isinstance(part, dict):
        return part.get("text") if part.get("type") == "text" else None
    return part


def _tool_id(part: object) -> object:
    is_call = isinstance(part, dict) and part.get("type") == "tool_use"
    return part.get("id") if is_call and isinstance(part, dict) else None


class _Role(msgspec.Struct):
    role: str = ""


class _Choice(msgspec.Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None


class _Whole(_Message):
    """An answer in one piece: with choices OpenAI's, else itself Anthropic's message."""

    choices: list[_Choice] | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    id: str | None = None


class _Event(msgspec.Struct):
    """Of a stream: with choices OpenAI's, else Anthropic's."""

    choices: list[_Choice] | None = None
    content_block: _Block | None = None
    delta: _Block | None = None


_message = msgspec.json.Decoder(_Message)
_role = msgspec.json.Decoder(_Role)
_whole = msgspec.json.Decoder(_Whole)
_event = msgspec.json.Decoder(_Event)


def read_messages(messages: Sequence[msgspec.Raw], tenant: str) -> Asked:
    last, said = _last_answer(messages)
    digest, goes_on_from = blake2b(tenant.encode(), digest_size=16), b""
    for place, message in enumerate(messages):
        if said and place == last:
            goes_on_from = said.key(digest.digest())
        digest.update(message)
        digest.update(b",")
    return Asked(digest.digest(), goes_on_from)


def _last_answer(messages: Sequence[msgspec.Raw]) -> tuple[int, Said | None]:
    """Its place, and what it says."""
    for place in range(len(messages) - 1, max(-1, len(messages) - 1 - _LOOK_BACK), -1):
        try:
            if _role.decode(messages[place]).role == "assistant":
                return place, _message.decode(messages[place]).said()
        except (ValueError, RecursionError):
            break  # the engine says so better than we could
    return -1, None


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
        over = last or any(mark in chunk for mark in _LAST)
        try:
            speech.add(chunk)
            said = speech.said() if over else None
        except (ValueError, RecursionError):
            over = True
        if over or speech.size > _MOST:
            self._speech = None
        if said:
            self._recall.remember_answer(said.key(self._asked.said), self._call.stay.session_id)
            if said.tool_ids:
                self._call.final = False  # who runs tools comes back with what they gave


class Speech:
    """What an answer says so far, plain or a stream. Raises ValueError for what nobody can read."""

    def __init__(self) -> None:
        self._rest = b""
        self._texts: list[str] = []
        self._text_chars = 0
        self._tool_ids: list[str] = []

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
            whole = _whole.decode(self._rest)
            first = whole.choices[0].message if whole.choices else whole
            return first.said() if first else None
        self._hear(self._rest)
        return _said(self._texts, self._tool_ids)

    def _hear(self, events: bytes) -> None:
        for data in _DATA.findall(events):
            event = _event.decode(data)
            for choice in event.choices or ():
                if choice.index == 0 and (delta := choice.delta):
                    self._add_text(delta.content)
                    self._tool_ids += [it.id for it in delta.tool_calls or () if it.id]
            if block := event.content_block or event.delta:
                self._add_text(block.text)
                self._tool_ids += [block.id] if block.type == "tool_use" and block.id else []

    def _add_text(self, text: object) -> None:
        if isinstance(text, str):
            self._texts.append(text)
            self._text_chars += len(text)


def _said(texts: Sequence[str], tool_ids: Sequence[str]) -> Said | None:
    text = "".join(texts).strip()
    return Said(text, tuple(tool_ids)) if text or tool_ids else None
