"""A workload as a settings file names it, and its sessions.

    {kind="synthetic", class="swe", tools_factor=0.3}       drawn from distributions
    {kind="recorded", path="r.jsonl", source="tau-bench"}   other people's recordings, converted
    {kind="trace", path="t.jsonl"}                          a native trace

All come as a Poisson process, seeded; to serve a trace at the times it names, `read_trace` it.
"""

from pathlib import Path
from typing import assert_never

import msgspec

from mars.workload.arrivals import check_load, sampled
from mars.workload.recorded import Factor, Scaling, recorded_sessions
from mars.workload.synthetic import Synthetic, scaled, sessions
from mars.workload.trace import Recorded, read_trace


class FromRecords(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="recorded",
):
    path: str
    source: str = ""
    """Without the commit after its `@`; empty: all of them."""
    scaling: Scaling = Scaling()
    tools_factor: Factor = 1.0


class FromTrace(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="trace",
):
    path: str
    tools_factor: Factor = 1.0


Workload = Synthetic | FromRecords | FromTrace


def make(workload: Workload, count: int, rate_per_s: float, seed: int) -> list[Recorded]:
    """`count` sessions, `rate_per_s` of them a second. InputError names the field that is wrong."""
    check_load(count, rate_per_s)
    match workload:
        case Synthetic():
            return sessions(workload, count, rate_per_s, seed)
        case FromRecords(path=path, source=source, scaling=scaling):
            found = recorded_sessions(Path(path), source, count, rate_per_s, seed, scaling=scaling)
        case FromTrace(path=path):
            found = sampled(read_trace(Path(path)), count, rate_per_s, seed)
        case _:
            assert_never(workload)
    return scaled(found, workload.tools_factor)
