"""`mars top`: a gateway's status and sessions, live in the terminal."""

import asyncio
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
import msgspec
from rich.console import Console
from rich.live import Live

from mars.bench.top_view import View, frame
from mars.core.errors import InputError
from mars.gateway.door import read_secret
from mars.gateway.roster import SessionRow
from mars.gateway.shown import Status

_ANSWER_S: Final = 5.0
_NO_ENTRY: Final = (401, 403)
_SPARE_LINES: Final = 1
"""Below the frame, for the cursor."""
_FAILURES: Final = (aiohttp.ClientError, ValueError, OSError)
"""Nobody there, or somebody else; TimeoutError is an OSError."""

T = TypeVar("T")


def top_command(url: str, *, every_s: float, once: bool, key_file: Path | None = None) -> None:
    """`key_file`: an admin's key, for a gateway that asks for one.

    Raises InputError when no gateway answers at first; later that is shown in the frame.
    """
    key = "" if key_file is None else read_secret(str(key_file))
    asyncio.run(_top(url.rstrip("/").removesuffix("/v1"), key, every_s, once=once))


async def _top(url: str, key: str, every_s: float, *, once: bool) -> None:
    console = Console()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as http:
        try:
            view = await _look(http, url)
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
        await _live(console, http, view, every_s)


async def _live(console: Console, http: aiohttp.ClientSession, view: View, every_s: float) -> None:
    """Until q is pressed."""
    with Live(console=console, screen=True, auto_refresh=False) as live, _quit_key() as quit_key:
        while not quit_key.is_set():
            live.update(frame(view, lines=console.height - _SPARE_LINES), refresh=True)
            try:
                await asyncio.wait_for(quit_key.wait(), every_s)
            except TimeoutError:
                view = await _look_again(http, view)


async def _look(http: aiohttp.ClientSession, url: str) -> View:
    said = await _get(http, url + "/mars/status", dict[str, Any])
    statuses = msgspec.convert(said.get("engines", [said]), list[Status])  # several, or one
    rows = await _get(http, url + "/mars/sessions", list[SessionRow])
    return View(url=url, statuses=statuses, rows=rows)


async def _look_again(http: aiohttp.ClientSession, last: View) -> View:
    try:
        return await _look(http, last.url)
    except _FAILURES as error:
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
