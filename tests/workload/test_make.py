import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import mars
from mars.core.errors import InputError
from mars.workload.make import FromRecords, FromTrace, Workload, make
from mars.workload.recorded import Scaling, recorded_sessions
from mars.workload.synthetic import Synthetic, scaled, sessions
from mars.workload.trace import Recorded, read_trace

CODING = Path(mars.__file__).parent / "data" / "coding.jsonl"
TOOL = {"name": "Bash", "duration_s": 8.0, "cpu_s": 2.0}
TURN = {"input_tokens": 900, "new_input_tokens": 30, "output_tokens": 50, "next": "tool"}
SESSION = {"session_id": "a/1", "source": "lab@1", "license": "MIT", "timing": "measured"}


def parsed(**fields: Any) -> Workload:
    workload: Workload = msgspec.convert(fields, Workload)
    return workload


@pytest.fixture
def records(tmp_path: Path) -> str:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(SESSION | {"turns": [TURN | {"tool": TOOL}] * 3}))
    return str(path)


def test_a_settings_table_names_each_kind(records: str) -> None:
    swe = parsed(kind="synthetic", **{"class": "swe"}, tools_factor=0.3)
    assert swe == Synthetic(session_class="swe", tools_factor=0.3)
    assert make(swe, 5, 0.2, 1) == sessions(swe, 5, 0.2, 1)

    lab = parsed(kind="recorded", path=records, source="lab", scaling={"tokens_div": 2})
    assert isinstance(lab, FromRecords)
    same = recorded_sessions(Path(records), "lab", 4, 0.2, 1, scaling=Scaling(tokens_div=2))
    assert make(lab, 4, 0.2, 1) == same
    assert same[0].turns[0].new_tokens == 450

    coding = make(parsed(kind="trace", path=str(CODING)), 24, 0.2, 1)
    assert {session.turns for session in coding} == {each.turns for each in read_trace(CODING)}
    assert 0 < coding[0].arrives_s < coding[-1].arrives_s


def test_tools_are_scaled_wherever_sessions_come_from(records: str) -> None:
    for kind, path in (("recorded", records), ("trace", str(CODING))):
        plain = make(parsed(kind=kind, path=path), 3, 1.0, 1)
        half: list[Recorded] = make(parsed(kind=kind, path=path, tools_factor=0.5), 3, 1.0, 1)
        assert half == scaled(plain, 0.5)
        assert half != plain


def test_what_was_parsed_can_be_written_down_and_parsed_again(records: str) -> None:
    for workload in (
        Synthetic(session_class="repo", tools_mean_s=60.0),
        FromRecords(path=records, scaling=Scaling(max_turns=3)),
        FromTrace(path="t.jsonl"),
    ):
        assert msgspec.json.decode(msgspec.json.encode(workload), type=Workload) == workload


@pytest.mark.parametrize(
    ("workload", "count", "rate_per_s", "what"),
    [
        (Synthetic(session_class="swe"), 0, 1.0, "count is 0"),
        (Synthetic(session_class="swe"), 1, 0.0, "rate_per_s is 0"),
        (FromTrace(path="nowhere.jsonl"), 1, -2.0, "rate_per_s is -2"),
        (FromTrace(path="nowhere.jsonl"), 1, 1.0, "no trace at nowhere.jsonl"),
        (FromRecords(path="nowhere.jsonl"), 1, 1.0, "no recorded sessions at nowhere.jsonl"),
        (FromTrace(path=str(CODING), tools_factor=0.0), 1, 1.0, "tools_factor is 0"),
    ],
)
def test_an_error_names_what_is_wrong(
    workload: Workload, count: int, rate_per_s: float, what: str
) -> None:
    with pytest.raises(InputError, match=what):
        make(workload, count, rate_per_s, 1)


def test_a_source_that_is_not_there_is_named(records: str) -> None:
    with pytest.raises(InputError, match="no session of nope; there are: lab@1"):
        make(FromRecords(path=records, source="nope"), 1, 1.0, 1)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"kind": "synthetic", "class": "swe", "tools_factor": 0}, r"\$.tools_factor"),
        ({"kind": "synthetic", "class": "swe", "tools_mean": 20}, "tools_mean"),
        ({"kind": "recorded", "path": "r", "scaling": {"max_turns": 0}}, r"\$.scaling.max_turns"),
        ({"kind": "dreamt"}, "dreamt"),
    ],
)
def test_a_settings_table_with_a_wrong_value_names_its_place(
    fields: dict[str, Any], what: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=what):
        parsed(**fields)
