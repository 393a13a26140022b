"""Which session is a request of?

The rules of docs (interop), in order; the first that names an id wins, and its name is recorded in
`SessionArrived.rule`. Clients that name nothing may still go on from an answer that we remember. A
request that no rule names is a session of its own: ids are never shared between requests that did
not ask for it.

A session that another one has started (a sub-agent) may name that one, its parent; who names a
session that is not here, or itself, has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from mars.core.errors import InputError
from mars.core.ids import SessionId
from mars.gateway.recall import Recall
from mars.gateway.thread import Asked, read_messages

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI gives them: names in lower case."""

_MOST_CHARS: Final = 256

_OPENHANDS: Final = b"x-litellm-session-id"
"""Of the clients known, only OpenHands' SDK sends it unasked, per conversation. Before all others:
an `X-Session-ID` beside it is a fixed header that all its sub-agents inherit. Those give their
parent's id as the `prompt_cache_key` in the body."""
_HEADERS: Final = (
    _OPENHANDS,
    b"x-session-id",  # vLLM, routers, RL frameworks, OpenCode
    b"x-dynamo-session-id",
    b"x-claude-code-agent-id",  # a sub-agent
    b"x-claude-code-session-id",
    b"thread-id",  # Codex: the conversation, of a sub-agent its own
    b"session-id",  # and that of the root, which all its sub-agents share
    b"session_id",
    b"x-session-affinity",  # OpenCode
    b"x-correlation-id",  # AIPerf
    b"x-smg-routing-key",
)
_PARENTS: Final = (
    b"x-dynamo-parent-session-id",
    b"x-claude-code-parent-agent-id",
    b"x-codex-parent-thread-id",
    b"x-parent-session-id",  # OpenCode
)
_OF_SUB_AGENTS: Final = {b"x-claude-code-agent-id": b"x-claude-code-session-id"}
"""The session is named by the first, and was started by the second unless _PARENTS name another."""
_FINAL: Final = (b"x-session-final", b"x-dynamo-session-final")


_FINAL_FIELDS: Final = (
    ("last_step",),
    ("vllm_xargs", "last_step"),
    ("agent_hint", "last_step"),
    ("nvext", "agent_context", "session_final"),  # Dynamo
)
"""Read where the body is, because no header names the session: who sends such a header can send one
of _FINAL."""


class _Body(msgspec.Struct):
    """The fields of a body that may name a session; all others are skipped, not decoded."""

    session_id: object = None
    program_id: object = None
    job_id: object = None
    agent_hint: object = None
    nvext: object = None
    vllm_xargs: object = None
    metadata: object = None
    conversation: object = None
    prompt_cache_key: object = None
    previous_response_id: object = None
    last_step: object = None


_CLAUDE_CODE: Final = ("metadata", "user_id")
"""A JSON object that has a session's id; of other clients it is a person's."""
_PREVIOUS: Final = ("previous_response_id",)
"""The turn before, not the session: to be looked up."""
_FIELDS: Final = (
    ("session_id",),  # vLLM, SGLang, SkyRL
    ("program_id",),  # ThunderAgent
    ("job_id",),  # Continuum, the MARS preview
    ("agent_hint", "session_id"),
    ("nvext", "agent_context", "session_id"),  # Dynamo
    ("vllm_xargs", "session_id"),
    _CLAUDE_CODE,
    ("conversation",),  # OpenAI's responses: an id, or
    ("conversation", "id"),
    ("prompt_cache_key",),  # OpenAI
    _PREVIOUS,
)

_decoder = msgspec.json.Decoder(_Body)


class _Talk(_Body):
    messages: list[msgspec.Raw] | None = None
    input: list[msgspec.Raw] | str | None = None
    """What a response is asked by; a string: its first message."""

    @property
    def said(self) -> list[msgspec.Raw]:
        return self.messages or (self.input if isinstance(self.input, list) else [])


_talk_decoder = msgspec.json.Decoder(_Talk)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    session_id: SessionId | None
    """None: nothing names a session; the desk gives the request one of its own."""
    rule: str
    """`header NAME`, `body FIELD`, `messages` (it goes on from an answer), or `none`."""
    final: bool
    """The session ends with this request."""
    parent_id: SessionId | None = None
    """The session that started this one."""
    tenant: str = ""
    """Whose the session is; empty: nobody said."""
    asked: Asked | None = None
    """What is asked, where somebody may go on from the answer and nothing else tells who does."""
    went_on_from: bytes = b""
    """Key of the answer by which the session was found."""


def identify(
    headers: Headers, body: bytes, recall: Recall | None = None, tenant: str = ""
) -> Identity:
    """`recall`: the answers given so far.

    Raises InputError when the id that is found cannot be one (too long, not printable).
    """
    given: dict[bytes, bytes] = {}
    for name, value in headers:
        given.setdefault(name, value)
    final = any(_says_yes(given.get(name, b"").decode("latin-1")) for name in _FINAL)
    for name in _HEADERS:
        if value := given.get(name, b"").strip():
            rule = f"header {name.decode()}"
            session_id = _checked(value.decode("utf-8", "surrogateescape"), rule)
            parent_id = _parent(name, given, body)
            return Identity(
                session_id=session_id,
                rule=rule,
                final=final,
                parent_id=None if parent_id == session_id else parent_id,
                tenant=tenant,
            )
    return _of_body(body, recall, tenant, final=final)


def _of_body(body: bytes, recall: Recall | None, tenant: str, *, final: bool) -> Identity:
    fields = _talk(body) if recall and recall.infers else _fields(body)
    final = final or _is_last(fields)
    rule, found = _named(fields, recall)
    if found:
        session_id = _checked(found, rule)
        return Identity(session_id=session_id, rule=rule, final=final, tenant=tenant)
    nobody = Identity(session_id=None, rule="none", final=True, tenant=tenant)
    if not (recall and isinstance(fields, _Talk) and fields.said):
        return nobody
    asked = read_messages(fields.said, tenant)
    if (known := recall.go_on_from(asked.goes_on_from)) is None:
        return nobody if final else msgspec.structs.replace(nobody, asked=asked)
    return Identity(
        session_id=known,
        rule="messages",
        final=final,
        tenant=tenant,
        asked=None if final else asked,
        went_on_from=asked.goes_on_from,
    )


def tenant_of(headers: Headers, name: str) -> str:
    """What this header says; empty without one. Raises InputError as `identify` does."""
    wanted = name.lower().encode()
    found = next((value for header, value in headers if header == wanted), b"").strip()
    return _printable(found.decode("utf-8", "surrogateescape"), f"tenant (header {name})")


def _parent(named_by: bytes, given: Mapping[bytes, bytes], body: bytes) -> SessionId | None:
    for name in (*_PARENTS, _OF_SUB_AGENTS.get(named_by, b"")):
        if value := given.get(name, b"").strip():
            rule = f"header {name.decode()}"
            return _checked(value.decode("utf-8", "surrogateescape"), rule)
    if named_by == _OPENHANDS and (key := _fields(body).prompt_cache_key):
        return _checked(key, "body prompt_cache_key") if isinstance(key, str) else None
    return None


def _fields(body: bytes) -> _Body:
    try:
        return _decoder.decode(body)
    except (ValueError, RecursionError):
        return _Body()  # not JSON: the engine says so better than we could


def _talk(body: bytes) -> _Body:
    """With the messages, as they are written; without, where they are no list."""
    try:
        return _talk_decoder.decode(body)
    except (ValueError, RecursionError):
        return _fields(body)


def _named(fields: _Body, recall: Recall | None) -> tuple[str, str]:
    """The first rule that names the session, and its id; empty when none does."""
    for path in _FIELDS:
        value = _at(fields, path)
        if path == _CLAUDE_CODE:
            value = _of_claude_code(value)
        elif path == _PREVIOUS:
            value = recall.session_of(value) if recall and isinstance(value, str) else None
        if isinstance(value, str | int) and not isinstance(value, bool):
            text = str(value).strip()
            if text:
                return f"body {'.'.join(path)}", text
    return "", ""


def _at(fields: _Body, path: Sequence[str]) -> Any:
    value: Any = getattr(fields, path[0])
    for name in path[1:]:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _of_claude_code(user_id: object) -> object:
    """Its user id is a JSON object in a string."""
    if not (isinstance(user_id, str) and user_id.startswith("{")):
        return None
    try:
        known = msgspec.json.decode(user_id, type=dict[str, object])
    except (ValueError, RecursionError):
        return None
    return known.get("session_id")


def _is_last(fields: _Body) -> bool:
    return any(_says_yes(_at(fields, path)) for path in _FINAL_FIELDS)


def _says_yes(value: object) -> bool:
    return str(value).strip().lower() in {"1", "true"}


def _checked(text: str, rule: str) -> SessionId:
    return SessionId(_printable(text, f"session id ({rule})"))


def _printable(text: str, what: str) -> str:
    if len(text) > _MOST_CHARS:
        raise InputError(f"the {what} has {len(text)} characters; {_MOST_CHARS} is the most")
    if not text.isprintable():
        raise InputError(f"the {what} has characters that cannot be printed")
    return text
