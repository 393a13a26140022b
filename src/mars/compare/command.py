"""`mars simulate` and `mars compare` at a terminal."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import click
import msgspec
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mars.bench.words import bare, count, number, percent
from mars.compare.cells import Played, Run, check, play, runs
from mars.compare.report import report_grid
from mars.compare.row import Row
from mars.compare.settings import known_policy, load_grid, load_workload
from mars.compare.speed import PROFILE, measure_speed
from mars.compare.told import named
from mars.config import load_settings
from mars.core.errors import InputError, ResultError
from mars.sim import batcher
from mars.stream.log import LogWriter
from mars.workload.make import FromTrace, Workload
from mars.workload.synthetic import CLASSES, Synthetic

_RHO: Final = 0.9
_MINUTE_S: Final = 60.0
_WIDTH: Final = 160
"""Of what is no terminal: a file has room for many policies."""


# -- mars simulate --------------------------------------------------------------------------------


def simulate_command(
    *,
    profile: str,
    workload: str,
    policies: str,
    sessions: int,
    rho: float | None,
    rate: float | None,
    seed: int,
    tool_cores: int,
    tool_share: int,
    host_gib: float,
    overrides: tuple[str, ...],
    as_json: bool,
    events: Path | None,
) -> None:
    if rho is not None and rate is not None:
        raise InputError("--rho (load over the knee) and --rate (sessions a second): give one")
    names = [name.strip() for name in policies.split(",")]
    for name in names:
        known_policy("--policy", name)
    if events is not None and len(names) > 1:
        raise InputError("--events: a log is of one policy; name one in --policy")
    if wrong := [each for each in overrides if not each.startswith("scheduling.")]:
        raise InputError(f"--set {wrong[0]}: write it as --set scheduling.part.name=value")
    chosen = [
        Run(
            profile=profile,
            workload_name=Path(workload).stem,
            workload=find_workload(workload),
            rho=_RHO if rate is None and rho is None else rho,
            rate_per_s=rate,
            tool_cores=tool_cores,
            tool_share=tool_share,
            host_gib=host_gib,
            sessions=sessions,
            seed=seed,
            scheduling=named(name, load_settings(None, overrides).scheduling),
        )
        for name in names
    ]
    for note in check([chosen]):
        click.echo(f"note: {note}", err=True)
    played = [play(run) for run in chosen]
    if events is not None:
        _write_events(events, chosen[0], played[0])
    if as_json:
        for one in played:
            click.echo(msgspec.json.encode(one.row))
    else:
        console = Console(highlight=False)
        console.width = console.width if console.is_terminal else _WIDTH
        console.print(_figures([one.row for one in played]))


def find_workload(name: str) -> Workload:
    """A class of synthetic sessions, a workload's TOML file, or a trace."""
    if name in CLASSES:
        return Synthetic(session_class=name)
    path = Path(name)
    if not path.is_file():
        known = ", ".join(CLASSES)
        raise InputError(
            f"--workload: {name!r} is no class of sessions ({known}), and no file; "
            "a file is a trace (.jsonl) or a workload's settings (.toml)"
        )
    return load_workload(path) if path.suffix == ".toml" else FromTrace(path=name)


def _write_events(path: Path, run: Run, played: Played) -> None:
    try:
        log = LogWriter(path, msgspec.to_builtins(run))
    except OSError as error:
        raise InputError(f"--events {path}: {error.strerror}") from None
    for event in played.events:
        log.write(event)
    log.close()


def _per_min(value: float) -> str:
    return bare(value * _MINUTE_S)


class _Line(NamedTuple):
    title: str
    said: Callable[[Any], str]
    field: str = ""
    """Of each run; empty: the line is of the bounds alone."""
    bound: Callable[[Row], float | None] | None = None


def _least(row: Row) -> float | None:
    known = (row.kv_bound_per_s, row.gpu_bound_per_s, row.cpu_bound_per_s)
    return min((bound for bound in known if bound is not None), default=None)


_LINES: Final = (
    _Line("session time, mean (s)", bare, "mean_s", lambda row: row.clairvoyant_mean_s),
    _Line("  alone on the machine", bare, "", lambda row: row.isolated_mean_s),
    _Line("  p50", bare, "p50_s"),
    _Line("  p95", bare, "p95_s"),
    _Line("  p99", bare, "p99_s"),
    _Line("slowdown, mean", bare, "slowdown_mean"),
    _Line("  largest", bare, "slowdown_max"),
    _Line("  Jain index", bare, "jain"),
    _Line("sessions per min", _per_min, "sessions_per_s", _least),
    _Line("  that the GPU can carry", _per_min, bound=lambda row: row.gpu_bound_per_s),
    _Line("  with its KV", _per_min, bound=lambda row: row.kv_bound_per_s),
    _Line("  if all KV is kept", _per_min, bound=lambda row: row.kept_bound_per_s),
    _Line("  that the cores can carry", _per_min, bound=lambda row: row.cpu_bound_per_s),
    _Line("  within 3x of alone", _per_min, "goodput_3_per_s"),
    _Line("answer tokens per s", count, "output_tokens_per_s"),
    _Line("wait at the gate, mean (s)", bare, "gate_wait_mean_s"),
    _Line("  longest", bare, "gate_wait_max_s"),
    _Line("wait of a call, mean (s)", bare, "queue_wait_mean_s"),
    _Line("  longest", bare, "queue_wait_max_s"),
    _Line("first token, warm, p50 (s)", bare, "first_token_warm_p50_s"),
    _Line("  cold", bare, "first_token_cold_p50_s"),
    _Line("prefix hits", percent, "hit_frac"),
    _Line("  loaded from the host", percent, "loaded_frac"),
    _Line("run twice, of tokens needed", percent, "recomputed_frac"),
    _Line("preemptions", count, "preemptions"),
    _Line("holds", count, "holds"),
    _Line("  that paid", percent, "holds_paid_frac"),
    _Line("tool, mean (s)", bare, "tool_run_mean_s"),
    _Line("  its wait for cores", bare, "tool_wait_mean_s"),
    _Line("GPU busy", percent, "gpu_busy_frac"),
    _Line("CPU busy", percent, "cpu_busy_frac"),
    _Line("simulated in (s)", bare, "wall_s"),
)


def _figures(rows: Sequence[Row]) -> Table:
    """A column a policy, and the bounds, which are the same for all, beside them."""
    one = rows[0]
    table = Table(
        title=f"{one.workload} on {one.profile}: {one.sessions} sessions, "
        f"{_per_min(one.rate_per_s)} per min (rho {one.rho:.2f}), {one.tool_cores} tool cores, "
        f"{number(one.tool_share, 'lease')} on each, "
        f"{f'{one.host_gib:g} GiB of host memory, ' if one.host_gib else ''}seed {one.seed}",
        caption="Bounds: no schedule has a lower mean, or carries more sessions for long. Rho 1: "
        "the least of what GPU, cores and (if all KV is kept) memory carry.",
        box=box.SIMPLE,
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_column(row.policy, justify="right", min_width=6)
    table.add_column("bounds", justify="right", style="dim", min_width=6)
    for line in _LINES:
        cells = [line.said(getattr(row, line.field)) if line.field else "" for row in rows]
        table.add_row(line.title, *cells, line.said(line.bound(one)) if line.bound else "")
    return table


# -- mars compare ---------------------------------------------------------------------------------


def compare_command(*, config: Path, folder: Path | None, jobs: int | None) -> None:
    """Raises ResultError when a run could not be finished; the others' rows are there."""
    try:
        from mars.compare.store import Store  # noqa: PLC0415  pyarrow and tomli-w are an extra
    except ModuleNotFoundError as error:
        raise InputError(f"rows need {error.name}: pip install 'mars[compare]'") from None
    from mars.compare.grid import run_grid  # noqa: PLC0415  as the store

    grid = load_grid(config)
    chunks = runs(grid)
    for note in check(chunks):
        click.echo(f"note: {note}", err=True)
    folder = folder or Path("runs") / grid.name
    with Store(folder, grid) as store:
        total = sum(map(len, chunks))
        done = sum(run.key in store.rows for chunk in chunks for run in chunk)
        try:
            with _Bar(grid.name, total, done) as bar:
                failures = run_grid(chunks, store, jobs or os.cpu_count() or 1, bar)
        except KeyboardInterrupt:
            click.echo(f"{len(store.rows)} of {total} rows are in {folder}; start again to go on")
            raise
    click.echo(f"rows: {folder / 'rows.parquet'}")
    if store.rows:
        report_grid(folder)
    for failure in failures:
        click.echo(f"failed: {failure.run}: {failure.error.strip().splitlines()[-1]}", err=True)
    if failures:
        raise ResultError(
            f"{len(failures)} of {total} runs failed; {folder / 'failures.jsonl'} has their errors"
        )


class _Bar:
    def __init__(self, name: str, total: int, done: int) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[says]}"),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            speed_estimate_period=600.0,  # a run takes seconds
        )
        self._task = self._bar.add_task(name, total=total, completed=done, says="")
        self._failed = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def run_done(self, *, ok: bool) -> None:
        self._failed += not ok
        self._bar.update(self._task, advance=1)
        speed = self._bar.tasks[self._task].speed
        rate = f"{speed * _MINUTE_S:.3g} per min" if speed else ""
        failed = f"[red]{self._failed} failed[/red]" if self._failed else ""
        self._bar.update(self._task, says=f"{rate} {failed}".strip())


def bench_simulator_command(policies: list[str], *, repeat: int) -> None:
    for name in policies:
        known_policy("--policies", name)
    table = Table("policy", "rho", "sessions", "turns", "open", "CPU s", "us a turn", "strides")
    for of in measure_speed(policies, repeat=repeat):
        table.add_row(
            of.policy, str(of.rho), str(of.sessions), str(of.turns), f"{of.open_sessions:.0f}",
            f"{of.cpu_s:.2f}", f"{of.per_turn_us:.0f}", str(of.strides),
        )  # fmt: skip
    code = "Python" if batcher.__file__.endswith(".py") else "compiled"
    Console().print(f"{PROFILE}, median of {repeat}, on one core, {code}:", table)
