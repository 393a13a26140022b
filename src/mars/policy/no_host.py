"""Ablation: holds as if there were no host memory behind the engine's KV."""

import msgspec

from mars.policy.base import Hold, IdleView
from mars.policy.mars_hold import WorthKeeping


class ComputedAgain(WorthKeeping):
    """KV that is let go is computed again, also where it could be loaded."""

    def hold(self, idle: IdleView) -> Hold:
        return super().hold(msgspec.structs.replace(idle, refill_s=idle.compute_s))
