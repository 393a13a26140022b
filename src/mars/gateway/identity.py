"""Which session is a request of?

The rules of docs (interop), in order; the first that names an id wins, and its name is recorded in
`SessionArrived.rule`. A request that no rule names is a session of its own: ids are never shared
between requests that did not ask for it.

A session that another one has started (a sub-agent) may name that one, its parent; who names a
session that is not here, or itself, has none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from mars.core.errors import InputError
from mars.core.ids import SessionId

Headers = Sequence[tuple[bytes, bytes]]
"""As ASGI gives them: names in lower case."""

_MOST_CHARS: Final = 256

_HEADERS: Final = (
    b"x-session-id",  # vLLM, routers, RL frameworks, OpenCode
    b"x-dynamo-session-id",
    b"x-claude-code-agent-id",  # a sub-agent
    b"x-claude-code-session-id",
    b"session-id",  # Codex, these three
    b"session_id",
    b"thread-id",
    b"x-session-affinity",  # OpenCode
    b"x-litellm-session-id",  # OpenHands
    b"x-correlation-id",  # AIPerf
    b"x-smg-routing-key",
)
_PARENTS: Final = (
    b"x-dynamo-parent-session-id",
    b"x-claude-code-parent-agent-id",
    b"x-parent-session-id",  # OpenCode
)
_OF_SUB_AGENTS: Final = {b"x-claude-code-agent-id": b"x-claude-code-session-id"}
"""The session is named by the first, and was started by the second unless _PARENTS name another."""
_OPENHANDS: Final = b"x-litellm-session-id"
"""Its sub-agents give their parent's id as the `prompt_cache_key` in the body."""
_FINAL: Final = (b"x-session-final", b"x-dynamo-session-final")


class _Body(msgspec.Struct):
    """The fields of a body that may name a session; all others are skipped, not decoded."""

    session_id: object = None
    program_id: object = None
    job_id: object = None
    vllm_xargs: object = None
    prompt_cache_key: object = None


def _vllm_xargs(body: _Body) -> object:
    xargs = body.vllm_xargs
    return xargs.get("session_id") if isinstance(xargs, dict) else None


_FIELDS: Final[Mapping[str, Callable[[_Body], object]]] = {
    "session_id": lambda body: body.session_id,  # vLLM, SGLang, SkyRL
    "program_id": lambda body: body.program_id,  # ThunderAgent
    "job_id": lambda body: body.job_id,  # Continuum, the MARS preview
    "vllm_xargs.session_id": _vllm_xargs,
    "prompt_cache_key": lambda body: body.prompt_cache_key,  # OpenAI
}

_decoder = msgspec.json.Decoder(_Body)


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    session_id: SessionId | None
    """None: nothing names a session; the desk gives the request one of its own."""
    rule: str
    """`header NAME`, `body FIELD`, or `none`."""
    final: bool
    """The session ends with this request."""
    parent_id: SessionId | None = None
    """The session that started this one."""
    tenant: str = ""
    """Whose the session is; empty: nobody said."""


def identify(headers: Headers, body: bytes) -> Identity:
    """Raises InputError when the id that is found cannot be one (too long, not printable)."""
    given: dict[bytes, bytes] = {}
    for name, value in headers:
        given.setdefault(name, value)
    final = any(given.get(name, b"").strip().lower() in {b"1", b"true"} for name in _FINAL)
    for name in _HEADERS:
        if value := given.get(name, b"").strip():
            rule = f"header {name.decode()}"
            session_id = _checked(value.decode("utf-8", "surrogateescape"), rule)
            parent_id = _parent(name, given, body)
            if parent_id == session_id:
                parent_id = None
            return Identity(session_id=session_id, rule=rule, final=final, parent_id=parent_id)
    rule, found = _from_body(body)
    if found:
        return Identity(session_id=_checked(found, rule), rule=rule, final=final)
    return Identity(session_id=None, rule="none", final=True)


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


def _from_body(body: bytes) -> tuple[str, str]:
    wanted = _fields(body)
    for field, value_of in _FIELDS.items():
        value = value_of(wanted)
        if isinstance(value, bool):
            continue
        if isinstance(value, str | int) and (text := str(value).strip()):
            return f"body {field}", text
    return "", ""


def _checked(text: str, rule: str) -> SessionId:
    return SessionId(_printable(text, f"session id ({rule})"))


def _printable(text: str, what: str) -> str:
    if len(text) > _MOST_CHARS:
        raise InputError(f"the {what} has {len(text)} characters; {_MOST_CHARS} is the most")
    if not text.isprintable():
        raise InputError(f"the {what} has characters that cannot be printed")
    return text
