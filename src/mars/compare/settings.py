"""What a grid file says: the product of its lists, and blocks of extra cells, products too.

For example:

    name = "quick"
    profiles = ["h100-nvl/qwen3-coder-30b"]
    rhos = [0.5, 0.9]
    policies = ["fcfs", "mars"]
    seeds = [1, 2]
    [workloads.swe]              # mars.workload.make
    kind = "synthetic"
    class = "swe"
    [scheduling.mars.window]     # of one policy: mars.policy.presets.Scheduling
    shrink = 0.7
    [[extra]]                    # a list that is left out is the one above
    workloads = ["swe"]
    tool_cores = [4]
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mars.compare.told import TOLD, named
from mars.core.errors import InputError
from mars.core.leases import LEASES_A_CORE
from mars.policy.presets import PRESETS, Scheduling
from mars.sim.settings import Count, Seconds
from mars.workload.make import Workload

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""Names a folder, or a line in a table."""
Rho = Annotated[float, Meta(gt=0.0, le=100.0)]
Rate = Annotated[float, Meta(gt=0.0, le=1e6)]
Gib = Annotated[float, Meta(ge=0.0, le=1e5)]
Cores = Annotated[int, Meta(ge=1, le=4096)]
Share = Annotated[int, Meta(ge=1, le=64)]
Seed = Annotated[int, Meta(ge=0)]
Some = Meta(min_length=1)


class Band(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A corner of the cost band: the profiles are not more certain than that."""

    step: Annotated[float, Meta(gt=0.0, le=10.0)] = 1.0
    """All step costs times this. The evaluation plan's band: 0.85 to 1.15."""
    prefill: Annotated[float, Meta(ge=1.0, le=10.0)] = 1.0
    """What prompts add to a step times this as well. The plan's band: 1.0 to 1.45."""


class Engine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As mars.sim.engine.EngineSettings; sizes and groups of the KV come from the profile."""

    step_tokens: Count = 8192
    """vLLM's --max-num-batched-tokens, its default for a server on a card of 70 GiB or more."""
    most_calls: Count = 256
    """vLLM's --max-num-seqs. 256: as in the design's probes."""
    lag: Annotated[int, Meta(ge=0, le=1)] = 1
    """1: asynchronous scheduling, vLLM's default on a GPU."""
    api_s: Seconds = 0.0
    """Between the gateway and the engine's queue. 0: nobody has measured it for these cards."""
    sample_s: Annotated[float, Meta(gt=0.0)] = 1.0
    """How often the engine tells of its memory. The plugin: 0.2 s; 1 s is enough for minutes."""


class Extra(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another product of lists; None: the grid's own. Its cells count once, wherever they stand."""

    profiles: Annotated[tuple[str, ...], Some] | None = None
    workloads: Annotated[tuple[str, ...], Some] | None = None
    rhos: Annotated[tuple[Rho, ...], Some] | None = None
    tool_cores: Annotated[tuple[Cores, ...], Some] | None = None
    tool_share: Annotated[tuple[Share, ...], Some] | None = None
    host_gib: Annotated[tuple[Gib, ...], Some] | None = None
    cost_band: Annotated[tuple[Band, ...], Some] | None = None
    policies: Annotated[tuple[str, ...], Some] | None = None
    """Besides those that the same cell gets elsewhere."""


class Grid(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    profiles: Annotated[tuple[str, ...], Some]
    """Bundled cost profiles, or files of `mars calibrate`."""
    workloads: Annotated[dict[Name, Workload], Some]
    rhos: Annotated[tuple[Rho, ...], Some]
    """Arrival rate / the machine's knee (mars.sim.bounds.Bounds.knee_per_s)."""
    policies: Annotated[tuple[str, ...], Some]
    seeds: Annotated[tuple[Seed, ...], Some]
    """Of the sessions and their arrivals: the same for every policy."""
    sessions: Count = 200
    """Per run. 200: the least that the evaluation plan allows."""
    tool_cores: Annotated[tuple[Cores, ...], Some] = (16,)
    """16: the plan's, unless said."""
    tool_share: Annotated[tuple[Share, ...], Some] = (LEASES_A_CORE,)
    """Leases that may be on one core at once, for every policy alike (`tools.share`)."""
    host_gib: Annotated[tuple[Gib, ...], Some] = (0.0,)
    """Host memory behind the KV, for every policy alike (vLLM's --kv-offloading-size)."""
    cost_band: Annotated[tuple[Band, ...], Some] = (Band(),)
    engine: Engine = Engine()
    scheduling: dict[str, Scheduling] = {}
    """Settings of a policy's parts, by its name."""
    extra: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        for policy in self.policies:
            known_policy("policies", policy)
        for policy in self.extra_policies:
            known_policy("extra.policies", policy)
        for policy in self.scheduling:
            if policy not in (*self.policies, *self.extra_policies):
                raise InputError(f"scheduling.{policy}: it is not one of `policies`")
        for extra in self.extra:
            for workload in extra.workloads or ():
                if workload not in self.workloads:
                    raise InputError(f"extra.workloads: there is no [workloads.{workload}]")
        for field in (
            "profiles",
            "rhos",
            "policies",
            "seeds",
            "tool_cores",
            "tool_share",
            "host_gib",
            "cost_band",
        ):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise InputError(f"`{field}` names something twice")

    @property
    def extra_policies(self) -> tuple[str, ...]:
        return tuple(policy for extra in self.extra for policy in extra.policies or ())

    def scheduling_of(self, policy: str) -> Scheduling:
        return named(policy, self.scheduling.get(policy, Scheduling()))


def known_policy(field: str, policy: str) -> None:
    if policy not in (*PRESETS, TOLD):
        known = ", ".join((*PRESETS, TOLD))
        raise InputError(f"{field}: unknown policy {policy!r}; one of: {known}")


def load_grid(path: Path) -> Grid:
    """Raises InputError that names the file, the field and what is wrong with it."""
    grid: Grid = _convert(_read_toml(path), Grid, path)
    return grid


def load_workload(path: Path) -> Workload:
    """A file that holds the table of one workload."""
    workload: Workload = _convert(_read_toml(path), Workload, path)
    return workload


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}") from None


def _convert(value: dict[str, Any], into: Any, path: Path) -> Any:
    """As msgspec's, with errors of ours."""
    try:
        return msgspec.convert(value, into)
    except (msgspec.ValidationError, InputError) as error:
        raise InputError(f"{path}: {error}") from None
