"""The waiting line: sorted by the policy's key, asked again only when a key can have changed."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable
from math import inf
from operator import attrgetter

from mars.policy.base import Key, Ordering
from mars.sim.call import Call
from mars.sim.kv import Chain, Prefix
from mars.sim.pool import Pool

_key = attrgetter("key")


class WaitingLine:
    def __init__(self, ordering: Ordering, pool: Pool) -> None:
        self._ordering = ordering
        self._live, self.by_cache = ordering.live, ordering.by_cache
        self._pool, self._block_tokens = pool, pool.block_tokens
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

    def touched(self, chain: Chain) -> None:
        """The policy has heard something of this session, or it is held no more."""
        if self._live and (call := self._by_chain.get(chain)) is not None:
            self._stale.add(call)

    def recached(self, owner: Chain | Prefix) -> None:
        """What a session would find in the prefix cache has changed."""
        for call in self._who_find(owner):
            before, now = call.view.uncached_tokens, self._uncached_tokens(call)
            call.view.uncached_tokens = now
            if now < before or now > call.most_uncached:
                self._stale.add(call)

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
        spare_tokens = min(
            (call.most_uncached - call.view.uncached_tokens for call in self._who_find(owner)),
            default=inf,
        )
        return spare_tokens if spare_tokens == inf else max(0.0, spare_tokens // self._block_tokens)

    def _who_find(self, owner: Chain | Prefix) -> Iterable[Call]:
        """The waiting calls that would find these blocks."""
        if isinstance(owner, Chain):
            call = self._by_chain.get(owner)
            return () if call is None else (call,)
        return [call for call in self.line if call.chain.prefix is owner]

    def _place(self, call: Call) -> int:
        return bisect_left(self.line, call.key, key=_key)

    def _ask(self, call: Call, now_s: float) -> Key:
        view = call.view
        view.is_decode = False
        view.kv_tokens = 0
        if self.by_cache:
            view.uncached_tokens = self._uncached_tokens(call)
        if self._live:
            stays = self._ordering.stays(view, now_s)
            call.most_uncached = stays.uncached_tokens
            call.until_s = stays.until_s
            if stays.until_s < inf:
                heapq.heappush(self._until, (stays.until_s, call.order, call))
        return (*self._ordering.run_key(view, now_s), call.order)

    def _uncached_tokens(self, call: Call) -> int:
        cached = self._pool.found(call.chain, call.tokens // self._block_tokens)
        return call.tokens - cached * self._block_tokens
