"""Child processes that live and die together.

Each part has a log file and a URL that answers once it is ready. A part that ends by itself takes
the others down, and the error says which one, how, and shows the end of its log.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import aiohttp

from mars.core.errors import PartDiedError

_POLL_S: Final = 0.2
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    argv: Sequence[str]
    ready_url: str
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to our own environment."""
    end_s: float = 10.0
    """So long it may take to end after SIGTERM."""


def _die_with_parent() -> None:
    """In the child, before it becomes the part: a killed `mars serve` leaves nothing behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Parts:
    """`async with Parts() as parts:` starts nothing, and ends whatever was started."""

    def __init__(self) -> None:
        self._running: list[tuple[Part, asyncio.subprocess.Process]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for part, process in reversed(self._running):
            await _end(part, process)

    @property
    def pids(self) -> list[int]:
        return [process.pid for _, process in self._running]

    async def start(self, part: Part) -> None:
        """Start one part; it is ready only after `ready`."""
        with part.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *part.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env={**os.environ, **part.env},
                start_new_session=True,  # Ctrl-C reaches us alone: we end the parts in order
                preexec_fn=_die_with_parent,
            )
        self._running.append((part, process))

    async def kill(self, part: Part) -> None:
        """End a part at once, as a crash would; it may be started again."""
        for running in [it for it in self._running if it[0] is part]:
            self._running.remove(running)
            os.killpg(running[1].pid, signal.SIGKILL)
            await running[1].wait()

    async def ready(self, timeout_s: float, tell: Callable[[str], None] = lambda _: None) -> None:
        """Wait until every part answers. Raises PartDiedError if one ends or takes longer."""
        async with aiohttp.ClientSession() as http:
            for part, _ in list(self._running):
                try:
                    await asyncio.wait_for(self._answers(http, part), timeout_s)
                except TimeoutError:
                    raise PartDiedError(
                        f"the {part.name} did not become ready within {timeout_s:.0f} s; "
                        f"its log is {part.log}\n{log_end(part.log)}"
                    ) from None
                tell(f"{part.name} is ready")

    async def watch(self) -> None:
        """Return never; raise PartDiedError when a part ends."""
        while True:
            self.check()
            waits = [asyncio.ensure_future(process.wait()) for _, process in self._running]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    def check(self) -> None:
        for part, process in self._running:
            if process.returncode is not None:
                raise PartDiedError(
                    f"the {part.name} has ended ({_how(process.returncode)}); "
                    f"its log is {part.log}\n{log_end(part.log)}"
                )

    async def _answers(self, http: aiohttp.ClientSession, part: Part) -> None:
        while True:
            self.check()
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                timeout = aiohttp.ClientTimeout(total=2.0)
                async with http.get(part.ready_url, timeout=timeout) as response:
                    if response.status == 200:  # noqa: PLR2004
                        return
            await asyncio.sleep(_POLL_S)


async def _end(part: Part, process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the part, then SIGKILL to its whole session."""
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), part.end_s)
        except TimeoutError:
            sys.stderr.write(f"mars: the {part.name} did not end in time and is killed\n")
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its workers; the leader too if it is still there
    await process.wait()


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def log_end(log: Path, lines: int = 15) -> str:
    """The end of a part's log; from its first own error on, when it names one."""
    text = log.read_text(errors="replace").splitlines()
    named = [i for i, line in enumerate(text) if "mars.core.errors." in line]
    if named:
        message = text[named[0]].partition("mars.core.errors.")[2]
        return f"  {message.partition(': ')[2] or message}"
    return "\n".join(f"  | {line}" for line in text[-lines:])
