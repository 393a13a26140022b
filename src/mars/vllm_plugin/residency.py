"""How much of a prompt the prefix cache has now."""

from typing import Any

from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id


def resident_tokens(pool: Any, request: Any, block_tokens: int) -> int:
    """Length of the longest cached prefix.

    Blocks are evicted tail first, so "is block i cached" falls from true to false once: binary
    search over the request's block hashes, where vLLM's own lookup walks all of them.
    """
    hashes = request.block_hashes
    cached = pool.cached_block_hash_to_block.get_one_block
    low, high = 0, len(hashes)
    while low < high:
        middle = (low + high) // 2
        if cached(make_block_hash_with_group_id(hashes[middle], 0)) is None:
            high = middle
        else:
            low = middle + 1
    return low * block_tokens
