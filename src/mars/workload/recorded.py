"""Recorded sessions of other people's agents, scaled to a machine at hand, as a native trace.

    python -m mars.workload.recorded SOURCE.jsonl ... --out DIR [--tokens-div 14 --time-div 7 ...]

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
from typing import Annotated, Any

import click
import msgspec
from msgspec import Meta

from mars.core.errors import InputError, MarsError
from mars.workload.arrivals import check_load, sampled
from mars.workload.mixture import MIXTURE, draw_tool, scaled_tool
from mars.workload.trace import Recorded, Tool, Turn, write_trace

SHELL = next(each for each in MIXTURE if each.name == "shell")
NO_CPU = frozenset(
    ("Read", "Edit", "Write", "Grep", "Glob", "TodoWrite", "WebFetch", "WebSearch", "Task")
)
"""Tools that the harness or somebody else's machine does; the rest are commands."""


Count = Annotated[int, Meta(ge=1)]
Factor = Annotated[float, Meta(gt=0.0)]
UNLIMITED, UNLIMITED_S = sys.maxsize, 1e9


class Scaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a source becomes a session; the lengths are meant after the division."""

    tokens_div: Factor = 1.0
    time_div: Factor = 1.0
    min_turns: Count = 1
    max_turns: Count = UNLIMITED
    vary_turns: bool = False
    min_first_tokens: Count = 1
    max_first_tokens: Count = UNLIMITED
    max_context_tokens: Count = UNLIMITED
    min_output_tokens: Count = 1
    max_output_tokens: Count = UNLIMITED
    max_tool_s: Factor = UNLIMITED_S
    max_think_s: Factor = UNLIMITED_S
    untimed_think_s: Factor = 2.0
    max_cores: Count = 4

    def __post_init__(self) -> None:
        if self.min_turns > self.max_turns:
            raise InputError(f"min_turns {self.min_turns} is beyond max_turns {self.max_turns}")


class SourceTool(msgspec.Struct, frozen=True):
    name: str
    duration_s: float | None = None
    duration_src: str | None = None
    cpu_s: float | None = None
    mem_delta_mb: float | None = None
    """Megabytes (10^6) that the container grew by; it may have shrunk."""


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
        if not path.is_file():
            raise InputError(f"no recorded sessions at {path}")
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


def _tool(source: Source, tool: SourceTool, scaling: Scaling, chance: random.Random) -> Tool:
    """What was measured is kept, and the rest drawn; both are cut at `max_tool_s`, then divided."""
    if source.timing.startswith("measured") and tool.duration_s is not None:
        whole = _measured(tool, tool.duration_s, scaling, chance)
    else:
        whole = draw_tool(MIXTURE, chance, scaling.max_cores)
        if tool.name != "unknown":
            whole = msgspec.structs.replace(whole, name=tool.name)
    kept_frac = min(1.0, scaling.max_tool_s / whole.run_s) if whole.run_s else 1.0
    return scaled_tool(whole, kept_frac / scaling.time_div)


def _measured(tool: SourceTool, run_s: float, scaling: Scaling, chance: random.Random) -> Tool:
    cpu_s = tool.cpu_s
    if cpu_s is None:
        cpu_s = 0.0 if tool.name in NO_CPU else run_s * SHELL.cpu_frac.draw(chance)
    return Tool(
        name=tool.name,
        run_s=run_s,
        cpu_s=cpu_s,
        timing="recorded" if tool.duration_src is None else "modelled",
        cores=min(max(1, math.ceil(cpu_s / run_s)), scaling.max_cores) if run_s else 1,
        memory_bytes=max(0, round((tool.mem_delta_mb or 0.0) * 1e6)),
    )


def choose(
    sources: Sequence[Source], scaling: Scaling, *, sessions: int | None, seed: int
) -> list[Recorded]:
    """A seeded sample of the sessions that are long enough and start within the limits."""
    fitting = [
        session
        for session in (convert(source, scaling, seed) for source in sources)
        if len(session.turns) >= scaling.min_turns
        and scaling.min_first_tokens <= session.turns[0].new_tokens <= scaling.max_first_tokens
    ]
    if not fitting or (sessions or 0) > len(fitting):
        raise InputError(
            f"{len(fitting)} of {len(sources)} sessions fit the limits; asked for {sessions or 1}"
        )
    return random.Random(seed).sample(fitting, sessions or len(fitting))


def recorded_sessions(
    path: Path, source: str, count: int, rate_per_s: float, seed: int, *, scaling: Scaling
) -> list[Recorded]:
    """Sessions of one source (of every source: ""), each once before one is repeated.

    Whether sessions shared a system prompt is not recorded: here they share none.
    """
    check_load(count, rate_per_s)
    pool = choose(
        only(read_sources([path]), [source] if source else []), scaling, sessions=None, seed=seed
    )
    return sampled(pool, count, rate_per_s, seed)


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
