"""The tool server: HTTP in front of `runtime`, and the life of its process."""

import asyncio
import contextlib
import hmac
import math
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mars.core.errors import InputError, PartDiedError
from mars.core.events import Event
from mars.policy.tool_order import ToolOrder
from mars.stream.link import Publisher
from mars.tools.listening import leave_word, listen
from mars.tools.runtime import ToolCall, ToolRuntime
from mars.tools.settings import ToolSettings
from mars.tools.shells import Shells
from mars.tools.wire import Health, Refusal, RunRequest, ShellEntry, ShellExit

T = TypeVar("T")
_encoder = msgspec.json.Encoder()
_requests = msgspec.json.Decoder(RunRequest)
_entries, _exits = msgspec.json.Decoder(ShellEntry), msgspec.json.Decoder(ShellExit)
_REFUSALS = (InputError, msgspec.DecodeError, PartDiedError, HTTPException)
_LAST_LINES_S = 5  # for clients to read the end of their answers, at shutdown


def build_app(
    settings: ToolSettings, token: str, emit: Callable[[Event], None], order: ToolOrder
) -> Starlette:
    """The app; its `state.runtime` is the `ToolRuntime`, its `state.shells` are the `Shells`.

    Raises InputError when the settings name a core that does not exist.
    """
    runtime = ToolRuntime(settings, emit, order)
    lends_to_shells = Shells(runtime, settings)
    shells = _Shells(lends_to_shells, token)

    async def health(_request: Request) -> Response:
        book = runtime.book
        now = Health(
            cores=tuple(book.cores),
            slots=book.slots,
            running=book.running,
            waiting=book.waiting,
            controls=str(runtime.controls),
        )
        return Response(_encoder.encode(now), media_type="application/json")

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await runtime.stop()

    app = Starlette(
        routes=[
            Route("/run", _Run(runtime, token), methods=["POST"]),
            Route("/shells/enter", shells.enter, methods=["POST"]),
            Route("/shells/leave", shells.leave, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: _on_http_error},
    )
    app.state.runtime, app.state.shells = runtime, lends_to_shells
    return app


class _Run:
    """POST /run. Plain ASGI: a client that leaves must be noticed while nothing is sent."""

    def __init__(self, runtime: ToolRuntime, token: str) -> None:
        self._runtime = runtime
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        opened = await self._open(Request(scope, receive))
        if opened is None:
            return
        if isinstance(opened, Response):
            await opened(scope, receive, send)
            return
        watch = asyncio.create_task(_cancel_on_disconnect(receive, opened))
        try:
            await _stream(opened, send)
        finally:
            opened.cancel()
            watch.cancel()

    async def _open(self, request: Request) -> ToolCall | Response | None:
        try:
            _check_token(request, self._token)
            return self._runtime.open(_requests.decode(await request.body()))
        except _REFUSALS as error:
            return _refusal(error)
        except ClientDisconnect:
            return None


class _Shells:
    """POST /shells/enter and /shells/leave."""

    def __init__(self, shells: Shells, token: str) -> None:
        self._shells = shells
        self._token = token

    async def enter(self, request: Request) -> Response:
        try:
            _check_token(request, self._token)
            entry = _entries.decode(await request.body())
            entered = await _unless_gone(request.receive, self._shells.enter(entry))
        except _REFUSALS as error:
            return _refusal(error)
        return Response(_encoder.encode(entered), media_type="application/json")

    async def leave(self, request: Request) -> Response:
        try:
            _check_token(request, self._token)
            self._shells.leave(_exits.decode(await request.body()))
        except _REFUSALS as error:
            return _refusal(error)
        return Response(status_code=204)


async def _unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """Do the work; a client that leaves cancels it (None: nobody is there to hear)."""
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        working.cancel()
        gone.cancel()


def _check_token(request: Request, token: str) -> None:
    given = request.headers.get("authorization", "").encode()
    if not hmac.compare_digest(given, f"Bearer {token}".encode()):
        raise HTTPException(401, "wrong or missing token (Authorization: Bearer ...)")


async def _stream(call: ToolCall, send: Send) -> None:
    headers = [(b"content-type", b"application/x-ndjson")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    while line := await call.lines.get():
        body = _encoder.encode(line) + b"\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _cancel_on_disconnect(receive: Receive, call: ToolCall) -> None:
    await _disconnected(receive)
    call.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _refusal(error: Exception) -> Response:
    match error:
        case HTTPException():
            return _refuse(error.status_code, error.detail)
        case PartDiedError():
            return _refuse(503, str(error))
        case _:
            return _refuse(400, str(error))


def _refuse(status: int, text: str) -> Response:
    return Response(_encoder.encode(Refusal(error=text)), status, media_type="application/json")


async def _on_http_error(_request: Request, error: Exception) -> Response:
    return _refusal(error)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `serve` has its own: commands end first, and the state file goes away


async def serve(
    settings: ToolSettings,
    order: ToolOrder,
    *,
    host: str,
    port: int,
    token: str,
    publish: str | None,
    state_file: Path,
    tell: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or SIGINT; then end every command. Call it as `uvloop.run(serve(...))`.

    `port` 0: any free one. `publish`: the ZeroMQ endpoint for events. `state_file` is there while
    the server listens. `tell` hears lines for people. Main thread only.

    Raises InputError when it cannot listen on the address, lend the cores, write the file or
    publish.
    """
    with contextlib.ExitStack() as stack:
        emit: Callable[[Event], None] = _drop
        if publish is not None:
            publisher = Publisher(publish)
            stack.callback(publisher.close)
            emit = lambda event: publisher.send([event])  # noqa: E731
        app = build_app(settings, token, emit, order)
        runtime: ToolRuntime = app.state.runtime
        tell(f"tools: {runtime.controls}")
        if orphans := await runtime.end_orphans():
            tell(f"tools: ended {orphans} commands or processes of a server that was killed")
        app.state.shells.take_over()
        listener = stack.enter_context(listen(host, port))
        server = _Server(_uvicorn_config(app, settings.grace_s))

        def stop() -> None:
            runtime.cancel_all()
            server.should_exit = True

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
            stack.callback(loop.remove_signal_handler, number)
        sockets = stack.enter_context(leave_word(state_file, listener, token))
        try:
            await server.serve(sockets=sockets)
        finally:
            await runtime.stop()


def _uvicorn_config(app: Starlette, grace_s: float) -> uvicorn.Config:
    last_s = math.ceil(grace_s) + _LAST_LINES_S
    return uvicorn.Config(
        app, access_log=False, log_level="warning", timeout_graceful_shutdown=last_s
    )


def _drop(_event: Event) -> None:
    pass
