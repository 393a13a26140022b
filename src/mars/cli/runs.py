"""Commands that play sessions on real engines, and read what a run has left."""

from pathlib import Path
from typing import Any, Final

import click

from mars.cli.options import POSITIVE, fresh_folder, settings_options
from mars.core.errors import InputError

_REPEAT: Final = click.option(
    "--repeat",
    default=4,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rounds of each; an even number keeps a drift of the machine out of the ratios.",
)


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--policies", default="fcfs,session_fcfs,mars", show_default=True)
@_REPEAT
@click.option("--agents", type=click.IntRange(min=1), help="Closed loop: so many open sessions.")
@click.option("--load", type=POSITIVE, help="Closed loop: times the agents at the knee.")
@click.option("--profile", help="With --load: what calls cost here (mars calibrate).")
@click.option("--rate", type=POSITIVE, help="Open loop: sessions a second, Poisson.")
@click.option("--seed", default=1, show_default=True, help="Of the Poisson arrivals.")
@click.option("--sessions", type=click.IntRange(min=1), help="Only the first N of the trace.")
@click.option(
    "--tools-factor",
    default=1.0,
    show_default=True,
    type=POSITIVE,
    help="Tools take so many times as long, and CPU seconds.",
)
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Default: runs/<time>.")
@click.option("--model", help="Default: a tiny model with random weights, made on the spot.")
@click.option("--restart", is_flag=True, help="A fresh engine each round: one fits at a time.")
@settings_options
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def replay(**options: Any) -> None:
    """Replay recorded sessions on a real vLLM under several policies, then report.

    TRACE is a file, or the name of a bundled one: coding, airline. What follows -- goes to vLLM.
    """
    from mars.bench.command import replay_command

    folder = options.pop("folder") or fresh_folder("replay")
    replay_command(folder=folder, **options)


@click.command("bench-agents")
@click.option("--client", default="openhands", show_default=True, help="Or miniswe.")
@click.option("--policies", default="fcfs,session_fcfs,mars", show_default=True)
@click.option("--agents", default=12, show_default=True, type=click.IntRange(min=1))
@click.option("--tasks", type=click.IntRange(min=1), help="Default: one an agent.")
@_REPEAT
@click.option("--seed", default=1, show_default=True, help="Of the repositories and trajectories.")
@click.option("--tools", default="leased", show_default=True, help="Or own, or leased,own.")
@click.option("--python", type=click.Path(path_type=Path), help="The agents' environment's.")
@click.option("--out", "folder", type=click.Path(path_type=Path), help="Default: runs/<time>.")
@click.option("--model", help="Default: a tiny model with random weights, made on the spot.")
@click.option("--kv-blocks", type=click.IntRange(min=1), help="Of the tiny model's KV cache.")
@click.option("--restart", is_flag=True, help="A fresh engine each round: one fits at a time.")
@settings_options
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def bench_agents(**options: Any) -> None:
    """Real agents mend small repositories under several policies, then report.

    Their answers are recorded, and forced token by token on a real vLLM; commands are real: leased
    from the tool server, the agents' own, or both side by side (POLICY+own in the report). Needs an
    environment with the agents in it (make .venv-agents/.ready). What follows -- goes to vLLM.
    """
    from mars.bench.agents_command import bench_agents_command

    folder = options.pop("folder") or fresh_folder("agents")
    bench_agents_command(folder=folder, **options)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The same figures for programs.")
@click.option("--page", type=click.Path(path_type=Path), help="Default: RUN/report.html.")
@click.option(
    "--markdown",
    type=click.Path(path_type=Path),
    help="Of grids and several runs: the tables.",
)
def report(*, run: Path, as_json: bool, page: Path | None, markdown: Path | None) -> None:
    """Print a run's table and write its page. The event log is the only source of the figures.

    RUN is a folder of `mars replay`, or a grid's of `mars compare`, or one whose subfolders are
    runs: these are put side by side.
    """
    from mars.bench.suite import report_suite, runs_in
    from mars.compare.report import is_grid, report_grid

    if is_grid(run):
        report_grid(run, as_json=as_json, page=page, markdown=markdown)
        return
    if runs_in(run):
        if page is not None:
            raise InputError(f"--page: {run} holds several runs, and each has a page of its own")
        report_suite(run, as_json=as_json, markdown=markdown)
        return
    if markdown is not None:
        raise InputError(f"--markdown: {run} is one run: give a grid, or a folder of runs")
    from mars.bench.report import report as report_run

    report_run(run, as_json=as_json, page=page)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("session", required=False)
@click.option("--policy", help="Of a replay: the rounds of one policy.")
@click.option("--repeat", type=click.IntRange(min=0), help="Of a replay: one repetition, from 0.")
@click.option("--stay", type=click.IntRange(min=1), help="Of an id that came again. Default: last.")
@click.option("--around", "around_s", type=float, help="Only the facts nearest to this second.")
@click.option("--last", type=click.IntRange(min=1), help="Only the last N facts.")
@click.option("--all", "everything", is_flag=True, help="Do not fold a long life, or cut the list.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs, never folded.")
def explain(*, policy: str | None, repeat: int | None, stay: int | None, **options: Any) -> None:
    """One session's life, fact by fact, with the reasons; without SESSION: the slowest ones.

    RUN is an event log, or the folder of `mars serve` or `mars replay`. SESSION is an id or its
    beginning.
    """
    from mars.bench.explain_command import Choice, explain_command

    explain_command(choice=Choice(policy=policy, repeat=repeat, stay=stay), **options)


@click.command()
@click.argument("log", type=click.Path(path_type=Path))
@click.option("--otlp", "url", default="http://127.0.0.1:4318", show_default=True, metavar="URL")
def export(*, log: Path, url: str) -> None:
    """Send an event log to an OpenTelemetry collector: sessions, calls and tools as spans.

    LOG is an event log, or the folder of `mars serve`.
    """
    from mars.bench.export import export_command

    export_command(log, url, click.echo)


@click.command()
@click.argument("model", required=False)
@click.option("--upstream", metavar="URL", help="A vLLM that runs already.")
@click.option("--out", default=Path("profile.json"), type=click.Path(path_type=Path))
@click.option("--name", help="Default: the file's.")
@click.option("--step-tokens", type=click.IntRange(min=1), help="--max-num-batched-tokens of it.")
@click.option("--dir", "folder", type=click.Path(path_type=Path), help="Logs.")
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED)
def calibrate(**options: Any) -> None:
    """Measure a real vLLM for a few minutes and write a cost profile for the simulator.

    Without MODEL and --upstream: the tiny model, on the CPU. What follows -- goes to vLLM.
    """
    from mars.bench.calibrating import calibrate_command

    folder = options.pop("folder") or fresh_folder("calibrate")
    calibrate_command(folder=folder, **options)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--trace", default=Path("coding"), type=click.Path(path_type=Path), help="As played.")
@click.option("--profile", required=True, help="A cost profile: a name, or a file of calibrate.")
@click.option("--async-scheduling", is_flag=True, help="The engine's: vLLM's default on a GPU.")
def fidelity(*, run: Path, trace: Path, profile: str, async_scheduling: bool) -> None:
    """Simulate the sessions of a replay and print them beside what really happened."""
    from mars.bench.command import find_trace
    from mars.bench.fidelity import fidelity_command
    from mars.sim.profiles import load_profile

    fidelity_command(run, find_trace(trace), load_profile(profile), lag=int(async_scheduling))
