"""Leases for the shells of this process, for agents that are not asynchronous."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from mars.core.errors import InputError, PartDiedError
from mars.tools.client import LOCAL, find_server
from mars.tools.wire import Refusal, ShellEntered, ShellEntry, ShellExit

_REFUSED: Final = range(400, 500)
_DONE: Final = range(200, 300)


class Entered:
    """A call under its lease."""

    exit_code: int = -1
    """To be set before it is over; -1: the command runs on."""


class ShellLeases:
    """The tool server of this machine, as `mars serve` and `mars tools` leave word of it."""

    def __init__(self, state_file: Path) -> None:
        """Raises InputError as `find_server` does."""
        url, self._token = find_server(state_file)
        self._url = url

    @contextmanager
    def entered(self, entry: ShellEntry) -> Iterator[Entered]:
        """The shell has cores inside; they go when what was started there has ended.

        Raises InputError when the server refuses, PartDiedError when it is gone.
        """
        body = self._post("/shells/enter", msgspec.json.encode(entry))
        tool_id = msgspec.json.decode(body, type=ShellEntered).tool_id
        call = Entered()
        try:
            yield call
        finally:
            left = ShellExit(tool_id=tool_id, exit_code=call.exit_code)
            self._post("/shells/leave", msgspec.json.encode(left))

    def _post(self, path: str, body: bytes) -> bytes:
        server = _connection(self._url)  # waits for cores as long as it takes
        try:
            server.request("POST", path, body, {"Authorization": f"Bearer {self._token}"})
            answer = server.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise PartDiedError(f"the tool server at {self._url} is gone: {error!r}") from None
        finally:
            server.close()
        if answer.status in _DONE:
            return said
        kind = InputError if answer.status in _REFUSED else PartDiedError
        raise kind(f"tool server: {msgspec.json.decode(said, type=Refusal).error}")


def _connection(url: str) -> http.client.HTTPConnection:
    path = url.removeprefix(LOCAL)
    return _Local(path) if path != url else http.client.HTTPConnection(urlsplit(url).netloc)


class _Local(http.client.HTTPConnection):
    """Over a local socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)
