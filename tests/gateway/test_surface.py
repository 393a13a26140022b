"""Whatever a client sends: no failure of ours, errors in the API's form, nothing left behind."""

import asyncio
from dataclasses import dataclass

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.routing import Route, Router
from tests.gateway.conftest import gateway
from tests.gateway.scripted import JSON, Engine, Exchange, serving, until

from mars.core import events as ev
from mars.gateway import identity

GATED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
PATHS = (*GATED, "/v1/messages/count_tokens", "/v1/responses/x/cancel", "/v1/embeddings", "/v1/x")
OTHERS = ("/mars/sessions", "/mars/sessions/a", "/mars/sessions/a/end", "/mars/status", "/health")

names = st.sampled_from(
    [*identity._HEADERS, *identity._PARENTS, *identity._FINAL, b"x-request-id", b"x-other"]
)
values = st.binary(max_size=20) | st.sampled_from([b"a", b"b", b"true", b"\xff", b"x" * 300])
header = st.tuples(names, values.filter(lambda it: min(it, default=32) >= 32 and 127 not in it))
leaf = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from("ab")
tree = st.recursive(
    leaf, lambda it: st.lists(it, max_size=3) | st.dictionaries(st.text(max_size=3), it, max_size=3)
)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]) | tree, "content": tree}
)
fields = st.dictionaries(
    st.sampled_from([path[0] for path in identity._FIELDS]),
    tree | st.fixed_dictionaries({"session_id": leaf, "id": leaf, "user_id": tree}),
    max_size=3,
)
bodies = st.binary(max_size=50) | st.builds(
    lambda known, messages, stream: msgspec.json.encode(
        known | {"messages": messages, "stream": stream}
    ),
    fields,
    st.lists(message, max_size=4) | tree,
    leaf,
)


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def raw(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1".encode(), b"host: x", b"connection: close"]
        lines += [name + b": " + value for name, value in self.headers]
        lines += [b"content-length: " + str(len(self.body)).encode(), b"", self.body]
        return b"\r\n".join(lines)


asked = st.builds(
    Asked,
    st.sampled_from(["POST"] * 4 + ["GET", "DELETE", "PUT"]),
    st.sampled_from(PATHS + OTHERS),
    st.lists(header, max_size=4, unique_by=lambda it: it[0]),
    bodies,
)


async def echo(exchange: Exchange) -> None:
    await exchange.answer(200, JSON, exchange.body)


async def answered(url: str, request: Asked) -> tuple[int, bytes]:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request.raw())
    async with asyncio.timeout(20):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


def check(request: Asked, status: int, body: bytes) -> None:
    assert status < 500, (request, status, body)
    if request.method != "POST" or request.path not in GATED:
        return
    if status == 200:
        assert body == request.body
        return
    assert status == 400, "nothing else can be wrong"
    said = msgspec.json.decode(body, type=dict[str, object])
    assert isinstance(said["error"], dict)
    assert (said.get("type") == "error") is (request.path == "/v1/messages")
    assert "session id" in said["error"]["message"]


async def play(requests: list[Asked]) -> None:
    engine = Engine(script=echo)
    async with (
        serving(Router(routes=[Route("/{rest:path}", engine, methods=None)])) as engine_url,
        gateway(engine_url) as rig,
    ):
        answers = await asyncio.gather(*(answered(rig.url, it) for it in requests))
        for request, (status, body) in zip(requests, answers, strict=True):
            check(request, status, body)
        await until(lambda: not rig.desk._calls._names)
        assert rig.desk.control._meter.open_calls == 0
        assert len(rig.of(ev.CallQueued)) == len(rig.of(ev.CallFinished))
        for session_id in list(rig.desk._stays):
            rig.desk.end(session_id, "test")
        assert not rig.desk.control.sessions


@settings(max_examples=60, deadline=None)
@given(st.lists(asked, min_size=1, max_size=12))
@example([Asked("POST", "/v1/messages", [(b"x-session-id", b"\xff")], b"{}")])
@example([Asked("POST", path, [], b'{"messages":[{"role":"assistant"},1]}') for path in GATED])
def test_no_request_is_our_failure(requests: list[Asked]) -> None:
    asyncio.run(play(requests))
