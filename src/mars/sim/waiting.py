"""The waiting line: sorted by the policy's key, asked again only when a key can have changed."""

import heapq
from bisect import bisect_left, insort
from math import inf
from operator import attrgetter

from mars.policy.base import Key, Ordering
from mars.sim.call import Call
from mars.sim.kv import Chain, Prefix

_key = attrgetter("key")


class WaitingLine:
    def __init__(self, ordering: Ordering, block_tokens: int, *, sees_cache: bool) -> None:
        self._ordering = ordering
        self._live = ordering.live
        self._block_tokens = block_tokens
        self._sees_cache = sees_cache
        self.line: list[Call] = []
        """In order; not to be changed but by the methods here."""
        self._by_chain: dict[Chain, Call] = {}
        self._stale: set[Call] = set()
        self._until: list[tuple[float, int, Call]] = []

    def __len__(self) -> int:
        return len(self.line)

    def __contains__(self, call: Call) -> bool:
        return self._by_chain.get(call.chain) is call

    @property
    def head(self) -> Call:
        return self.line[0]

    @property
    def is_stale(self) -> bool:
        """Some key is to be asked for again."""
        return bool(self._stale)

    def add(self, call: Call, now_s: float) -> None:
        if self._live or not call.key:
            call.key = self._ask(call, now_s)
        insort(self.line, call, key=_key)
        self._by_chain[call.chain] = call

    def remove(self, call: Call) -> None:
        del self.line[self._place(call)]
        del self._by_chain[call.chain]
        self._stale.discard(call)

    def changed(self, owner: Chain | Prefix) -> None:
        """What a session would find in the prefix cache has changed, or it is held no more."""
        if not self._live:
            return
        if isinstance(owner, Chain):
            call = self._by_chain.get(owner)
            if call is not None:
                self._stale.add(call)
        else:
            self._stale.update(call for call in self.line if call.chain.prefix is owner)

    def rank(self, now_s: float) -> None:
        """Ask again for every key that can have changed."""
        due = self._until
        while due and due[0][0] < now_s:
            until_s, _, call = heapq.heappop(due)
            if call in self and call.until_s == until_s:
                self._stale.add(call)
        if not self._stale:
            return
        for call in sorted(self._stale, key=_key):
            key = self._ask(call, now_s)
            if key != call.key:
                del self.line[self._place(call)]
                call.key = key
                insort(self.line, call, key=_key)
        self._stale.clear()

    def next_change_s(self) -> float:
        """The first time after which a key may be another one."""
        due = self._until
        while due and not (due[0][2] in self and due[0][2].until_s == due[0][0]):
            heapq.heappop(due)
        return due[0][0] if due else inf

    def spare_blocks(self, owner: Chain | Prefix) -> float:
        """Cached blocks that an owner may lose before a key can change."""
        if not self._live:
            return inf
        if isinstance(owner, Prefix):
            return 0 if any(call.chain.prefix is owner for call in self.line) else inf
        call = self._by_chain.get(owner)
        if call is None or call.most_uncached == inf:
            return inf
        return max(0, int(call.most_uncached - call.view.uncached_tokens) // self._block_tokens)

    def _place(self, call: Call) -> int:
        return bisect_left(self.line, call.key, key=_key)

    def _ask(self, call: Call, now_s: float) -> Key:
        view = call.view
        view.is_decode = False
        view.kv_tokens = 0
        if self._live:
            view.uncached_tokens = call.tokens
            if self._sees_cache:
                cached = min(call.chain.cached_blocks, call.tokens // self._block_tokens)
                view.uncached_tokens -= cached * self._block_tokens
            stays = self._ordering.stays(view, now_s)
            call.most_uncached = stays.uncached_tokens
            call.until_s = stays.until_s
            if stays.until_s < inf:
                heapq.heappush(self._until, (stays.until_s, call.order, call))
        return (*self._ordering.run_key(view, now_s), call.order)
