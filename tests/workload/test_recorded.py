import json
import math
import statistics
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from mars.core.errors import InputError
from mars.workload.mixture import MIXTURE
from mars.workload.recorded import Scaling, Source, choose, convert, main, recorded_sessions
from mars.workload.trace import Tool, Turn, read_trace


def turn(prompt: int, new: int, answer: int = 70, **fields: Any) -> dict[str, Any]:
    lengths = {"input_tokens": prompt, "new_input_tokens": new, "output_tokens": answer}
    return lengths | {"next": "tool", "llm_s": 1.0, "tool": None, "think_time_s": None} | fields


def source(turns: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    about = {"session_id": "weka/1", "source": "kv@c0ffee", "license": "MIT"}
    return about | {"timing": "client_gap", "turns": turns} | fields


def typed(line: dict[str, Any]) -> Source:
    return msgspec.convert(line, Source)


GAP = {"name": "unknown", "duration_s": 12.0}
USER = {"next": "user", "think_time_s": 112.0}
LINE = source(
    [
        turn(1000, 1000, tool=GAP),
        turn(1090, 20, answer=3, **USER),
        turn(500, 480, reset=True, tool=GAP),
        turn(572, 2, next="end", tool=GAP),
    ]
)


def test_tokens_and_waits_are_divided_and_a_reset_is_a_whole_prompt() -> None:
    scaling = Scaling(tokens_div=10, time_div=4, max_think_s=80, min_output_tokens=4)
    session = convert(typed(LINE), scaling, seed=0)
    assert session.session_id == "weka-1"
    assert [(t.new_tokens, t.output_tokens, t.reset) for t in session.turns] == [
        (100, 7, False),
        (2, 4, False),
        (50, 7, True),
        (1, 7, False),  # 0.2 tokens: a call adds something
    ]
    assert [t.think_s for t in session.turns] == [0.0, 20.0, 0.0, 0.0]
    assert [len(t.tools) for t in session.turns] == [1, 0, 1, 0]  # none after the last answer


def test_a_session_is_cut_by_turns_and_by_context() -> None:
    line = typed(source([turn(1000, 1000)] + [turn(0, 430) for _ in range(9)]))
    assert len(convert(line, Scaling(max_turns=4), seed=0).turns) == 4
    assert len(convert(line, Scaling(max_context_tokens=1570), seed=0).turns) == 2
    assert len(convert(line, Scaling(max_context_tokens=1569), seed=0).turns) == 1
    varied = Scaling(min_turns=2, max_turns=5, vary_turns=True)
    counts = {len(convert(line, varied, seed=seed).turns) for seed in range(60)}
    assert counts == {2, 3, 4, 5}


def test_a_measured_tool_is_kept_and_an_estimate_is_not_called_recorded() -> None:
    names = [("Bash", None, 3.0), ("Bash", "cpu_estimate", 3.0), ("Read", None, None)]
    turns = [
        turn(9, 9, tool={"name": n, "duration_s": 8.0, "duration_src": src, "cpu_s": cpu})
        for n, src, cpu in names
    ]
    line = typed(source([*turns, turn(9, 9, tool={"name": "Bash", "duration_s": 8.0}), turn(9, 9)]))
    measured = msgspec.structs.replace(line, timing="measured+precheck_split")
    session = convert(measured, Scaling(time_div=2), seed=0)
    first, second, third, fourth = (t.tools[0] for t in session.turns[:4])
    assert first == Tool(name="Bash", run_s=4.0, cpu_s=1.5, timing="recorded")
    assert second == Tool(name="Bash", run_s=4.0, cpu_s=1.5, timing="modelled")
    assert third == Tool(name="Read", run_s=4.0, cpu_s=0.0, timing="recorded")
    assert 2.0 <= fourth.cpu_s <= 3.6  # unmeasured CPU of a command: the shell's 50-90 %
    assert (second.cores, second.memory_bytes) == (1, 0)
    cut = convert(measured, Scaling(max_tool_s=2.0), seed=0).turns[0].tools[0]
    assert (cut.run_s, cut.cpu_s) == (2.0, 0.75)


def test_a_measured_tool_has_the_cores_and_the_memory_that_it_was_seen_to_use() -> None:
    seen = [(20.0, 12.5), (20.0, -3.0), (90.0, None)]
    tools = [
        {"name": "Bash", "duration_s": 8.0, "cpu_s": cpu, "mem_delta_mb": mb} for cpu, mb in seen
    ]
    line = source([*(turn(9, 9, tool=tool) for tool in tools), turn(9, 9)], timing="measured")
    turns = convert(typed(line), Scaling(max_cores=8), seed=0).turns
    found = [(tool.cores, tool.memory_bytes) for t in turns for tool in t.tools]
    assert found == [(3, 12_500_000), (3, 0), (8, 0)]


def drawn(scaling: Scaling, name: str = "unknown") -> list[Tool]:
    tool = {"name": name, "duration_s": 12.0}
    line = typed(source([turn(9, 9, tool=tool) for _ in range(8001)]))
    return [tool for t in convert(line, scaling, seed=3).turns for tool in t.tools]


def test_modelled_tools_follow_the_mixture() -> None:
    tools = drawn(Scaling())
    assert len(tools) == 8000
    assert {tool.timing for tool in tools} == {"modelled"}
    for kind in MIXTURE:
        mine = [tool for tool in tools if tool.name == kind.name]
        assert len(mine) / 8000 == pytest.approx(kind.weight / 100, abs=0.015)
        logs = [math.log(tool.run_s) for tool in mine]
        assert statistics.mean(logs) == pytest.approx(math.log(kind.run_s.median), abs=0.2)
        assert statistics.stdev(logs) == pytest.approx(kind.run_s.sigma, abs=0.12)
        shares = [tool.cpu_s / tool.run_s for tool in mine if tool.run_s > 0.01]
        assert min(shares) >= kind.cpu_frac.least - 1e-3
        assert max(shares) <= kind.cpu_frac.most * kind.most_cores + 1e-3
    builds = [tool for tool in tools if tool.name == "build"]
    assert any(tool.cpu_s > 2.7 * tool.run_s for tool in builds)
    assert {tool.cores for tool in builds} == {1, 2, 3, 4}
    assert all(tool.cpu_s <= tool.cores * tool.run_s + 1e-6 for tool in tools)
    assert all(t.cpu_s <= 0.9 * t.run_s + 1e-6 for t in drawn(Scaling(max_cores=1)))


def test_time_div_and_the_time_out_scale_run_and_cpu_alike() -> None:
    for whole, less in zip(drawn(Scaling()), drawn(Scaling(time_div=8)), strict=True):
        assert less.run_s == pytest.approx(whole.run_s / 8, abs=1e-6)
        assert less.cpu_s == pytest.approx(whole.cpu_s / 8, abs=1e-6)
    for whole, less in zip(drawn(Scaling()), drawn(Scaling(max_tool_s=5)), strict=True):
        assert less.run_s == pytest.approx(min(whole.run_s, 5), abs=1e-6)
        assert less.cpu_s / less.run_s == pytest.approx(whole.cpu_s / whole.run_s, abs=1e-3)
    assert {tool.name for tool in drawn(Scaling(), "calculate")} == {"calculate"}


def test_an_untimed_user_takes_the_stated_time() -> None:
    line = typed(source([turn(9, 9, next="user"), turn(9, 9, next="end")], timing="none"))
    first = convert(line, Scaling(untimed_think_s=3.0, time_div=2), seed=0).turns[0]
    assert first == Turn(new_tokens=9, output_tokens=70, think_s=1.5)


def fleet(count: int) -> list[Source]:
    """Sessions whose first prompts and turns grow with their number."""
    return [
        typed(source([turn(100 * n, 100 * n)] + [turn(0, 5)] * n, session_id=f"weka/{n}"))
        for n in range(1, count + 1)
    ]


def test_the_sample_is_seeded_and_keeps_the_limits() -> None:
    scaling = Scaling(min_turns=4, max_turns=6, min_first_tokens=500, max_first_tokens=1500)
    samples = [choose(fleet(20), scaling, sessions=5, seed=seed) for seed in (1, 1, 2)]
    assert samples[0] == samples[1]
    assert samples[0] != samples[2]
    everyone = choose(fleet(20), scaling, sessions=None, seed=0)
    assert {s.turns[0].new_tokens for s in everyone} == {100 * n for n in range(5, 16)}
    with pytest.raises(InputError, match="11 of 20 sessions fit the limits; asked for 12"):
        choose(fleet(20), scaling, sessions=12, seed=0)
    with pytest.raises(InputError, match="0 of 3 sessions fit"):
        choose(fleet(3), scaling, sessions=None, seed=0)


def written(tmp_path: Path, sources: list[Source]) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join(map(msgspec.json.encode, sources)))
    return path


def test_sessions_are_sampled_without_replacement_until_all_were_there(tmp_path: Path) -> None:
    path, scaling = written(tmp_path, fleet(20)), Scaling(max_turns=6)
    many = recorded_sessions(path, "kv", 50, 0.5, 1, scaling=scaling)
    ids = [session.session_id for session in many]
    assert len(set(ids)) == 50
    rounds = [{name.partition("~")[0] for name in ids[n : n + 20]} for n in (0, 20)]
    assert rounds == [{f"weka-{n}" for n in range(1, 21)}] * 2
    assert [name.partition("~")[2] for name in ids] == [""] * 20 + ["1"] * 20 + ["2"] * 10
    first, again = many[0], next(each for each in many if each.session_id == f"{ids[0]}~1")
    assert first.turns == again.turns
    assert recorded_sessions(path, "kv", 7, 0.5, 1, scaling=scaling) == many[:7]
    assert recorded_sessions(path, "kv", 7, 0.5, 2, scaling=scaling) != many[:7]
    arrivals_s = [session.arrives_s for session in many]
    assert arrivals_s == sorted(arrivals_s)


def test_the_command_writes_a_trace_and_says_whose(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    other = source([turn(5, 5)], session_id="tau/1", source="tau@1")
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(other) + "\n")
    arguments = [str(path), "--out", str(tmp_path / "new"), "--name", "x", "--sources", "kv"]
    result = CliRunner().invoke(main, [*arguments, "--tokens-div", "10", "--max-turns", "3"])
    assert result.exit_code == 0
    assert "1 of 1 sessions; from kv@c0ffee (MIT)" in result.output
    (session,) = read_trace(tmp_path / "new" / "x.jsonl")
    assert [t.new_tokens for t in session.turns] == [100, 2, 50]
    assert session == convert(typed(LINE), Scaling(tokens_div=10, max_turns=3), seed=0)


@pytest.mark.parametrize(
    ("text", "options", "what"),
    [
        (json.dumps(LINE) + "\n{}\n", [], "in.jsonl:2: not a recorded session"),
        (json.dumps(LINE), ["--sources", "nope"], "no session of nope; there are: kv@c0ffee"),
        (json.dumps(LINE), ["--min-turns", "5", "--max-turns", "4"], "5 is beyond max_turns 4"),
        (json.dumps(LINE), ["--sessions", "2"], "1 of 1 sessions fit"),
    ],
)
def test_the_command_ends_with_2_on_wrong_input(
    tmp_path: Path, text: str, options: list[str], what: str
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    result = CliRunner().invoke(main, [str(path), "--out", str(tmp_path), *options])
    assert result.exit_code == 2
    assert what in result.output
