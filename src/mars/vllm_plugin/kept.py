"""KV blocks of vLLM's pool under a hold (mars.policy.holds.Kept).

A hold owns one reference on each block, taken before vLLM drops those of the finished call. Nothing
is freed twice: release gives back that one reference, and the blocks return to the LRU queue still
hashed, group by group and tail first, as stock would have left them.
"""

from collections.abc import Sequence
from typing import Any

from mars.vllm_plugin.offload import NO_HOST, HostMemory


class KeptBlocks:
    def __init__(
        self,
        pool: Any,
        groups: list[list[Any]],
        tokens: int,
        host: HostMemory = NO_HOST,
        hashes: Sequence[Any] = (),
    ) -> None:
        """`groups`: hashed blocks of each KV group; `tokens`: what they are of the context, which
        `host` may have as well, by its blocks' `hashes`.
        """
        self._pool, self._groups, self.tokens = pool, groups, tokens
        self.blocks = sum(map(len, groups))
        self._host, self._hashes = host, hashes

    @property
    def stored_tokens(self) -> int:
        stored_blocks = self._host.stored_blocks(self._hashes)
        return self.tokens * stored_blocks // max(1, len(self._hashes))

    @property
    def reload_s(self) -> float:
        return self._host.load_s(self._host.stored_blocks(self._hashes))

    def keep(self) -> None:
        for group in self._groups:
            self._pool.touch(group)

    def let_go(self) -> None:
        for group in self._groups:
            self._pool.free_blocks(reversed(group))
