"""What may be set of `mars`: its order of calls, its holds, its order of tools. The baselines have
theirs beside their formulas.
"""

from typing import Annotated

import msgspec
from msgspec import Meta


class LeastLeftSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    samples: Annotated[int, Meta(ge=1)] = 10
    """Sessions that must have ended before the index is believed; until then: order of arrival."""
    patience: Annotated[float, Meta(gt=0.0)] = 1.5
    """Times the mean life of a session: who is older goes first (docs/adr/0024)."""


class WorthSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    price: Annotated[float, Meta(gt=0.0)] = 0.5
    """Seconds of GPU that a second of the whole KV is worth."""
    samples: Annotated[int, Meta(ge=1)] = 20
    """Durations that must have been seen before a distribution is believed."""
    first_s: Annotated[float, Meta(ge=0.0)] = 2.0
    """Kept for so long until then (Continuum's static time to live)."""
    return_s: Annotated[float, Meta(gt=0.0)] = 2.0
    """After its tool has ended a session is expected back within this time."""
    spares: Annotated[float, Meta(ge=0.0)] = 0.5
    """Times what a context costs to have again: for so long an engine in which nothing runs leaves
    it alone, though calls wait. From 0.25 to 1 all are nearly alike (docs/adr/0023)."""


class ToolOrderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    patience_s: Annotated[float, Meta(gt=0.0)] = 30.0
    """For each core second that a call is expected to take, it may be passed for so long. Ours: of
    10, 30 and 100 the last two are alike in simulated `gittask` cells, and 10 is no better."""
    tool_samples: Annotated[int, Meta(ge=1, le=50)] = 5
    """A tool's mean run time is believed after so many runs (as `hold.tool_samples`)."""
