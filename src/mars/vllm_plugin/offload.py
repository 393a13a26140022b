"""What host memory has of a context, under vLLM's own offloading (--kv-offloading-size).

vLLM's OffloadingConnector stores every prompt there, evicts by a rule of its own, and loads what
the prefix cache lacks when a waiting call is admitted. None of that is changed. It is asked how
much of a context is stored, so that a hold is priced by the cheaper way back, and how much there
is, for the gate. A connector that is not known is left alone, and everything is as if there were no
host memory.
"""

from bisect import bisect_left
from collections.abc import Sequence
from inspect import signature
from typing import Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector import OffloadingConnector
from vllm.logger import init_logger
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec
from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key
from vllm.v1.kv_offload.cpu.manager import CPUOffloadingManager

logger = init_logger(__name__)

_WHOLE = (FullAttentionSpec, MLAAttentionSpec)
_SEAMS: Final = (
    (CPUOffloadingManager.lookup, ("self", "key", "req_context")),
    (make_offload_key, ("block_hash", "group_idx")),
)
_NOBODY: Final = ReqContext(req_id="")
"""Who asks, and loads nothing."""


class HostMemory:
    """None, or none that is known."""

    blocks = 0

    def stored_blocks(self, hashes: Sequence[Any]) -> int:
        """Of a context with these block hashes the length of the beginning that is stored."""
        del hashes
        return 0

    def load_s(self, blocks: int) -> float:
        """What it takes to load so many."""
        del blocks
        return 0.0


NO_HOST: Final = HostMemory()


class OffloadedMemory(HostMemory):
    def __init__(self, manager: Any, block_s: float) -> None:
        """`manager`: vLLM's CPUOffloadingManager."""
        self._lookup, self._block_s = manager.lookup, block_s
        self.blocks = int(manager._num_chunks)

    def stored_blocks(self, hashes: Sequence[Any]) -> int:
        """Evicted end first, so whether block i is there falls once from yes to no: bisection."""

        def is_missing(i: int) -> bool:
            key = make_offload_key(hashes[i], 0)
            return self._lookup(key, _NOBODY) is LookupResult.MISS

        return bisect_left(range(len(hashes)), True, key=is_missing)

    def load_s(self, blocks: int) -> float:
        return blocks * self._block_s


def host_memory(
    connector: Any, groups: Sequence[Any], block_tokens: int, pcie_bytes_s: float
) -> HostMemory:
    """`connector`: vLLM's KV connector, None without one; `groups`: its KVCacheGroupSpec."""
    if connector is None:
        return NO_HOST
    if why := _unknown(connector, groups, block_tokens):
        logger.warning("MARS does not see what %s has: %s", type(connector).__name__, why)
        return NO_HOST
    (group,) = groups
    block_bytes = group.kv_cache_spec.page_size_bytes * len(group.layer_names)
    return OffloadedMemory(connector.connector_scheduler.manager, block_bytes / pcie_bytes_s)


def _unknown(connector: Any, groups: Sequence[Any], block_tokens: int) -> str:
    """Why this connector cannot be asked; empty: it can."""
    if type(connector) is not OffloadingConnector:
        return "it is not vLLM's OffloadingConnector"
    scheduler = connector.connector_scheduler
    manager, stored = scheduler.manager, scheduler.config.kv_group_configs
    asked = (
        (
            len(groups) == 1 and type(groups[0].kv_cache_spec) in _WHOLE,
            "the model has more than one kind of attention",
        ),
        (
            [group.tokens_per_chunk for group in stored] == [block_tokens],
            "its blocks are of another size",
        ),
        (
            type(manager) is CPUOffloadingManager and hasattr(manager, "_num_chunks"),
            f"its {type(manager).__name__} is not vLLM's CPUOffloadingManager",
        ),
        (
            all(tuple(signature(seam).parameters) == wanted for seam, wanted in _SEAMS),
            "its interface is not that of vLLM 0.32",
        ),
    )
    return next((why for is_so, why in asked if not is_so), "")
