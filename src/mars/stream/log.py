"""The event log: JSON lines, the first of which says what was run.

    {"log": 1, "at_s": ..., "wall_s": ..., "settings": {...}}
    {"event": "SessionArrived", "at_s": ..., ...}
    {"event": "LogGap", "at_s": ..., "lost": ...}     facts are missing here

`wall_s - at_s` of the head maps the monotonic clock to the calendar.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

import msgspec

from mars.core.errors import InputError
from mars.core.events import Event

_log: Final = logging.getLogger(__name__)
_BUFFER_BYTES: Final = 1 << 16
_MOST_BYTES: Final = 1 << 20
"""Kept while the file cannot be written: some thousand events."""
_encoder = msgspec.json.Encoder()


class LogHead(msgspec.Struct, frozen=True, kw_only=True):
    log: int
    at_s: float
    wall_s: float
    settings: dict[str, Any]


class LogGap(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=True):
    at_s: float
    lost: int
    """So many events that came before this are not in the log."""


class LogWriter:
    """Appends events to a file; what was handed over is in the file after `flush`.

    A file that cannot be written ends with a whole line. What is handed over meanwhile is kept, up
    to a bound, and written by the first `flush` that can; what is lost beyond is a LogGap.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """What the file held before is lost: see `set_aside`. Raises OSError."""
        self.lost = 0
        """Events that are not in the file, and will not be."""
        self._path = path
        self._head = LogHead(log=1, at_s=time.monotonic(), wall_s=time.time(), settings=settings)
        self._file = path.open("wb", buffering=0)
        self._size_bytes = 0
        """Of what is in the file."""
        self._buffer = bytearray(_line(self._head))
        self._fails = False
        self._gap = 0

    def write(self, event: msgspec.Struct) -> None:
        """Raises OSError, as `flush`."""
        if self._fails and len(self._buffer) >= _MOST_BYTES:
            self.lost += 1
            self._gap += 1
            return
        self._buffer += _line(event)
        if len(self._buffer) >= _BUFFER_BYTES and not self._fails:
            self.flush()

    def flush(self) -> None:
        """Raises OSError; to be tried again."""
        try:
            if self._fails and (self._file.closed or not self._path.exists()):
                self._begin_again()
            self._write_out()
        except OSError:
            self._fails = True
            raise
        self._fails = False
        if self._gap:
            self._buffer += _line(LogGap(at_s=time.monotonic(), lost=self._gap))
            self._gap = 0
            self.flush()

    def close(self) -> None:
        """Raises OSError, as `flush`; the file is closed."""
        try:
            self.flush()
        finally:
            self._file.close()

    def _write_out(self) -> None:
        done = 0
        try:
            with memoryview(self._buffer) as view:
                while done < len(view):
                    done += self._file.write(view[done:])
        except OSError:
            self._take(self._buffer.rfind(b"\n", 0, done) + 1)
            with suppress(OSError):
                self._file.truncate(self._size_bytes)
            self._file.seek(self._size_bytes)
            raise
        self._take(done)

    def _take(self, written_bytes: int) -> None:
        self._size_bytes += written_bytes
        del self._buffer[:written_bytes]

    def _begin_again(self) -> None:
        """Somebody has made room by deleting the file, which there is only when it is closed."""
        self._file.close()
        self._file = self._path.open("wb", buffering=0)
        if self._size_bytes:  # else the head is still to be written
            self._buffer[:0] = _line(self._head)
        self._size_bytes = 0


def _line(value: msgspec.Struct) -> bytes:
    return _encoder.encode(value) + b"\n"


def read_log(path: Path) -> tuple[LogHead, Iterator[Event]]:
    """Head and events of a log; where some are missing, that is said in ours.

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
    decoder: msgspec.json.Decoder[Event | LogGap] = msgspec.json.Decoder(Event | LogGap)
    for number, line in enumerate(islice(_lines(path), 1, None), 2):
        try:
            event = decoder.decode(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not an event: {error}") from None
        if isinstance(event, LogGap):
            text = "%s:%d: %d events are missing here, when the log could not be written"
            _log.warning(text, path, number, event.lost)
        else:
            yield event


def _lines(path: Path) -> Iterator[bytes]:
    """One after the other: a log may be larger than memory."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line
