"""Synthetic agents in the paper's spirit: a class of sessions is a row of distributions.

The evaluation plan fixes: `swe`'s 33+-12 calls, first prompt, growth and answers; `terminal`'s 18
calls from 0.8k to 9k tokens; the first prompts U(50k, 150k) and the 8 calls at most of `repo` and
`infinity`; that `gittask` has fewer calls and heavier CPU; the tool mixture. The rest is ours:

* swe       no call count below 1
* gittask   14+-5 calls, a shorter task, tokens a call like swe's; 25/22 % shell/builds, not 24/8 %
* terminal  growth and answers with p50 and p90 of the recorded terminal-bench sessions
            (mini-swe-agent: 68/544 and 82/666 tokens; 18/36 calls), 0.6k of the prompt shared
* repo      2-8 calls, growth LN(300, 1.0), answers LN(150, 0.8): completions in a large repository
* infinity  1-8 calls, growth LN(120, 0.8), answers LN(100, 0.8): questions on a long document

Between two calls runs one tool; the last call answers. Sessions do not think, reset or leave.
A session comes of (class, seed, index) alone: `tools_factor` scales what was drawn, and a smaller
`max_context_tokens` cuts it short.
"""

import random
from collections.abc import Iterator, Sequence
from math import exp, isfinite
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from mars.core.errors import InputError
from mars.workload.arrivals import poisson_s
from mars.workload.mixture import (
    MIXTURE,
    Distribution,
    LogNormal,
    Mixture,
    Normal,
    Uniform,
    draw_tool,
    mean_run_s,
    scaled_tool,
)
from mars.workload.trace import Recorded, Turn


class SessionClass(msgspec.Struct, frozen=True, kw_only=True):
    calls: Distribution
    shared_tokens: int
    """The system prompt that all sessions of the class begin with."""
    first_tokens: Distribution
    """The first prompt after it."""
    new_tokens: Distribution
    """Each later call appends so many."""
    output_tokens: Distribution
    tools: Mixture = MIXTURE


HEAVY_CPU: Final[Mixture] = tuple(
    msgspec.structs.replace(kind, weight=weight)
    for kind, weight in zip(MIXTURE, (50, 25, 22, 3), strict=True)
)
GROWTH, ANSWER = LogNormal(exp(6.66), 1.13), LogNormal(exp(5.56), 0.90)
CLASSES: Final[dict[str, SessionClass]] = {
    "swe": SessionClass(
        calls=Normal(33, 12, least=1),
        shared_tokens=15_000,
        first_tokens=LogNormal(8_000, 0.8),
        new_tokens=GROWTH,
        output_tokens=ANSWER,
    ),
    "gittask": SessionClass(
        calls=Normal(14, 5, least=1),
        shared_tokens=15_000,
        first_tokens=LogNormal(4_000, 0.8),
        new_tokens=GROWTH,
        output_tokens=ANSWER,
        tools=HEAVY_CPU,
    ),
    "terminal": SessionClass(
        calls=LogNormal(18, 0.54),
        shared_tokens=600,
        first_tokens=LogNormal(200, 0.6),
        new_tokens=LogNormal(68, 1.62),
        output_tokens=LogNormal(82, 1.63),
    ),
    "repo": SessionClass(
        calls=Uniform(2, 8),
        shared_tokens=0,
        first_tokens=Uniform(50_000, 150_000),
        new_tokens=LogNormal(300, 1.0),
        output_tokens=LogNormal(150, 0.8),
    ),
    "infinity": SessionClass(
        calls=Uniform(1, 8),
        shared_tokens=0,
        first_tokens=Uniform(50_000, 150_000),
        new_tokens=LogNormal(120, 0.8),
        output_tokens=LogNormal(100, 0.8),
    ),
}
MOST_CORES = 4
"""Of one tool: the plan's builds, and its CPU-bound variant's whole pool."""


class Synthetic(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="synthetic",
):
    session_class: str = msgspec.field(name="class")
    tools_factor: Annotated[float, Meta(gt=0.0)] = 1.0
    """Run and CPU seconds of every tool times this. The plan's variant: 0.3."""
    tools_mean_s: Annotated[float, Meta(gt=0.0)] | None = None
    """Instead of a factor: the mean run time wanted. The plan's variants: 20 and 60 s."""
    max_context_tokens: Annotated[int, Meta(ge=1)] = 131_072
    """Prompt and answer. Default: what GPT-OSS-120B takes, the smaller of the plan's models."""

    def __post_init__(self) -> None:
        if self.session_class not in CLASSES:
            known = ", ".join(CLASSES)
            raise InputError(f"class is {self.session_class!r}; one of: {known}")
        if self.tools_mean_s is not None and self.tools_factor != 1.0:
            raise InputError("tools_mean_s and tools_factor exclude each other: give one")
        least_tokens = CLASSES[self.session_class].shared_tokens + 2
        if self.max_context_tokens < least_tokens:
            raise InputError(
                f"max_context_tokens is {self.max_context_tokens}; the shared prompt of "
                f"{self.session_class}, one token and an answer need {least_tokens}"
            )

    @property
    def factor(self) -> float:
        if self.tools_mean_s is None:
            return self.tools_factor
        return self.tools_mean_s / mean_run_s(CLASSES[self.session_class].tools)


def sessions(workload: Synthetic, count: int, rate_per_s: float, seed: int) -> list[Recorded]:
    """Poisson arrivals. The same seed gives the same sessions at any rate, and in a longer list."""
    made = [
        _session(workload, index, at_s, seed)
        for index, at_s in enumerate(poisson_s(count, rate_per_s, seed))
    ]
    return scaled(made, workload.factor)


def scaled(sessions: Sequence[Recorded], tools_factor: float) -> list[Recorded]:
    """The same sessions with the run and CPU seconds of every tool times `tools_factor`."""
    if not (isfinite(tools_factor) and tools_factor > 0):
        raise InputError(f"tools_factor is {tools_factor:g}: it is above 0 and finite")
    replace = msgspec.structs.replace
    return [
        replace(
            session,
            turns=tuple(
                replace(turn, tools=tuple(scaled_tool(tool, tools_factor) for tool in turn.tools))
                for turn in session.turns
            ),
        )
        for session in sessions
    ]


def _session(workload: Synthetic, index: int, arrives_s: float, seed: int) -> Recorded:
    name = workload.session_class
    kind = CLASSES[name]
    turns = list(_turns(kind, workload.max_context_tokens, random.Random(f"{seed}/{name}/{index}")))
    turns[-1] = msgspec.structs.replace(turns[-1], tools=())
    return Recorded(
        session_id=f"{name}-{index}",
        arrives_s=arrives_s,
        turns=tuple(turns),
        shared_prefix=name if kind.shared_tokens else "",
        shared_tokens=kind.shared_tokens,
    )


def _turns(kind: SessionClass, max_context_tokens: int, chance: random.Random) -> Iterator[Turn]:
    """Calls up to the one that would not fit; the first is cut to fit, its answer last."""
    context_tokens = 0
    for number in range(_whole(kind.calls, chance)):
        new_tokens = _whole(kind.new_tokens if number else kind.first_tokens, chance)
        output_tokens = _whole(kind.output_tokens, chance)
        tool = scaled_tool(draw_tool(kind.tools, chance, MOST_CORES), 1.0)
        if number == 0:
            room_tokens = max_context_tokens - kind.shared_tokens
            output_tokens = min(output_tokens, room_tokens - 1)
            new_tokens = kind.shared_tokens + min(new_tokens, room_tokens - output_tokens)
        context_tokens += new_tokens + output_tokens
        if context_tokens > max_context_tokens:
            return
        yield Turn(new_tokens=new_tokens, output_tokens=output_tokens, tools=(tool,))


def _whole(distribution: Distribution, chance: random.Random) -> int:
    return max(1, round(distribution.draw(chance)))
