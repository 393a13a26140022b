"""What may be set of the control plane: the gate, the admissions, tenants. What a number does to a
decision stands with whoever decides.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

Positive = Annotated[float, Meta(gt=0.0)]
Share = Annotated[float, Meta(gt=0.0, le=1.0)]


def none_above(of: msgspec.Struct, *pairs: tuple[str, str]) -> None:
    """Raise ValueError where the first field of a pair is above the second."""
    for low, high in pairs:
        if getattr(of, low) > getattr(of, high):
            raise ValueError(f"`{low}` must not be above `{high}`")


class GateSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds at the gate whatever the admission."""

    blind_s: Annotated[float, Meta(gt=0.0)] = 15.0
    """An engine with open calls that tells nothing for so long is not seen any more: the gate is
    open until it is heard again (core.failsafe). It tells several times a second when it can."""
    wait_s: Annotated[float, Meta(gt=0.0)] | None = None
    """Whoever has waited so long enters, room or not; None: nobody does (docs/adr/0014)."""
    patience_share: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5
    """A client that gives up after a time that it has told enters when this share of it is over:
    the rest is for the answer. Later it would be cut, come again, and wait anew."""


class ResidencySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who enters under `mars` (residency)."""

    overcommit: Annotated[float, Meta(gt=0.0)] = 1.5
    """What active sessions may occupy together, over the KV capacity (docs/adr/0023)."""
    idle_share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.4
    """More keeps sessions out for others in long tools (docs/adr/0025). Learned instead, as the
    share of their lives that sessions spend with a call open or KV held, sessions took up to 30 %
    longer (docs/adr/0009)."""
    host_share: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.2
    """All of it was too much: host memory also keeps what running and ended sessions had, and what
    it evicts is computed again (docs/adr/0012)."""
    unheld_fill: Annotated[float, Meta(gt=0.0)] = 0.9
    """The same as `overcommit`, of an engine that has not held anything yet."""
    patience: Annotated[float, Meta(ge=0.0)] = 2.0
    """Times the mean life of a session: who has waited longer goes first."""
    first: Annotated[int, Meta(ge=1)] = 4
    """So many may be active before the engine has told what its capacity is."""


class WindowSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who enters under `mars-aimd` (window)."""

    first: Annotated[int, Meta(ge=1)] = 4
    """Window at the start. Preview: 30, with 80 GB of KV in mind; slow start makes up for it."""
    least: Annotated[int, Meta(ge=1)] = 1
    """Preview: 4. One always fits: vLLM refuses a call larger than its KV."""
    grow: Annotated[int, Meta(ge=1)] = 1
    shrink: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.7
    kv_low_frac: Share = 0.85
    kv_high_frac: Share = 0.90
    tool_load_low: Annotated[float, Meta(gt=0.0)] = 1.0
    """Tool calls per slot. Preview: 1 and 2."""
    tool_load_high: Annotated[float, Meta(gt=0.0)] = 2.0
    tool_wait_low_s: Annotated[float, Meta(ge=0.0)] = 2.0
    tool_wait_high_s: Annotated[float, Meta(gt=0.0)] = 5.0
    """Smoothed wait of a tool for its cores. Preview: 2 s and 5 s."""

    def __post_init__(self) -> None:
        none_above(
            self,
            ("least", "first"),
            ("kv_low_frac", "kv_high_frac"),
            ("tool_load_low", "tool_load_high"),
            ("tool_wait_low_s", "tool_wait_high_s"),
        )


class TenantWeight(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenant: str
    weight: Positive


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    most_sessions: Annotated[int, Meta(ge=1)] | None = None
    """So many may be past the gate at once, a session and its sub-agents counted as one; None: no
    limit. The others wait (core.quotas)."""
    most_calls: Annotated[int, Meta(ge=1)] | None = None
    """So many calls may be open in the engines at once; None: no limit. The others wait past the
    gate, in the order in which they came there (core.slots)."""


class TenantLimits(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tenant: str


class TenantSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    weights: tuple[TenantWeight, ...] = ()
    """Empty: all sessions are alike, whoever's they are."""
    other_weight: Positive = 1.0
    """Of each tenant that is not named, and of all sessions without one together."""
    limits: tuple[TenantLimits, ...] = ()
    """What each may have at once, under any policy; over all engines of a gateway."""
    other_limits: Limits = Limits()
    """Of each tenant that is not named, and of all sessions without one together."""
    core_price: Annotated[float, Meta(ge=0.0)] = 1.0
    """Seconds of a call on the GPU that a core second of a tool counts for. Ours: one of some ten
    places in a batch for one of some ten cores."""
    quantum_s: Positive = 30.0
    """A call whose tenant is so much service (per weight) ahead of the last goes a class later.
    Ours: about a turn; less turns the queue over with every call, more lets shares drift as far."""
    again_s: Positive = 5.0
    """So often the class of a waiting call is found anew. Ours: shares move by turns, not steps."""

    @property
    def bound_calls(self) -> bool:
        """Somebody's number of open calls is limited."""
        return any(it.most_calls is not None for it in [*self.limits, self.other_limits])
