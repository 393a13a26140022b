"""The event log: JSON lines, the first of which says what was run.

    {"log": 1, "at_s": ..., "wall_s": ..., "settings": {...}}
    {"event": "SessionArrived", "at_s": ..., ...}

`wall_s - at_s` of the head maps the monotonic clock to the calendar.
"""

import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import msgspec

from mars.core.errors import InputError
from mars.core.events import Event

_encoder = msgspec.json.Encoder()


class LogHead(msgspec.Struct, frozen=True, kw_only=True):
    log: int
    at_s: float
    wall_s: float
    settings: dict[str, Any]


class LogWriter:
    """Appends events to a file; what was handed over is in the file after `flush`."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """What the file held before is lost: see `set_aside`."""
        self._file = path.open("wb", buffering=1 << 16)
        head = LogHead(log=1, at_s=time.monotonic(), wall_s=time.time(), settings=settings)
        self._file.write(_encoder.encode(head) + b"\n")

    def write(self, event: msgspec.Struct) -> None:
        self._file.write(_encoder.encode(event) + b"\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> tuple[LogHead, Iterator[Event]]:
    """Head and events of a log.

    A last line without its end (the writer was killed) is left out. Raises InputError with the line
    number when any other line is not an event.
    """
    if not path.is_file():
        raise InputError(f"no event log at {path}")
    first = next(_lines(path), None)
    if first is None:
        raise InputError(f"{path} is empty")
    try:
        head = msgspec.json.decode(first, type=LogHead)
    except ValueError as error:  # not JSON, not UTF-8, or not of this type
        raise InputError(f"{path}:1: not the head of an event log: {error}") from None
    return head, _events(path)


def set_aside(path: Path) -> None:
    """Keep what is at `path` under the first free name of `path.1`, `path.2`, ..., if it is a file.

    Raises OSError.
    """
    if path.is_file():
        free = next(
            name
            for number in count(1)
            if not (name := path.with_name(f"{path.name}.{number}")).exists()
        )
        path.rename(free)


def _events(path: Path) -> Iterator[Event]:
    decoder = msgspec.json.Decoder(Event)
    for number, line in enumerate(islice(_lines(path), 1, None), 2):
        try:
            yield decoder.decode(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not an event: {error}") from None


def _lines(path: Path) -> Iterator[bytes]:
    """One after the other: a log may be larger than memory."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
