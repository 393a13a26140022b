"""What the batcher asks of KV memory, whether a model has one KV group (mars.sim.kv) or two
(mars.sim.windows).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mars.policy.holds import Kept

if TYPE_CHECKING:
    from mars.sim.kv import Chain, Prefix


class Held(Kept, Protocol):
    """What a hold keeps."""

    def take_over(self, chain: "Chain") -> None:
        """The session has returned, and its call is about to own what it finds."""


class Pool(ABC):
    """Blocks that calls own, that stay warm in the LRU queue, that are empty."""

    groups = 1
    """KV groups: each takes blocks of its own for the same tokens."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.blocks, self.block_tokens = blocks, block_tokens
        self.free = blocks
        """Empty and warm blocks."""
        self._empty = blocks
        self.changed: list[Chain | Prefix] = []
        """Whose cached part has changed since somebody last emptied this list."""

    def count(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def growth(self, tokens: int, more: int) -> int:
        """Blocks that a call with so many tokens takes for `more`."""
        bt = self.block_tokens
        return self.groups * (-(-(tokens + more) // bt) + -tokens // bt)

    @abstractmethod
    def found(self, chain: "Chain", most: int) -> int:
        """Of its first `most` blocks how many a call of this session would find."""

    @abstractmethod
    def fits(self, chain: "Chain", hit: int, tokens: int, first_tokens: int) -> bool:
        """Is there room for a whole call of `tokens`, which finds `hit` blocks and computes
        `first_tokens` at first?
        """

    @abstractmethod
    def start(self, chain: "Chain", hit: int, tokens: int, prompt_tokens: int) -> None:
        """A call owns what it finds. Of its tokens the first are its prompt."""

    @abstractmethod
    def grow(self, chain: "Chain", kv_tokens: int, hashed_tokens: int) -> None:
        """A call owns room for `kv_tokens` (taken before), full and hashed up to the latter."""

    @abstractmethod
    def detach(self, chain: "Chain") -> None:
        """A call ends or is preempted: free, but leave warm what is hashed."""

    @abstractmethod
    def take(self, blocks: int) -> None:
        """Blocks of no content: the empty first, then the longest-freed."""

    @abstractmethod
    def evictable(self, blocks: int, spare: "Callable[[Chain | Prefix], float]") -> int:
        """Of `blocks` how many can be taken before an owner loses more cached ones than `spare`."""

    @abstractmethod
    def kept(self, chain: "Chain", blocks: int) -> Held:
        """What a hold would keep of the `blocks` that a call leaves hashed."""

    @abstractmethod
    def check(self) -> None:
        """Raise AssertionError when the counts do not add up."""
