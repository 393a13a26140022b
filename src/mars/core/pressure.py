"""Pressure: what the two resources look like now, as the control plane may know it."""

import msgspec


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    kv_used_frac: float = 0.0
    """Share of KV blocks referenced by calls and holds."""
    kv_session_frac: float = 0.0
    """Contexts of all admitted sessions, idle ones too, over the KV capacity; of one that has only
    just entered its prompt, as estimated. May exceed 1. vLLM's usage counts referenced blocks only,
    so the KV of a session in a tool looks free there."""
    kv_frac_per_byte: float = 0.0
    """What a byte of a newcomer's prompt is expected to take of the KV; 0: capacity not known."""
    tool_load: float = 0.0
    """Tool calls, running or waiting, per slot."""
    tool_wait_s: float = 0.0
    engine_at_s: float | None = None
    """When the engine half was sampled; None: never (an engine without our plugin)."""
    tools_at_s: float | None = None
    owes_since_s: float | None = None
    """Since when there would have been something to tell: since the engine has had open calls
    without a pause; of one that was never heard, since its first call. None: nothing now."""

    @property
    def kv_frac(self) -> float:
        return max(self.kv_used_frac, self.kv_session_frac)

    def blind_s(self, now_s: float) -> float:
        """How long the engine has owed us a sample. An idle engine takes no steps and owes none."""
        if self.owes_since_s is None:
            return 0.0
        return now_s - max(self.owes_since_s, self.engine_at_s or 0.0)


class Hysteresis(msgspec.Struct, kw_only=True):
    """A switch that turns on at `high` and off only below `low`, so that it does not flap."""

    low: float
    high: float
    on: bool = False

    def update(self, value: float) -> bool:
        self.on = value > self.low if self.on else value >= self.high
        return self.on
