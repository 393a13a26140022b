"""The engine's end of one request."""

import asyncio
import io
from collections.abc import Iterable
from typing import Final, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from mars.core.errors import InputError
from mars.gateway.settings import GatewaySettings

FAILURES: Final = (aiohttp.ClientError, OSError)  # TimeoutError is an OSError
"""What a request to the engine, or reading its answer, may raise."""

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""RFC 9110, 7.6.1, and what `Connection` names besides."""
_NOT_OURS_TO_PASS: Final = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}

KEEP_S: Final = 2.0
"""Below the 5 s after which uvicorn, and so vLLM, closes an idle connection: a request sent into
that closing would fail, and a POST must not be tried twice."""

_LARGE_BYTES: Final = 1 << 20
"""Larger bodies are written piecewise: aiohttp warns of one long write."""

_AUTOMATIC: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Headers that aiohttp would add; what the client did not say, the engine shall not hear."""


def base_url(url: str) -> str:
    """Of an engine: its name, however its address was written. Raises InputError."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise InputError(f"the engine's address {url!r} is not of the form http://host:port")
    return url.rstrip("/").removesuffix("/v1")


class Upstream:
    def __init__(self, url: str, settings: GatewaySettings) -> None:
        """`url`: http://host:port; a path is put before that of each request. Raises InputError."""
        self.url = base_url(url)
        self._set = settings
        self._client: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._set.connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),  # clients must not share cookies
            auto_decompress=False,
            skip_auto_headers=_AUTOMATIC,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cut every connection; relays that still run fail at once."""
        if self._client is not None:
            await self._client.close()

    async def send(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes
    ) -> aiohttp.ClientResponse:
        """Send a request; returns with the headers of the answer. Close what it returns.

        `target`: path and query as they came, quoted. Raises one of FAILURES.
        """
        assert self._client is not None, "used outside of its context"  # noqa: S101
        data: bytes | io.BytesIO | None = body
        if len(body) > _LARGE_BYTES:
            data = io.BytesIO(body)
        elif not body and method not in {"POST", "PUT", "PATCH"}:
            data = None
        url = URL(self.url + target, encoded=True)
        return await self._client.request(
            method, url, headers=headers, data=data, allow_redirects=False
        )

    async def sick(self) -> str:
        """Why the engine does not answer `/health` with 200; empty when it does."""
        try:
            async with asyncio.timeout(self._set.connect_s):
                response = await self.send("GET", "/health", [], b"")
                response.release()
        except FAILURES as error:
            return self.explain(error)
        return "" if response.status == 200 else f"{self.url}/health says HTTP {response.status}"  # noqa: PLR2004

    def explain(self, error: BaseException) -> str:
        what = str(error) or type(error).__name__
        if unreachable(error):
            return (
                f"cannot reach the engine at {self.url}: {what}. "
                f"Check that vLLM runs there: curl {self.url}/health"
            )
        return (
            f"the engine at {self.url} broke off its answer: {what}. "
            "Check its log, and whether its process still runs"
        )


def unreachable(error: BaseException) -> bool:
    """The request never got to the engine."""
    return isinstance(error, aiohttp.ClientConnectorError | TimeoutError | aiohttp.InvalidURL)


def request_headers(
    headers: Iterable[tuple[bytes, bytes]], own: dict[bytes, str]
) -> list[tuple[str, str]]:
    """What goes on to the engine, with `own` in place of the client's headers of these names."""
    passed = _end_to_end(headers, _NOT_OURS_TO_PASS | own.keys())
    # aiohttp writes UTF-8
    found = [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in passed]
    return found + [(name.decode(), value) for name, value in own.items()]


def response_headers(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    return _end_to_end(response.raw_headers, _HOP_BY_HOP)


def _end_to_end(
    headers: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes] | set[bytes]
) -> list[tuple[bytes, bytes]]:
    lower = [(name.lower(), value) for name, value in headers]
    for name, value in lower:
        if name == b"connection":
            dropped = dropped | {token.strip().lower() for token in value.split(b",")}
    return [item for item in lower if item[0] not in dropped]
