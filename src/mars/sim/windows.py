"""Paged KV memory of a model with two KV groups, as vLLM 0.32 keeps it.

Half of the layers of GPT-OSS see everything, the others a window of 128 tokens. Both groups take
blocks of one pool. Of the window's group a call gives back what has left the window. There only the
last blocks before the end of a prompt, and before the end of what the other group had of it, are
hashed (--prefix-cache-retention-interval 0, vLLM's default), so a call finds a context up to such
a place and no further: what comes after it is computed again, though the other group has it.

    Grip     what a call has in hand
    HeldRuns what a hold keeps: what the session's next call would find

Counts do not suffice here (mars.sim.runs); the rules are those of v1/core/kv_cache_coordinator.py
and SlidingWindowManager of v1/core/single_type_kv_cache_manager.py.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mars.sim.kv import Chain, Prefix
from mars.sim.pool import Pool
from mars.sim.runs import Contents, Run, RunQueue, Share, covered, reach


@dataclass(slots=True, eq=False)
class Grip:
    """The blocks that a call owns."""

    places: tuple[int, ...]
    """Blocks before the places at which a later call may go on: there the window is hashed."""
    blocks: int
    """Length of its table, in either group."""
    hashed: int
    skipped: int
    """Blocks of the window's group that have left the window."""
    whole: list[Share]
    window: list[Share]
    prompt: int
    """Whole blocks before its prompt's last token: where the next call will go on."""
    pinned: list[Share] = field(default_factory=list)
    """Of the window's group what the next call will need, though it has left this one's window."""


class WindowPool(Pool):
    groups = 2

    def __init__(
        self, blocks: int, block_tokens: int, *, window_tokens: int, flying_tokens: int
    ) -> None:
        """`flying_tokens`: most tokens in steps that are not over."""
        super().__init__(blocks, block_tokens)
        self._window_tokens = window_tokens
        self.window_blocks = window_tokens // block_tokens
        self._most_window_blocks = most_window_blocks(window_tokens, block_tokens, flying_tokens)
        self.may_pin = self._most_window_blocks > 2 * self.window_blocks
        """A call that has the memory for itself has room for its window and for what is pinned."""
        self._queue = RunQueue()
        self._contents: dict[Chain | Prefix, Contents] = {}
        self._grips: dict[Chain, Grip] = {}

    # -- what is cached -----------------------------------------------------------------------

    def found(self, chain: Chain, most: int) -> int:
        return self.lookup(chain, most)[0]

    def lookup(self, chain: Chain, most: int) -> tuple[int, int]:
        """(blocks that a call would find, those that the group without a window has)."""
        prefix, own = self._of(chain.prefix), self._of(chain)
        whole = reach(prefix.whole, 0)
        if whole >= chain.prefix.blocks:
            whole = reach(own.whole, chain.prefix.blocks)
        whole = min(whole, most)
        for low, high in reversed(covered(prefix.window + own.window)):
            end = min(high, whole)
            if end - low >= self.window_blocks or (low == 0 and end > 0):
                return end, whole
        return 0, whole

    def evictable(self, blocks: int, spare: Callable[[Chain | Prefix], float]) -> int:
        most = self._empty
        for run in self._queue:
            if most >= blocks or (run.owner is not None and spare(run.owner) < self.blocks):
                break
            most += run.high - run.low
        return min(most, blocks)

    # -- a call comes, grows and goes -----------------------------------------------------------

    def fits(self, chain: Chain, hit: int, tokens: int, first_tokens: int) -> bool:
        whole = self.count(tokens)
        all_of_it = whole - hit + max(0, min(whole, self._most_window_blocks) - hit)
        at_first = 2 * (self.count(hit * self.block_tokens + first_tokens) - hit)
        left = self.free - max(all_of_it, at_first)
        if not 0 <= left < hit + min(hit, self.window_blocks):
            return left >= 0  # whatever is free of what it finds
        found = self._found(chain, hit) + self._found(chain, hit, in_window=True)
        return _length(run for run in found if not run.references) <= left

    def start(self, chain: Chain, hit: int, tokens: int, prompt_tokens: int) -> None:
        whole = self.lookup(chain, (tokens - 1) // self.block_tokens)[1]
        whole_shares = self.reference(self._found(chain, hit))
        window_shares = self.reference(self._found(chain, hit, in_window=True))
        prompt = (prompt_tokens - 1) // self.block_tokens
        places = {prompt} | ({whole} if whole > hit else set())
        skipped = max(0, hit - self.window_blocks)
        self._grips[chain] = Grip(
            tuple(places), hit, hit, skipped, whole_shares, window_shares, prompt
        )

    def grip(self, chain: Chain) -> Grip:
        return self._grips[chain]

    def grow(self, chain: Chain, kv_tokens: int, hashed_tokens: int) -> None:
        grip, hashed = self._grips[chain], hashed_tokens // self.block_tokens
        grip.blocks = self.count(kv_tokens)
        if hashed <= grip.hashed:
            return
        start, grip.hashed = grip.hashed, hashed
        grip.whole += self._hash(chain, start, hashed, in_window=False)
        end = start
        for place in sorted(grip.places):
            low, end = max(end, place - self.window_blocks), max(end, min(place, hashed))
            grip.window += self._hash(chain, low, end, in_window=True)

    def slid(self, chain: Chain, skipped: int) -> None:
        """So much has left the window of a decode whose free blocks have been counted."""
        grip = self._grips[chain]
        grip.skipped = max(grip.skipped, skipped)

    def slide(self, chain: Chain, skipped: int) -> list[Run]:
        """The window has moved on; returns the hashed ones of the blocks that have left it, last
        first, which are still to be let go (`let_go`); the others are free at once.
        """
        grip = self._grips[chain]
        if skipped <= grip.skipped:
            return []
        gone: list[Run] = []
        for share in grip.window:
            for run in share:
                if run.low < skipped:
                    if skipped < run.high:
                        self._queue.split(run, skipped)  # which comes next
                    gone.append(run)
        if gone:
            grip.window = [
                Share(run, run.high) for share in grip.window for run in share if run.low >= skipped
            ]
        unhashed = skipped - grip.skipped - _length(gone)
        grip.skipped = skipped
        self._empty_out(unhashed)
        return gone[::-1]

    def pin(self, chain: Chain) -> None:
        """Keep, while its call runs, what makes the end of its prompt a place to go on from."""
        grip = self._grips[chain]
        first, last = max(0, grip.prompt - self.window_blocks), grip.prompt
        cached = covered(self._of(chain.prefix).window + self._of(chain).window)
        if any(low <= first < last <= high for low, high in cached):
            grip.pinned = self.reference(self._found(chain, last, in_window=True))

    def let_go(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self.free += self._queue.release(run)

    def take(self, blocks: int) -> None:
        assert blocks <= self.free, "blocks from nowhere"  # noqa: S101
        self.free -= blocks
        if blocks <= self._empty:
            self._empty -= blocks
            return
        evicted, self._empty = blocks - self._empty, 0
        self.changed += self._queue.evict(evicted)

    def detach(self, chain: Chain) -> None:
        """First the window's, then the others: GPT-OSS begins with a layer that has a window."""
        grip = self._grips.pop(chain)
        self.let_go(reversed([run for share in grip.pinned for run in share]))
        for shares, blocks in (
            (grip.window, grip.blocks - grip.skipped),
            (grip.whole, grip.blocks),
        ):
            runs = [run for share in shares for run in share]
            self._empty_out(blocks - _length(runs))
            self.let_go(reversed(runs))

    def kept(self, chain: Chain, blocks: int) -> "HeldRuns":
        return HeldRuns(self, chain, self.found(chain, blocks))

    def own(self, chain: Chain, hit: int) -> tuple[list[Run], list[Run]]:
        """Of what its call has in hand, and else of what it has left: all that the next finds."""
        whole = [run for share in self._grips[chain].whole for run in share if run.low < hit]
        if whole and whole[-1].high > hit:
            self._queue.split(whole[-1], hit)
        return whole, self._found(chain, hit, in_window=True)

    # -- within -------------------------------------------------------------------------------

    def _of(self, owner: Chain | Prefix) -> Contents:
        contents = self._contents.get(owner)
        if contents is None:
            contents = self._contents[owner] = Contents()
        return contents

    def _found(self, chain: Chain, hit: int, *, in_window: bool = False) -> list[Run]:
        """The runs of a group that a call takes up to `hit`."""
        first = max(0, hit - self.window_blocks) if in_window else 0
        shared = chain.prefix.blocks
        found: list[Run] = []
        if first < min(hit, shared):
            prefix = self._of(chain.prefix)
            copies = prefix.window if in_window else prefix.whole
            found = self._queue.found(copies, first, min(hit, shared))
        if max(first, shared) < hit:
            own = self._of(chain)
            copies = own.window if in_window else own.whole
            found += self._queue.found(copies, max(first, shared), hit)
        return found

    def reference(self, runs: list[Run]) -> list[Share]:
        for run in runs:
            self.free -= self._queue.reference(run)
        return [Share(run, run.high) for run in runs]

    def _hash(self, chain: Chain, low: int, high: int, *, in_window: bool) -> list[Share]:
        shares: list[Share] = []
        shared = chain.prefix.blocks
        for owner, start, end in (
            (chain.prefix, low, min(high, shared)),
            (chain, max(low, shared), high),
        ):
            if start < end:
                contents = self._of(owner)
                copies = contents.window if in_window else contents.whole
                run = Run(owner, copies, start, end)
                copies.append(run)
                shares.append(Share(run, end))
                if owner is chain.prefix:
                    self.changed.append(owner)
        return shares

    def _empty_out(self, blocks: int) -> None:
        self.free += blocks
        self._empty += blocks

    def check(self) -> None:
        warm = _length(self._queue)
        assert warm == self._queue.blocks, "warm blocks leak"  # noqa: S101
        assert self._empty + warm == self.free, "free blocks leak"  # noqa: S101
        assert self._empty >= 0, "blocks from nowhere"  # noqa: S101
        assert self.free <= self.blocks, "more blocks than there are"  # noqa: S101


def most_window_blocks(window_tokens: int, block_tokens: int, flying_tokens: int) -> int:
    """Most blocks that a call has of the window's group: vLLM frees what has left the window when
    the steps that may read it are over (SlidingWindowSpec.max_admission_blocks_per_request).
    """
    if not window_tokens:
        return 0
    return -(-(window_tokens - 1 + flying_tokens) // block_tokens) + 1


def _length(runs: Iterable[Run]) -> int:
    return sum(run.high - run.low for run in runs)


class HeldRuns:
    stored_tokens = 0
    reload_s = 0.0

    def __init__(self, pool: WindowPool, chain: Chain, hit: int) -> None:
        self._pool, self._chain, self._hit = pool, chain, hit
        self._shares: tuple[list[Share], list[Share]] = ([], [])
        self.blocks = hit + min(hit, pool.window_blocks)
        self.tokens = hit * pool.block_tokens

    def keep(self) -> None:
        """The call of which it is owns its blocks until now."""
        whole, window = self._pool.own(self._chain, self._hit)
        self._shares = self._pool.reference(window), self._pool.reference(whole)
        self._pool.detach(self._chain)

    def let_go(self) -> None:
        for shares in self._shares:
            self._pool.let_go(reversed([run for share in shares for run in share]))

    def take_over(self, chain: Chain) -> None:
        """Nothing to do: a call and a hold may both have a block."""
