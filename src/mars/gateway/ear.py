"""Hears the other processes: feeds a desk, or those of a fleet, what they publish."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Final, Self

from mars.core import events as ev
from mars.gateway.desk import Desk
from mars.gateway.fleet import Fleet
from mars.stream.link import Subscriber

_BATCH: Final = 1000
"""Most facts taken in before requests have their turn."""


class Ear:
    """ZeroMQ's descriptor turns readable when something changes, not as long as messages are there.

    So each look reads until nothing is left, then asks once more; and looking once too often, as
    the timer does, costs nothing.
    """

    def __init__(self, desk: Desk | Fleet, endpoints: Sequence[str]) -> None:
        self._desk = desk
        self._subscriber = Subscriber(endpoints)
        self._events = self._subscriber.drain()
        self._garbled = 0
        self._open = True

    @classmethod
    @contextmanager
    def listening(cls, desk: Desk | Fleet, endpoints: Sequence[str]) -> Iterator[Self]:
        """Listen from within the running loop; to no endpoints, if there are none."""
        ear = cls(desk, endpoints)
        loop = asyncio.get_running_loop()
        descriptor = ear._subscriber.socket.fileno()
        loop.add_reader(descriptor, ear.look)
        try:
            yield ear
        finally:
            loop.remove_reader(descriptor)
            ear._open = False
            ear._subscriber.close()

    def look(self) -> None:
        if not self._open:
            return
        taken = 0
        try:
            for event in islice(self._events, _BATCH):
                taken += 1
                if type(event) not in ev.OF_GATEWAY:  # each fact has one source
                    self._desk.hear(event)
        except ValueError:  # a message that is none of ours; it has ended the iterator
            self._garbled += 1
        self._desk.lost = self._subscriber.lost + self._garbled
        if taken < _BATCH:
            self._events = self._subscriber.drain()
        if taken == _BATCH or self._subscriber.socket.poll(0):
            asyncio.get_running_loop().call_soon(self.look)
