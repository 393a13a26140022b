from pathlib import Path

import pytest
from tests.compare.grids import TEXT, mini

from mars.compare.cells import check, runs
from mars.compare.settings import Band, load_grid, load_workload
from mars.core.errors import InputError
from mars.policy.presets import PRESETS
from mars.workload.synthetic import Synthetic

CONFIGS = Path(__file__).parents[2] / "configs"


def test_what_is_left_out_is_the_plan_s(tmp_path: Path) -> None:
    grid = mini(tmp_path)
    assert grid.tool_cores == (16,)
    assert grid.cost_band == (Band(step=1.0, prefill=1.0),)
    assert grid.workloads == {"terminal": Synthetic(session_class="terminal")}
    assert grid.rhos == (0.5, 1.0)


def test_settings_are_of_one_policy(tmp_path: Path) -> None:
    grid = mini(tmp_path, TEXT + "[scheduling.mars.window]\nfirst = 9\n")
    mars, fcfs = grid.scheduling_of("mars"), grid.scheduling_of("fcfs")
    assert (mars.policy, mars.window.first) == ("mars", 9)
    assert (fcfs.policy, fcfs.window.first) == ("fcfs", 4)


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ("sessions = 6", "session = 6", "`session`"),
        ("sessions = 6", "sessions = 0", "sessions"),
        ("rhos = [0.5, 1]", "rhos = [0.5, 0]", "rhos"),
        ("rhos = [0.5, 1]", "rhos = [-0.5]", "rhos"),
        ("rhos = [0.5, 1]", "rhos = [nan]", "rhos"),
        ("rhos = [0.5, 1]", "rhos = [inf]", "rhos"),
        ("rhos = [0.5, 1]", "rhos = []", "rhos"),
        ("rhos = [0.5, 1]", "rhos = [1, 1.0]", "`rhos` names something twice"),
        ("seeds = [1, 2]", "seeds = [-1]", "seeds"),
        ("seeds = [1, 2]", "seeds = [1]\ntool_cores = [0]", "tool_cores"),
        ("seeds = [1, 2]", "seeds = [1]\ncost_band = [{prefill = 0.9}]", "cost_band.*prefill"),
        ("seeds = [1, 2]", "", "seeds"),
        ('"mars"]', '"mras"]', "policies: unknown policy 'mras'; one of: fcfs"),
        ('"terminal"', '"terminals"', "class is 'terminals'; one of: swe"),
        ('"synthetic"', '"real"', "real"),
        ('name = "mini"', 'name = "../mini"', "name"),
        ("sessions = 6", "sessions = 6\n[engine]\nlag = 2", "engine.lag"),
        ("sessions = 6", "[scheduling.continuum]", "scheduling.continuum: it is not one of"),
        ("sessions = 6", "[scheduling.mars.window]\nshrink = 1.5", "window.shrink"),
        ("sessions = 6", '[[extra]]\nworkloads = ["swe"]', r"extra.workloads: .*workloads.swe"),
        ("sessions = 6", "sessions == 6", "mini.toml"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, was: str, now: str, says: str) -> None:
    assert was in TEXT
    with pytest.raises(InputError, match=says):
        mini(tmp_path, TEXT.replace(was, now))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.toml: No such file"):
        load_grid(tmp_path / "nowhere.toml")
    (tmp_path / "w.toml").write_text("kind = 'synthetic'\nclass = 'swe'\ntools_mean = 3\n")
    with pytest.raises(InputError, match=r"w.toml: .*`tools_mean`"):
        load_workload(tmp_path / "w.toml")


def test_the_paper_s_grid_is_whole() -> None:
    grid = load_grid(CONFIGS / "paper.toml")
    assert {*grid.policies, *grid.extra_policies} == set(PRESETS)
    assert (len(grid.profiles), len(grid.workloads), len(grid.rhos)) == (4, 7, 6)
    assert len(grid.seeds) == 5
    chunks = runs(grid)
    # the product; four cores and four corners for two workloads on two machines; one more corner
    # for one of these; two host memories for two workloads at two loads
    assert len(chunks) == 5 * (4 * 7 * 6 + 2 * 2 * 6 + 4 * 2 * 2 * 2 + 2 * 2 + 2 * 2 * 2)


def test_the_grid_of_host_memory_has_each_cell_without_it() -> None:
    host, paper = load_grid(CONFIGS / "host.toml"), load_grid(CONFIGS / "paper.toml")
    assert 0.0 in host.host_gib
    assert all(paper.workloads[name] == each for name, each in host.workloads.items())
    assert not set(host.seeds) & set(paper.seeds)
    assert check(runs(host)) == []


def test_host_memory_is_refused_where_it_is_not_simulated(tmp_path: Path) -> None:
    text = TEXT.replace("h100-nvl/qwen3-coder-30b", "h100-nvl/gpt-oss-120b")
    grid = mini(tmp_path, f"host_gib = [0, 64]\n{text}")
    with pytest.raises(InputError, match="leave `host_gib`"):
        check(runs(grid))


def test_the_quick_grid_is_a_sample_of_the_paper_s() -> None:
    quick, paper = load_grid(CONFIGS / "quick.toml"), load_grid(CONFIGS / "paper.toml")
    assert set(quick.profiles) < set(paper.profiles)
    assert set(quick.rhos) < set(paper.rhos)
    assert all(paper.workloads[name] == each for name, each in quick.workloads.items())
    assert not set(quick.seeds) & set(paper.seeds), "what is tuned on is not what is shown"


def test_the_core_grid_is_the_heart_of_the_paper_s() -> None:
    core, paper = load_grid(CONFIGS / "core.toml"), load_grid(CONFIGS / "paper.toml")
    assert set(core.profiles) < set(paper.profiles)
    assert core.workloads == paper.workloads
    assert (core.seeds, core.sessions, core.policies) == (
        paper.seeds, paper.sessions, paper.policies,
    )  # fmt: skip
    ours, theirs = ({run.key for chunk in runs(grid) for run in chunk} for grid in (core, paper))
    assert ours < theirs
