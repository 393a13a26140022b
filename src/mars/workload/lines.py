"""A line of an Agentic Mooncake file, as it stands there: one LLM call. Times in milliseconds.

Ours are `queue_wait_ms`, `cpu_ms`, `cores`, `memory_bytes` and `timing` of a tool, and on the first
line of a session `shared_prefix`, `shared_prefix_tokens` and `leaves_ms`. All may be left out.
"""

from typing import Annotated, Literal

import msgspec

Timing = Literal["recorded", "modelled"]
"""Where a tool's duration comes from: somebody's clock, or a distribution."""
Ms = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]


class ToolEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    tool_call_id: str | None = None
    tool_class: str = "unknown"
    status: str | None = None
    started_at_unix_ms: float | None = None
    ended_at_unix_ms: float | None = None
    duration_ms: Ms
    queue_wait_ms: Ms = 0.0
    cpu_ms: Ms = 0.0
    cores: Positive = 1
    memory_bytes: Natural = 0
    timing: Timing = "recorded"


class Line(msgspec.Struct, kw_only=True, omit_defaults=True):
    request_id: str
    session_id: str
    input_length: Positive
    output_length: Positive
    timestamp: Ms | None = None
    wait_for: tuple[str, ...] = ()
    branches: tuple[str, ...] = ()
    prefix_reset: bool | None = None
    delay: Ms | None = None
    tool_wait_ms: Ms | None = None
    tool_events: tuple[ToolEvent, ...] = ()
    shared_prefix: str = ""
    shared_prefix_tokens: Natural = 0
    leaves_ms: Ms | None = None


def seconds(ms: float) -> float:
    return round(ms / 1e3, 6)


def millis(seconds: float) -> float:
    return round(seconds * 1e3, 3)
