"""The event log: what was written is read back; what was torn is found."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from mars.core import events as ev
from mars.core.errors import InputError
from mars.core.ids import SessionId, ToolId
from mars.stream.log import LogWriter, read_log

EVENTS: list[ev.Event] = [
    ev.SessionArrived(at_s=0.5, session_id=SessionId("ü\n"), rule="header", prompt_bytes=10),
    ev.ToolFinished(
        at_s=2.0,
        session_id=SessionId("ü\n"),
        tool_id=ToolId("t"),
        tool="make",
        run_s=1.0,
        cpu_s=0.9,
        peak_memory_bytes=1 << 40,
        exit_code=None,
        why="cancelled",
    ),
    ev.SessionEnded(at_s=3.0, session_id=SessionId("ü\n"), why="done"),
]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    writer = LogWriter(path, {"policy": "mars", "window": {"first": 4}})
    for event in EVENTS:
        writer.write(event)
    writer.close()
    return path


def test_round_trip(log: Path) -> None:
    head, events = read_log(log)
    assert head.log == 1
    assert head.settings == {"policy": "mars", "window": {"first": 4}}
    assert head.wall_s > head.at_s > 0.0
    assert list(events) == EVENTS


def test_what_was_flushed_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    writer = LogWriter(path, {})
    writer.write(EVENTS[0])
    writer.flush()
    assert list(read_log(path)[1]) == EVENTS[:1]
    writer.close()


@contextmanager
def files_of(most_bytes: int) -> Iterator[None]:
    """No file may grow beyond, as on a disk that fills."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))


def numbered(number: int) -> ev.Event:
    return ev.SessionEnded(at_s=float(number), session_id=SessionId("s"), why="x" * 400)


def flushed(writer: LogWriter) -> bool:
    try:
        writer.flush()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("most_bytes", [0, 100, 10_000, 70_000])
def test_a_full_disk_costs_nothing_that_memory_can_keep(tmp_path: Path, most_bytes: int) -> None:
    path = tmp_path / "events.jsonl"
    writer = LogWriter(path, {})
    with files_of(most_bytes):
        for number in range(1000):
            with suppress(OSError):
                writer.write(numbered(number))
        assert not flushed(writer)
        assert path.read_bytes()[-1:] in {b"", b"\n"}, "it ends with a whole line"
    assert flushed(writer)
    assert list(read_log(path)[1]) == [numbered(number) for number in range(1000)]
    assert writer.lost == 0
    writer.close()


def test_what_is_lost_is_counted_and_said_where_it_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "events.jsonl"
    writer = LogWriter(path, {})
    with files_of(10_000):
        for number in range(5000):
            with suppress(OSError):
                writer.write(numbered(number))
    assert flushed(writer)
    writer.write(numbered(9999))
    writer.close()
    said = [int(event.at_s) for event in read_log(path)[1]]
    assert writer.lost == 5001 - len(said) > 0
    assert said == [*range(len(said) - 1), 9999]
    assert f":{len(said) + 1}: {writer.lost} events are missing here" in caplog.text


@pytest.mark.parametrize("most_bytes", [0, 10_000])
def test_a_log_that_was_deleted_to_make_room_begins_again(tmp_path: Path, most_bytes: int) -> None:
    path = tmp_path / "events.jsonl"
    writer = LogWriter(path, {"a": 1})
    with files_of(most_bytes):
        for number in range(200):
            with suppress(OSError):
                writer.write(numbered(number))
        assert not flushed(writer)
    path.unlink()
    assert flushed(writer)
    head, events = read_log(path)
    assert head.settings == {"a": 1}
    assert list(events)[-1] == numbered(199)
    writer.close()


def test_a_log_cut_anywhere_keeps_its_whole_lines(log: Path) -> None:
    """The writer may be killed at any byte of the last line."""
    whole = log.read_bytes()
    last_line = len(whole.splitlines()[-1]) + 1
    assert last_line > 2
    for cut in range(1, last_line + 1):
        log.write_bytes(whole[:-cut])
        assert list(read_log(log)[1]) == EVENTS[:-1]


@pytest.mark.parametrize(
    "line",
    [
        b"{not json",
        b"",
        b'{"event":"SessionVanished","at_s":1.0}',
        b'{"event":"SessionEnded","at_s":1.0,"session_id":"s"}',
        b'{"event":"SessionEnded","at_s":1.0,"session_id":"\xff","why":""}',
    ],
    ids=["not JSON", "empty", "unknown event", "field missing", "not UTF-8"],
)
def test_a_malformed_line_is_named(log: Path, line: bytes) -> None:
    lines = log.read_bytes().split(b"\n")
    lines[2] = line
    log.write_bytes(b"\n".join(lines))
    _, events = read_log(log)
    assert next(events) == EVENTS[0]
    with pytest.raises(InputError) as caught:
        next(events)
    assert str(caught.value).startswith(f"{log}:3: not an event: ")


@pytest.mark.parametrize("head", [b"{}", b"\xff", msgspec.json.encode(EVENTS[0])])
def test_a_file_that_is_no_log_is_refused(log: Path, head: bytes) -> None:
    log.write_bytes(head + b"\n" + log.read_bytes())
    with pytest.raises(InputError) as caught:
        read_log(log)
    assert str(caught.value).startswith(f"{log}:1: not the head of an event log: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no event log at .*gone\.jsonl"):
        read_log(tmp_path / "gone.jsonl")


@pytest.mark.parametrize("content", [b"", b'{"log":1'])
def test_an_empty_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"empty\.jsonl is empty"):
        read_log(path)
