"""Which session was an answer given to? So that a request that goes on from it finds it."""

import re
from typing import Final

from mars.core.ids import SessionId

_MOST: Final = 10_000
"""Answers remembered, the newest: some megabytes."""
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,256})"')
_HEAD_BYTES: Final = 4096
"""A response names itself in its first line, plain or streamed; vLLM in its first 40 bytes."""


class Recall:
    def __init__(self) -> None:
        self._by_response: dict[str, SessionId] = {}

    def session_of(self, response_id: str) -> SessionId | None:
        return self._by_response.get(response_id)

    def remember(self, response_id: str, session_id: SessionId) -> None:
        self._by_response.pop(response_id, None)
        self._by_response[response_id] = session_id
        if len(self._by_response) > _MOST:
            del self._by_response[next(iter(self._by_response))]


class ResponseHead:
    """Reads the id at the head of an answer that goes by."""

    def __init__(self, recall: Recall, session_id: SessionId) -> None:
        self._recall = recall
        self._session_id = session_id
        self._head: bytes | None = b""
        """None: nothing more to find."""

    def read(self, chunk: bytes) -> None:
        if self._head is None:
            return
        self._head += chunk[:_HEAD_BYTES]
        if found := _ID.search(self._head):
            self._recall.remember(found[1].decode("utf-8", "replace"), self._session_id)
        if found or len(self._head) >= _HEAD_BYTES:
            self._head = None
