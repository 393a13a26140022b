"""The batcher for a machine and a model: with one KV group, with host memory behind it, or with a
second group whose layers see a window.
"""

from collections.abc import Callable

from mars.core import events as ev
from mars.core.errors import InputError
from mars.core.estimate import PrefillRate
from mars.policy.base import Policy
from mars.sim.batcher import Batcher
from mars.sim.host import HostPool, HostStore
from mars.sim.host_batcher import HostBatcher
from mars.sim.kv import KvPool
from mars.sim.settings import EngineSettings
from mars.sim.window_batcher import WindowBatcher
from mars.sim.windows import WindowPool


def make_batcher(
    settings: EngineSettings,
    policy: Policy,
    rate: PrefillRate,
    emit: Callable[[ev.Event], None],
    *,
    keep_tokens: bool = False,
) -> Batcher:
    """Raises InputError when the window is not whole blocks. (EngineSettings refuses a window with
    host memory.)
    """
    blocks, block_tokens = settings.kv_blocks, settings.block_tokens
    if settings.host_blocks:
        store = HostStore(settings.host_blocks, settings.host_block_s)
        behind = HostPool(blocks, block_tokens, store)
        return HostBatcher(settings, behind, policy, rate, emit, keep_tokens=keep_tokens)
    if not settings.window_tokens:
        pool = KvPool(blocks, block_tokens)
        return Batcher(settings, pool, policy, rate, emit, keep_tokens=keep_tokens)
    if settings.window_tokens % block_tokens:
        raise InputError(
            f"`window_tokens` is {settings.window_tokens}, no multiple of `block_tokens` "
            f"{block_tokens}"
        )
    windows = WindowPool(
        blocks,
        block_tokens,
        window_tokens=settings.window_tokens,
        flying_tokens=settings.flying_tokens,
    )
    return WindowBatcher(settings, windows, policy, rate, emit, keep_tokens=keep_tokens)
