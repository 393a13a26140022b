"""Where the tool server listens, and how it leaves word of that on its machine.

    http://host:port      for whoever has the token
    STATE_FILE.sock       a local socket, for its owner only; clients on the machine take it

The state file says both, and the token.
"""

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from mars.core.errors import InputError
from mars.tools.wire import ServerState

_BACKLOG = 1024
_OWNER_ONLY = 0o600


def listen(host: str, port: int) -> socket.socket:
    """`port` 0: any free one. Raises InputError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise InputError(f"the tool server cannot listen on {host}:{port}: {error}") from None


@contextlib.contextmanager
def leave_word(path: Path, listener: socket.socket, token: str) -> Iterator[list[socket.socket]]:
    """Write the state file, whole or not at all and for its owner only; gives what to serve.

    It is removed at the end unless a successor's. There is no local socket where the path is too
    long for one, or the file system has none. Raises InputError when it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            name = f"{path.name}.sock"
            local = stack.enter_context(_local_socket(path.with_name(name)))
            text = msgspec.json.encode(
                ServerState(url=_url(listener), token=token, socket=name if local else "")
            )
            stack.enter_context(_file(path, text))
        except OSError as error:
            raise InputError(f"the tool server cannot write its state file: {error}") from None
        yield [listener, local] if local else [listener]


@contextlib.contextmanager
def _file(path: Path, text: bytes) -> Iterator[None]:
    fd, draft = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    with os.fdopen(fd, "wb") as file:
        file.write(text)
    Path(draft).replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.read_bytes() == text:
                path.unlink()


@contextlib.contextmanager
def _local_socket(path: Path) -> Iterator[socket.socket | None]:
    """In the place of a predecessor's, at once. Nobody can connect before it is its owner's."""
    draft = path.with_name(f"{path.name}-{os.getpid()}")
    with socket.socket(socket.AF_UNIX) as local:
        try:
            local.bind(str(draft))
        except OSError:
            yield None
            return
        draft.chmod(_OWNER_ONLY)
        local.listen(_BACKLOG)
        draft.replace(path)
        ours = path.stat().st_ino
        try:
            yield local
        finally:
            with contextlib.suppress(FileNotFoundError):
                left = path.stat()
                if stat.S_ISSOCK(left.st_mode) and left.st_ino == ours:
                    path.unlink()


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"
