"""One frame of `mars top`."""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mars.bench.words import count, number, percent, seconds
from mars.core.session import Phase
from mars.gateway.app import Status
from mars.gateway.roster import SessionRow

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
    status: Status
    rows: Sequence[SessionRow]
    trouble: str = ""
    """Why it says nothing now."""


def frame(view: View, *, lines: int | None = None, sessions: int | None = None) -> RenderableType:
    """For a terminal of so many lines, or with so many sessions."""
    if sessions is None:
        sessions = max(1, (lines or 0) - _HEAD_LINES)
    return Group(*_head(view), _sessions(view.rows, sessions))


def _head(view: View) -> Iterator[RenderableType]:
    status = view.status
    yield Text.assemble(("mars top  ", "bold"), view.url, ("   q or Ctrl-C leaves", "dim"))
    if view.trouble:
        yield Text(f"no answer, this is old: {view.trouble}", "bold red")
    window = "" if status.window is None else f" of {status.window}"
    phases = ", ".join(f"{status.phases[p.value]} {p.value}" for p in _FIRST if _has(status, p))
    yield Text(f"{number(status.sessions, 'session')}: {status.active}{window} active; {phases}")
    yield _gate(status)
    pressure = status.pressure
    yield _bar("KV used", pressure.kv_used_frac, status.engine_sample_age_s)
    yield _bar("KV of active sessions", pressure.kv_session_frac, status.engine_sample_age_s)
    yield _bar("tools per slot", pressure.tool_load, status.tools_sample_age_s)
    yield Text(
        f"late facts {status.late}, lost messages {status.lost}, faults {status.faults}",
        "bold red" if status.faults else "dim",
    )


def _has(status: Status, phase: Phase) -> bool:
    return status.phases.get(phase.value, 0) > 0


def _gate(status: Status) -> Text:
    if status.fail_open:
        return Text(f"gate: open for all ({status.fail_open})", "bold red")
    if status.gated:
        return Text(f"gate: {status.gated} wait: {status.why_not}", "yellow")
    return Text("gate: nobody waits", "green")


def _bar(name: str, frac: float, age_s: float | None) -> Text:
    line = Text(f"{name:22}")
    if age_s is None:
        return line.append("never heard of", "dim")
    full = round(min(1.0, frac) * _BAR_CHARS)
    line.append("█" * full, "red" if frac >= _BUSY_FRAC else "green")
    line.append("░" * (_BAR_CHARS - full), "dim")
    line.append(f" {percent(frac)}")
    return line.append(f"  {seconds(age_s)} ago", "" if age_s < _OLD_S else "dim")


def _sessions(rows: Sequence[SessionRow], most: int) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("session", "tenant", "phase"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("for", "turn", "context", "warm", "held"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tool", overflow="ellipsis", no_wrap=True)
    ranked = sorted(rows, key=lambda row: (_FIRST.index(Phase(row.phase)), -row.phase_s))
    for row in ranked[:most]:
        table.add_row(*_cells(row))
    if len(rows) <= most:
        return table
    return Group(table, Text(f"and {number(len(rows) - most, 'session')} more", "dim"))


def _cells(row: SessionRow) -> Iterator[Text]:
    """Texts, not strings: what a client calls its session is no markup."""
    yield Text(row.session_id)
    yield Text(row.tenant or "-")
    yield Text(row.phase, _COLORS.get(row.phase, ""))
    yield Text(seconds(row.phase_s))
    yield Text(str(row.turn))
    yield Text(count(row.context_tokens))
    yield Text(percent(row.warm_frac))
    yield Text(count(row.held_tokens) if row.held_tokens else "-")
    yield Text(", ".join(f"{it.tool} {it.state} {seconds(it.state_s)}" for it in row.tools) or "-")
