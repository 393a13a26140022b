"""The batcher for a model: with one KV group, or with a second one whose layers see a window."""

from typing import Any

from mars.core.errors import InputError
from mars.sim.batcher import Batcher
from mars.sim.kv import KvPool
from mars.sim.window_batcher import WindowBatcher
from mars.sim.windows import WindowPool


def make_batcher(
    *, blocks: int, block_tokens: int, window_tokens: int, step_tokens: int, lag: int, **rest: Any
) -> Batcher:
    """Raises InputError when the window is not whole blocks."""
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
