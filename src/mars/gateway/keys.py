"""Who may use the gateway: API keys, as hashes in a file, and what each of them may do.

    mars key NAME --file keys.jsonl    makes a key, shows it once, and adds its hash to the file
    gateway.keys_file                  names the file; without it everybody may do everything

A key is 256 bits of chance, so one round of SHA-256 hides it as well as any slow hash would. It
comes as `Authorization: Bearer KEY` (OpenAI's clients) or `x-api-key: KEY` (Anthropic's). To take
a key back, delete its line: the file is read again when it has changed.
"""

import hmac
import secrets
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from mars.core.errors import InputError

_BEARER: Final = b"bearer "
_PREFIX: Final = "mars-"
"""Lets secret scanners find a key that has leaked."""


class ApiKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of the file."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    tenant: Annotated[str, Meta(max_length=256)] = ""
    """Whose the sessions are that it opens (for `scheduling.tenants`); empty: nobody's."""
    admin: bool = False
    """May read and change what stands under /mars/, and /metrics."""


_line = msgspec.json.Decoder(ApiKey)


def make_key(path: Path, *, name: str, tenant: str, admin: bool) -> str:
    """Add a new key to the file, which is made for its owner's eyes only; returns the key.

    Raises InputError when the file cannot be read or written, or has a key of this name.
    """
    if any(key.name == name for key in _read(path, missing_ok=True)):
        raise InputError(
            f"{path} has a key named {name!r}: choose another name, or delete its line"
        )
    secret = _PREFIX + secrets.token_urlsafe(32)
    fields = {"name": name, "sha256": _digest(secret.encode()), "tenant": tenant, "admin": admin}
    try:
        key = msgspec.convert(fields, ApiKey)
        path.touch(mode=0o600)
        before = path.read_bytes()
        apart = b"\n" if before and not before.endswith(b"\n") else b""  # edited by hand
        with path.open("ab") as file:
            file.write(apart + msgspec.json.encode(key) + b"\n")
    except msgspec.ValidationError as error:
        raise InputError(f"this key cannot be: {error}") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    return secret


class KeyRing:
    def __init__(self, path: Path) -> None:
        """Raises InputError when the file cannot be read or has no key."""
        self._path = path
        self._seen = _version(path)
        self._keys = _read(path)

    def look(self) -> None:
        """Read the file again if it has changed. One that cannot be read changes nothing."""
        version = _version(self._path)
        if version == self._seen:
            return
        self._seen = version
        try:
            self._keys = _read(self._path)
        except InputError as error:
            print(f"mars: the keys stay as they were: {error}", file=sys.stderr)  # noqa: T201

    def find(self, headers: Sequence[tuple[bytes, bytes]]) -> ApiKey | None:
        """Whose key these headers bear; None: nobody's. `headers` as ASGI gives them."""
        secret = _secret(headers)
        if not secret:
            return None
        digest, found = _digest(secret), None
        for key in self._keys:  # all of them: how long it takes says nothing
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def bears_key(name: bytes) -> bool:
    """Is this the name of a header that `find` reads?"""
    return name in {b"authorization", b"x-api-key"}


def _secret(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return b""


def _digest(secret: bytes) -> str:
    return sha256(secret).hexdigest()


def _version(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _read(path: Path, *, missing_ok: bool = False) -> list[ApiKey]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        if missing_ok:
            return []
        why = f"{path} is not there; make a first key: mars key NAME --file {path}"
        raise InputError(why) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            keys.append(_line.decode(line))
        except msgspec.DecodeError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    if not keys and not missing_ok:
        raise InputError(f"{path} has no key, so nobody could come in")
    return keys
