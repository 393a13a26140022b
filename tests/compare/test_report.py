"""The report over rows made by hand: every ratio is known before it is computed."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from tests.compare.made import FACTORS, LOST, row, rows, texts, written

from mars.cli import cli
from mars.compare.claims import Claim
from mars.compare.report import report_grid
from mars.compare.row import Row
from mars.compare.standing import in_order
from mars.compare.summary import Summary, summarise
from mars.compare.tables import means, tables
from mars.core.errors import InputError, ResultError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return written(tmp_path / "grid", rows())


# -- figures --------------------------------------------------------------------------------------


def test_ratios_and_strongest_baselines(tmp_path: Path) -> None:
    summary = summarise(tmp_path, rows())
    assert [(c.workload, c.rho) for c in summary.cells] == [
        ("swe", 0.5), ("swe", 0.9), ("swe-tools60", 0.5), ("swe-tools60", 0.9),
    ]  # fmt: skip
    for cell in summary.cells:
        lost = (cell.workload, cell.rho) == LOST
        assert (cell.strongest_paper, cell.strongest) == ("continuum", "session_fcfs")
        assert cell.verdict == ("lost" if lost else "won")
        for policy, factor in FACTORS.items():
            if policy == "mars":
                continue
            if lost and policy == "session_fcfs":
                factor = 0.8  # noqa: PLW2901
            for metric in ("mean_s", "p95_s", "p99_s"):
                of = cell.against(policy, metric)
                assert of is not None
                assert of.ratio == pytest.approx(factor)
                assert factor * 0.96 <= of.low <= factor <= of.high <= factor / 0.96
                assert of.pairs == 4
            goodput, rate = (cell.against(policy, m) for m in ("goodput_3_per_s", "sessions_per_s"))
            assert goodput is not None
            assert rate is not None
            assert goodput.ratio == pytest.approx(1 / factor)
            assert rate.ratio == pytest.approx(10 / 11)


def test_an_ablation_is_no_baseline(tmp_path: Path) -> None:
    some = [r for r in rows() if r.policy in {"mars", "mars-no-hold", "fcfs"}]
    summary = summarise(tmp_path, some)
    assert {c.strongest for c in summary.cells} == {"fcfs"}
    assert {(a.policy, a.cells) for a in summary.ablations} == {("mars-no-hold", 2)}
    assert [a.ratio for a in summary.ablations] == pytest.approx([1.25, 1.25])


def test_the_order_of_policies() -> None:
    names = ["mars-no-hold", "zzz", "infercept-released", "continuum", "mars", "fcfs"]
    assert in_order(names) == [
        "mars", "fcfs", "continuum", "zzz", "infercept-released", "mars-no-hold",
    ]  # fmt: skip


def test_claims_say_the_figure_that_decides(tmp_path: Path) -> None:
    least, best, faster, nowhere, tail, throughput, near, sign = summarise(tmp_path, rows()).claims
    assert least.holds
    assert least.figure.startswith("least 2.000x (1.9")
    assert "against continuum; 2 cells" in least.figure
    assert best.holds is False
    assert best.figure.startswith("largest 2.000x")
    assert faster.holds
    assert "least 1.500x" in faster.figure
    assert nowhere.holds is False
    assert "least 0.800x" in nowhere.figure
    assert "swe, 16 tool cores, rho 0.5, against session_fcfs" in nowhere.figure
    assert "short of it: 1 of 4 cells, 1 beyond the interval" in nowhere.figure
    assert "thunderagent" in nowhere.not_run
    assert least.not_run == []
    assert tail.holds
    assert "least 4.000x" in tail.figure
    assert throughput.holds
    assert "least 1.100" in throughput.figure
    assert near.holds
    assert near.figure.startswith("most 1.286x, ")  # 90 over 70
    assert sign.holds is None  # no corners were run


def test_claims_of_what_was_not_run_cannot_be_said(tmp_path: Path) -> None:
    some = [r for r in rows() if r.policy in {"mars", "session_fcfs"}]
    claims = summarise(tmp_path, some).claims
    assert [claim.holds for claim in claims] == [None, None, True, False, None, True, True, None]
    alone = summarise(tmp_path, [r for r in rows() if r.policy == "mars"])
    assert {claim.holds for claim in alone.claims if "oracle" not in claim.claim} == {None}
    assert "cannot be said" in texts(alone)


def test_a_throughput_below_the_bound_is_said(tmp_path: Path) -> None:
    some = [msgspec.structs.replace(r, sessions_per_s=1.0) for r in rows()]
    slow = [
        msgspec.structs.replace(r, sessions_per_s=0.9) if r.policy == "mars" else r for r in some
    ]
    assert _throughput(tmp_path, some).holds
    claim = _throughput(tmp_path, slow)
    assert claim.holds is False
    assert claim.figure.startswith("least 0.900")


def _throughput(folder: Path, of: list[Row]) -> Claim:
    (claim,) = [c for c in summarise(folder, of).claims if c.claim.startswith("Throughput")]
    return claim


def test_what_no_schedule_reaches_is_said(tmp_path: Path) -> None:
    """The paper's strongest takes 180 s at rho 0.9; 1.44 times as long as 130 s it does not."""
    for bound_s, said in (50.0, "beyond the interval"), (130.0, "in 2 any schedule is (oracle)"):
        changed = [
            msgspec.structs.replace(
                r,
                mean_s=r.mean_s * (1.5 if r.policy == "mars" else 1.0),
                clairvoyant_mean_s=bound_s * r.seed,
            )
            for r in rows()
        ]
        of = summarise(tmp_path, changed).claims[0]
        assert "short of it: 2 of 2 cells" in of.figure
        assert of.figure.endswith(said)


def test_how_far_the_bound_is(tmp_path: Path) -> None:
    far = [msgspec.structs.replace(r, clairvoyant_mean_s=50.0 * r.seed) for r in rows()]
    of = summarise(tmp_path, far).claims[6]
    assert of.holds is False
    assert of.figure.startswith("most 1.800x, ")  # 90 over 50
    assert of.figure.endswith("rho 0.9; beyond it: 2 of 2 cells")


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (0.5, False)])
def test_who_is_ahead_at_a_corner(tmp_path: Path, factor: float, holds: bool) -> None:
    """At the corner session_fcfs takes 1.5 x `factor` times as long as mars: 1.5 in the middle."""
    corner = [
        msgspec.structs.replace(
            r,
            prefill_factor=1.45,
            mean_s=r.mean_s * (factor if r.policy == "session_fcfs" else 1.0),
        )
        for r in rows()
        if r.rho == 0.9
    ]
    of = summarise(tmp_path, [*rows(), *corner]).claims[7]
    assert of.holds is holds
    assert of.figure.startswith(f"least {1.5 * factor:.3f}x")
    assert of.figure.endswith("; none of 12 turned" if holds else "; turned: 2 of 12")


def test_a_lost_cell_stands_like_a_won_one_with_its_cause(tmp_path: Path) -> None:
    summary = summarise(tmp_path, rows())
    verdicts = [g for g in tables(summary) if g.title.startswith("Session time against")]
    assert [row[-1] for row in verdicts[0].rows] == ["lost", "won", "won", "won"]
    assert len({len(row) for row in verdicts[0].rows}) == 1
    (of,) = summary.behind
    assert (of.winner, of.verdict, of.phase) == ("session_fcfs", "lost", "gated")
    assert of.ratio == pytest.approx(0.8)
    assert of.phase_s == pytest.approx(30 * 0.5 * 2.5)
    assert of.winner_phase_s == 0
    assert of.cause.startswith("More waiting at the gate (37.5 s a session against 0 s).")
    assert "Prefix hits 90.0 % against 60.0 %, run twice 2.0 % against 30.0 %" in of.cause


def test_an_even_cell_that_is_behind_is_listed_too(tmp_path: Path) -> None:
    wild = {1: 0.6, 2: 1.3, 3: 0.7, 4: 1.2}
    some = [
        msgspec.structs.replace(
            r, mean_s=100 * r.seed * (wild[r.seed] if r.policy == "fcfs" else 1)
        )
        for r in rows(("swe",))
        if r.policy in {"fcfs", "mars"} and r.rho == 0.9
    ]
    summary = summarise(tmp_path, some)
    assert summary.cells[0].verdict == "even"
    assert [of.verdict for of in summary.behind] == ["even"]


def test_findings_have_their_tables(tmp_path: Path) -> None:
    summary = summarise(tmp_path, rows())
    half, most = summary.retention_alone
    assert (half.rho, most.rho, half.cells) == (0.5, 0.9, 2)
    assert half.fcfs_to_open == pytest.approx(4 / 3.2)
    assert half.open_to_reference == pytest.approx(3.2)
    assert ["swe-tools60" in of.cell for of in summary.long_tools] == [True, True]
    assert [of.holds for of in summary.long_tools] == [200, 200]
    assert [of.paid_frac for of in summary.long_tools] == pytest.approx([0.8, 0.8])
    assert [of.no_hold_ratio for of in summary.long_tools] == pytest.approx([1.25, 1.25])
    titles = [grid.title for grid in tables(summary)]
    assert {"Retention without admission", "Long tools"} <= set(titles)
    plain = summarise(tmp_path, [r for r in rows(("swe",)) if r.policy in {"mars", "fcfs"}])
    assert {"Retention without admission", "Long tools"}.isdisjoint(
        grid.title for grid in tables(plain)
    )


# -- what is missing ------------------------------------------------------------------------------


def test_a_missing_policy_is_noted_and_shown_as_a_dash(tmp_path: Path) -> None:
    some = [r for r in rows() if (r.policy, r.workload, r.rho) != ("fcfs", "swe", 0.9)]
    summary = summarise(tmp_path, some)
    (note,) = summary.notes
    assert note.startswith("fcfs was not run in one cell (h100-nvl/qwen3-coder-30b, swe, ")
    (one,) = [c for c in summary.cells if "fcfs" not in c.policies]
    assert (one.workload, one.rho, one.verdict) == ("swe", 0.9, "won")
    (grid, *_) = means(summary)
    assert [row for row in grid.rows if row[0] == "fcfs"][0][2] == "-"  # noqa: RUF015
    assert summary.claims[0].not_run == ["fcfs"]
    assert "holds, of those run" in texts(summary)


def test_where_a_policy_was_not_run_at_all_it_has_no_row(tmp_path: Path) -> None:
    some = [r for r in rows(("swe", "repo")) if (r.policy, r.workload) != ("fcfs", "repo")]
    summary = summarise(tmp_path, some)
    assert summary.notes[0].startswith("fcfs was not run in 2 cells (")
    named = {grid.title.split(", ")[1]: [row[0] for row in grid.rows] for grid in means(summary)}
    assert "fcfs" in named["swe"]
    assert named["repo"] == [it for it in named["swe"] if it != "fcfs"]


def test_a_missing_seed_is_noted_and_pairs_are_of_the_others(tmp_path: Path) -> None:
    some = [r for r in rows(("swe",)) if (r.policy, r.seed) != ("mars", 2)]
    summary = summarise(tmp_path, some)
    (note,) = summary.notes
    assert note.startswith("mars: seed 2 not run in 2 cells (")
    of = summary.cells[1].against("fcfs")
    assert of is not None
    assert of.pairs == 3
    assert of.ratio == pytest.approx(4 * 0.96 ** (1 / 3))


def test_without_the_reference_a_cell_stays_with_its_means(tmp_path: Path) -> None:
    summary = summarise(tmp_path, [r for r in rows() if (r.policy, r.rho) != ("mars", 0.5)])
    assert [c.verdict for c in summary.cells] == [None, "won", None, "won"]
    (verdicts,) = [g for g in tables(summary) if g.title.startswith("Session time against")]
    assert [row[-1] for row in verdicts.rows] == ["-", "won", "-", "won"]
    assert summary.notes[0].startswith("mars was not run in 2 cells")


def test_what_was_asked_for_is_missed(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(
        'name = "final"\npolicies = ["mars", "fcfs", "concur", "told-the-future"]\n'
        "seeds = [1, 2, 3, 4, 5]\n"
        '[made_by]\nversion = "0.2"\ncommit = "abc-dirty"\n[scheduling.mars.window]\nshrink = 0.5\n'
    )
    (tmp_path / "failures.jsonl").write_text(
        '{"key": "k", "run": "swe rho 2 mars", "error": "Trace\\nMemoryError: no"}\n'
    )
    summary = summarise(tmp_path, rows())
    failed, *gaps = summary.notes
    assert failed == "a run failed: swe rho 2 mars: MemoryError: no"
    assert gaps[0].startswith("concur and told-the-future were not run in 4 cells (")
    assert gaps[0].endswith("; 1 more)")
    assert ": seed 5 not run in 4 cells" in gaps[1]
    assert summary.provenance.commit == "abc-dirty"
    assert summary.provenance.baselines.endswith("settings of their own: mars")
    assert "concur" in summary.policies


def test_fewer_than_three_seeds_are_said(tmp_path: Path) -> None:
    summary = summarise(tmp_path, [r for r in rows(("swe",)) if r.seed < 3])
    assert "fewer than 3 seeds in 2 cells" in summary.notes[0]
    of = summary.cells[1].against("fcfs")
    assert of is not None
    assert not of.resampled
    assert (of.low, of.high) == pytest.approx((4 * 0.96, 4 / 0.96))


def test_a_row_that_came_again_counts_once(tmp_path: Path) -> None:
    again = row("swe", 0.5, "fcfs", 1, mean_s=1e9)
    summary = summarise(tmp_path, [again, *rows(("swe",))])
    of = summary.cells[0].against("fcfs")
    assert of is not None
    assert of.ratio == pytest.approx(4)
    assert summary.notes == ["1 row of a run that has a later row left out"]


def test_other_work_cannot_be_compared(tmp_path: Path) -> None:
    some = [*rows(("swe",))[:-1], row("swe", 0.9, "mars-no-hold", 4, isolated_mean_s=201.0)]
    with pytest.raises(ResultError, match="is 200 under fcfs and 201 under mars-no-hold"):
        summarise(tmp_path, some)


def test_a_folder_without_rows_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no rows: run the grid first"):
        report_grid(written(tmp_path, []))


# -- the terminal, JSON, Markdown -----------------------------------------------------------------


def test_the_terminal_shows_it_in_100_columns(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_grid(folder)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith(("page:", "made by"))) <= 100
    words = [line.split() for line in lines]
    #        workload rho cores alone clairv. mars fcfs  strongest of each set   verdict
    assert [
        "swe", "0.5", "16", "111", "155", "111", "443", "continuum", "session_fcfs", "lost",
    ] in words  # fmt: skip
    assert [
        "swe", "0.9", "16", "111", "155", "199", "797", "continuum", "session_fcfs", "won",
    ] in words  # fmt: skip
    assert any(re.search(r"2\.00x \(1\.\d\d-2\.\d\d\) +0\.80x \(0\.7", line) for line in lines)
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_json_is_one_document(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_grid(folder, as_json=True)
    built = json.loads(capsys.readouterr().out)
    assert not (folder / "report.html").exists()
    assert set(built) == set(Summary.__struct_fields__)
    assert [cell["verdict"] for cell in built["cells"]] == ["lost", "won", "won", "won"]
    fcfs = built["cells"][0]["policies"]["fcfs"]["ratios"]["mean_s"]
    assert fcfs["ratio"] == pytest.approx(4)


def test_markdown_has_provenance_lost_cells_and_the_command(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "results.md"
    done = CliRunner().invoke(cli, ["report", str(folder), "--markdown", str(path)])
    assert done.exit_code == 0, done.output
    text = path.read_text()
    assert f"mars report {folder} --markdown {path}" in text
    assert "* profile h100-nvl/qwen3-coder-30b: decode +-" in text
    assert "* seeds: 1, 2, 3 and 4" in text
    assert "* baselines: calibrated; as released: none" in text
    lines = [line for line in text.splitlines() if line.startswith("| swe")]
    assert sum(line.endswith("| lost |") for line in lines) == 1
    assert sum(line.endswith("| won |") for line in lines) == 3
    assert "More waiting at the gate (37.5 s a session against 0 s)" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(bars) == 1, block


def test_markdown_is_of_a_grid(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["report", str(tmp_path), "--markdown", "x.md"])
    assert isinstance(done.exception, InputError)


def test_a_file_that_cannot_be_written_is_an_input_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write the page .*/none/page.html: No such file"):
        report_grid(folder, as_json=True, page=tmp_path / "none" / "page.html")
    with pytest.raises(InputError, match=r"cannot write the Markdown file .*: No such file"):
        report_grid(folder, as_json=True, markdown=tmp_path / "none" / "x.md")
