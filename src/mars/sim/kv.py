"""Paged KV memory with a prefix cache, as vLLM keeps it, counted per session instead of per block.

A session's KV is a prefix of its context, so counts say everything. A block is

    owned    by a running call, or under a hold
    warm     free, but still holding a known part of a session's context: in the LRU queue
    empty    free, and of no use to anybody: reused first

Freed KV joins the queue tail first, so the end of a context is evicted before its beginning, the
longest-freed session first (vLLM v1/core/block_pool.py). Sessions that begin with the same system
prompt share its blocks: a `Prefix` counts who references how much of it.

The one simplification: two sessions that compute the same shared block at the same time (only chunk
caps make that possible) each keep a copy, and the second copy is found by nobody.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from mars.sim.pool import Held, Pool


@dataclass(slots=True, eq=False)
class Segment:
    """Neighbours in the LRU queue: the last `blocks` of what `owner` still has cached there."""

    owner: "Chain | Prefix | None"
    """None: hashed, but never asked for again."""
    blocks: int


@dataclass(slots=True, eq=False)
class Prefix:
    """A system prompt that sessions share."""

    blocks: int
    """Whole blocks of it."""
    cached: int = 0
    """Of these the first so many are in memory, owned or warm."""
    holders: dict[int, int] = field(default_factory=dict)
    """How many chains reference exactly the first n blocks, by n."""
    warm: list[Segment] = field(default_factory=list)
    """Its parts in the LRU queue: the end of the prefix first."""

    @property
    def referenced(self) -> int:
        return max(self.holders) if self.holders else 0

    def reference(self, blocks: int, change: int) -> None:
        if blocks:
            count = self.holders.get(blocks, 0) + change
            if count:
                self.holders[blocks] = count
            else:
                del self.holders[blocks]


NO_PREFIX = Prefix(0)


@dataclass(slots=True, eq=False)
class Chain:
    """The KV of one session: the shared prefix, then its own tail."""

    prefix: Prefix = NO_PREFIX
    shared: int = 0
    """Blocks of the prefix that it references."""
    own: int = 0
    """Blocks that it owns besides, in mid-call or under a hold."""
    tail: int = 0
    """Of these the hash-complete ones behind the prefix."""
    copies: int = 0
    """Of these second copies of shared blocks."""
    warm: Segment | None = None
    """Its tail in the LRU queue, when it owns none."""

    @property
    def cached_blocks(self) -> int:
        """Length of the context that a call of this session would find."""
        shared = self.prefix.cached
        if shared < self.prefix.blocks:
            return shared
        return shared + (self.warm.blocks if self.warm is not None else self.tail)


class HeldChain:
    def __init__(self, pool: "KvPool", chain: Chain, blocks: int) -> None:
        self._pool = pool
        self._chain: Chain | None = chain
        """None: the call of a session that has returned owns the blocks."""
        self.blocks, self.tokens = blocks, blocks * pool.block_tokens

    @property
    def stored_tokens(self) -> int:
        return 0

    @property
    def reload_s(self) -> float:
        return 0.0

    def keep(self) -> None:
        if self._chain is not None:
            self._pool.settle(self._chain)

    def let_go(self) -> None:
        if self._chain is not None:
            self._pool.detach(self._chain)

    def take_over(self, chain: Chain) -> None:
        if self._chain is chain:
            self._chain = None


class KvPool(Pool):
    def __init__(self, blocks: int, block_tokens: int) -> None:
        super().__init__(blocks, block_tokens)
        self._lru: OrderedDict[Segment, None] = OrderedDict()

    def found(self, chain: Chain, most: int) -> int:
        return min(chain.cached_blocks, most)

    def fits(self, chain: Chain, hit: int, tokens: int, first_tokens: int) -> bool:
        del first_tokens
        return self.takes(chain, hit, self.count(tokens)) <= self.free

    def start(self, chain: Chain, hit: int, tokens: int, prompt_tokens: int) -> None:
        del tokens, prompt_tokens
        self.attach(chain, hit)

    def grow(self, chain: Chain, kv_tokens: int, hashed_tokens: int) -> None:
        chain.own = self.count(kv_tokens) - chain.shared
        self.hash(chain, hashed_tokens // self.block_tokens)

    def takes(self, chain: Chain, hit_blocks: int, blocks: int) -> int:
        """Free blocks needed by a call that will have `blocks`, of them `hit_blocks` cached."""
        shared = min(hit_blocks, chain.prefix.referenced)
        held = hit_blocks - chain.prefix.blocks if chain.warm is None else 0
        return blocks - shared - max(0, held)

    def attach(self, chain: Chain, hit_blocks: int) -> None:
        """Own the cached beginning of a context: a call starts, and a hold of it ends."""
        prefix = chain.prefix
        self._share(chain, min(hit_blocks, prefix.blocks))
        tail = max(0, hit_blocks - prefix.blocks)
        if chain.warm is not None:
            segment, chain.warm = chain.warm, None
            segment.blocks -= tail
            self.free -= tail
            segment.owner = None
            if not segment.blocks:
                del self._lru[segment]
        elif chain.own > tail:
            self._append(None, chain.own - tail)
        chain.own = chain.tail = tail
        chain.copies = 0

    def hash(self, chain: Chain, hashed_blocks: int) -> None:
        """Of what a chain owns the first `hashed_blocks` are full and hashed."""
        prefix = chain.prefix
        if hashed_blocks >= prefix.blocks == chain.shared:
            chain.copies, chain.tail = 0, hashed_blocks - prefix.blocks
            return
        hashed = min(hashed_blocks, prefix.blocks)
        if chain.shared == prefix.cached < hashed:  # the first to compute them
            chain.own -= hashed - prefix.cached
            prefix.cached = hashed
            prefix.reference(chain.shared, -1)
            prefix.reference(hashed, 1)
            chain.shared = hashed
            self.changed.append(prefix)
        chain.copies = max(0, hashed - chain.shared)
        chain.tail = max(0, hashed_blocks - prefix.blocks)

    def take(self, blocks: int) -> None:
        assert blocks <= self.free, "blocks from nowhere"  # noqa: S101
        self.free -= blocks
        if self._empty >= blocks:
            self._empty -= blocks
            return
        blocks -= self._empty
        self._empty = 0
        while blocks:
            segment = next(iter(self._lru))
            gone = min(blocks, segment.blocks)
            blocks -= gone
            segment.blocks -= gone
            if isinstance(segment.owner, Prefix):
                segment.owner.cached -= gone
            self._erode(segment)

    def evictable(self, blocks: int, spare: Callable[[Chain | Prefix], float]) -> int:
        most = self._empty
        for segment in self._lru:
            if most >= blocks:
                break
            may_lose = segment.blocks if segment.owner is None else spare(segment.owner)
            most += int(min(segment.blocks, may_lose))
            if may_lose < segment.blocks:
                break
        return min(most, blocks)

    def kept(self, chain: Chain, blocks: int) -> Held:
        return HeldChain(self, chain, blocks)

    def settle(self, chain: Chain) -> None:
        """A call has ended and its KV is held: what is not hashed is empty at once."""
        unhashed = chain.own - chain.tail - chain.copies
        self.free += unhashed
        self._empty += unhashed
        chain.own -= unhashed

    def detach(self, chain: Chain) -> None:
        """Also when a hold ends."""
        self.settle(chain)
        if chain.tail:
            chain.warm = self._append(chain, chain.tail)
        if chain.copies:
            self._append(None, chain.copies)
        chain.own = chain.tail = chain.copies = 0
        self._share(chain, 0)

    def _share(self, chain: Chain, blocks: int) -> None:
        prefix, before = chain.prefix, chain.prefix.referenced
        prefix.reference(chain.shared, -1)
        prefix.reference(blocks, 1)
        chain.shared = blocks
        after = prefix.referenced
        if after < before:
            self._append(prefix, before - after)
        elif after > before:
            self._unqueue(prefix, after - before)

    def _unqueue(self, prefix: Prefix, blocks: int) -> None:
        """The first blocks of a prefix were freed last, so they are in its last segments."""
        self.free -= blocks
        while blocks:
            segment = prefix.warm[-1]
            gone = min(blocks, segment.blocks)
            segment.blocks -= gone
            blocks -= gone
            if not segment.blocks:
                del self._lru[prefix.warm.pop()]

    def _append(self, owner: "Chain | Prefix | None", blocks: int) -> Segment:
        segment = Segment(owner, blocks)
        self._lru[segment] = None
        self.free += blocks
        if isinstance(owner, Prefix):
            owner.warm.append(segment)
        return segment

    def _erode(self, segment: Segment) -> None:
        """A segment has lost blocks."""
        owner = segment.owner
        if owner is not None:
            self.changed.append(owner)
        if not segment.blocks:
            del self._lru[segment]
            if isinstance(owner, Chain):
                owner.warm = None
            elif owner is not None:
                owner.warm.remove(segment)

    def check(self) -> None:
        warm = sum(segment.blocks for segment in self._lru)
        assert self._empty + warm == self.free, "free blocks leak"  # noqa: S101
        assert self._empty >= 0, "blocks from nowhere"  # noqa: S101
        assert self.free <= self.blocks, "more blocks than there are"  # noqa: S101
        assert all(segment.blocks > 0 for segment in self._lru), "an empty segment"  # noqa: S101
