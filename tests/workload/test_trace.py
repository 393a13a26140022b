import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mars
from mars.core.errors import InputError
from mars.workload.trace import Recorded, Tool, Turn, read_trace, write_trace

DATA = Path(mars.__file__).parent / "data"
SHARED: dict[str, Any] = {"shared_prefix": "agent", "shared_prefix_tokens": 100}


def call(number: int, after: int | None = None, **fields: Any) -> dict[str, Any]:
    line: dict[str, Any] = {"request_id": f"r{number}", "session_id": "s", "output_length": 5}
    if after is None:
        line |= {"timestamp": 2000, "input_length": 100}
    else:
        line |= {"wait_for": [f"r{after}"], "input_length": 1000}
    return line | fields


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "t.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(text + "\n" for text in texts))
    return path


def test_a_foreign_trace_is_read_with_its_gaps_split_into_tools_and_thinking(
    tmp_path: Path,
) -> None:
    shell = {"tool_call_id": "t", "tool_class": "shell", "status": "succeeded", "x": 1}
    events = [shell | {"duration_ms": 1500, "queue_wait_ms": 200, "cpu_ms": 700}]
    path = write(
        tmp_path,
        call(1, prefix_reset=True, hash_ids=[1, 2], tool_events=events, model="m"),
        call(2, 1, input_length=140, delay=250.5, tool_wait_ms=2000, prefix_reset=False),
        call(3, 2, input_length=30, delay=None, prefix_reset=True, branches=[]),
    )
    tool = Tool(name="shell", run_s=1.5, cpu_s=0.7, timing="recorded")
    assert read_trace(path) == [
        Recorded(
            session_id="s",
            arrives_s=2.0,
            turns=(
                # 2.0 s of tool time less 1.5 s run and 0.2 s wait for cores, plus the delay
                Turn(new_tokens=100, output_tokens=5, tools=(tool,), think_s=0.5505),
                Turn(new_tokens=35, output_tokens=5),
                Turn(new_tokens=30, output_tokens=5, reset=True),
            ),
        )
    ]


def test_tools_that_overlap_leave_only_the_delay_to_think(tmp_path: Path) -> None:
    event = {"tool_class": "shell", "duration_ms": 1000}
    lines = call(1, tool_events=[event, event]), call(2, 1, delay=10, tool_wait_ms=1100)
    turn = read_trace(write(tmp_path, *lines))[0].turns[0]
    assert [tool.run_s for tool in turn.tools] == [1.0, 1.0]
    assert turn.think_s == 0.01


def test_what_a_session_shares_and_a_tool_needs_is_read_and_may_be_left_out(
    tmp_path: Path,
) -> None:
    tool = {"tool_class": "build", "duration_ms": 5, "cores": 3, "memory_bytes": 2**30}
    path = write(
        tmp_path,
        call(
            1, shared_prefix="agent", shared_prefix_tokens=60, leaves_ms=90500, tool_events=[tool]
        ),
        call(2, session_id="plain"),
    )
    shared, plain = read_trace(path)
    assert (shared.shared_prefix, shared.shared_tokens, shared.leaves_s) == ("agent", 60, 90.5)
    assert shared.turns[0].tools[0].cores == 3
    assert shared.turns[0].tools[0].memory_bytes == 2**30
    assert (plain.shared_prefix, plain.shared_tokens, plain.leaves_s) == ("", 0, None)


def test_the_order_of_turns_is_that_of_wait_for_and_not_of_the_lines(tmp_path: Path) -> None:
    other = call(9, session_id="other", input_length=7)
    path = write(tmp_path, call(3, 2, input_length=2000), other, call(2, 1), call(1))
    first, second = read_trace(path)
    assert (first.session_id, second.session_id) == ("s", "other")
    assert [turn.new_tokens for turn in first.turns] == [100, 895, 995]


MISSING_SESSION = {"request_id": "r1", "input_length": 1, "output_length": 1, "timestamp": 0}
NEGATIVE_TOOL = {"tool_class": "shell", "duration_ms": -1}
NO_CORE = {"tool_class": "shell", "duration_ms": 1, "cores": 0}
RESET: dict[str, Any] = {"input_length": 7, "prefix_reset": True}


@pytest.mark.parametrize(
    ("lines", "number", "what"),
    [
        ([call(1), "{nonsense"], 2, "not JSON"),
        ([call(1), "", "[1]"], 3, "got `array`"),
        ([MISSING_SESSION], 1, "missing required field `session_id`"),
        ([call(1), call(2, 1, output_length=0)], 2, "`int` >= 1 - at `$.output_length`"),
        ([call(1), call(2, 1, input_length=104)], 2, "shorter than the context so far (105"),
        ([call(1), call(2, 7)], 2, "'r7', which is nowhere"),
        ([call(1), call(2, 1), call(1)], 3, "already a request_id 'r1'"),
        ([call(1, timestamp=-1)], 1, ">= 0.0 - at `$.timestamp`"),
        ([call(1), call(2, 1, delay=-0.5)], 2, "at `$.delay`"),
        ([call(1, tool_events=[NEGATIVE_TOOL])], 1, "at `$.tool_events[0].duration_ms`"),
        ([call(1, tool_events=[NO_CORE])], 1, "at `$.tool_events[0].cores`"),
        ([call(1, leaves_ms=-1)], 1, "at `$.leaves_ms`"),
        ([call(1, shared_prefix_tokens=9)], 1, "tokens and no name: set shared_prefix"),
        ([call(1, **SHARED | {"shared_prefix_tokens": 101})], 1, "of call 1 (100 tokens)"),
        ([call(1, **SHARED), call(2, 1, **RESET)], 1, "longer than the prompt of call 2 (7 tokens"),
        ([call(1, timestamp=None)], 1, "needs a timestamp"),
        ([call(1), call(2, 1), call(3, 1)], 3, ":2 has the same wait_for"),
        ([call(1), call(2)], 2, "branches are not replayed yet"),
        ([call(1, branches=["r2"])], 1, "branches are not replayed yet"),
        ([call(1), call(2, 1, wait_for=["r1", "r1"])], 2, "branches are not replayed yet"),
        ([call(1), call(2, 1, session_id="child")], 2, "of another session"),
        ([call(1), call(2, 3), call(3, 2)], 2, "round in a circle"),
        ([], 1, "empty"),
        (["", " "], 1, "empty"),
    ],
)
def test_an_error_names_the_line_and_what_is_wrong(
    tmp_path: Path, lines: list[dict[str, Any] | str], number: int, what: str
) -> None:
    path = write(tmp_path, *lines)
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}:{number}: ")
    assert what in str(caught.value)


def test_bytes_that_are_no_text_are_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"request_id": "\xff"}\n')
    with pytest.raises(InputError, match=":1: not JSON"):
        read_trace(path)
    with pytest.raises(InputError, match="no trace at"):
        read_trace(tmp_path / "nowhere.jsonl")


times_s = st.integers(0, 10**9).map(lambda microseconds: microseconds / 1e6)
tools = st.builds(
    Tool,
    name=st.text(max_size=5),
    run_s=times_s,
    cpu_s=times_s,
    timing=st.sampled_from(["recorded", "modelled"]),
    cores=st.integers(1, 64),
    memory_bytes=st.integers(0, 2**40),
)
turns = st.builds(
    Turn,
    new_tokens=st.integers(1, 10**6),
    output_tokens=st.integers(1, 10**5),
    reset=st.booleans(),
    tools=st.lists(tools, max_size=4).map(tuple),
    think_s=times_s,
)


@st.composite
def sessions(draw: st.DrawFn) -> list[Recorded]:
    found = []
    for session_id in draw(st.lists(st.text(max_size=4), min_size=1, max_size=4, unique=True)):
        made = draw(st.lists(turns, min_size=1, max_size=5))
        # What the format has no place for: a first reset, thinking after the last answer.
        made[0] = msgspec.structs.replace(made[0], reset=False)
        made[-1] = msgspec.structs.replace(made[-1], think_s=0.0)
        whole = [turn.new_tokens for turn in made if turn.reset] + [made[0].new_tokens]
        prefix = draw(st.text(max_size=3))
        found.append(
            Recorded(
                session_id=session_id,
                arrives_s=draw(times_s),
                turns=tuple(made),
                shared_prefix=prefix,
                shared_tokens=draw(st.integers(0, min(whole))) if prefix else 0,
                leaves_s=draw(st.none() | times_s),
            )
        )
    return found


@given(given_sessions=sessions())
def test_what_was_written_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, given_sessions: list[Recorded]
) -> None:
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    write_trace(path, given_sessions)
    assert read_trace(path) == given_sessions


def test_a_session_the_format_cannot_hold_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    turn = Turn(new_tokens=1, output_tokens=1)
    waits = Turn(new_tokens=1, output_tokens=1, think_s=1.0)
    for wrong, what in (
        ([Recorded(session_id="a", turns=())], "does not end with a call"),
        ([Recorded(session_id="a", turns=(turn, waits))], "does not end with a call"),
        ([Recorded(session_id="a", turns=(turn,))] * 2, "same session_id"),
        ([Recorded(session_id="a", turns=(turn,), shared_tokens=1)], "no name"),
        (
            [Recorded(session_id="a", turns=(turn,), shared_prefix="p", shared_tokens=2)],
            "longer than the prompt of call 1",
        ),
    ):
        with pytest.raises(InputError, match=what):
            write_trace(path, wrong)
    assert not path.exists()


def contexts(session: Recorded) -> list[int]:
    found, context_tokens = [], 0
    for turn in session.turns:
        context_tokens = (0 if turn.reset else context_tokens) + turn.new_tokens
        context_tokens += turn.output_tokens
        found.append(context_tokens)
    return found


@pytest.mark.parametrize(
    ("name", "count", "first", "mean_s"),
    [("coding", 24, (600, 1500), (0.3, 0.6)), ("airline", 16, (1200, 1300), (0.3, 0.6))],
)
def test_the_bundled_sets_keep_the_limits_their_readme_states(
    name: str, count: int, first: tuple[int, int], mean_s: tuple[float, float]
) -> None:
    found = read_trace(DATA / f"{name}.jsonl")
    assert len(found) == count
    for session in found:
        assert session.arrives_s == 0
        assert first[0] <= session.turns[0].new_tokens <= first[1]
        assert 6 <= len(session.turns) <= 12
        assert max(contexts(session)) <= 7000
        assert all(8 <= turn.output_tokens <= 60 for turn in session.turns)
        assert session.turns[-1].tools == ()
    ran = [tool for session in found for turn in session.turns for tool in turn.tools]
    assert {tool.timing for tool in ran} == {"modelled"}
    assert mean_s[0] <= sum(tool.run_s for tool in ran) / len(ran) <= mean_s[1]
    assert max(tool.run_s for tool in ran) <= 4.0
    assert all(tool.cpu_s <= 0.9 * tool.run_s + 1e-6 for tool in ran)
    last = sorted(contexts(session)[-1] for session in found)
    assert 2500 <= last[count // 2] <= 4000


def test_the_bundled_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in DATA.glob("*.jsonl")) < 300_000
