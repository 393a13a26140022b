"""The front of a fleet: each request to one of its engines, and on to another where that one fails.

A request goes on as long as no byte of an engine's answer has reached its client: a body that was
read is sent again, and what the client has been told by then (that it waits) stays true.
"""

from typing import Final

import msgspec
from starlette.types import Message, Receive, Scope, Send

from mars.core.errors import InputError
from mars.gateway.fleet import Fleet, Member
from mars.gateway.identity import Identity, identify
from mars.gateway.proxy import SESSION, UNSERVED, Unserved
from mars.gateway.settings import GatewaySettings

_COMMENT: Final = b":"
_OK: Final = 200


class Dispatch:
    def __init__(self, fleet: Fleet, settings: GatewaySettings) -> None:
        self._fleet = fleet
        self._set = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _Request.read(receive, self._set.body_bytes)
        identity = request.identity(scope)
        answer = _Answer(send)
        for _ in range(len(self._fleet) + 2):  # each may fail it, and one may hand it over
            member = self._fleet.member_for(identity, request.body_bytes)
            if member is None:
                answer.refuse(self._fleet)
                break
            attempt = {**scope}
            await member.app(attempt, request.again(), answer.of(attempt))
            if not await self._goes_on(request, answer, attempt, member):
                break
            if (moved := attempt.get(SESSION)) is not None and identity is not None:
                scope = {**scope, SESSION: moved}
                identity = msgspec.structs.replace(identity, session_id=moved)
        await answer.close()

    async def _goes_on(
        self, request: "_Request", answer: "_Answer", attempt: Scope, member: Member
    ) -> bool:
        """Whether another engine may still serve it."""
        why: Unserved | None = attempt.get(UNSERVED)
        if why is None or answer.answered or not request.is_whole or member.desk.stopped:
            return False
        if member.state == "up" and why == "engine failed":
            await self._fleet.check(member)
            return True
        home = self._fleet.home(attempt.get(SESSION))
        return member.state != "up" or home not in {None, member}  # else somebody has ended it


class _Request:
    """A request's body, to be read more than once."""

    def __init__(self, messages: list[Message], receive: Receive, *, is_whole: bool) -> None:
        self._messages = messages
        self._receive = receive
        self.is_whole = is_whole
        """False: it is too large, or its client has gone: whoever reads it will see."""
        self.body = b"".join(message.get("body", b"") for message in messages)
        if is_whole:
            self._messages = [{"type": "http.request", "body": self.body, "more_body": False}]

    @classmethod
    async def read(cls, receive: Receive, most_bytes: int) -> "_Request":
        messages: list[Message] = []
        size_bytes, more = 0, True
        while more and size_bytes <= most_bytes:
            messages.append(message := await receive())
            size_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
        ended = messages[-1]["type"] == "http.request" and not more
        return cls(messages, receive, is_whole=ended)

    @property
    def body_bytes(self) -> int:
        return len(self.body)

    def identity(self, scope: Scope) -> Identity | None:
        """None: it has none that can be one; whichever engine's gate gets it says so."""
        try:
            return identify(scope["headers"], self.body)
        except InputError:
            return None

    def again(self) -> Receive:
        left = list(reversed(self._messages))

        async def receive() -> Message:
            return left.pop() if left else await self._receive()

        return receive


class _Answer:
    """What the client is told, over all attempts.

    A head is held back until there is a body. Before an engine has answered, a stream may have
    begun with comments; what an attempt says after it has failed is held: it may not be the last.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._head: Message | None = None
        """Not sent yet."""
        self._begun = False
        self._error: bytearray | None = None
        """The body of an error that comes after a stream has begun."""
        self._held: list[Message] = []
        self.answered = False
        """A byte of an engine's answer, or the last word of its gate, is with the client."""

    def of(self, attempt: Scope) -> Send:
        self._held, self._head = [], None

        async def send(message: Message) -> None:
            if UNSERVED in attempt and not self.answered:
                self._held.append(message)
            else:
                await self._tell(message)

        return send

    def refuse(self, fleet: Fleet) -> None:
        """No engine is there that might serve it."""
        states = [f"{member.url} {member.state}: {member.why}" for member in fleet]
        whys = "; ".join(states) or "none is here: POST /mars/engines adds one"
        self._held = _refusal(f"no engine can take this request ({whys})")

    async def close(self) -> None:
        """Tell what the last attempt had to say, if nothing else was told."""
        if not self.answered:
            for message in self._held:
                await self._tell(message)

    async def _tell(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        if self._head is not None:
            if not self._begun:
                await self._send(self._head)
            elif self._head["status"] != _OK:
                self._error = bytearray()
            self._head = None
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        self._begun = True
        self.answered |= not (body.startswith(_COMMENT) and more)
        if self._error is not None:
            self._error += body
            if more:
                return
            message = {**message, "body": _as_event(self._error)}
        await self._send(message)


def _as_event(body: bytearray) -> bytes:
    return b"data: " + b" ".join(body.split()) + b"\n\n"


def _refusal(text: str) -> list[Message]:
    body = msgspec.json.encode({"error": {"message": text, "type": "no_engine", "code": 503}})
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"5")]
    return [
        {"type": "http.response.start", "status": 503, "headers": headers},
        {"type": "http.response.body", "body": body, "more_body": False},
    ]
