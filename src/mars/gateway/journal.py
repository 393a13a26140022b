"""The gateway's log for people and log shippers: JSON lines, one for what an operator must know.

    {"at": "2026-01-31T12:00:00.123Z", "level": "warning", "logger": ..., "message": ..., ...}

Not every fact: all of those are in the event log. And never what a prompt or an answer says.
"""

import logging
import sys
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, Final

import msgspec

from mars.core import events as ev
from mars.core.errors import InputError

_log: Final = logging.getLogger(__name__)
_FIELDS: Final = "mars_fields"
_encoder = msgspec.json.Encoder()


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encoder.encode(line).decode()


def log_json(level: str, path: Path | None) -> None:
    """All loggers of this process write JSON lines to `path`, else to stderr.

    A file that is moved away (logrotate) is opened anew. Raises InputError when it cannot be.
    """
    try:
        handler = logging.StreamHandler(sys.stderr) if path is None else WatchedFileHandler(path)
    except OSError as error:
        raise InputError(f"cannot write the log {path}: {error.strerror}") from None
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class Journal:
    """A reader of facts."""

    def observe(self, event: ev.Event) -> None:
        match event:
            case ev.FailOpenChanged():
                level = logging.WARNING if event.cause else logging.INFO
                now = "open for all" if event.cause else "a gate again"
                _say(level, f"the gate is {now}: {event.why}", cause=event.cause)
            case ev.GateShut():
                text = f"the gate is shut: {event.why}"
                _say(logging.INFO, text, limit=event.limit, waiting=event.waiting)
            case ev.SessionRefused():
                _say(
                    logging.WARNING,
                    "a session was refused: the queue is full",
                    session_id=event.session_id,
                    waiting=event.waiting,
                    retry_after_s=event.retry_after_s,
                )
            case ev.CallFinished() if not (event.ok or event.gone):
                _say(
                    logging.WARNING,
                    f"a call failed: {event.why}",
                    session_id=event.session_id,
                    call_id=event.call_id,
                    status=event.status,
                )
            case ev.SessionArrived() | ev.SessionEnded():
                if _log.isEnabledFor(logging.DEBUG):
                    name = type(event).__name__
                    _say(logging.DEBUG, name, **msgspec.structs.asdict(event))
            case _:
                pass


def _say(level: int, message: str, **fields: object) -> None:
    _log.log(level, "%s", message, extra={_FIELDS: fields})
