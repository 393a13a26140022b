import math
import statistics
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars.core.errors import InputError
from mars.workload.synthetic import CLASSES, Synthetic, scaled, sessions
from mars.workload.trace import Recorded, Tool, read_trace, write_trace

MANY = 600
MILLION = 1_000_000
classes = pytest.mark.parametrize("name", list(CLASSES))


def made(name: str, count: int = MANY, seed: int = 1, **fields: float | None) -> list[Recorded]:
    """Uncut unless asked for: the laws of the draws are those of whole sessions."""
    workload = {"class": name, "max_context_tokens": MILLION, "kind": "synthetic"} | fields
    return sessions(msgspec.convert(workload, Synthetic), count, 0.1, seed)


def context_tokens(session: Recorded) -> int:
    return sum(turn.new_tokens + turn.output_tokens for turn in session.turns)


def tools_of(found: list[Recorded]) -> list[Tool]:
    return [tool for session in found for turn in session.turns for tool in turn.tools]


def logs(values: list[int]) -> tuple[float, float]:
    found = [math.log(value) for value in values]
    return statistics.mean(found), statistics.stdev(found)


def test_swe_is_the_plans() -> None:
    """Standard errors: 12/sqrt(600) = 0.5 calls; of a log, sigma/sqrt(n), n = 600 and 19,000."""
    found = made("swe")
    calls = [len(session.turns) for session in found]
    assert statistics.mean(calls) == pytest.approx(33, abs=4 * 0.5)
    assert statistics.stdev(calls) == pytest.approx(12, abs=4 * 0.35)
    assert min(calls) >= 1
    assert {(session.shared_prefix, session.shared_tokens) for session in found} == {
        ("swe", 15_000)
    }
    first = logs([session.turns[0].new_tokens - 15_000 for session in found])
    assert first == pytest.approx((math.log(8_000), 0.8), abs=4 * 0.8 / math.sqrt(MANY))
    later = [turn for session in found for turn in session.turns[1:]]
    assert logs([turn.new_tokens for turn in later]) == pytest.approx((6.66, 1.13), abs=0.04)
    assert logs([turn.output_tokens for turn in later]) == pytest.approx((5.56, 0.90), abs=0.03)


def test_gittask_has_fewer_calls_and_heavier_cpu_than_swe() -> None:
    swe, gittask = made("swe"), made("gittask")
    calls = [statistics.mean(len(session.turns) for session in each) for each in (gittask, swe)]
    assert calls[0] < 0.6 * calls[1]
    cpu_s = [statistics.mean(tool.cpu_s for tool in tools_of(each)) for each in (gittask, swe)]
    assert cpu_s[0] > 1.5 * cpu_s[1]


def test_terminal_grows_from_800_to_9k_tokens_in_18_calls() -> None:
    """A median of 600 values is known to about 4 * 1.25 * sigma / sqrt(600): 0.1 to 0.2 of it."""
    found = made("terminal")
    assert statistics.median(len(session.turns) for session in found) == pytest.approx(18, abs=2)
    first = statistics.median(session.turns[0].new_tokens for session in found)
    assert first == pytest.approx(800, abs=50)
    assert statistics.median(map(context_tokens, found)) == pytest.approx(9_000, rel=0.2)


@pytest.mark.parametrize("name", ["repo", "infinity"])
def test_long_prompts_are_uniform_and_private(name: str) -> None:
    found = made(name)
    first = [session.turns[0].new_tokens for session in found]
    assert 50_000 <= min(first) < 51_000
    assert 149_000 < max(first) <= 150_000
    assert statistics.mean(first) == pytest.approx(100_000, abs=4 * 28_900 / math.sqrt(MANY))
    assert max(len(session.turns) for session in found) == 8
    assert {(session.shared_prefix, session.shared_tokens) for session in found} == {("", 0)}


@classes
def test_one_tool_stands_between_two_calls_and_the_last_call_answers(name: str) -> None:
    for session in made(name, 50):
        assert [len(turn.tools) for turn in session.turns[:-1]] == [1] * (len(session.turns) - 1)
        assert session.turns[-1].tools == ()
        assert all(turn.think_s == 0 and not turn.reset for turn in session.turns)


@given(
    name=st.sampled_from(list(CLASSES)),
    max_context_tokens=st.integers(15_002, 200_000),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_a_session_fits_and_is_the_whole_one_cut_short(
    name: str, max_context_tokens: int, seed: int
) -> None:
    cut = made(name, 5, seed, max_context_tokens=max_context_tokens)
    for whole, session in zip(made(name, 5, seed), cut, strict=True):
        assert context_tokens(session) <= max_context_tokens
        assert session.turns[0].new_tokens > session.shared_tokens
        last = len(session.turns) - 1
        if last > 0:
            assert session.turns[:last] == whole.turns[:last]
            assert msgspec.structs.replace(whole.turns[last], tools=()) == session.turns[last]
        if last + 1 < len(whole.turns):
            following = whole.turns[last + 1]
            more_tokens = following.new_tokens + following.output_tokens
            assert context_tokens(session) + more_tokens > max_context_tokens


@classes
def test_the_same_seed_gives_the_same_sessions_at_any_rate_and_in_a_longer_list(name: str) -> None:
    workload = Synthetic(session_class=name)
    short, long = (sessions(workload, count, 0.1, 7) for count in (5, 20))
    assert long[:5] == short
    faster = sessions(workload, 5, 3.0, 7)
    assert [session.turns for session in faster] == [session.turns for session in short]
    assert faster[-1].arrives_s < short[-1].arrives_s
    other = sessions(workload, 5, 0.1, 8)
    assert all(a.turns != b.turns for a, b in zip(short, other, strict=True))
    assert len({session.turns for session in long}) == 20


@pytest.mark.parametrize("name", ["swe", "gittask"])
def test_the_variants_scale_the_same_tools(name: str) -> None:
    plain = made(name, 200)
    mean_s = statistics.mean(tool.run_s for tool in tools_of(plain))
    fast = made(name, 200, tools_factor=0.3)
    assert fast == scaled(plain, 0.3)
    for tool, less in zip(tools_of(plain), tools_of(fast), strict=True):
        assert less.run_s == pytest.approx(0.3 * tool.run_s, abs=2e-6)
        assert less.cpu_s == pytest.approx(0.3 * tool.cpu_s, abs=2e-6)
        assert less.cores == tool.cores
    for wanted_s in (20.0, 60.0):
        # At most 6,000 tools with a deviation of 5 means: 4 standard errors are a quarter.
        found_s = statistics.mean(
            tool.run_s for tool in tools_of(made(name, 200, tools_mean_s=wanted_s))
        )
        assert found_s == pytest.approx(wanted_s, rel=0.25)
        expected_s = {"swe": 8.0, "gittask": 12.3}[name]
        assert found_s / mean_s == pytest.approx(wanted_s / expected_s, rel=0.01)


@classes
def test_a_file_keeps_every_session(name: str, tmp_path: Path) -> None:
    found = made(name, 10, tools_factor=0.3)
    write_trace(tmp_path / "t.jsonl", found)
    assert read_trace(tmp_path / "t.jsonl") == found


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"session_class": "chess"}, "class is 'chess'; one of: swe, gittask, terminal, repo"),
        ({"session_class": "swe", "tools_factor": 2.0, "tools_mean_s": 20.0}, "give one"),
        ({"session_class": "swe", "max_context_tokens": 15_001}, "max_context_tokens is 15001"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(fields: dict[str, float], what: str) -> None:
    with pytest.raises(InputError, match=what):
        Synthetic(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_tools_take_some_time_and_not_forever(factor: float) -> None:
    with pytest.raises(InputError, match="tools_factor is"):
        scaled([], factor)
