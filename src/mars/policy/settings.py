"""What may be set of each policy. What a letter stands for is said beside the policy's formula;
where a number is from, here: `ours` is what neither its paper nor its code tells.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from mars.core.settings import none_above

Frac = Annotated[float, Meta(ge=0.0, le=1.0)]
Share = Annotated[float, Meta(gt=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]


def _check_levels(
    level_tokens: tuple[int, ...], quantum_tokens: tuple[int, ...] | None = None
) -> None:
    if list(level_tokens) != sorted(set(level_tokens)):
        raise ValueError("`level_tokens` must rise")
    if quantum_tokens is not None and len(quantum_tokens) != len(level_tokens) + 1:
        raise ValueError("`quantum_tokens` must have one more entry than `level_tokens`")


class LeastLeftSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Order of calls under `mars` (mars_order)."""

    samples: Annotated[int, Meta(ge=1)] = 10
    """Sessions that must have ended before the index is believed; until then: order of arrival."""
    patience: Annotated[float, Meta(gt=0.0)] = 1.5
    """Times the mean life of a session: who is older goes first (docs/adr/0024)."""


class WorthSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds under `mars` (mars_hold)."""

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
    """Order of tool calls under `mars` (tool_order)."""

    patience_s: Annotated[float, Meta(gt=0.0)] = 30.0
    """For each core second that a call is expected to take, it may be passed for so long. Ours: of
    10, 30 and 100 the last two are alike in simulated `gittask` cells, and 10 is no better."""
    tool_samples: Annotated[int, Meta(ge=1, le=50)] = 5
    """A tool's mean run time is believed after so many runs (as `hold.tool_samples`)."""


class AutellixSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    level_tokens: tuple[int, ...] = (2048, 8192, 32768)
    """A program that was served fewer than level_tokens[i] tokens is of queue i (preview code)."""
    quantum_tokens: tuple[Annotated[int, Meta(ge=1)], ...] = (2048, 1024, 512, 256)
    """Prompt tokens before the next queue, in each queue (preview code)."""
    cut_chunks: bool = False
    """A quantum is also the most prompt tokens of a call in one step, as in the preview code. The
    paper does not cut prompts; cut ones are admitted side by side until memory runs out."""
    beta: Annotated[float, Meta(gt=0.0)] = 2.0
    """A program that has waited more than beta times as long as it was served goes to the top."""

    def __post_init__(self) -> None:
        _check_levels(self.level_tokens, self.quantum_tokens)


class ConcurSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    first: Annotated[int, Meta(ge=1)] = 16
    """Window at the start. Ours: the paper names none."""
    grow: Annotated[int, Meta(ge=1)] = 2
    shrink: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.5
    kv_low_frac: Frac = 0.2
    kv_high_frac: Frac = 0.5
    hit_frac: Frac = 0.2
    every_s: Annotated[float, Meta(gt=0.0)] = 5.0
    """Ours."""
    hits_s: Annotated[float, Meta(gt=0.0)] = 30.0
    """H is of so long ago at most. Ours: about one turn of each agent."""

    def __post_init__(self) -> None:
        none_above(self, ("kv_low_frac", "kv_high_frac"))


class ContinuumSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    hold_s: Annotated[float, Meta(ge=0.0)] = 2.0
    """The static time to live, and the most that a tool may take on average (released code)."""
    return_s: Annotated[float, Meta(gt=0.0)] = 2.0
    """After its tool has ended a session is expected back within this time (ours)."""
    tool_samples: Annotated[int, Meta(ge=0, le=500)] = 100
    """K: a distribution is believed with more durations than this (paper)."""
    wait_samples: Annotated[int, Meta(ge=1)] = 200
    """T is the mean of so many newest waits (MARS preview code)."""
    reload_s_per_token: Annotated[float, Meta(ge=0.0)] | None = None
    """Reload of one token; None: what the engine has measured (MARS preview code: 0.0002)."""


class InferceptSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reload_s_per_token: Annotated[float, Meta(ge=0.0)] | None = None
    """t_fwd of one token; None: what the engine has measured (preview code: 0.0002)."""


class OrderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Order of calls under `mars-paper` (mars_paper)."""

    level_tokens: tuple[int, ...] = (2048, 8192, 32768)
    """A call with at most level_tokens[i] uncached tokens is of level i (preview's levels)."""
    ageing_s: Annotated[float, Meta(gt=0.0)] = 30.0
    """A call that came this long ago goes before all that came later than that; among those past
    the bound the older session goes first, so nobody is passed for ever (preview: 30 s)."""

    def __post_init__(self) -> None:
        _check_levels(self.level_tokens)


class HoldSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds under `mars-paper` (mars_paper)."""

    most_s: Annotated[float, Meta(gt=0.0)] = 60.0
    """No hold is longer than this, however cheap."""
    return_s: Annotated[float, Meta(gt=0.0)] = 2.0
    """After its tool has ended a session is expected back within this time."""
    cold_wait_s: Annotated[float, Meta(ge=0.0)] = 10.0
    """So long a call that would need held memory waits for it; then it may take it."""
    tool_samples: Annotated[int, Meta(ge=1, le=50)] = 5
    """A tool's mean run time is believed after so many runs."""


class PreviewOrderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Order of calls under `mars_preview`."""

    level_tokens: tuple[int, ...] = (2048, 8192, 32768)
    """A prefill of at most level_tokens[i] tokens is of level i, a larger one of the last."""
    quantum_tokens: tuple[Annotated[int, Meta(ge=2)], ...] = (2048, 1024, 512, 256)
    """Most prompt tokens in one step, for each level."""
    ageing_s: Annotated[float, Meta(gt=0.0)] = 30.0
    """A prefill rises by one level each time it has waited so long."""
    kv_short_frac: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.90
    """From this use of KV on, quanta are halved."""

    def __post_init__(self) -> None:
        _check_levels(self.level_tokens, self.quantum_tokens)


class PreviewWindowSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each default is the preview's, but where it says that it is ours."""

    first: Annotated[int, Meta(ge=1)] = 30
    """P"""
    least: Annotated[int, Meta(ge=1)] = 4
    """L"""
    grow: Annotated[int, Meta(ge=1)] = 1
    shrink: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.7
    every_s: Positive = 0.2
    kv_low_frac: Share = 0.85
    kv_high_frac: Share = 0.90
    kv_reserve_frac: Share = 0.10
    tool_load_low: Positive = 1.0
    """1 and 2 for agents, 1 and 4 for scripts."""
    tool_load_high: Positive = 2.0
    tool_wait_low_s: Positive = 2.0
    tool_wait_high_s: Positive = 5.0
    tool_wait_alpha: Share = 0.2
    long_bytes: Annotated[int, Meta(ge=1)] = 200_000
    """50k tokens, at 4 bytes each."""
    long_after_s: Annotated[float, Meta(ge=0.0)] = 2.0
    """A long one enters when no short one has waited for so long. Ours: its own is not known."""
    long_at_once: Annotated[int, Meta(ge=1)] = 2

    def __post_init__(self) -> None:
        none_above(
            self,
            ("least", "first"),
            ("kv_low_frac", "kv_high_frac"),
            ("tool_load_low", "tool_load_high"),
            ("tool_wait_low_s", "tool_wait_high_s"),
        )


class ThunderAgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    every_s: Annotated[float, Meta(gt=0.0)] = 5.0
    """Its option --scheduler-interval."""
    buffer_tokens: Annotated[int, Meta(ge=0)] = 100
    """b. Its BUFFER_PER_PROGRAM."""
    most_wait_s: Annotated[float, Meta(gt=0.0)] = 1800.0
    """Who waits this long at the gate enters whatever its size. Its _wait_for_resume."""
