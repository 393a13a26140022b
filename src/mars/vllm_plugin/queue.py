"""vLLM's waiting queue, in the order of a policy."""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from mars.policy.base import Key

_key = itemgetter(0)


class RankedQueue(RequestQueue):
    """Ascending by key. A key is asked for when a request enters and at `refresh`.

    Keys must be unique (the caller ends them with its intake number), so requests never compare.
    """

    def __init__(self, key_of: Callable[[Request], Key]) -> None:
        self._key_of = key_of
        self._items: list[tuple[Key, Any]] = []

    def refresh(self) -> None:
        key_of = self._key_of
        self._items = sorted([(key_of(r), r) for _, r in self._items], key=_key)

    def add_request(self, request: Request) -> None:
        insort(self._items, (self._key_of(request), request), key=_key)

    def pop_request(self) -> Request:
        return self._items.pop(0)[1]

    def peek_request(self) -> Request:
        return self._items[0][1]

    def prepend_request(self, request: Request) -> None:
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        self.remove_requests((request,))

    def remove_requests(self, requests: Iterable[Request]) -> None:
        gone = set(requests)
        self._items = [item for item in self._items if item[1] not in gone]

    def __bool__(self) -> bool:
        return bool(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in self._items)
