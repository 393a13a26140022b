"""One session's life as an account: facts of a round in, where the time went and why out. Pure.

    Life      the facts of one stay, from its arrival on; a session that comes again lives again
    Overview  its totals, to pick one by
    Account   the same with its time phase by phase, and its timeline line by line
    shown     of a timeline what a reader wants to see first

Times of an account are seconds since the session's arrival.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Final

import msgspec

from mars.bench import phases
from mars.bench.crowd import Crowd, Shut, crowds
from mars.bench.rounds import Round
from mars.bench.tell import Teller
from mars.bench.words import number, seconds
from mars.core import events as ev
from mars.core.ids import SessionId

_LONG_FRAC: Final = 0.05
"""What ends a stretch of this share of the session's time is worth a line."""
_TURNING: Final = (
    ev.SessionArrived,
    ev.SessionAdmitted,
    ev.SessionPaused,
    ev.SessionReturned,
    ev.SessionEnded,
)


class Life:
    """One stay of a session in a round."""

    def __init__(self, of: Round, stay: int, arrived: ev.SessionArrived) -> None:
        self.round = of
        self.session_id = arrived.session_id
        self.stay = stay
        """Counts the arrivals of this id from 1."""
        self.arrived_s = arrived.at_s
        self.facts: list[ev.SessionEvent] = [arrived]

    @cached_property
    def ended(self) -> ev.SessionEnded | None:
        return next((e for e in self.facts if isinstance(e, ev.SessionEnded)), None)

    @cached_property
    def end_s(self) -> float:
        """Of one that has not ended: as far as is known."""
        return self.round.ended_s if self.ended is None else self.ended.at_s

    @cached_property
    def spans(self) -> list[phases.Span]:
        """From arrival to end, without gaps."""
        last = ev.SessionEnded(at_s=self.end_s, session_id=self.session_id, why="")
        return phases.fold([*self.facts, last])[self.session_id]  # a second end changes nothing

    @property
    def turns(self) -> int:
        return len({e.call_id for e in self.facts if isinstance(e, ev.CallQueued)})


def lives(of: Round) -> list[Life]:
    """In order of arrival. Facts about nobody who has arrived are nobody's."""
    found: list[Life] = []
    latest: dict[SessionId, Life] = {}
    for event in of.events:
        if isinstance(event, ev.OfNoSession):
            continue
        match event:
            case ev.SessionArrived():
                before = latest.get(event.session_id)
                life = Life(of, 1 if before is None else before.stay + 1, event)
                latest[event.session_id] = life
                found.append(life)
            case _ if event.session_id in latest:
                latest[event.session_id].facts.append(event)
            case _:
                pass
    return found


class PhaseTime(msgspec.Struct, frozen=True, kw_only=True):
    phase: str
    """One of `phases.PHASES`."""
    total_s: float
    frac: float
    """Of the session's time."""
    spells: int
    longest_s: float
    longest_at_s: float
    """When the longest spell began."""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    session_id: SessionId
    policy: str
    repeat: int
    stay: int
    arrived_s: float
    """Since the start of the round."""
    total_s: float
    turns: int
    ended: bool
    why: str
    """Why it ended; of one that has not: empty."""
    largest: PhaseTime
    """The phase that took most of its time."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    at_s: float
    event: str
    """Name of the fact; `Gate`: what the others had while it waited; `GateShut`: why it did;
    `Folded`: several facts."""
    what: str
    why: str = ""
    matters: bool = False
    """A turning point, a loss, or the end of a long stretch: shown however long the life is."""


class Account(Overview, frozen=True, kw_only=True):
    phases: list[PhaseTime]
    """In the order of `phases.PHASES`, those that it was in."""
    gate: list[Crowd]
    """Of each wait at the gate."""
    lines: list[Line]


def overview(life: Life) -> Overview:
    times = _phase_times(life)
    return Overview(
        session_id=life.session_id,
        policy=life.round.policy,
        repeat=life.round.repeat,
        stay=life.stay,
        arrived_s=life.arrived_s - life.round.started_s,
        total_s=life.end_s - life.arrived_s,
        turns=life.turns,
        ended=life.ended is not None,
        why=life.ended.why if life.ended else "",
        largest=max(times, key=lambda time: time.total_s, default=_NOTHING),
    )


_NOTHING: Final = PhaseTime(
    phase=phases.PHASES[0], total_s=0.0, frac=0.0, spells=0, longest_s=0.0, longest_at_s=0.0
)
"""Of a session that ended the moment it came."""


def account(life: Life) -> Account:
    waits = [span for span in life.spans if span.phase == "gated"]
    seen = crowds(life.round.events, life.session_id, waits) if waits else ()
    gate = [_since(crowd, life.arrived_s) for crowd in seen]
    return Account(
        **msgspec.structs.asdict(overview(life)),
        phases=_phase_times(life),
        gate=gate,
        lines=_lines(life, gate),
    )


def _since(crowd: Crowd, start_s: float) -> Crowd:
    """With its times as seconds since then."""
    shut = [msgspec.structs.replace(sign, at_s=sign.at_s - start_s) for sign in crowd.shut]
    return msgspec.structs.replace(
        crowd, start_s=crowd.start_s - start_s, end_s=crowd.end_s - start_s, shut=shut
    )


def _phase_times(life: Life) -> list[PhaseTime]:
    whole_s = life.end_s - life.arrived_s
    found = []
    for phase in phases.PHASES:
        spans = [span for span in life.spans if span.phase == phase]
        if not spans:
            continue
        total_s = sum(span.end_s - span.start_s for span in spans)
        longest = max(spans, key=lambda span: span.end_s - span.start_s)
        found.append(
            PhaseTime(
                phase=phase,
                total_s=total_s,
                frac=total_s / whole_s,
                spells=len(spans),
                longest_s=longest.end_s - longest.start_s,
                longest_at_s=longest.start_s - life.arrived_s,
            )
        )
    return found


def _lines(life: Life, gate: Sequence[Crowd]) -> list[Line]:
    least_s = _LONG_FRAC * (life.end_s - life.arrived_s)
    long_ends_s = {span.end_s for span in life.spans if span.end_s - span.start_s >= least_s}
    crowd_at = {crowd.start_s: crowd for crowd in gate}
    teller, lines = Teller(), []
    for fact in life.facts:
        at_s = fact.at_s - life.arrived_s
        said = teller.say(fact)
        matters = isinstance(fact, _TURNING) or said.cost or fact.at_s in long_ends_s
        name = type(fact).__name__
        lines.append(Line(at_s=at_s, event=name, what=said.what, why=said.why, matters=matters))
        if isinstance(fact, ev.SessionArrived | ev.SessionReturned) and at_s in crowd_at:
            why = crowd_at[at_s].said
            lines.append(
                Line(at_s=at_s, event="Gate", what="waits at the gate", why=why, matters=True)
            )
    lines += [_say_shut(sign) for crowd in gate for sign in crowd.shut]
    return sorted(lines, key=lambda line: line.at_s)


def _say_shut(sign: Shut) -> Line:
    return Line(
        at_s=sign.at_s, event="GateShut", what="the gate is shut", why=sign.why, matters=True
    )


def shown(
    lines: Sequence[Line],
    *,
    around_s: float | None = None,
    last: int | None = None,
    most: int | None = None,
) -> list[Line]:
    """`around_s`: ten lines on each side of it; `last`: so many; else all, or, of more than `most`,
    those that matter, with a line in place of each run of others.
    """
    if around_s is not None:
        place = bisect_left(lines, around_s, key=lambda line: line.at_s)
        return list(lines[max(0, place - 10) : place + 10])
    if last is not None:
        return list(lines[-last:])
    if most is None or len(lines) <= most:
        return list(lines)
    return list(_folded(lines))


def _folded(lines: Sequence[Line]) -> Iterator[Line]:
    for matters, run in groupby(lines, key=lambda line: line.matters):
        these = list(run)
        if matters or len(these) == 1:
            yield from these
            continue
        what = f"... {number(len(these), 'fact')} of no great cost, up to {seconds(these[-1].at_s)}"
        yield Line(at_s=these[0].at_s, event="Folded", what=what)
