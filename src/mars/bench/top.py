"""`mars top`: a gateway's status and sessions, live in the terminal."""

import asyncio
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import aiohttp
import msgspec
from rich.console import Console
from rich.live import Live

from mars.bench.top_view import View, frame
from mars.core.errors import InputError
from mars.gateway.door import read_secret
from mars.gateway.roster import SessionRow
from mars.gateway.shown import Status
from mars.gateway.upstream import base_url

_ANSWER_S: Final = 5.0
_NO_ENTRY: Final = (401, 403)
_SPARE_LINES: Final = 1
"""Below the frame, for the cursor."""
_FAILURES: Final = (aiohttp.ClientError, ValueError, OSError)
"""Nobody there, or somebody else; TimeoutError is an OSError."""

T = TypeVar("T")


def top_command(
    url: str,
    *,
    every_s: float,
    once: bool,
    key_file: Path | None = None,
    engine: str | None = None,
) -> None:
    """`key_file`: an admin's key, for a gateway that asks for one. `engine`: URL of one of its
    engines, to be shown alone.

    Raises InputError when no gateway answers at first, or it has no such engine; later that is
    shown in the frame.
    """
    key = "" if key_file is None else read_secret(str(key_file))
    asked = _Asked(url.rstrip("/").removesuffix("/v1"), base_url(engine) if engine else "")
    asyncio.run(_top(asked, key, every_s, once=once))


class _Asked(NamedTuple):
    url: str
    engine: str
    """Empty: all."""


async def _top(asked: _Asked, key: str, every_s: float, *, once: bool) -> None:
    url = asked.url
    console = Console()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:
        try:
            view = await _look(http, asked)
        except _FAILURES as error:
            if isinstance(error, aiohttp.ClientResponseError) and error.status in _NO_ENTRY:
                raise InputError(
                    f"the gateway at {url} asks for an admin's key (HTTP {error.status}): "
                    "give it with --key-file; `mars key NAME --admin` makes one"
                ) from None
            raise InputError(
                f"no gateway of mars answers at {url}: {_words(error)}. "
                "Give `mars top` the address that `mars serve` or `mars gateway` printed"
            ) from None
        if once:
            console.print(frame(view, sessions=len(view.rows)))
            return
        await _live(console, http, asked, view, every_s)


async def _live(
    console: Console, http: aiohttp.ClientSession, asked: _Asked, view: View, every_s: float
) -> None:
    """Until q is pressed."""
    with Live(console=console, screen=True, auto_refresh=False) as live, _quit_key() as quit_key:
        while not quit_key.is_set():
            live.update(frame(view, lines=console.height - _SPARE_LINES), refresh=True)
            try:
                await asyncio.wait_for(quit_key.wait(), every_s)
            except TimeoutError:
                view = await _look_again(http, asked, view)


async def _look(http: aiohttp.ClientSession, asked: _Asked) -> View:
    url, engine = asked
    said = await _get(http, url + "/mars/status", dict[str, Any])
    statuses = msgspec.convert(said.get("engines", [said]), list[Status])  # several, or one
    rows = await _get(http, url + "/mars/sessions", list[SessionRow])
    if engine:
        here = ", ".join(it.engine for it in statuses) or "none"
        statuses = [it for it in statuses if it.engine == engine]
        rows = [row for row in rows if row.engine == engine]
        if not statuses:
            raise InputError(f"the gateway at {url} has no engine {engine}; it has: {here}")
    return View(url=url, engine=engine, statuses=statuses, rows=rows)


async def _look_again(http: aiohttp.ClientSession, asked: _Asked, last: View) -> View:
    try:
        return await _look(http, asked)
    except (*_FAILURES, InputError) as error:
        return msgspec.structs.replace(last, trouble=_words(error))


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


async def _get(http: aiohttp.ClientSession, url: str, kind: type[T]) -> T:
    async with http.get(url) as response:
        response.raise_for_status()
        return msgspec.json.decode(await response.read(), type=kind)


@contextmanager
def _quit_key() -> Iterator[asyncio.Event]:
    """Set when q is pressed; never without a terminal."""
    pressed = asyncio.Event()
    if not sys.stdin.isatty():
        yield pressed
        return
    descriptor = sys.stdin.fileno()
    loop = asyncio.get_running_loop()

    def read() -> None:
        if sys.stdin.read(1) in {"q", "Q"}:
            pressed.set()

    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield pressed
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
