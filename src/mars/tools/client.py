"""Running commands on the tool server: for programs (`ToolClient`) and for `mars exec`."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import aiohttp
import msgspec

from mars.core.errors import InputError, MarsError, PartDiedError
from mars.tools.wire import Finished, Health, Line, Output, Refusal, RunRequest, ServerState

_lines = msgspec.json.Decoder(Line)
LOCAL: Final = "unix:"
_CONNECT_S = 10.0
_TIMED_OUT, _INTERRUPTED, _NOBODY_READS = 124, 130, 141
_REFUSED = range(400, 500)


def default_state_file() -> Path:
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime_dir, "mars") if runtime_dir else Path(f"/tmp/mars-{os.getuid()}")  # noqa: S108
    return folder / "tools.json"


def find_server(state_file: Path) -> tuple[str, str]:
    """URL and token of the tool server of this machine; "unix:PATH" where it has a local socket.

    Raises InputError when none has written `state_file`, or when it is another user's.
    """
    try:
        with state_file.open("rb") as file:
            owner, text = os.fstat(file.fileno()).st_uid, file.read()
    except FileNotFoundError:
        raise InputError(
            f"no tool server is running: start `mars serve` or `mars tools` (no {state_file})"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {state_file}: {error.strerror}") from None
    if owner not in {os.getuid(), 0}:
        raise InputError(f"{state_file} belongs to another user; remove it")
    try:
        state = msgspec.json.decode(text, type=ServerState)
    except msgspec.DecodeError as error:
        raise InputError(f"{state_file} is not a tool server's: {error}") from None
    url = f"{LOCAL}{state_file.parent / state.socket}" if state.socket else state.url
    return url, state.token


class ToolClient:
    """Use as `async with ToolClient(url, token) as client`.

    Each request has a connection of its own: the server closes one that idles, maybe just as the
    next command is sent, and nobody could tell whether that has run.
    """

    def __init__(self, url: str, token: str) -> None:
        """`url`: http://..., or unix:PATH."""
        self._url = url
        is_local = url.startswith(LOCAL)
        self._http = aiohttp.ClientSession(
            "http://localhost" if is_local else url,
            headers={"Authorization": f"Bearer {token}"},
            connector=(
                aiohttp.UnixConnector(url.removeprefix(LOCAL), limit=0, force_close=True)
                if is_local
                else aiohttp.TCPConnector(limit=0, force_close=True)
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            read_bufsize=1 << 20,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self._http.close()

    async def run(
        self, request: RunRequest, on_output: Callable[[Output], None] | None = None
    ) -> Finished:
        """Run a command to its end; cancelling this call, or an error in it, ends the command.

        Raises InputError when the server refuses the request, PartDiedError when it is gone.
        """
        finished = None
        async with contextlib.aclosing(self._post(request)) as lines:
            async for line in lines:
                if isinstance(line, Finished):
                    finished = line
                elif isinstance(line, Output) and on_output is not None:
                    on_output(line)
        if finished is None:
            raise PartDiedError(f"the tool server at {self._url} ended while the command ran")
        return finished

    async def health(self) -> Health:
        """Raises PartDiedError when the server is gone."""
        try:
            async with self._http.get("/health") as response:
                return msgspec.json.decode(await response.read(), type=Health)
        except (aiohttp.ClientError, ConnectionError) as error:
            raise PartDiedError(
                f"the tool server at {self._url} does not answer: {error}"
            ) from None

    async def _post(self, request: RunRequest) -> AsyncGenerator[Line]:
        try:
            body = msgspec.json.encode(request)
        except UnicodeEncodeError as error:
            raise InputError(f"a command must be UTF-8 text: {error}") from None
        began = False
        try:
            async with self._http.post("/run", data=body) as response:
                began = True
                if response.status != 200:  # noqa: PLR2004
                    raise _refusal(response.status, await response.read())
                async for text in response.content:
                    yield _lines.decode(text)
        except (aiohttp.ClientError, ConnectionError) as error:
            what = "ended while the command ran" if began else "does not answer"
            raise PartDiedError(f"the tool server at {self._url} {what}: {error}") from None


def _refusal(status: int, body: bytes) -> MarsError:
    try:
        text = msgspec.json.decode(body, type=Refusal).error
    except msgspec.DecodeError:
        text = body[:200].decode(errors="replace")
    return (InputError if status in _REFUSED else PartDiedError)(f"tool server: {text}")


def exec_command(request: RunRequest, state_file: Path) -> int:
    """Run a command for a shell user, output as it comes; the exit code to end with.

    The command's own; 124: timed out; 130: Ctrl-C, which ends the command; 141: nobody reads our
    output. Raises what `find_server` and `ToolClient.run` raise.
    """
    url, token = find_server(state_file)
    try:
        finished = asyncio.run(_run_one(url, token, request))
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # What is still buffered has no reader either; flushing it at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NOBODY_READS
    if finished.why == "timeout":
        _say(f"the command was ended: it ran for {finished.run_s:.1f} s, which is its time limit")
        return _TIMED_OUT
    if finished.why == "cancelled":
        _say("the command was ended: the tool server is stopping")
    return finished.exit_code


async def _run_one(url: str, token: str, request: RunRequest) -> Finished:
    async with ToolClient(url, token) as client:
        return await client.run(request, _print)


def _print(output: Output) -> None:
    if output.skipped_bytes:
        sys.stderr.write("\n")  # what is before ends anywhere
        _say(f"{output.skipped_bytes:,} bytes of {output.stream} are left out here")
    stream = sys.stdout.buffer if output.stream == "stdout" else sys.stderr.buffer
    stream.write(output.data)
    stream.flush()


def _say(text: str) -> None:
    sys.stderr.write(f"mars: {text}\n")
