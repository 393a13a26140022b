"""Blocks of a sliding window that a running call no longer sees, and its session's next call needs.

The end of its prompt is where the next call goes on. What the window's group has there leaves the
window, and would be evicted, while the answer is made: then there is nothing left to hold.
"""

from collections.abc import Iterable
from typing import Any

from mars.policy.base import KeepNothing, Retention
from mars.vllm_plugin.kept import KeptBlocks
from mars.vllm_plugin.residency import Residency


class Pins:
    def __init__(self, residency: Residency, retention: Retention) -> None:
        """A policy that holds nothing pins nothing: `fcfs` stays stock."""
        self._residency = residency
        self._is_on = residency.may_pin and not isinstance(retention, KeepNothing)
        self._pinned: dict[str, KeptBlocks | None] = {}

    def __len__(self) -> int:
        return len(self._pinned)

    def scheduled(self, requests: Iterable[Any]) -> None:
        """Those among them whose prompt is complete are pinned, once."""
        if not self._is_on:
            return
        for request in requests:
            if request.is_prefill_chunk or request.request_id in self._pinned:
                continue
            self._pinned[request.request_id] = pinned = self._residency.pinned(request)
            if pinned is not None:
                pinned.keep()

    def drop(self, request: Any) -> None:
        """Its call is preempted or over; a hold, if there is to be one, has its own references."""
        if (pinned := self._pinned.pop(request.request_id, None)) is not None:
            pinned.let_go()
