"""Host memory behind the GPU's KV: what vLLM 0.32 stores there under --kv-offloading-size.

    store   of every prompt the whole blocks, as soon as they are computed (`offload_prompt_only`,
            the default: an answer follows with the next prompt that it is part of)
    evict   least recently used, the end of a context before its beginning

Counted per session, as in mars.sim.kv. Stores take no time: they go the other way, and the link
carries KV faster than a GPU computes it. mars.sim.host_batcher has the way back.
"""

from collections import OrderedDict

from mars.sim.kv import Chain, HeldChain, KvPool, Prefix


class HostStore:
    def __init__(self, blocks: int, block_s: float) -> None:
        """`blocks`: its size; `block_s`: what a block takes on its way to the GPU."""
        self.blocks, self.block_s = blocks, block_s
        self._stored: OrderedDict[Chain | Prefix, int] = OrderedDict()
        """Of each owner the first so many blocks, in the order in which they were last used."""
        self._used = 0

    def reach(self, chain: Chain, hit_blocks: int) -> int:
        """How long a beginning of this context is at hand, when the GPU has `hit_blocks` of it."""
        prefix, reach = chain.prefix, hit_blocks
        if reach < prefix.blocks:
            reach = max(reach, self._stored.get(prefix, 0))
        if reach >= prefix.blocks:
            reach = max(reach, prefix.blocks + self._stored.get(chain, 0))
        return reach

    def store(self, chain: Chain, blocks: int) -> None:
        """The first `blocks` of this context are on the GPU: copy what is not here yet."""
        prefix = chain.prefix
        shared = min(blocks, prefix.blocks)
        self.touch(chain)
        for owner, known in ((prefix, shared), (chain, blocks - shared)):
            before = self._stored.get(owner, 0)
            if known > before:
                more = min(known - before, self._make_room(known - before, chain))
                self._used += more
                self._stored[owner] = before + more
        self.touch(chain)

    def touch(self, chain: Chain) -> None:
        """Used just now, its beginning last."""
        for owner in (chain, chain.prefix):
            if owner in self._stored:
                self._stored.move_to_end(owner)

    def _make_room(self, blocks: int, besides: Chain) -> int:
        """Evict until so many are free, if possible; returns how many are."""
        while self.blocks - self._used < blocks:
            oldest = next(iter(self._stored), None)
            if oldest is None or oldest is besides or oldest is besides.prefix:
                break
            gone = min(self._stored[oldest], blocks - (self.blocks - self._used))
            self._used -= gone
            self._stored[oldest] -= gone
            if not self._stored[oldest]:
                del self._stored[oldest]
        return self.blocks - self._used

    def check(self) -> None:
        """Raise AssertionError when the counts do not add up."""
        assert self._used == sum(self._stored.values()), "host blocks leak"  # noqa: S101
        assert self._used <= self.blocks, "more on the host than it has"  # noqa: S101
        assert all(self._stored.values()), "an owner of nothing"  # noqa: S101


class HostPool(KvPool):
    """GPU memory with host memory behind it."""

    def __init__(self, blocks: int, block_tokens: int, host: HostStore) -> None:
        super().__init__(blocks, block_tokens)
        self.host = host

    def kept(self, chain: Chain, blocks: int) -> HeldChain:
        return _Stored(self, chain, blocks, self.host)


class _Stored(HeldChain):
    def __init__(self, pool: KvPool, chain: Chain, blocks: int, host: HostStore) -> None:
        super().__init__(pool, chain, blocks)
        self._host, self._block_tokens = host, pool.block_tokens

    @property
    def _stored_blocks(self) -> int:
        return min(self.blocks, self._host.reach(self._chain, 0)) if self._chain else 0

    @property
    def stored_tokens(self) -> int:
        return self._stored_blocks * self._block_tokens

    @property
    def reload_s(self) -> float:
        return self._stored_blocks * self._host.block_s
