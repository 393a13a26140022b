"""Recorded sessions on disk: Agentic Mooncake JSON lines, one line for one LLM call.

`tool_wait_ms` and `delay` of line k are the gap before it; what of it is no tool is think time.
What a session shares and when its client leaves stand on its first line (fields: `lines.py`), tools
on the line that asked for them (Dynamo's own exporter: on the line that reads their results).
A prompt extends the one before it unless `prefix_reset` is set:

    input_length[k] = input_length[k-1] + output_length[k-1] + new_tokens[k]

Times have three decimals of a millisecond: whole microseconds survive the file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from mars.core.errors import InputError
from mars.workload.lines import Line, Timing, ToolEvent, millis, seconds


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    run_s: float
    cpu_s: float = 0.0
    """Core-seconds inside `run_s`; more than `run_s` means several cores. 0 if nobody measured."""
    timing: Timing = "recorded"
    cores: int = 1
    """The most it can use at once."""
    memory_bytes: int = 0
    """Its peak; 0 if nobody measured."""


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One LLM call, and what happens between its answer and the next call."""

    new_tokens: int
    """Appended to the prompt since the previous call, without the previous answer; the whole
    prompt at the first turn and at a reset."""
    output_tokens: int
    reset: bool = False
    """The prompt does not extend the previous one (a condensed history, say)."""
    tools: tuple[Tool, ...] = ()
    """One after another."""
    think_s: float = 0.0
    """The rest of the gap to the next call: the client, the user."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    session_id: str
    arrives_s: float = 0.0
    turns: tuple[Turn, ...]
    shared_prefix: str = ""
    """Name of the system prompt that sessions share; empty if it shares none."""
    shared_tokens: int = 0
    """Its length. The first turn's `new_tokens` and those of a reset begin with it."""
    leaves_s: float | None = None
    """The client gives up so many seconds after its arrival; None: it waits for the end."""


class _Call(NamedTuple):
    where: str  # path:line
    line: Line


def read_trace(path: Path) -> list[Recorded]:
    """Sessions in the order the file first names them; InputError with path:line if it is wrong."""
    calls = _read_calls(path)
    sessions: dict[str, list[_Call]] = {}
    for call in calls.values():
        sessions.setdefault(call.line.session_id, []).append(call)
    return [_session(_chain(own, calls)) for own in sessions.values()]


def _read_calls(path: Path) -> dict[str, _Call]:
    if not path.is_file():
        raise InputError(f"no trace at {path}")
    decoder = msgspec.json.Decoder(Line)
    calls: dict[str, _Call] = {}
    for number, text in enumerate(path.read_bytes().split(b"\n"), 1):
        if not text.strip():
            continue
        where = f"{path}:{number}"
        try:
            line = decoder.decode(text)
        except ValueError as error:
            what = "a call" if isinstance(error, msgspec.ValidationError) else "JSON"
            raise InputError(f"{where}: not {what}: {error}") from None
        if line.request_id in calls:
            raise InputError(f"{where}: there is already a request_id {line.request_id!r}")
        calls[line.request_id] = _Call(where, line)
    if not calls:
        raise InputError(f"{path}:1: the trace is empty")
    return calls


def _chain(own: Sequence[_Call], calls: dict[str, _Call]) -> list[_Call]:
    """The calls of one session in the order in which they wait for each other."""
    after: dict[str | None, _Call] = {}
    for call in own:
        parent = _parent(call, calls)
        if parent in after:
            raise _branch(call, f"{after[parent].where} has the same wait_for")
        after[parent] = call
    chain: list[_Call] = []
    at = after.pop(None, None)
    while at is not None:
        chain.append(at)
        at = after.pop(at.line.request_id, None)
    for lost in after.values():
        raise InputError(f"{lost.where}: wait_for goes round in a circle")
    return chain


def _parent(call: _Call, calls: dict[str, _Call]) -> str | None:
    where, line = call
    if line.branches or len(line.wait_for) > 1:
        raise _branch(call, "one call before it and one after it at most")
    if not line.wait_for:
        if line.timestamp is None:
            raise InputError(f"{where}: needs a timestamp, as it waits for no other call")
        return None
    parent = line.wait_for[0]
    if parent not in calls:
        raise InputError(f"{where}: wait_for names {parent!r}, which is nowhere in the trace")
    if calls[parent].line.session_id != line.session_id:
        raise _branch(call, f"it waits for {parent!r} of another session")
    return parent


def _branch(call: _Call, why: str) -> InputError:
    return InputError(f"{call.where}: branches are not replayed yet: {why}")


def _session(chain: Sequence[_Call]) -> Recorded:
    turns: list[Turn] = []
    context_tokens = 0
    for index, (where, line) in enumerate(chain):
        # On a first line the flag says nothing: Dynamo's exporter always sets it there.
        reset = bool(line.prefix_reset) and index > 0
        if not reset and line.input_length < context_tokens:
            raise InputError(
                f"{where}: input_length {line.input_length} is shorter than the context so far "
                f"({context_tokens} tokens), and prefix_reset is not set"
            )
        turns.append(
            Turn(
                new_tokens=line.input_length - (0 if reset else context_tokens),
                output_tokens=line.output_length,
                reset=reset,
                tools=tuple(map(_tool, line.tool_events)),
                think_s=_think_s(line, chain[index + 1].line) if index + 1 < len(chain) else 0.0,
            )
        )
        context_tokens = line.input_length + line.output_length
    where, first = chain[0]
    session = Recorded(
        session_id=first.session_id,
        arrives_s=seconds(first.timestamp or 0.0),
        turns=tuple(turns),
        shared_prefix=first.shared_prefix,
        shared_tokens=first.shared_prefix_tokens,
        leaves_s=None if first.leaves_ms is None else seconds(first.leaves_ms),
    )
    _check_sharing(where, session)
    return session


def _check_sharing(where: str, session: Recorded) -> None:
    """A shared prefix has a name, and every whole prompt begins with it."""
    if session.shared_tokens and not session.shared_prefix:
        raise InputError(f"{where}: the shared prefix has tokens and no name: set shared_prefix")
    for index, turn in enumerate(session.turns):
        if (turn.reset or index == 0) and turn.new_tokens < session.shared_tokens:
            raise InputError(
                f"{where}: the shared prefix ({session.shared_tokens} tokens) is longer than the "
                f"prompt of call {index + 1} ({turn.new_tokens} tokens)"
            )


def _tool(event: ToolEvent) -> Tool:
    return Tool(
        name=event.tool_class,
        run_s=seconds(event.duration_ms),
        cpu_s=seconds(event.cpu_ms),
        timing=event.timing,
        cores=event.cores,
        memory_bytes=event.memory_bytes,
    )


def _think_s(line: Line, following: Line) -> float:
    """The gap before `following` less the tools; a recorded wait for cores is nobody's thinking."""
    tools_ms = sum(event.queue_wait_ms + event.duration_ms for event in line.tool_events)
    rest_ms = max(0.0, (following.tool_wait_ms or 0.0) - tools_ms)
    return seconds((following.delay or 0.0) + rest_ms)


def write_trace(path: Path, sessions: Sequence[Recorded]) -> None:
    """Writes what `read_trace` reads back as equal sessions."""
    if len({session.session_id for session in sessions}) < len(sessions):
        raise InputError("two sessions have the same session_id")
    for session in sessions:
        if not session.turns or session.turns[-1].think_s:
            raise InputError(f"session {session.session_id!r} does not end with a call")
        _check_sharing(f"session {session.session_id!r}", session)
    encoder = msgspec.json.Encoder()
    lines = (encoder.encode(line) + b"\n" for session in sessions for line in _lines(session))
    path.write_bytes(b"".join(lines))


def _lines(session: Recorded) -> Iterator[Line]:
    context_tokens = 0
    for index, turn in enumerate(session.turns):
        request_id = f"{session.session_id}/{index}"
        input_tokens = turn.new_tokens + (0 if turn.reset else context_tokens)
        line = Line(
            request_id=request_id,
            session_id=session.session_id,
            input_length=input_tokens,
            output_length=turn.output_tokens,
            prefix_reset=turn.reset or index == 0 or None,
            tool_events=tuple(_event(request_id, n, tool) for n, tool in enumerate(turn.tools)),
        )
        if index == 0:
            line.timestamp = millis(session.arrives_s)
            line.shared_prefix = session.shared_prefix
            line.shared_prefix_tokens = session.shared_tokens
            line.leaves_ms = None if session.leaves_s is None else millis(session.leaves_s)
        else:
            before = session.turns[index - 1]
            line.wait_for = (f"{session.session_id}/{index - 1}",)
            line.delay = millis(before.think_s)
            line.tool_wait_ms = millis(sum(tool.run_s for tool in before.tools))
        yield line
        context_tokens = input_tokens + turn.output_tokens


def _event(request_id: str, number: int, tool: Tool) -> ToolEvent:
    return ToolEvent(
        tool_call_id=f"{request_id}.{number}",
        tool_class=tool.name,
        status="succeeded",
        # Dynamo's reader asks for both; only their difference is known here.
        started_at_unix_ms=0,
        ended_at_unix_ms=round(tool.run_s * 1e3),
        duration_ms=millis(tool.run_s),
        cpu_ms=millis(tool.cpu_s),
        timing=tool.timing,
        cores=tool.cores,
        memory_bytes=tool.memory_bytes,
    )
