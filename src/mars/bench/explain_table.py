"""The account of a session, and the list of a run's sessions, for a rich console."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mars.bench.explain import Account, Line, Overview
from mars.bench.words import bare, listing, number, percent, seconds

_PHASES: Final = {
    "gated": "at the gate",
    "queued": "queued in the engine",
    "running": "on the GPU (prefill, decode)",
    "tool waits": "tool waits for cores",
    "tool runs": "tool runs",
    "client": "client, network, other",
}


def printed_life(told: Account, stays: int) -> Group:
    ended = f"ended: {told.why}" if told.ended else "has not ended in this log"
    at = f"arrived {seconds(told.arrived_s)} after the start"
    head = [
        f"session {told.session_id}",
        f"policy {told.policy}; {at}; {ended}",
        f"{seconds(told.total_s)} in all, {number(told.turns, 'turn')}",
    ]
    if stays > 1:
        head.append(f"this id came {stays} times: this is --stay {told.stay}")
    return Group(Text("\n".join(head)), Text(), _phases(told), Text(), _timeline(told.lines))


def _table(*columns: str) -> Table:
    """Numbers on the right: columns whose title ends with a unit, shares and counts."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        right = column.endswith(")") or column in _COUNTS
        table.add_column(column, justify="right" if right else "left", no_wrap=right)
    return table


_COUNTS: Final = ("share", "spells", "turns", "repeat", "stay")


def _phases(told: Account) -> Table:
    table = _table("where its time went", "time (s)", "share", "spells", "longest (s)", "from (s)")
    for of in told.phases:
        table.add_row(
            _PHASES[of.phase],
            bare(of.total_s),
            percent(of.frac),
            str(of.spells),
            bare(of.longest_s),
            bare(of.longest_at_s),
        )
    return table


def _timeline(lines: Sequence[Line]) -> Table:
    table = _table("at (s)", "what happened", "reason")
    for line in lines:
        table.add_row(f"{line.at_s:.3f}", Text(line.what), Text(line.why, style="dim"))
    if any(line.event == "Folded" for line in lines):
        table.caption = "Folded: --all shows every fact, --around SECONDS those near a time."
    return table


def printed_sessions(slowest: Sequence[Overview], most: int | None) -> Group:
    table = _table(*(column.title for column in _columns(slowest)))
    for of in slowest[:most]:
        table.add_row(*(Text(column.cell(of)) for column in _columns(slowest)))
    policies = listing(list(dict.fromkeys(of.policy for of in slowest)))
    count = f"{number(len(slowest), 'session')} under {policies}"
    cut = most is not None and len(slowest) > most
    said = f"the {most} slowest of {count}: --all lists all" if cut else count
    return Group(table, Text(said, style="dim"))


class _Column(NamedTuple):
    title: str
    cell: Callable[[Overview], str]
    dull: bool = False
    """Left out where it says the same of every session."""


_COLUMNS: Final = (
    _Column("session", lambda of: of.session_id),
    _Column("policy", lambda of: of.policy, dull=True),
    _Column("repeat", lambda of: str(of.repeat), dull=True),
    _Column("stay", lambda of: str(of.stay), dull=True),
    _Column("time (s)", lambda of: bare(of.total_s)),
    _Column("turns", lambda of: str(of.turns)),
    _Column("most of it", lambda of: _PHASES[of.largest.phase]),
    _Column("share", lambda of: percent(of.largest.frac)),
    _Column("end", lambda of: of.why if of.ended else "has not ended"),
)


def _columns(of: Sequence[Overview]) -> list[_Column]:
    return [c for c in _COLUMNS if not c.dull or len({c.cell(each) for each in of}) > 1]
