"""The hot path: one request from a client to the engine and its answer back, bytes untouched.

Both endpoints are bare ASGI: no request object, no parsed body, no line of log per request. An
answer is passed on chunk by chunk as it comes; a slow client slows the engine's socket, nothing is
piled up here.
"""

import asyncio
import time
from collections.abc import Sequence
from math import inf
from typing import Final, Literal

import aiohttp
import msgspec
from starlette.types import Receive, Scope, Send

from mars.core.errors import InputError
from mars.gateway.caller import BodyTooLargeError, Caller, ClientGoneError, asks_for_stream
from mars.gateway.desk import Desk
from mars.gateway.door import TENANT
from mars.gateway.identity import Headers, Identity, identify, tenant_of
from mars.gateway.recall import Reader, Recall, ResponseHead
from mars.gateway.settings import GatewaySettings
from mars.gateway.stay import Call, OtherTenantError, QueueFullError, SessionOverError
from mars.gateway.thread import AnswerReader
from mars.gateway.upstream import (
    FAILURES,
    Upstream,
    request_headers,
    response_headers,
    unreachable,
)
from mars.gateway.wires import Wire

Unserved = Literal["engine failed", "session over"]
UNSERVED: Final = "mars.unserved"
"""In the scope of a request that no engine has answered, or not to its end: why (Unserved). It is
there before the client hears of it."""
SESSION: Final = "mars.session"
"""In the same scope: the session that was over, if it had one; in that of the next attempt: what a
request is of that names none itself."""
_FIRST_ERROR: Final = 400


class PassThrough:
    """Endpoint: on to the engine and back, without gate or session."""

    def __init__(self, upstream: Upstream, settings: GatewaySettings) -> None:
        self._upstream = upstream
        self._set = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = Caller(scope, receive, send)
        body = await self._body(caller)
        if body is not None:
            with caller:
                await self.forward(caller, body, {})

    async def _body(self, caller: Caller) -> bytes | None:
        """None: there is nothing to forward, and the client knows."""
        try:
            return await caller.read(self._set.body_bytes)
        except ClientGoneError:
            return None
        except BodyTooLargeError:
            limit = f"the request body is larger than {self._set.body_bytes} bytes"
            await caller.fail(413, "request_too_large", f"{limit} (gateway setting `body_bytes`)")
            return None

    async def forward(
        self, caller: Caller, body: bytes, own: dict[bytes, str], readers: Sequence[Reader] = ()
    ) -> str:
        """Returns what went wrong, of which the client knows; empty when all went well.

        `readers` are shown each chunk of an answer that is no error, before the client has it.
        """
        scope = caller.scope
        target: str = scope["raw_path"].decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        headers = request_headers(scope["headers"], own)
        try:
            response = await self._upstream.send(scope["method"], target, headers, body)
            try:
                return await self._relay(caller, response, readers)
            finally:
                response.release()  # closes the connection unless the answer was read to its end
        except FAILURES as error:
            why = self._upstream.explain(error)
            kind = "engine_unreachable" if unreachable(error) else "engine_died"
            scope[UNSERVED] = "engine failed"
            await caller.fail(502, kind, why)
            return why

    async def _relay(
        self, caller: Caller, response: aiohttp.ClientResponse, readers: Sequence[Reader]
    ) -> str:
        streams = response.content_type == "text/event-stream"
        why = f"HTTP {response.status}" if response.status >= _FIRST_ERROR else ""
        if caller.begun:  # as a stream, while it waited at the gate
            if why or not streams:
                await caller.fail_stream(caller.wire.retold(response.status, await response.read()))
                return why or f"the engine answered a stream with {response.content_type}"
        else:
            caller.streams = streams
            await caller.begin(response.status, response_headers(response))
        content = response.content
        last = False
        while not last:
            chunk = await content.readany()
            if caller.first_byte_s is None:
                caller.first_byte_s = time.monotonic()
            last = content.at_eof()
            for reader in () if why else readers:
                reader.read(chunk, last=last)
            await caller.write(chunk, last=last)
        return why


class GatedCall(PassThrough):
    """Endpoint: a call of a session; waits at the gate until its session may enter."""

    def __init__(
        self, desk: Desk, recall: Recall, upstream: Upstream, settings: GatewaySettings
    ) -> None:
        super().__init__(upstream, settings)
        self._desk = desk
        self._recall = recall

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        caller = Caller(scope, receive, send)
        body = await self._body(caller)
        if body is None:
            return
        try:
            identity = self._identify(scope, body)
        except InputError as error:
            await caller.fail(400, "invalid_session_id", str(error))
            return
        why = "it was not answered"
        with caller:
            try:
                why = await self._serve(caller, identity, body)
            finally:
                if why:
                    self._recall.give_back(identity.went_on_from, identity.session_id)

    async def _serve(self, caller: Caller, identity: Identity, body: bytes) -> str:
        """Returns what went wrong, of which the client knows; empty when all went well."""
        try:
            call = await self._enter(caller, identity, body)
        except QueueFullError as error:
            why = f"{error}: come again in {error.retry_after_s} s"
            await caller.fail(429, "queue_full", why, error.retry_after_s)
            return why
        except OtherTenantError as error:
            await caller.fail(403, "session_of_another_tenant", str(error))
            return str(error)
        except SessionOverError as error:
            caller.scope[UNSERVED], caller.scope[SESSION] = "session over", error.session_id
            why = f"the session was ended while this request waited to enter: {error}"
            if self._desk.stopped:
                await caller.fail(503, "gateway_stopped", why)
            else:
                await caller.fail(410, "session_ended", why)
            return why
        return await self._run(caller, call, body, self._readers(caller.wire, identity, call))

    def _identify(self, scope: Scope, body: bytes) -> Identity:
        headers: Headers = scope["headers"]
        tenant: str = scope.get(TENANT, "")
        if TENANT not in scope and self._set.tenant_header:
            tenant = tenant_of(headers, self._set.tenant_header)
        identity = identify(headers, body, self._recall, tenant)
        if identity.session_id is None and SESSION in scope:
            return msgspec.structs.replace(identity, session_id=scope[SESSION])
        return identity

    async def _enter(self, caller: Caller, identity: Identity, body: bytes) -> Call:
        stay = await self._desk.enter(
            identity,
            len(body),
            lambda: caller.queued(body),
            lambda: _patience_s(caller.scope["headers"], body),
        )
        call = self._desk.call_started(
            stay,
            wanted=_request_id(caller.scope["headers"]),
            prompt_bytes=len(body),
            final=identity.final,
        )
        if not caller.wire.keeps_call_id:
            self._desk.names.expect(stay.session_id, call.call_id, time.monotonic())
        return call

    def _readers(self, wire: Wire, identity: Identity, call: Call) -> list[Reader]:
        """Those who have to know of the answer, so that who goes on from it is found."""
        readers: list[Reader] = []
        if wire.answers_are_named:
            readers.append(ResponseHead(self._recall, call.stay.session_id))
        if identity.asked:
            readers.append(AnswerReader(identity.asked, self._recall, call))
        return readers

    async def _run(self, caller: Caller, call: Call, body: bytes, readers: list[Reader]) -> str:
        own = {b"x-session-id": str(call.stay.session_id), b"x-request-id": str(call.call_id)}
        why = "the gateway failed"
        try:
            why = await self.forward(caller, body, own, readers)
        except asyncio.CancelledError:
            why = "client disconnected" if caller.gone else "the gateway stopped"
            raise
        finally:
            self._desk.names.close(call.stay.session_id, call.call_id, time.monotonic())
            self._desk.call_finished(
                call,
                ok=not why,
                why=why,
                gone=caller.gone,
                status=caller.status,
                first_byte_s=caller.first_byte_s,
            )
        return why


def _request_id(headers: Headers) -> str:
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode("latin-1")
    return ""


def _patience_s(headers: Headers, body: bytes) -> float | None:
    """How long the client waits for a byte, as clients made by Stainless say (OpenAI, Anthropic).

    None of a stream: comments on it count as bytes.
    """
    said = next((value for name, value in headers if name == b"x-stainless-read-timeout"), b"")
    try:
        patience_s = float(said)
    except ValueError:
        return None
    if not 0.0 < patience_s < inf or asks_for_stream(body):
        return None
    return patience_s
