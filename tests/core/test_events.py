"""One declaration is the value, the wire message and the log line."""

from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, NewType, Union, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core import events as ev
from mars.core.ids import SessionId

KINDS: tuple[type[ev.Event], ...] = get_args(ev.Event)

PLAIN: dict[object, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(max_size=20),
    bool: st.booleans(),
    type(None): st.none(),
}


def values(kind: object) -> st.SearchStrategy[Any]:
    if isinstance(kind, NewType):
        return values(kind.__supertype__)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in {Union, UnionType}:
        return st.one_of(*map(values, arguments))
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=4).map(tuple)
    return PLAIN[kind]


def facts(kind: type[ev.Event]) -> st.SearchStrategy[ev.Event]:
    fields = msgspec.structs.fields(kind)
    return st.builds(kind, **{field.name: values(field.type) for field in fields})


def both_ways() -> list[tuple[Callable[[Any], bytes], Callable[[bytes], ev.Event]]]:
    return [
        (msgspec.json.encode, msgspec.json.Decoder(ev.Event).decode),
        (msgspec.msgpack.encode, msgspec.msgpack.Decoder(ev.Event).decode),
    ]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_event_comes_back_from_the_wire(kind: type[ev.Event], data: st.DataObject) -> None:
    event = data.draw(facts(kind))
    for encode, decode in both_ways():
        back = decode(encode(event))
        assert type(back) is kind
        assert back == event


def test_the_tag_is_the_name_of_the_event() -> None:
    event = ev.SessionEnded(at_s=1.5, session_id=SessionId("s"), why="done")
    line = {"event": "SessionEnded", "at_s": 1.5, "session_id": "s", "why": "done"}
    line["by"] = "final request"
    assert msgspec.to_builtins(event) == line


def test_every_event_has_one_source() -> None:
    """The table in the docstring names each event once, under whoever stamps it."""
    lines = (ev.__doc__ or "").splitlines()
    sources = ("    gateway ", "    engine ", "    tool runtime ")
    rows = [line for line in lines if line.startswith(sources)]
    assert all(any(row.startswith(source) for row in rows) for source in sources)
    stamped = [word for row in rows for word in row.split() if word[0].isupper()]
    assert sorted(stamped) == sorted(kind.__name__ for kind in KINDS)


@pytest.mark.parametrize(
    "line",
    [
        b'{"event":"SessionVanished","at_s":1.0}',
        b'{"event":"SessionEnded","at_s":1.0,"session_id":"s"}',
        b'{"event":"SessionEnded","at_s":"now","session_id":"s","why":""}',
    ],
)
def test_what_is_no_event_does_not_pass(line: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(line, type=ev.Event)
