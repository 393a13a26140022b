"""`mars replay` and `mars bench-scheduler` at a terminal."""

import asyncio
import logging
import os
import statistics
from importlib import resources
from pathlib import Path
from typing import Any, Self

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mars.bench.arrivals import Load
from mars.bench.interleave import Watcher
from mars.bench.knee import knee_of
from mars.bench.overhead import measure_overhead
from mars.bench.replay import ReplayOptions, replay
from mars.bench.report import report
from mars.bench.tiny import tiny_engine
from mars.config import load_settings
from mars.core.errors import InputError
from mars.policy.presets import Scheduling
from mars.sim.profiles import load_profile
from mars.workload.synthetic import scaled
from mars.workload.trace import read_trace


def replay_command(
    *,
    trace: Path,
    policies: str,
    repeat: int,
    agents: int | None,
    load: float | None,
    profile: str | None,
    rate: float | None,
    seed: int,
    sessions: int | None,
    tools_factor: float,
    folder: Path,
    model: str | None,
    restart: bool,
    config: Path | None,
    overrides: tuple[str, ...],
    vllm_args: tuple[str, ...],
) -> None:
    """Run, then report. Raises what `replay` raises."""
    if sum(given is not None for given in (agents, load, rate)) > 1:
        raise InputError("--agents and --load (closed loop), --rate (open loop) exclude each other")
    if (load is None) != (profile is None):
        raise InputError(
            "--load and --profile go together: mars calibrate makes one of this machine"
        )
    names = read_policies(policies)
    settings = load_settings(config, overrides)
    recorded = scaled(read_trace(find_trace(trace)), tools_factor)
    engine_env: dict[str, str] = {}
    if model is None:
        model, tiny_args, engine_env = tiny_engine()
        vllm_args = (*tiny_args, *vllm_args)
    arrivals = Load(agents=None if rate else agents or 8, per_s=rate, seed=seed)
    if load is not None and profile is not None:
        knee = knee_of(recorded, load_profile(profile), settings, vllm_args)
        arrivals = Load(agents=knee.agents_at(load), found=f"load {load:g}; {knee}")
    options = ReplayOptions(
        trace=trace,
        sessions=recorded[:sessions],
        tools_factor=tools_factor,
        policies=names,
        repeat=repeat,
        load=arrivals,
        settings=settings,
        model=model,
        folder=folder,
        vllm_args=vllm_args,
        engine_env=engine_env,
        restart=restart,
    )
    with Bars() as bars:
        bars.say(f"{arrivals.describe()}, {len(options.sessions)} sessions")
        asyncio.run(replay(options, bars))
    report(folder, as_json=False, page=None)


def read_policies(policies: str) -> list[str]:
    """Raises InputError that names what is unknown or there twice."""
    names = [name.strip() for name in policies.split(",")]
    if len(set(names)) != len(names):
        raise InputError(f"--policies {policies}: a policy is named twice")
    for name in names:
        Scheduling(policy=name)
    return names


def find_trace(trace: Path) -> Path:
    """A path, or the name of a bundled trace."""
    if trace.exists():
        return trace
    bundled = Path(str(resources.files("mars") / "data"))
    if (named := bundled / f"{trace}.jsonl").exists():
        return named
    known = ", ".join(sorted(path.stem for path in bundled.glob("*.jsonl")))
    raise InputError(f"no trace at {trace}; bundled ones: {known}")


class Bars(Watcher):
    """One bar a policy: rounds and sessions done, mean session time of the round."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[says]}"),
            TimeElapsedColumn(),
        )
        self._tasks: dict[str, Any] = {}
        self._took_s: dict[str, list[float]] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        self._bars.console.print(text, highlight=False)

    def round_started(self, policy: str, repeat: int, sessions: int) -> None:
        says = f"round {repeat + 1}"
        if policy not in self._tasks:
            self._tasks[policy] = self._bars.add_task(policy, total=0, says=says)
        task = self._tasks[policy]
        self._took_s[policy] = []
        total = (self._bars.tasks[task].total or 0) + sessions
        self._bars.update(task, total=total, says=says)

    def session_done(self, policy: str, took_s: float) -> None:
        took = self._took_s[policy]
        took.append(took_s)
        says = f"mean {statistics.fmean(took):.1f} s"
        self._bars.update(self._tasks[policy], advance=1, says=says)


def bench_scheduler_command(policies: list[str], *, rounds: int, as_json: bool) -> None:
    for name in policies:
        Scheduling(policy=name)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.disable(logging.WARNING)
    model, _, _ = tiny_engine()
    results = measure_overhead(Path(model), policies, rounds=rounds)
    if as_json:
        click.echo(msgspec.json.encode(results))
        return
    table = Table("policy", "stock us", "plugin us", "ratio", "min", "max", "pairs")
    for result in results:
        table.add_row(
            result.policy,
            f"{result.stock_us:.0f}",
            f"{result.plugin_us:.0f}",
            f"{result.ratio_median:.3f}",
            f"{result.ratio_min:.3f}",
            f"{result.ratio_max:.3f}",
            str(result.pairs),
        )
    Console().print("schedule + update_from_output, 64 running, 256 waiting, per step:", table)
