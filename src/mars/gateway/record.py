"""The gateway's event log. A disk that fails costs facts of the log, not the traffic."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from mars.core.errors import InputError
from mars.core.events import Event
from mars.stream.log import LogWriter, set_aside

_log: Final = logging.getLogger(__name__)


class Record(Collector):
    def __init__(self, log: LogWriter | None) -> None:
        """None: there is none."""
        self._log = log
        self._fails = False
        self._last: Event | None = None

    def write(self, event: Event) -> None:
        if event is self._last:
            return  # all desks of a fleet are told of it
        self._last = event
        self._try(lambda log: log.write(event))

    def flush(self) -> None:
        """To be called again and again: it also finds out whether a disk can be written again."""
        if self._try(LogWriter.flush) and self._fails:
            self._fails = False
            _log.warning("the event log goes on; facts missing in it: %d", self.lost)

    def close(self) -> None:
        if not self._try(LogWriter.close):
            _log.error("the event log has ended before its time")

    @property
    def lost(self) -> int:
        """Facts that are missing in the log."""
        return self._log.lost if self._log else 0

    def describe(self) -> list[Metric]:
        return list(self.collect())

    def collect(self) -> Iterator[Metric]:
        text = "Facts that are missing in the event log, which could not be written."
        yield CounterMetricFamily("mars_log_lost_facts", text, value=self.lost)

    def _try(self, do: Callable[[LogWriter], None]) -> bool:
        if self._log is None:
            return True
        try:
            do(self._log)
        except OSError as error:
            if not self._fails:
                text = "the event log cannot be written: %s. It goes on by itself when it can"
                _log.error(text, error)
            self._fails = True
            return False
        return True


def of_process(*counts: Collector) -> CollectorRegistry:
    """What is counted of a gateway's process, however many engines it is before."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for one in counts:
        registry.register(one)
    return registry


@contextmanager
def recording(path: Path | None, settings: dict[str, Any]) -> Iterator[Record]:
    """What is at `path` is kept beside it. Raises InputError when that cannot be written."""
    try:
        if path is not None:
            set_aside(path)
        record = Record(LogWriter(path, settings) if path is not None else None)
    except OSError as error:
        raise InputError(f"cannot write the event log {path}: {error.strerror}") from None
    try:
        yield record
    finally:
        record.close()
