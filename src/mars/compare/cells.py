"""One simulated run: what fixes it, and playing it.

    Run     everything that its figures depend on, so its key is a hash of it
    runs    a grid's runs, in chunks that share their sessions and bounds
    check   what can be known to be impossible before anything is played
    play    a run's row and events

Sessions, rate and bounds are of everything but the policy, and made once for all policies in turn.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from itertools import product
from time import perf_counter
from typing import Final, NamedTuple, assert_never

import msgspec

from mars.compare.figures import row
from mars.compare.row import Row
from mars.compare.settings import Band, Cores, Engine, Extra, Gib, Grid, Rate, Rho, Seed, Share
from mars.compare.told import TOLD, Future, told
from mars.core import events as ev
from mars.core.errors import InputError
from mars.core.leases import LEASES_A_CORE
from mars.policy.presets import Scheduling
from mars.sim.bounds import Bounds, bounds, rate_for
from mars.sim.cost import Cost
from mars.sim.needs import need_of
from mars.sim.prices import prices_of
from mars.sim.profiles import load_profile
from mars.sim.run import Parts, simulate
from mars.sim.settings import Count, EngineSettings, SimSettings, ToolSettings
from mars.workload.make import FromRecords, FromTrace, Workload, make
from mars.workload.synthetic import Synthetic
from mars.workload.trace import Recorded

VERSION: Final = version("mars")


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    profile: str
    workload_name: str
    workload: Workload
    rho: Rho | None = None
    rate_per_s: Rate | None = None
    """Instead of `rho`."""
    tool_cores: Cores = 16
    tool_share: Share = LEASES_A_CORE
    host_gib: Gib = 0.0
    band: Band = Band()
    engine: Engine = Engine()
    sessions: Count = 200
    seed: Seed = 1
    scheduling: Scheduling = Scheduling()

    @property
    def key(self) -> str:
        """The same for the same run, in every process."""
        text = VERSION.encode() + msgspec.json.encode(self)
        return hashlib.sha256(text).hexdigest()[:16]

    @property
    def title(self) -> str:
        load = f"rho {self.rho:g}" if self.rho is not None else f"{self.rate_per_s:g} per s"
        band = "" if self.band == Band() else f" x{self.band.step:g}, x{self.band.prefill:g}"
        host = f"host {self.host_gib:g} GiB " if self.host_gib else ""
        shared = f"share {self.tool_share} " if self.tool_share != LEASES_A_CORE else ""
        return (
            f"{self.profile}{band} {self.workload_name} {load} cores {self.tool_cores} {shared}"
            f"{host}seed {self.seed} {self.scheduling.policy}"
        )


def runs(grid: Grid) -> list[list[Run]]:
    """Seed by seed, cell by cell: a chunk is every policy on the same sessions."""
    cells: dict[Run, dict[str, None]] = {}
    for cell, policies in _cells(grid):
        cells.setdefault(cell, {}).update(dict.fromkeys(policies))
    return [
        [
            msgspec.structs.replace(cell, seed=seed, scheduling=grid.scheduling_of(policy))
            for policy in policies
        ]
        for seed in grid.seeds
        for cell, policies in cells.items()
    ]


def _cells(grid: Grid) -> Iterator[tuple[Run, tuple[str, ...]]]:
    blocks: tuple[Grid | Extra, ...] = (grid, *grid.extra)
    for block in blocks:
        for profile, workload, rho, cores, share, host_gib, band in product(
            block.profiles or grid.profiles,
            block.workloads or grid.workloads,
            block.rhos or grid.rhos,
            block.tool_cores or grid.tool_cores,
            block.tool_share or grid.tool_share,
            block.host_gib or grid.host_gib,
            block.cost_band or grid.cost_band,
        ):
            cell = Run(
                profile=profile,
                workload_name=workload,
                workload=grid.workloads[workload],
                rho=rho,
                tool_cores=cores,
                tool_share=share,
                host_gib=host_gib,
                band=band,
                engine=grid.engine,
                sessions=grid.sessions,
            )
            yield cell, block.policies or grid.policies


def check(chunks: Sequence[Sequence[Run]]) -> list[str]:
    """Notes for the reader. Raises InputError for a profile or workload that cannot be run."""
    for run in {(run.profile, run.host_gib): run for (run, *_) in chunks}.values():
        _engine(run)
    one_of_each = {(run.profile, run.workload_name): run for (run, *_) in chunks}
    notes = []
    for run in one_of_each.values():
        engine = _engine(run)
        kv_tokens = engine.longest_context_tokens
        for session in _sessions(run, engine, rate_per_s=1.0):
            _check_fits(run, session, kv_tokens)
        if _capped(run.workload, kv_tokens) != run.workload:
            notes.append(
                f"{run.workload_name} on {run.profile}: contexts are cut at {kv_tokens} tokens, "
                "which is what its KV holds"
            )
    return notes


def _check_fits(run: Run, session: Recorded, kv_tokens: int) -> None:
    context_tokens = 0
    for turn in session.turns:
        context_tokens = turn.new_tokens + (0 if turn.reset else context_tokens)
        context_tokens += turn.output_tokens
        if context_tokens > kv_tokens:
            raise InputError(
                f"workload {run.workload_name}: a call of session {session.session_id} has "
                f"{context_tokens} tokens, and the KV of {run.profile} holds {kv_tokens}: take a "
                "larger card, or leave the session out"
            )


class Played(NamedTuple):
    row: Row
    events: list[ev.Event]


def play(run: Run) -> Played:
    """Deterministic, but for the row's `wall_s`."""
    stage = _stage(msgspec.structs.replace(run, scheduling=Scheduling()))
    settings = SimSettings(scheduling=run.scheduling, engine=stage.engine, tools=stage.tools)
    parts = _told(stage, run) if run.scheduling.policy == TOLD else None
    started_s = perf_counter()
    outcome = simulate(stage.sessions, stage.cost, settings, parts=parts)
    wall_s = perf_counter() - started_s
    made = row(
        profile=run.profile,
        workload=run.workload_name,
        rho=stage.rate_per_s / stage.bounds.knee_per_s if run.rho is None else run.rho,
        step_factor=run.band.step,
        prefill_factor=run.band.prefill,
        host_gib=run.host_gib,
        policy=run.scheduling.policy,
        seed=run.seed,
        rate_per_s=stage.rate_per_s,
        wall_s=wall_s,
        tools=stage.tools,
        bounds=stage.bounds,
        outcome=outcome,
    )
    return Played(msgspec.structs.replace(made, key=run.key), outcome.events)


class _Stage(NamedTuple):
    """What every policy meets alike."""

    sessions: list[Recorded]
    cost: Cost
    engine: EngineSettings
    tools: ToolSettings
    rate_per_s: float
    bounds: Bounds


@lru_cache(maxsize=1)
def _stage(run: Run) -> _Stage:
    profile = load_profile(run.profile)
    cost = profile.cost(run.band.step, run.band.prefill)
    engine = _engine(run)
    tools = ToolSettings(cores=run.tool_cores, share=run.tool_share)
    rate_per_s = run.rate_per_s
    if rate_per_s is None:
        # The rate bounds are of the work alone: sessions that come at any rate have the same.
        at_one = bounds(_sessions(run, engine, rate_per_s=1.0), cost, engine, tools)
        rate_per_s = rate_for(run.rho or 0.0, at_one)
    sessions = _sessions(run, engine, rate_per_s=rate_per_s)
    return _Stage(sessions, cost, engine, tools, rate_per_s, bounds(sessions, cost, engine, tools))


def _told(stage: _Stage, run: Run) -> Parts:
    needs = [need_of(s, stage.cost, stage.engine, stage.tools) for s in stage.sessions]
    prices = prices_of(needs, stage.cost, stage.engine)
    return told(Future(stage.sessions, prices, stage.engine, stage.tools), run.scheduling)


def _engine(run: Run) -> EngineSettings:
    profile = load_profile(run.profile)
    return EngineSettings(
        kv_blocks=profile.kv_blocks(),
        window_tokens=profile.window_tokens,
        host_blocks=profile.host_blocks(run.host_gib),
        host_block_s=profile.host_block_s(),
        **msgspec.structs.asdict(run.engine),
    )


def _sessions(run: Run, engine: EngineSettings, *, rate_per_s: float) -> list[Recorded]:
    workload = _capped(run.workload, engine.longest_context_tokens)
    return make(workload, run.sessions, rate_per_s, run.seed)


def _capped(workload: Workload, kv_tokens: int) -> Workload:
    """No longer contexts than the KV holds. A trace is played as it is, or not at all."""
    replace = msgspec.structs.replace
    match workload:
        case Synthetic(max_context_tokens=most) if most > kv_tokens:
            return replace(workload, max_context_tokens=kv_tokens)
        case FromRecords(scaling=scaling) if scaling.max_context_tokens > kv_tokens:
            return replace(workload, scaling=replace(scaling, max_context_tokens=kv_tokens))
        case Synthetic() | FromRecords() | FromTrace():
            return workload
        case _:
            assert_never(workload)
