"""The batcher for a machine and a model: with one KV group, with host memory behind it, or with a
second group whose layers see a window.
"""

from typing import Any

from mars.core.errors import InputError
from mars.sim.batcher import Batcher
from mars.sim.host import HostPool, HostStore
from mars.sim.host_batcher import HostBatcher
from mars.sim.kv import KvPool
from mars.sim.window_batcher import WindowBatcher
from mars.sim.windows import WindowPool


def make_batcher(
    *,
    blocks: int,
    block_tokens: int,
    window_tokens: int,
    step_tokens: int,
    lag: int,
    host_blocks: int = 0,
    host_block_s: float = 0.0,
    **rest: Any,
) -> Batcher:
    """Raises InputError when the window is not whole blocks. (EngineSettings refuses a window with
    host memory.)
    """
    if host_blocks:
        behind = HostPool(blocks, block_tokens, HostStore(host_blocks, host_block_s))
        return HostBatcher(pool=behind, step_tokens=step_tokens, lag=lag, **rest)
    if not window_tokens:
        pool = KvPool(blocks, block_tokens)
        return Batcher(pool=pool, step_tokens=step_tokens, lag=lag, **rest)
    if window_tokens % block_tokens:
        raise InputError(
            f"`window_tokens` is {window_tokens}, no multiple of `block_tokens` {block_tokens}"
        )
    windows = WindowPool(
        blocks, block_tokens, window_tokens=window_tokens, flying_tokens=(1 + lag) * step_tokens
    )
    return WindowBatcher(pool=windows, step_tokens=step_tokens, lag=lag, **rest)
