"""Which session is a request of?"""

from itertools import combinations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.errors import InputError
from mars.core.ids import SessionId
from mars.gateway.identity import Identity, identify
from mars.gateway.recall import Recall

HEADERS = (
    b"x-litellm-session-id",
    b"x-session-id",
    b"x-dynamo-session-id",
    b"x-claude-code-agent-id",
    b"x-claude-code-session-id",
    b"thread-id",
    b"session-id",
    b"session_id",
    b"x-session-affinity",
    b"x-correlation-id",
    b"x-smg-routing-key",
)
FIELDS = (
    "session_id",
    "program_id",
    "job_id",
    "agent_hint.session_id",
    "nvext.agent_context.session_id",
    "vllm_xargs.session_id",
    "metadata.user_id",
    "conversation",
    "prompt_cache_key",
    "previous_response_id",
)


def body(**fields: object) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": [{"content": "x" * 100}]} | fields)


def named(field: str, value: object) -> dict[str, object]:
    outer, *inner = field.split(".")
    if field == "metadata.user_id":
        value = msgspec.json.encode({"device_id": "d", "session_id": value}).decode()
    for name in reversed(inner):
        value = {name: value, "other": 1}
    return {outer: value}


def remembering(*sessions: str) -> Recall:
    """One whose responses are named as their sessions."""
    recall = Recall()
    for session in sessions:
        recall.remember(session, SessionId(session))
    return recall


@pytest.mark.parametrize("name", HEADERS)
def test_each_header_names_the_session(name: bytes) -> None:
    found = identify([(b"accept", b"*/*"), (name, b" abc ")], body())
    assert found == Identity(
        session_id=SessionId("abc"), rule=f"header {name.decode()}", final=False
    )


@pytest.mark.parametrize(("first", "second"), combinations(HEADERS, 2))
def test_an_earlier_header_rule_wins(first: bytes, second: bytes) -> None:
    assert identify([(second, b"2"), (first, b"1")], b"").session_id == "1"


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_names_the_session(field: str) -> None:
    found = identify([], body(**named(field, "abc")), remembering("abc"))
    assert found == Identity(session_id=SessionId("abc"), rule=f"body {field}", final=False)


@pytest.mark.parametrize(("first", "second"), combinations(FIELDS, 2))
def test_an_earlier_field_rule_wins(first: str, second: str) -> None:
    both = body(**named(second, "2"), **named(first, "1"))
    assert identify([], both, remembering("1", "2")).session_id == "1"


def test_a_response_that_nobody_remembers_names_no_session() -> None:
    asked = body(previous_response_id="resp_1")
    assert identify([], asked).rule == identify([], asked, remembering("resp_2")).rule == "none"


@pytest.mark.parametrize(
    "user_id", ["a person", "{no json", "[1]", "{}", '{"session_id": null}', 7, {"session_id": "a"}]
)
def test_a_user_is_no_session(user_id: object) -> None:
    assert identify([], body(metadata={"user_id": user_id})).rule == "none"


@pytest.mark.parametrize("conversation", ["abc", {"id": "abc"}])
def test_a_conversation_of_responses_is_a_session(conversation: object) -> None:
    assert identify([], body(conversation=conversation)).session_id == "abc"


@pytest.mark.parametrize(
    "fields", [{"nvext": 1}, {"nvext": {"agent_context": [1]}}, {"metadata": 1}]
)
def test_what_has_another_shape_names_nothing(fields: dict[str, object]) -> None:
    assert identify([], body(**fields)).rule == "none"


@pytest.mark.parametrize(
    "fields",
    [
        {"last_step": True},
        {"vllm_xargs": {"last_step": 1}},
        {"vllm_xargs": {"last_step": "true"}},
        {"agent_hint": {"last_step": True}},
        {"nvext": {"agent_context": {"session_final": True}}},
    ],
)
def test_a_hint_of_the_last_step_is_final(fields: dict[str, object]) -> None:
    assert identify([], body(job_id="a", **fields)).final
    assert not identify([], body(job_id="a", messages="last_step: true", last_step=0)).final


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_wins_over_the_body(name: bytes) -> None:
    assert identify([(name, b"header")], body(session_id="body")).session_id == "header"


def test_a_body_is_not_read_when_a_header_matched() -> None:
    assert identify([(b"x-session-id", b"a")], b"{no json").session_id == "a"


@pytest.mark.parametrize("empty", [None, "", "  ", True, [1], {"a": 1}])
def test_what_is_no_id_leaves_the_next_rule_its_turn(empty: object) -> None:
    fields = named("session_id", empty) | named("job_id", 7)
    assert identify([(b"x-session-id", b" ")], body(**fields)) == Identity(
        session_id=SessionId("7"), rule="body job_id", final=False
    )


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff\xfe", b'{"session_id":"\\ud800"}', b"[" * 100_000]
)
def test_no_id_is_a_session_of_its_own_that_ends_with_the_request(raw: bytes) -> None:
    assert identify([], raw) == Identity(session_id=None, rule="none", final=True)


@given(st.binary(max_size=300))
def test_no_body_whatsoever_raises_more_than_a_bad_id(raw: bytes) -> None:
    try:
        identify([], raw)
    except InputError as error:
        assert "session id" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", [b"x-session-final", b"x-dynamo-session-final"])
@pytest.mark.parametrize(
    ("value", "final"),
    [(b"1", True), (b"true", True), (b"True", True), (b"0", False), (b"", False)],
)
def test_final(name: bytes, value: bytes, *, final: bool) -> None:
    assert identify([(b"x-session-id", b"a"), (name, value)], b"").final is final


def test_an_id_of_256_characters_is_one_and_of_257_is_none() -> None:
    assert identify([(b"session-id", b"a" * 256)], b"").session_id == "a" * 256
    with pytest.raises(InputError, match="257 characters; 256 is the most"):
        identify([(b"session-id", b"a" * 257)], b"")
    with pytest.raises(InputError, match=r"body job_id.* 300 characters"):
        identify([], body(job_id="a" * 300))


@pytest.mark.parametrize("text", ["a\x00b", "a\nb", "a\x7fb", "a\x85b", "a\u2028b"])
def test_an_id_that_cannot_be_printed_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"header session-id.*cannot be printed"):
        identify([(b"session-id", text.encode())], b"")
    with pytest.raises(InputError, match=r"body session_id.*cannot be printed"):
        identify([], body(session_id=text))


def test_a_header_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be printed"):
        identify([(b"session-id", b"\xe9")], b"")


@pytest.mark.parametrize(
    ("own", "parent"),
    [
        (b"x-dynamo-session-id", b"x-dynamo-parent-session-id"),
        (b"x-claude-code-agent-id", b"x-claude-code-parent-agent-id"),
        (b"x-claude-code-agent-id", b"x-claude-code-session-id"),
        (b"thread-id", b"x-codex-parent-thread-id"),
        (b"x-session-id", b"x-parent-session-id"),
    ],
)
def test_a_sub_agent_names_its_parent(own: bytes, parent: bytes) -> None:
    found = identify([(own, b"sub"), (parent, b" root ")], b"")
    assert (found.session_id, found.parent_id) == ("sub", "root")
    assert identify([(own, b"root"), (parent, b"root")], b"").parent_id is None
    assert identify([(own, b"sub"), (parent, b" ")], b"").parent_id is None


def test_the_nearest_of_claude_code_s_agents_is_the_parent() -> None:
    ids = [(b"x-claude-code-session-id", b"main"), (b"x-claude-code-agent-id", b"sub of sub")]
    found = identify([*ids, (b"x-claude-code-parent-agent-id", b"sub")], b"")
    assert (found.session_id, found.parent_id) == ("sub of sub", "sub")


@pytest.mark.parametrize(
    ("key", "parent"), [("root", "root"), ("sub", None), (None, None), ("", None), (7, None)]
)
def test_a_sub_agent_of_openhands_has_its_parent_as_its_cache_key(
    key: object, parent: str | None
) -> None:
    found = identify([(b"x-litellm-session-id", b"sub")], body(prompt_cache_key=key))
    assert (found.session_id, found.parent_id) == ("sub", parent)
    assert identify([(b"x-session-id", b"sub")], body(prompt_cache_key=key)).parent_id is None


def test_a_parent_s_id_that_cannot_be_printed_is_refused() -> None:
    with pytest.raises(InputError, match=r"header x-parent-session-id.*cannot be printed"):
        identify([(b"x-session-id", b"a"), (b"x-parent-session-id", b"a\x00")], b"")
