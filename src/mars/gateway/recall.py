"""Which session was an answer given to? So that a request that goes on from it finds it."""

import re
from typing import Any, Final, Protocol

from mars.core.ids import SessionId

_MOST: Final = 10_000
"""Answers remembered of each kind, the newest: some megabytes."""
_MOST_ALIKE: Final = 64
"""Equal answers to equal messages: of more sessions nobody could tell one from another."""
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,256})"')
_HEAD_BYTES: Final = 4096
"""A response names itself in its first line, plain or streamed; vLLM in its first 40 bytes."""


class Recall:
    """`infers`: sessions are also found by what was said, not by ids alone."""

    def __init__(self, *, infers: bool = False) -> None:
        self.infers = infers
        self._by_response: dict[str, SessionId] = {}
        self._by_answer: dict[bytes, list[SessionId]] = {}
        """Of answers that nobody has gone on from; equal ones have one key."""

    def session_of(self, response_id: str) -> SessionId | None:
        return self._by_response.get(response_id)

    def remember(self, response_id: str, session_id: SessionId) -> None:
        self._by_response.pop(response_id, None)
        self._by_response[response_id] = session_id
        _drop_oldest(self._by_response)

    def remember_answer(self, key: bytes, session_id: SessionId) -> None:
        sessions = self._by_answer.pop(key, [])
        self._by_answer[key] = [*sessions[-_MOST_ALIKE + 1 :], session_id]
        _drop_oldest(self._by_answer)

    def go_on_from(self, key: bytes) -> SessionId | None:
        """The session of one such answer, which nobody finds again unless it is remembered anew."""
        sessions = self._by_answer.get(key)
        if not sessions:
            return None
        session_id = sessions.pop()
        if not sessions:
            del self._by_answer[key]
        return session_id

    def give_back(self, key: bytes, session_id: SessionId | None) -> None:
        """Who went on from an answer got none: that client will ask again."""
        if key and session_id:
            self.remember_answer(key, session_id)


def _drop_oldest(known: dict[Any, Any]) -> None:
    if len(known) > _MOST:
        del known[next(iter(known))]


class Reader(Protocol):
    """Is shown each chunk of an answer before its client has it."""

    def read(self, chunk: bytes, *, last: bool) -> None: ...


class ResponseHead:
    """Reads the id at the head of an answer that goes by."""

    def __init__(self, recall: Recall, session_id: SessionId) -> None:
        self._recall = recall
        self._session_id = session_id
        self._head: bytes | None = b""
        """None: nothing more to find."""

    def read(self, chunk: bytes, *, last: bool) -> None:  # noqa: ARG002 the head is enough
        if self._head is None:
            return
        self._head += chunk[:_HEAD_BYTES]
        if found := _ID.search(self._head):
            self._recall.remember(found[1].decode("utf-8", "replace"), self._session_id)
        if found or len(self._head) >= _HEAD_BYTES:
            self._head = None
