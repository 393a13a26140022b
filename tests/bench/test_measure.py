"""Every number of two hand-made rounds (drawn in conftest.py), and the ways a run can be broken."""

import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.bench import phases
from mars.bench.measure import measure, read_run
from mars.bench.rounds import quantile, session_times_s
from mars.core import events as ev
from mars.core.errors import InputError, ResultError
from mars.core.ids import ToolId

WriteRun = Callable[..., Path]
Stories = dict[str, tuple[Any, Sequence[float]]]


def _drop(path: Path, *parts: str) -> None:
    """Remove the lines that hold all `parts`."""
    lines = path.read_text().splitlines(keepends=True)
    kept = [line for line in lines if not all(part in line for part in parts)]
    assert kept != lines, "nothing to remove"
    path.write_text("".join(kept))


def test_session_times_of_a_policy_pool_its_rounds(folder: Path) -> None:
    fcfs = measure(read_run(folder)).policies["fcfs"]
    assert fcfs.sessions == 4  # 10 and 14 s; then, 1.5 times slower, 15 and 21 s
    assert fcfs.mean_s == pytest.approx((10 + 14 + 15 + 21) / 4)
    assert fcfs.p50_s == pytest.approx((14 + 15) / 2)
    assert fcfs.p90_s == pytest.approx(15 + 0.7 * 6)  # rank 0.9 x 3 = 2.7
    assert fcfs.p95_s == pytest.approx(15 + 0.85 * 6)
    assert [one.mean_s for one in fcfs.rounds] == pytest.approx([12, 18])
    assert fcfs.noise_frac == pytest.approx((18 - 12) / 15)


def test_time_by_phase_and_waits(folder: Path) -> None:
    policies = measure(read_run(folder)).policies
    fcfs, mars = policies["fcfs"].rounds[0], policies["mars"].rounds[0]
    assert fcfs.phase_mean_s == pytest.approx(
        {
            "gated": 0,
            "queued": (3 + 3.5) / 2,
            "running": (5 + 3) / 2,
            "tool waits": 3 / 2,
            "tool runs": (2 + 4) / 2,
            "client": 0.5 / 2,
        }
    )
    assert mars.phase_mean_s == pytest.approx(
        {
            "gated": 2 / 2,
            "queued": (0.5 + 1) / 2,
            "running": (4 + 2) / 2,
            "tool waits": 0.5 / 2,
            "tool runs": (2 + 4) / 2,
            "client": 0,
        }
    )
    assert (mars.gate_wait_mean_s, mars.gate_wait_p95_s) == pytest.approx((1, 0.95 * 2))
    assert fcfs.queue_wait_mean_s == pytest.approx((1 + 3 + 3) / 3)  # the aborted call: not one
    assert mars.queue_wait_p95_s == pytest.approx(0.5 + 0.9 * 0.5)  # of 0, 0.5, 1: rank 1.9
    assert fcfs.tool_calls == 2
    assert fcfs.tool_wait_total_s == pytest.approx(0 + 3)
    assert (fcfs.tool_wait_mean_s, fcfs.tool_wait_p95_s) == pytest.approx((1.5, 0.95 * 3))
    assert (fcfs.tool_run_total_s, fcfs.tool_run_mean_s) == pytest.approx((2 + 4, 3))


def test_tokens_and_throughput(folder: Path) -> None:
    policies = measure(read_run(folder)).policies
    fcfs, mars = policies["fcfs"].rounds[0], policies["mars"].rounds[0]
    assert fcfs.throughput_sessions_per_s == pytest.approx(2 / 16)
    assert fcfs.output_tokens_per_s == pytest.approx((11 + 21 + 1) / 16)
    assert policies["fcfs"].output_tokens_per_s == pytest.approx(2 * 33 / (16 + 1.5 * 16))
    assert (fcfs.calls, fcfs.calls_aborted, fcfs.calls_unaccounted) == (3, 1, 0)
    assert fcfs.hit_frac == pytest.approx((0 + 0 + 64) / (100 + 150 + 200))
    assert mars.hit_frac == pytest.approx((0 + 96 + 64) / 450)
    assert fcfs.computed_tokens == 110 + 325 + 136
    # a1: 100 + 10. a2 extends the 100 + 11 - 1 tokens of a1: 40 + 20. b1: 200 + 0.
    assert fcfs.needed_tokens == mars.needed_tokens == 110 + 60 + 200
    # b1 computed less than it needed (shared prefix); that pays for nothing else
    assert fcfs.recomputed_tokens == 0 + (325 - 60) + 0
    assert mars.recomputed_tokens == 0 + (74 - 60) + 0
    assert (fcfs.preemptions, mars.preemptions) == (1, 0)
    assert policies["fcfs"].preemptions == 2


def test_holds(folder: Path) -> None:
    policies = measure(read_run(folder)).policies
    mars = policies["mars"].rounds[0]
    assert (mars.holds, mars.holds_paid, mars.holds_paid_frac) == (2, 1, 0.5)
    assert mars.held_token_s == pytest.approx(110 * 2 + 200 * 1)
    assert mars.releases == {"expired": 1, "returned": 1}
    assert policies["fcfs"].holds == 0
    assert policies["fcfs"].holds_paid_frac is None


def test_ratios_are_taken_pair_by_pair(folder: Path) -> None:
    summary = measure(read_run(folder))
    assert (summary.reference, list(summary.ratios)) == ("mars", ["fcfs"])
    mean, p95 = summary.ratios["fcfs"].mean, summary.ratios["fcfs"].p95
    assert (mean.min, mean.max, mean.pairs) == pytest.approx((12 / 8, 18 / 10, 2))
    assert mean.median == pytest.approx((1.5 + 1.8) / 2)
    fcfs_p95_s, mars_p95_s = 10 + 0.95 * 4, 6.5 + 0.95 * 3
    assert p95.min == pytest.approx(fcfs_p95_s / mars_p95_s)
    assert p95.max == pytest.approx(1.5 * fcfs_p95_s / (1.25 * mars_p95_s))


def test_without_mars_the_last_policy_is_the_reference(
    tmp_path: Path, write_run: WriteRun, stories: Stories
) -> None:
    renamed = {"fcfs": stories["mars"], "autellix": stories["fcfs"]}
    built = measure(read_run(write_run(tmp_path / "run", renamed))).as_json()
    assert built["ratio_to_autellix"]["fcfs"]["mean"]["median"] == pytest.approx(
        (8 / 12 + 10 / 18) / 2
    )


def test_phases_of_a_session_leave_no_gap(folder: Path) -> None:
    for one in (r for rounds in read_run(folder).rounds.values() for r in rounds):
        lives = phases.fold(one.events).values()
        times_s = [spans[-1].end_s - spans[0].start_s for spans in lives]
        assert times_s == pytest.approx(session_times_s(one))
        for spans in lives:
            for before, after in itertools.pairwise(spans):
                assert before.end_s == after.start_s
                assert before.phase != after.phase


def test_a_fact_that_fits_no_phase_changes_none(folder: Path) -> None:
    """A tool's start, heard while its session (b: from 2 s to 4 s) is at the gate."""
    one = read_run(folder).rounds["mars"][0]
    start = [e for e in one.events if isinstance(e, ev.ToolStarted)][-1]
    stray = msgspec.structs.replace(start, at_s=one.started_s + 3, tool_id=ToolId("stray"))
    events = sorted([*one.events, stray], key=lambda e: e.at_s)
    assert phases.fold(events) == phases.fold(one.events)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=30))
def test_quantile_is_the_inclusive_one(values: list[float]) -> None:
    expected = statistics.quantiles(values, n=20, method="inclusive")
    assert quantile(values, 0.95) == pytest.approx(expected[18])
    assert quantile(values, 0.50) == pytest.approx(expected[9])


def test_a_half_finished_repetition_is_left_out_and_said(folder: Path) -> None:
    _drop(folder / "run.jsonl", '"RoundEnded"', '"mars"', '"repeat":1')
    summary = measure(read_run(folder))
    assert summary.repeats == [0]
    assert summary.policies["fcfs"].sessions == 2
    assert summary.ratios["fcfs"].mean.pairs == 1
    assert summary.notes == ["repetition 1 is left out: not finished under mars"]


def test_a_drift_that_is_in_the_ratios_is_said(
    write_run: WriteRun, stories: Stories, tmp_path: Path
) -> None:
    three = {policy: (story, (1.0, 1.1, 1.2)) for policy, (story, _) in stories.items()}
    run = write_run(tmp_path / "odd", three)
    (note,) = measure(read_run(run)).notes
    assert note == (
        "2 of 3 repetitions went through the policies from the last to the first: not half of "
        "them, so what the machine drifted meanwhile is in the ratios"
    )


def test_each_round_may_have_a_log_of_its_own(folder: Path) -> None:
    """As `replay` leaves it when it starts an engine for each round."""
    expected = measure(read_run(folder))
    head, *events = (folder / "mars.jsonl").read_text().splitlines(keepends=True)
    first_round = [line for line in events if '#1"' not in line]
    (folder / "mars-0.jsonl").write_text("".join([head, *first_round]))
    (folder / "mars.jsonl").rename(folder / "mars-1.jsonl")
    assert measure(read_run(folder)) == expected


def test_a_lost_account_of_the_engine_is_said(folder: Path) -> None:
    _drop(folder / "fcfs.jsonl", '"CallServed"', '"a#0"', '"a2"')
    summary = measure(read_run(folder))
    assert summary.policies["fcfs"].calls_unaccounted == 1
    assert summary.notes == [
        "fcfs: the engine's account of 1 of 6 calls was lost; the sums lack their tokens"
    ]


def test_a_run_without_a_finished_repetition_is_refused(folder: Path) -> None:
    _drop(folder / "run.jsonl", '"RoundEnded"', '"mars"')
    with pytest.raises(InputError, match=r"no repetition .* \(rounds finished: fcfs 2, mars 0\)"):
        read_run(folder)


def test_a_run_that_never_began_is_refused(folder: Path) -> None:
    head, *_ = (folder / "run.jsonl").read_text().splitlines(keepends=True)
    (folder / "run.jsonl").write_text(head)
    with pytest.raises(InputError, match="no round was started"):
        read_run(folder)


@pytest.mark.parametrize("name", ["run.jsonl", "mars.jsonl"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"no event log at .*{name}"):
        read_run(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run folder at .*/elsewhere"):
        read_run(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["run.jsonl", "mars.jsonl"])
def test_a_malformed_line_is_named_by_file_and_number(folder: Path, name: str) -> None:
    lines = (folder / name).read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace('"at_s":', '"at_s":"soon","x":')
    (folder / name).write_text("".join(lines))
    with pytest.raises(InputError, match=rf"{name}:3: not .*at_s"):
        read_run(folder)


@pytest.mark.parametrize(
    ("file", "dropped", "said"),
    [
        (
            "mars.jsonl",
            '"SessionEnded"',
            "mars, repetition 1: SessionEnded of session b#1 is not in",
        ),
        ("mars.jsonl", '"SessionAdmitted"', "SessionAdmitted of session b#1 is not in"),
        ("run.jsonl", '"SessionAnswered"', "1 of 2 sessions were answered"),
    ],
)
def test_a_round_with_less_than_all_its_sessions_is_refused(
    folder: Path, file: str, dropped: str, said: str
) -> None:
    _drop(folder / file, dropped, '"b#1"')
    with pytest.raises(InputError, match=said):
        read_run(folder)


def test_a_session_that_the_driver_did_not_send_is_refused(folder: Path) -> None:
    log = (folder / "mars.jsonl").read_text()
    (folder / "mars.jsonl").write_text(log.replace('"b#1"', '"stray"'))
    with pytest.raises(InputError, match=r"session b#1 is not in .* sessions: 2 of 2"):
        read_run(folder)


def test_policies_that_gave_other_answers_are_not_compared(folder: Path) -> None:
    text = (folder / "run.jsonl").read_text()
    (folder / "run.jsonl").write_text(text.replace("digest of b", "another", 1))
    with pytest.raises(ResultError, match="session b got other answers under mars, repetition 0"):
        read_run(folder)
