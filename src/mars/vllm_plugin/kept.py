"""KV blocks of vLLM's pool under a hold (mars.policy.holds.Kept).

A hold owns one reference on each hash-complete block of a finished call, taken before vLLM drops
the call's own. Nothing is freed twice: release gives back that one reference, and the blocks return
to the LRU queue still hashed, tail first, as stock would have left them.
"""

from typing import Any


class KeptBlocks:
    def __init__(self, pool: Any, blocks: list[Any]) -> None:
        self._pool, self._blocks = pool, blocks

    @property
    def blocks(self) -> int:
        return len(self._blocks)

    def keep(self) -> None:
        self._pool.touch(self._blocks)

    def let_go(self) -> None:
        self._pool.free_blocks(reversed(self._blocks))
