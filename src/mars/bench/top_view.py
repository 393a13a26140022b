"""One frame of `mars top`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mars.bench.words import count, number, percent, seconds, size
from mars.core.session import Phase
from mars.gateway.roster import SessionRow, ToolRow
from mars.gateway.shown import Status

_HEAD_LINES: Final = 10
"""Above the first session, the table's own head included, and one for what is left out."""
_BAR_CHARS: Final = 24
_OLD_S: Final = 5.0
"""A sample of an engine at work is younger."""
_BUSY_FRAC: Final = 0.9
_FIRST: Final = [Phase.GATED, Phase.PAUSED, Phase.QUEUED, Phase.RUNNING, Phase.ACTING]
"""Who waits stands above who does not."""
_COLORS: Final = {
    Phase.GATED.value: "yellow",
    Phase.PAUSED.value: "yellow",
    Phase.QUEUED.value: "cyan",
    Phase.RUNNING.value: "green",
    Phase.ACTING.value: "",
}


class View(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway has said last."""

    url: str
    engine: str = ""
    """The only one that is asked about; empty: all."""
    statuses: Sequence[Status]
    """Of each engine's gate."""
    rows: Sequence[SessionRow]
    trouble: str = ""
    """Why it says nothing now."""


def frame(view: View, *, lines: int | None = None, sessions: int | None = None) -> RenderableType:
    """For a terminal of so many lines, or with so many sessions."""
    of_several = len(view.statuses) > 1
    if sessions is None:
        head_lines = _HEAD_LINES + (len(view.statuses) if of_several else 0)
        sessions = max(1, (lines or 0) - head_lines)
    return Group(*_head(view), _sessions(view.rows, sessions, of_several=of_several))


def _head(view: View) -> Iterator[RenderableType]:
    statuses = view.statuses
    of = f"  {view.engine}" if view.engine else ""
    yield Text.assemble(("mars top  ", "bold"), view.url, of, ("   q or Ctrl-C leaves", "dim"))
    if view.trouble:
        yield Text(f"no answer, this is old: {view.trouble}", "bold red")
    if not statuses:
        yield Text("no engine is here: POST /mars/engines adds one", "bold red")
        return
    first = statuses[0]
    yield _who(statuses)
    if len(statuses) > 1:
        yield _engines(statuses)
    else:
        yield _gate(first)
        pressure = first.pressure
        yield _bar("KV used", pressure.kv_used_frac, first.engine_sample_age_s)
        yield _bar("KV of active sessions", pressure.kv_session_frac, first.engine_sample_age_s)
    yield _bar("tools per slot", first.pressure.tool_load, first.tools_sample_age_s)
    faults = sum(status.faults for status in statuses)
    late, lost = (sum(it.late for it in statuses), sum(it.lost for it in statuses))
    yield Text(
        f"late facts {late}, lost messages {lost}, faults {faults}",
        "bold red" if faults else "dim",
    )


def _who(statuses: Sequence[Status]) -> Text:
    windows = [status.window for status in statuses if status.window is not None]
    window = f" of {sum(windows)}" if len(windows) == len(statuses) else ""
    here: Counter[str] = Counter()
    for status in statuses:
        here.update(status.phases)
    phases = ", ".join(f"{here[p.value]} {p.value}" for p in _FIRST if here[p.value])
    active = sum(status.active for status in statuses)
    sessions = number(sum(status.sessions for status in statuses), "session")
    return Text(f"{sessions}: {active}{window} active; {phases}")


def _gate(status: Status) -> Text:
    if status.state not in {"", "up"}:
        return Text(f"{status.state}: {status.state_why}", "bold red")
    if status.fail_open:
        return Text(f"gate: open for all ({status.fail_open})", "bold red")
    if status.gated:
        return Text(f"gate: {status.gated} wait: {status.why_not}", "yellow")
    return Text("gate: nobody waits", "green")


def _engines(statuses: Sequence[Status]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    names = [_host(status.engine) for status in statuses]
    table.add_column("engine", no_wrap=True, min_width=max(map(len, names)))
    for name in ("active", "KV used", "of sessions"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    table.add_column("gate", overflow="ellipsis", no_wrap=True)
    for name, it in zip(names, statuses, strict=True):
        is_known = it.engine_sample_age_s is not None
        table.add_row(
            Text(name),
            Text(f"{it.active}" if it.window is None else f"{it.active} of {it.window}"),
            Text(percent(it.pressure.kv_used_frac if is_known else None)),
            Text(percent(it.pressure.kv_session_frac if is_known else None)),
            _gate(it),
        )
    return table


def _bar(name: str, frac: float, age_s: float | None) -> Text:
    line = Text(f"{name:22}")
    if age_s is None:
        return line.append("never heard of", "dim")
    full = round(min(1.0, frac) * _BAR_CHARS)
    line.append("█" * full, "red" if frac >= _BUSY_FRAC else "green")
    line.append("░" * (_BAR_CHARS - full), "dim")
    line.append(f" {percent(frac)}")
    return line.append(f"  {seconds(age_s)} ago", "" if age_s < _OLD_S else "dim")


def _host(engine: str) -> str:
    return engine.removeprefix("http://")


def _sessions(rows: Sequence[SessionRow], most: int, *, of_several: bool) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("session", *(["engine"] if of_several else []), "tenant", "phase"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("for", "turn", "context", "warm", "held"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tool", overflow="ellipsis", no_wrap=True)
    ranked = sorted(rows, key=lambda row: (_FIRST.index(Phase(row.phase)), -row.phase_s))
    for row in ranked[:most]:
        table.add_row(*_cells(row, of_several=of_several))
    if len(rows) <= most:
        return table
    return Group(table, Text(f"and {number(len(rows) - most, 'session')} more", "dim"))


def _cells(row: SessionRow, *, of_several: bool) -> Iterator[Text]:
    """Texts, not strings: what a client calls its session is no markup."""
    yield Text(row.session_id)
    if of_several:
        yield Text(_host(row.engine))
    yield Text(row.tenant or "-")
    yield Text(row.phase, _COLORS.get(row.phase, ""))
    yield Text(seconds(row.phase_s))
    yield Text(str(row.turn))
    yield Text(count(row.context_tokens))
    yield Text(percent(row.warm_frac))
    yield Text(count(row.held_tokens) if row.held_tokens else "-")
    yield Text(", ".join(map(_tool, row.tools)) or "-")


def _tool(row: ToolRow) -> str:
    said = f"{row.tool} {row.state} {seconds(row.state_s)}"
    if row.run_s is None or row.cpu_s is None or row.memory_bytes is None:
        return said
    return f"{said} (CPU {percent(row.cpu_s / row.run_s)}, {size(row.memory_bytes)})"
