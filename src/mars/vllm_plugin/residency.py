"""How much of a context the prefix cache has, and the blocks that a hold keeps of it.

A model with one kind of attention has one KV group. GPT-OSS has two: layers that see everything,
and layers that see a window. A call finds a context up to where every group still has what it
needs: the first kind all blocks, the second those of the last window (vLLM's
v1/core/kv_cache_coordinator.py, and SlidingWindowManager beside it).
"""

from collections.abc import Sequence
from typing import Any

from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

from mars.vllm_plugin.kept import KeptBlocks
from mars.vllm_plugin.offload import NO_HOST, HostMemory

_WHOLE = (FullAttentionSpec, MLAAttentionSpec, UniformTypeKVCacheSpecs)


class Residency:
    def __init__(
        self,
        kv_cache_manager: Any,
        groups: Sequence[Any],
        block_tokens: int,
        host: HostMemory = NO_HOST,
    ) -> None:
        """`groups`: vLLM's KVCacheGroupSpec; `host`: what is behind the blocks."""
        self._host = host
        managers = kv_cache_manager.coordinator.single_type_managers
        self._cache, self._block_tokens = kv_cache_manager, block_tokens
        self._pool = kv_cache_manager.block_pool
        specs = [group.kv_cache_spec for group in groups]
        self._whole = [i for i, spec in enumerate(specs) if type(spec) in _WHOLE]
        self._windows = [i for i, spec in enumerate(specs) if type(spec) is SlidingWindowSpec]
        windows = {specs[i] for i in self._windows}
        self._window_blocks = max(
            (-(-(spec.sliding_window - 1) // block_tokens) for spec in windows), default=0
        )
        self.is_known = (
            len(self._whole) + len(self._windows) == len(specs)
            and len(windows) <= 1
            and (len(specs) == 1 or all(spec.block_size == block_tokens for spec in specs))
        )
        """False: of other groups (Mamba, blocks of several sizes) nothing is seen or held."""

        self.may_pin = (
            self.is_known
            and bool(self._whole and self._windows)
            and all(
                managers[i].max_admission_blocks_per_request > 2 * self._window_blocks
                for i in self._windows
            )
        )
        """A call that has the memory for itself has room for its window and for what is pinned."""

    def pinned(self, request: Any) -> KeptBlocks | None:
        """What a window needs for the next call to go on at the end of this prompt; None: it is not
        all there.
        """
        end = (request.num_prompt_tokens - 1) // self._block_tokens
        places = range(max(0, end - self._window_blocks), end)
        groups = [
            [self._block(request.block_hashes, i, group) for i in places] for group in self._windows
        ]
        if any(block is None for group in groups for block in group):
            return None
        return KeptBlocks(self._pool, groups, end * self._block_tokens)

    def tokens(self, request: Any) -> int:
        """Length of the context that a call would find."""
        return self._found(request.block_hashes) * self._block_tokens if self.is_known else 0

    def kept(self, request: Any) -> KeptBlocks:
        """What the next call of this session would find, while this one still has its blocks."""
        hashes = request.block_hashes
        end = self._found(hashes)
        first = max(0, end - self._window_blocks)
        own = self._cache.get_blocks(request.request_id).blocks
        groups = [
            [self._block(hashes, i, group) for i in range(first, end)]
            if group in self._windows
            else own[group][:end]
            for group in range(len(own))
        ]
        tokens = end * self._block_tokens
        return KeptBlocks(self._pool, groups, tokens, self._host, hashes[:end])

    def _found(self, hashes: Sequence[Any]) -> int:
        end = len(hashes)
        for group in self._whole:
            end = self._reach(hashes, group, end)
        while self._windows and end:
            # From its beginning: one miss rules out every end whose window has that block.
            for i in range(max(0, end - self._window_blocks), end):
                if any(self._block(hashes, i, group) is None for group in self._windows):
                    end = i
                    break
            else:
                break
        return end

    def _reach(self, hashes: Sequence[Any], group: int, high: int) -> int:
        """Blocks are evicted tail first, so "is block i cached" falls from true to false once:
        binary search, where vLLM's own lookup walks all of them.
        """
        low = 0
        while low < high:
            middle = (low + high) // 2
            if self._block(hashes, middle, group) is None:
                high = middle
            else:
                low = middle + 1
        return low

    def _block(self, hashes: Sequence[Any], i: int, group: int) -> Any:
        key = make_block_hash_with_group_id(hashes[i], group)
        return self._pool.cached_block_hash_to_block.get_one_block(key)
