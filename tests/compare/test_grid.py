import multiprocessing
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tests.compare.grids import TEXT, mini

from mars.compare.cells import Run, check, play, runs
from mars.compare.grid import run_grid
from mars.compare.row import Row
from mars.compare.settings import Band
from mars.compare.store import Store, read_rows
from mars.core.errors import InputError
from mars.policy.presets import Scheduling
from mars.workload.make import FromTrace
from mars.workload.synthetic import Synthetic
from mars.workload.trace import Recorded, Turn, write_trace

PROFILE = "h100-nvl/qwen3-coder-30b"
RUN = Run(
    profile=PROFILE,
    workload_name="terminal",
    workload=Synthetic(session_class="terminal"),
    rho=1.0,
    sessions=6,
)


class Quiet:
    def run_done(self, *, ok: bool) -> None: ...


def without_wall(rows: list[Row]) -> list[Row]:
    return [msgspec.structs.replace(row, wall_s=0.0) for row in rows]


# -- runs ---------------------------------------------------------------------------------------


def test_a_chunk_is_every_policy_on_the_same_sessions(tmp_path: Path) -> None:
    chunks = runs(mini(tmp_path))
    assert [(c[0].seed, c[0].rho) for c in chunks] == [(1, 0.5), (1, 1.0), (2, 0.5), (2, 1.0)]
    for chunk in chunks:
        assert [run.scheduling.policy for run in chunk] == ["fcfs", "mars"]
        assert len({msgspec.structs.replace(run, scheduling=Scheduling()) for run in chunk}) == 1


def test_an_extra_block_may_name_policies_of_its_own(tmp_path: Path) -> None:
    extra = (
        '[[extra]]\npolicies = ["mars-paper"]\n[[extra]]\ntool_cores = [4]\npolicies = ["fcfs"]\n'
    )
    plain, more = runs(mini(tmp_path, TEXT)), runs(mini(tmp_path, TEXT + extra))
    policies = {
        run.tool_cores: [r.scheduling.policy for r in chunk] for chunk in more for run in chunk
    }
    assert policies[16] == [*(run.scheduling.policy for run in plain[0]), "mars-paper"]
    assert policies[4] == ["fcfs"]


def test_extra_cells_add_what_the_product_lacks(tmp_path: Path) -> None:
    extra = "[[extra]]\nrhos = [1.0, 2.0]\n[[extra]]\ntool_cores = [4]\nrhos = [1.0]\n"
    chunks = runs(mini(tmp_path, TEXT + extra))
    assert [(c[0].tool_cores, c[0].rho) for c in chunks if c[0].seed == 1] == [
        (16, 0.5), (16, 1.0), (16, 2.0), (4, 1.0),
    ]  # fmt: skip


def test_a_key_is_the_same_in_another_process_and_for_no_other_run(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from mars.compare.cells import runs; "
        "from mars.compare.settings import load_grid; "
        "print(*[run.key for chunk in runs(load_grid(Path(sys.argv[1]))) for run in chunk])"
    )
    ours = [run.key for chunk in runs(mini(tmp_path)) for run in chunk]
    theirs = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "mini.toml"], capture_output=True, check=True
    )
    assert theirs.stdout.decode().split() == ours
    assert len(set(ours)) == 8
    changed = mini(tmp_path, TEXT + "[scheduling.mars.window]\nfirst = 9\n")
    again = [run.key for chunk in runs(changed) for run in chunk]
    assert [a == b for a, b in zip(ours, again, strict=True)] == [True, False] * 4


# -- what cannot be run ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "says"),
    [("b300/qwen3-coder-30b", "the GPU 'b300'"), ("h100-nvl/llama", "the model 'llama'")],
)
def test_an_unknown_profile_is_named(profile: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check([[msgspec.structs.replace(RUN, profile=profile)]])


def test_a_session_larger_than_the_kv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    session = Recorded(session_id="long", turns=(Turn(new_tokens=300_000, output_tokens=5),))
    write_trace(path, [session])
    run = msgspec.structs.replace(RUN, workload_name="long", workload=FromTrace(path=str(path)))
    with pytest.raises(InputError, match=r"workload long: .* 300005 tokens, and the KV of h100"):
        check([[run]])
    large = msgspec.structs.replace(run, profile="h200-nvl/qwen3-coder-30b")
    assert check([[large]]) == []


def test_contexts_are_cut_at_what_the_kv_holds() -> None:
    workload = Synthetic(session_class="infinity", max_context_tokens=1_000_000)
    (note,) = check([[msgspec.structs.replace(RUN, workload=workload)]])
    assert "contexts are cut at 260" in note
    assert check([[RUN]]) == []


# -- playing --------------------------------------------------------------------------------------


def test_load_is_a_share_of_the_knee() -> None:
    row = play(RUN).row
    known = (row.kept_bound_per_s, row.gpu_bound_per_s, row.cpu_bound_per_s)
    assert row.rate_per_s == pytest.approx(row.rho * min(each for each in known if each))
    by_rate = play(msgspec.structs.replace(RUN, rho=None, rate_per_s=2 * row.rate_per_s)).row
    assert by_rate.rho == pytest.approx(2.0)
    assert by_rate.isolated_mean_s == row.isolated_mean_s


def test_what_a_cell_says_reaches_its_run() -> None:
    row = play(RUN).row
    dear = play(msgspec.structs.replace(RUN, band=Band(step=1.15, prefill=1.45))).row
    assert (dear.step_factor, dear.prefill_factor) == (1.15, 1.45)
    assert dear.isolated_mean_s > row.isolated_mean_s
    few = play(msgspec.structs.replace(RUN, tool_cores=8)).row
    assert few.cpu_bound_per_s == pytest.approx((row.cpu_bound_per_s or 0.0) / 2)
    assert few.tool_cores == 8
    alone = play(msgspec.structs.replace(RUN, tool_share=1)).row
    assert alone.tool_share == 1
    assert (alone.cpu_bound_per_s or 0.0) < (row.cpu_bound_per_s or 0.0)
    assert alone.cell != row.cell
    assert (row.host_gib, row.loaded_frac) == (0.0, 0.0)
    swe = Synthetic(session_class="swe")
    crowd = msgspec.structs.replace(RUN, workload=swe, sessions=20, rho=2.0, host_gib=64.0)
    backed = play(crowd).row
    assert backed.host_gib == 64.0
    assert (backed.loaded_frac or 0.0) > 0.0
    assert backed.cell != play(msgspec.structs.replace(crowd, host_gib=0.0)).row.cell


def test_two_processes_give_the_rows_of_one(tmp_path: Path) -> None:
    grid = mini(tmp_path)
    chunks = runs(grid)
    with Store(tmp_path / "run", grid) as store:
        assert run_grid(chunks, store, 2, Quiet()) == []
    rows = read_rows(tmp_path / "run")
    assert without_wall(rows) == without_wall([play(run).row for chunk in chunks for run in chunk])
    assert [row.key for row in rows] == [run.key for chunk in chunks for run in chunk]


def test_a_run_that_fails_stops_no_other_and_is_tried_again(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    grid = mini(tmp_path, TEXT + f'[workloads.t]\nkind = "trace"\npath = "{trace}"\n')
    chunks = runs(grid)
    with Store(tmp_path / "run", grid) as store:
        failures = run_grid(chunks, store, 2, Quiet())
    assert {failure.key for failure in failures} == {
        run.key for chunk in chunks for run in chunk if run.workload_name == "t"
    }
    assert all(f"no trace at {trace}" in failure.error for failure in failures)
    assert "h100-nvl/qwen3-coder-30b t rho" in failures[0].run
    assert len((tmp_path / "run" / "failures.jsonl").read_text().splitlines()) == 8
    assert {row.workload for row in read_rows(tmp_path / "run")} == {"terminal"}


class Killer:
    """Kills the process of the run that is under way when the first one is done."""

    done = 0

    def run_done(self, *, ok: bool) -> None:
        self.done += 1
        if self.done == 1:
            for process in multiprocessing.active_children():
                process.kill()


def test_a_killed_process_costs_its_run_alone(tmp_path: Path) -> None:
    grid = mini(tmp_path)
    chunks = runs(grid)
    with Store(tmp_path / "run", grid) as store:
        (failure,) = run_grid(chunks, store, 1, Killer())
    assert failure.key == chunks[0][1].key
    assert "its process was killed" in failure.error
    with Store(tmp_path / "run", grid) as store:
        assert len(store.rows) == 7
        assert run_grid(chunks, store, 1, Quiet()) == []
    assert len(read_rows(tmp_path / "run")) == 8
