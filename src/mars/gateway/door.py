"""The door: lets in who bears a key, before anything of a request is read.

    /health                     open: load balancers have no key
    /mars/..., /metrics         an admin's key
    everything else             any key

Past it the client's key is gone from the request, so the engine never sees it; the engine's own
goes in its place.
"""

from pathlib import Path
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from mars.core.errors import InputError
from mars.gateway.caller import Caller
from mars.gateway.keys import KeyRing, bears_key

TENANT: Final = "mars.tenant"
"""In the scope of a request past the door: whose it is."""
_OPEN: Final = frozenset({"/health"})


class Door:
    def __init__(self, app: ASGIApp, ring: KeyRing, engine_key: str) -> None:
        """`engine_key`: what the engine wants to see (vllm --api-key); empty: nothing."""
        self._app, self._ring = app, ring
        bearer = (b"authorization", f"Bearer {engine_key}".encode())
        self._own = [bearer] if engine_key else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return
        caller = Caller(scope, receive, send)
        key = self._ring.find(scope["headers"])
        if key is None:
            await caller.fail(401, "invalid_api_key", _NO_KEY)
        elif _is_admins(scope["path"]) and not key.admin:
            await caller.fail(403, "not_an_admin", f"the key {key.name!r} is not an admin's")
        else:
            headers = [item for item in scope["headers"] if not bears_key(item[0])]
            past = {**scope, "headers": headers + self._own, TENANT: key.tenant}
            await self._app(past, receive, send)


_NO_KEY: Final = (
    "no key that is known here came as `Authorization: Bearer KEY` or `x-api-key: KEY`. "
    "Whoever runs the gateway makes one: mars key NAME"
)


def _is_admins(path: str) -> bool:
    return path == "/metrics" or path.startswith("/mars/")


def read_secret(path: str) -> str:
    """The first line of a file; empty for no file. Raises InputError."""
    if not path:
        return ""
    try:
        secret = Path(path).read_text().partition("\n")[0].strip()
    except (OSError, UnicodeError) as error:
        raise InputError(f"cannot read a key from {path}: {error}") from None
    if not secret:
        raise InputError(f"the first line of {path} is empty: it must be the key")
    return secret
