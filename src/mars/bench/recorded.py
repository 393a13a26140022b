"""Recorded sessions of other people's agents, scaled to a machine at hand, as a native trace.

    python -m mars.bench.recorded SOURCE.jsonl ... --out DIR [--tokens-div 14 --time-div 7 ...]

A source line is one session: `session_id source license timing turns[{input_tokens
new_input_tokens output_tokens reset next think_time_s tool{name duration_s duration_src cpu_s}}]`.
Contexts are rebuilt from the appended and the answered tokens, so an answer stays whole in the
context even where the recorded client dropped a part of it (its thinking, say).
"""

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from mars.bench.trace import Recorded, Timing, Tool, Turn, write_trace
from mars.core.errors import InputError, MarsError


class ToolClass(NamedTuple):
    """A duration is exp(N(ln median_s, sigma)); cores and CPU share per core are uniform."""

    name: str
    weight: int
    median_s: float
    sigma: float
    most_cores: int
    cpu_frac: tuple[float, float]


MIXTURE = (
    ToolClass("file", 65, 0.10, 1.0, 1, (0.0, 0.0)),
    ToolClass("shell", 24, 1.0, 1.2, 1, (0.5, 0.9)),
    # The design names no CPU share for the last two. Ours follow what AgentCgroup's sessions show:
    # tests of 5-60 s lie between 0.07 and 0.89 (quartiles), calls beyond a minute mostly wait.
    ToolClass("build", 8, 15.0, 1.2, 4, (0.1, 0.9)),
    ToolClass("long", 3, 120.0, 0.8, 1, (0.0, 0.1)),
)
"""The default tool mixture of the evaluation plan."""
SHELL = MIXTURE[1]
NO_CPU = frozenset(
    ("Read", "Edit", "Write", "Grep", "Glob", "TodoWrite", "WebFetch", "WebSearch", "Task")
)
"""Tools that the harness or somebody else's machine does; the rest are commands."""


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """How a source becomes a session; the lengths are meant after the division."""

    tokens_div: float = 1.0
    time_div: float = 1.0
    min_turns: int = 1
    max_turns: int = sys.maxsize
    vary_turns: bool = False
    min_first_tokens: int = 1
    max_first_tokens: int = sys.maxsize
    max_context_tokens: int = sys.maxsize
    min_output_tokens: int = 1
    max_output_tokens: int = sys.maxsize
    max_tool_s: float = math.inf
    max_think_s: float = math.inf
    untimed_think_s: float = 2.0
    max_cores: int = 4

    def __post_init__(self) -> None:
        if self.min_turns > self.max_turns:
            raise InputError(f"min_turns {self.min_turns} is beyond max_turns {self.max_turns}")


class SourceTool(msgspec.Struct, frozen=True):
    name: str
    duration_s: float | None = None
    duration_src: str | None = None
    cpu_s: float | None = None


class SourceTurn(msgspec.Struct, frozen=True):
    input_tokens: int
    new_input_tokens: int
    output_tokens: int
    next: str
    tool: SourceTool | None = None
    think_time_s: float | None = None
    reset: bool = False


class Source(msgspec.Struct, frozen=True):
    session_id: str
    source: str
    license: str
    timing: str
    turns: tuple[SourceTurn, ...]


def read_sources(paths: Sequence[Path]) -> list[Source]:
    decoder = msgspec.json.Decoder(Source)
    found: list[Source] = []
    for path in paths:
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                found.append(decoder.decode(line))
            except ValueError as error:
                raise InputError(f"{path}:{number}: not a recorded session: {error}") from None
    return found


def convert(source: Source, scaling: Scaling, seed: int) -> Recorded:
    """The first turns of a session that stay within the limits; it ends with an answer."""
    fewest_turns = scaling.min_turns if scaling.vary_turns else scaling.max_turns
    cut = random.Random(f"{seed}/{source.session_id}")
    most_turns = cut.randint(fewest_turns, scaling.max_turns)
    turns: list[Turn] = []
    context_tokens = 0
    for index in range(min(most_turns, len(source.turns))):
        turn = _turn(source, index, scaling, seed)
        if turn.reset or index == 0:
            context_tokens = 0
        context_tokens += turn.new_tokens + turn.output_tokens
        if context_tokens > scaling.max_context_tokens:
            break
        turns.append(turn)
    if turns:
        # Nobody waits for what comes after the last answer.
        turns[-1] = msgspec.structs.replace(turns[-1], tools=(), think_s=0.0)
    return Recorded(session_id=source.session_id.replace("/", "-"), turns=tuple(turns))


def _turn(source: Source, index: int, scaling: Scaling, seed: int) -> Turn:
    recorded = source.turns[index]
    reset = recorded.reset and index > 0
    whole = reset or index == 0
    new_tokens = recorded.input_tokens if whole else recorded.new_input_tokens
    output_tokens = round(recorded.output_tokens / scaling.tokens_div)
    random_ = random.Random(f"{seed}/{source.session_id}/{index}")
    tool = recorded.tool and _tool(source, recorded.tool, scaling, random_)
    return Turn(
        new_tokens=max(1, round(new_tokens / scaling.tokens_div)),
        output_tokens=min(max(scaling.min_output_tokens, output_tokens), scaling.max_output_tokens),
        reset=reset,
        tools=(tool,) if tool else (),
        think_s=_think_s(recorded, scaling),
    )


def _think_s(recorded: SourceTurn, scaling: Scaling) -> float:
    untimed_s = scaling.untimed_think_s if recorded.next == "user" else 0.0
    think_s = untimed_s if recorded.think_time_s is None else recorded.think_time_s
    return round(min(think_s, scaling.max_think_s) / scaling.time_div, 6)


def _tool(source: Source, tool: SourceTool, scaling: Scaling, random_: random.Random) -> Tool:
    """What was measured is kept, and the rest drawn; both are cut at `max_tool_s`, then divided."""
    timing: Timing = "modelled"
    name, cpu_s = tool.name, tool.cpu_s
    if source.timing.startswith("measured") and tool.duration_s is not None:
        kind, run_s = SHELL, tool.duration_s
        cores = 0 if name in NO_CPU else 1
        if tool.duration_src is None:
            timing = "recorded"
    else:
        kind = random_.choices(MIXTURE, [each.weight for each in MIXTURE])[0]
        run_s = math.exp(random_.gauss(math.log(kind.median_s), kind.sigma))
        cores = min(random_.randint(1, kind.most_cores), scaling.max_cores)
        name, cpu_s = (kind.name if name == "unknown" else name), None
    if cpu_s is None:
        cpu_s = run_s * cores * random_.uniform(*kind.cpu_frac)
    kept_frac = min(1.0, scaling.max_tool_s / run_s) if run_s else 1.0
    return Tool(
        name=name,
        run_s=round(run_s * kept_frac / scaling.time_div, 6),
        cpu_s=round(cpu_s * kept_frac / scaling.time_div, 6),
        timing=timing,
    )


def choose(
    sources: Sequence[Source], scaling: Scaling, *, sessions: int | None, seed: int
) -> list[Recorded]:
    """A seeded sample of the sessions that are long enough and start within the limits."""
    converted = [convert(source, scaling, seed) for source in sources]
    fitting = [
        session
        for session in converted
        if len(session.turns) >= scaling.min_turns
        and scaling.min_first_tokens <= session.turns[0].new_tokens <= scaling.max_first_tokens
    ]
    if not fitting or (sessions or 0) > len(fitting):
        raise InputError(
            f"{len(fitting)} of {len(sources)} sessions fit the limits; asked for {sessions or 1}"
        )
    return random.Random(seed).sample(fitting, sessions or len(fitting))


def only(sources: Sequence[Source], names: Sequence[str]) -> list[Source]:
    """Those of the named sources; a name goes without the commit after its `@`."""
    found = [each for each in sources if not names or each.source.partition("@")[0] in names]
    if not found:
        there = ", ".join(sorted({each.source for each in sources}))
        raise InputError(f"no session of {' or '.join(names)}; there are: {there}")
    return found


POSITIVE, COUNT = click.FloatRange(min=0, min_open=True), click.IntRange(min=1)


@click.command(context_settings={"show_default": True})
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--name", default="recorded")
@click.option("--sources", "names", multiple=True, help="Only this source; may be repeated.")
@click.option("--sessions", type=COUNT, help="Sample so many of those that fit.  [default: all]")
@click.option("--seed", default=0, help="Of the sample, of modelled tools, of varied turns.")
@click.option("--tokens-div", type=POSITIVE, default=1.0)
@click.option("--time-div", type=POSITIVE, default=1.0, help="Divides run, CPU and think seconds.")
@click.option("--min-turns", type=COUNT, help="Leave shorter sessions out.")
@click.option("--max-turns", type=COUNT, help="Cut longer sessions.")
@click.option("--vary-turns", is_flag=True, help="Cut at a number drawn from min to max turns.")
@click.option("--min-first-tokens", type=COUNT, help="Leave out shorter first prompts.")
@click.option("--max-first-tokens", type=COUNT, help="Leave out longer first prompts.")
@click.option("--max-context-tokens", type=COUNT, help="Cut before prompt + answer exceed it.")
@click.option("--min-output-tokens", type=COUNT, help="Lengthen shorter answers.")
@click.option("--max-output-tokens", type=COUNT, help="Shorten longer answers.")
@click.option("--max-tool-s", type=POSITIVE, help="Time-out of tools, in source seconds.")
@click.option("--max-think-s", type=POSITIVE, help="Longest wait for the user, source seconds.")
@click.option("--untimed-think-s", type=POSITIVE, help="A user's wait where the source has none.")
@click.option("--max-cores", type=COUNT, help="Most cores of a modelled tool.")
def main(files: Sequence[Path], names: Sequence[str], **options: Any) -> None:
    """Convert recorded agent sessions to a native trace, DIR/NAME.jsonl."""
    path = options.pop("out") / f"{options.pop('name')}.jsonl"
    sessions, seed = options.pop("sessions"), options.pop("seed")
    try:
        scaling = Scaling(**{key: value for key, value in options.items() if value is not None})
        sources = only(read_sources(files), names)
        chosen = choose(sources, scaling, sessions=sessions, seed=seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_trace(path, chosen)
    except MarsError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    terms = sorted({f"{source.source} ({source.license})" for source in sources})
    click.echo(f"{path}: {len(chosen)} of {len(sources)} sessions; from {', '.join(terms)}")


if __name__ == "__main__":
    main()
