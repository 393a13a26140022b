"""What is said about the numbers: the terminal's text and the JSON."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mars.bench.measure import measure, read_run
from mars.bench.report import report
from mars.bench.why import why
from mars.bench.words import count, percent, ratio, seconds
from mars.core.errors import InputError

WriteRun = Callable[..., Path]
Stories = dict[str, tuple[Any, Sequence[float]]]


def test_the_terminal_shows_the_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(folder, as_json=False, page=None)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    #        policy  mean    noise         p50     p90     p95     gate  per min     tokens/s
    assert ["fcfs", "15.0", "40.0", "%", "14.5", "19.2", "20.1", "0", "6.00", "1.65"] in rows
    assert ["mars", "9.00", "22.2", "%", "8.81", "11.2", "11.5", "1.12", "9.28", "2.55"] in rows
    assert ["fcfs", "1.65x", "1.50x", "to", "1.80x", "1.62x", "1.48x", "to", "1.77x", "2"] in rows
    assert ["mars", "35.6", "%", "640", "28", "0", "0.56", "0.28", "2/4"] in rows


def test_the_page_goes_beside_the_logs_unless_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(folder, as_json=True, page=None)
    assert not (folder / "report.html").exists()
    report(folder, as_json=False, page=None)
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    report(folder, as_json=True, page=tmp_path / "told.html")
    assert (tmp_path / "told.html").exists()
    assert str(folder / "report.html") in capsys.readouterr().out.replace("\n", "")


def test_a_page_that_cannot_be_written_is_an_input_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write the page .*/none/page.html: No such file"):
        report(folder, as_json=True, page=tmp_path / "none" / "page.html")


def test_json_is_all_there_is_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(folder, as_json=True, page=None)
    built = json.loads(capsys.readouterr().out)
    assert set(built) == {
        "policies", "ratio_to_mars", "reference", "repeats", "sessions_per_round", "notes",
    }  # fmt: skip
    assert list(built["policies"]) == ["fcfs", "mars"]
    assert built["policies"]["mars"]["mean_s"] == pytest.approx(9)
    assert built["policies"]["fcfs"]["holds_paid_frac"] is None
    assert len(built["policies"]["mars"]["rounds"]) == 2
    assert built["ratio_to_mars"]["fcfs"]["mean"] == pytest.approx(
        {"median": 1.65, "min": 1.5, "max": 1.8, "pairs": 2}
    )
    assert set(built["ratio_to_mars"]["fcfs"]) == {"mean", "p95"}


def test_why_names_the_phases_and_the_work(folder: Path) -> None:
    verdict, where, work, holds = why(measure(read_run(folder)))
    assert verdict.startswith(
        "mars is faster than fcfs, in every repetition: mean session time 9.00"
    )
    assert "less time 'queued' (0.84 s against 4.06 s), 'running' (3.38 s against 5" in where
    assert "more time 'gated' (1.12 s against 0 s)" in where
    assert "computed 28 tokens a second time, fcfs 530; prefix hits 35.6 % against 14.2 %" in work
    assert holds == "2 of 4 holds of mars paid off; the others: 2 expired."


def test_why_says_when_mars_is_slower(
    tmp_path: Path, write_run: WriteRun, stories: Stories
) -> None:
    swapped = {"fcfs": stories["mars"], "mars": stories["fcfs"]}
    verdict, *_ = why(measure(read_run(write_run(tmp_path / "run", swapped))))
    assert verdict.startswith("mars is slower than fcfs, in every repetition")


def test_why_says_when_the_noise_decides(
    tmp_path: Path, write_run: WriteRun, stories: Stories
) -> None:
    story, _ = stories["mars"]
    crossing = {"fcfs": (story, (1, 1.2)), "mars": (story, (1.1, 1))}
    verdict, where, *_ = why(measure(read_run(write_run(tmp_path / "run", crossing))))
    assert verdict.startswith("mars is not better than fcfs beyond the noise")
    assert where == "No phase differs by 2 % of the session time."


def test_why_does_not_call_one_repetition_a_result(
    tmp_path: Path, write_run: WriteRun, stories: Stories
) -> None:
    once = {policy: (story, slower[:1]) for policy, (story, slower) in stories.items()}
    verdict, *_ = why(measure(read_run(write_run(tmp_path / "run", once))))
    assert verdict == (
        "mars against fcfs, in one repetition, which cannot show the noise: mean session time "
        "8.00 s against 12.0 s (1.50x), p95 9.35 s against 13.8 s (1.48x)."
    )


def test_why_compares_with_the_fastest_of_the_others(
    tmp_path: Path, write_run: WriteRun, stories: Stories
) -> None:
    story, _ = stories["fcfs"]
    three = {**stories, "autellix": (story, (0.9, 1))}
    verdict, *_ = why(measure(read_run(write_run(tmp_path / "run", three))))
    assert "autellix (the fastest of the others)" in verdict


def test_one_policy_alone_is_compared_with_nothing(
    tmp_path: Path, write_run: WriteRun, stories: Stories
) -> None:
    summary = measure(read_run(write_run(tmp_path / "run", {"fcfs": stories["fcfs"]})))
    assert list(why(summary)) == ["Only fcfs was run: there is nothing to compare it with."]
    assert summary.as_json()["ratio_to_fcfs"] == {}


def test_words() -> None:
    assert [seconds(x) for x in (None, 0, 0.042, 4.25, 42.53, 425.3, 4253.0)] == [
        "-", "0 s", "0.04 s", "4.25 s", "42.5 s", "425 s", "4253 s",
    ]  # fmt: skip
    assert [count(x) for x in (0, 7, 1200, 140_000, 2_500_000, 1.5)] == [
        "0", "7", "1.20 k", "140 k", "2.50 M", "1.50",
    ]  # fmt: skip
    assert (percent(0.3555), percent(None), ratio(1.4449)) == ("35.5 %", "-", "1.44x")
