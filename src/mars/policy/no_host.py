"""Ablation: `mars` as if the engine had no host memory behind its KV. What it costs to be blind."""

import msgspec

from mars.core import events as ev
from mars.core.residency import Residency
from mars.policy.base import Hold, IdleView
from mars.policy.mars_hold import WorthKeeping


class HostlessResidency(Residency):
    """Every context in a gap counts, also what host memory can hold."""

    def observe(self, event: ev.Event) -> None:
        if isinstance(event, ev.EngineSampled) and event.host_total_blocks:
            event = msgspec.structs.replace(event, host_total_blocks=0)
        super().observe(event)


class HostlessWorth(WorthKeeping):
    """KV that is let go is computed again, also where it could be loaded."""

    def hold(self, idle: IdleView) -> Hold:
        return super().hold(msgspec.structs.replace(idle, refill_s=idle.compute_s))
