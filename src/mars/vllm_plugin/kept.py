"""KV blocks of vLLM's pool under a hold (mars.policy.holds.Kept).

A hold owns one reference on each block, taken before vLLM drops those of the finished call. Nothing
is freed twice: release gives back that one reference, and the blocks return to the LRU queue still
hashed, group by group and tail first, as stock would have left them.
"""

from typing import Any


class KeptBlocks:
    stored_tokens = 0  # vLLM's connector is not asked what host memory has
    reload_s = 0.0

    def __init__(self, pool: Any, groups: list[list[Any]], tokens: int) -> None:
        """`groups`: hashed blocks of each KV group; `tokens`: what they are of the context."""
        self._pool, self._groups, self.tokens = pool, groups, tokens
        self.blocks = sum(map(len, groups))

    def keep(self) -> None:
        for group in self._groups:
            self._pool.touch(group)

    def let_go(self) -> None:
        for group in self._groups:
            self._pool.free_blocks(reversed(group))
