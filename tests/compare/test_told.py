"""A schedule that is told the future: told the truth, beside the bounds, and never a policy."""

from math import inf
from pathlib import Path

import msgspec
import pytest
from tests.compare.grids import TEXT, mini

from mars.compare.cells import Run, play, runs
from mars.compare.standing import cells_of, in_order
from mars.compare.told import TOLD, Future, named
from mars.config import Settings, load_settings
from mars.core.errors import InputError
from mars.core.ids import CallId, SessionId, ToolId
from mars.policy.presets import PRESETS, Scheduling
from mars.sim.needs import need_of
from mars.sim.prices import prices_of
from mars.sim.profiles import load_profile
from mars.sim.settings import EngineSettings, ToolSettings
from mars.workload.synthetic import Synthetic
from mars.workload.trace import Recorded, Tool, Turn

COST = load_profile("h100-nvl/qwen3-coder-30b").cost()
ENGINE, TOOLS = EngineSettings(kv_blocks=10_000), ToolSettings(cores=2)
WIDE = Tool(name="make", run_s=3.0, cpu_s=20.0, cores=8)
SLEEP = Tool(name="sleep", run_s=5.0)
SESSION = Recorded(
    session_id="a/b",
    arrives_s=0.0,
    turns=(
        Turn(new_tokens=50_000, output_tokens=10, tools=(WIDE, SLEEP), think_s=1.0),
        Turn(new_tokens=10, output_tokens=10, tools=(SLEEP,)),
        Turn(new_tokens=10, output_tokens=10),
    ),
)


def future(session: Recorded) -> Future:
    prices = prices_of([need_of(session, COST, ENGINE, TOOLS)], COST, ENGINE)
    return Future([session], prices, ENGINE, TOOLS)


def crowded(policy: str, workload: str, cores: int) -> Run:
    return Run(
        profile="h100-nvl/qwen3-coder-30b",
        workload_name=workload,
        workload=Synthetic(session_class=workload),
        rho=1.2,
        tool_cores=cores,
        tool_share=1,
        sessions=60,
        seed=101,
        scheduling=named(policy, Scheduling()),
    )


def test_it_is_told_gaps_and_core_seconds() -> None:
    """20 CPU seconds on 2 cores take 10 s."""
    of = future(SESSION)
    turns = [of.turn(CallId(f"a/b/{n}")) for n in range(3)]
    assert [turn.gap_s for turn in turns] == [16.0, 5.0, inf]
    assert [turn.leases_s for turn in turns] == [(20.0, 5.0), (5.0,), ()]
    assert [turn.core_s for turn in turns] == [30.0, 5.0, 0.0]
    assert of.tool(ToolId("a/b/0.2")) == (5.0, turns[0])
    assert of.first(SessionId("a/b")) == turns[0]


def test_what_is_left_falls_and_a_gap_costs_what_is_cheaper() -> None:
    def first_kv_s(gap_s: float) -> float:
        turn = msgspec.structs.replace(SESSION.turns[0], tools=(), think_s=gap_s)
        waits = msgspec.structs.replace(SESSION, turns=(turn, *SESSION.turns[1:]))
        left = [future(waits).turn(CallId(f"a/b/{n}")).kv_s for n in range(3)]
        assert left == sorted(left, reverse=True)
        return left[0]

    assert first_kv_s(0.0) < first_kv_s(1.0) < first_kv_s(1e4)
    assert first_kv_s(1e4) == first_kv_s(2e4)  # computed again, however long the gap


@pytest.mark.parametrize(("workload", "cores"), [("repo", 16), ("gittask", 4)])
def test_it_is_faster_than_mars_and_no_bound_is_beaten(workload: str, cores: int) -> None:
    told, mars = (play(crowded(policy, workload, cores)).row for policy in (TOLD, "mars"))
    assert told.policy == TOLD
    assert told.clairvoyant_mean_s == mars.clairvoyant_mean_s
    assert told.clairvoyant_mean_s < told.mean_s < 0.9 * mars.mean_s


def test_no_settings_name_it() -> None:
    """So no live system does: they are read as `Settings`."""
    assert TOLD not in PRESETS
    with pytest.raises(InputError, match="unknown policy 'told-the-future'"):
        Scheduling(policy=TOLD)
    with pytest.raises(InputError, match="unknown policy"):
        load_settings(None, (), TOLD)
    ours = msgspec.to_builtins(Settings(scheduling=named(TOLD, Scheduling())))
    with pytest.raises(InputError, match="unknown policy"):
        msgspec.convert(ours, Settings)


def test_a_grid_may_have_it_and_its_other_runs_stay_as_they_are(tmp_path: Path) -> None:
    text = TEXT.replace('"fcfs", "mars"', f'"fcfs", "mars", "{TOLD}"')
    text += f'[scheduling."{TOLD}".residency]\novercommit = 2.0\n'
    plain, more = runs(mini(tmp_path)), runs(mini(tmp_path, text))
    assert [[run.key for run in chunk[:2]] for chunk in more] == [
        [run.key for run in chunk] for chunk in plain
    ]
    assert all(chunk[2].scheduling.policy == TOLD for chunk in more)
    assert all(chunk[2].scheduling.residency.overcommit == 2.0 for chunk in more)


def test_a_report_never_takes_it_for_a_baseline() -> None:
    row = play(crowded("mars", "terminal", 16)).row
    slower, faster = (
        msgspec.structs.replace(row, policy=policy, mean_s=factor * row.mean_s)
        for policy, factor in (("fcfs", 2.0), (TOLD, 0.5))
    )
    (cell,) = cells_of([slower, row, faster])
    assert (cell.strongest, cell.strongest_paper) == ("fcfs", "fcfs")
    assert in_order(["fcfs", "mars", TOLD]) == [TOLD, "mars", "fcfs"]
