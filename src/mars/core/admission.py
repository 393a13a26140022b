"""Who may enter, and who is sent back: the question, and the plainest answer."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

import msgspec

from mars.core import events as ev
from mars.core.decisions import Admit, Pause
from mars.core.ids import SessionId
from mars.core.pressure import Pressure
from mars.core.session import Session
from mars.core.settings import GateSettings


class GatedView(msgspec.Struct, frozen=True, kw_only=True):
    """A session at the gate: a new one, or a paused one whose next call waits."""

    session_id: SessionId
    arrived_s: float
    """When it came to the gate."""
    prompt_bytes: int
    context_tokens: int = 0
    """Of one that was in before: what its call will extend."""
    returning: bool = False
    parent_id: SessionId | None = None
    tenant: str = ""
    patience_s: float | None = None
    """So long after it came its client gives up; None: that was not told."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    admit: Sequence[Admit]
    """Sessions at the gate, and paused ones that are not back yet."""
    why_not: str
    """Why the others wait."""
    limit: ev.Limit = ""
    """The same by kind: it stays while the numbers in `why_not` move."""
    window: int | None
    """How many sessions may be active; None: no limit."""
    pause: Sequence[Pause] = ()
    """Active sessions at rest: Phase.ACTING, no call open."""


class Admission(Protocol):
    steers: bool
    """False: there is nothing to ask while nobody waits at the gate."""

    @property
    def tick_s(self) -> float | None:
        """How often it wants to be asked although nothing happens; None: never."""

    def observe(self, event: ev.Event) -> None: ...

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        """`gated` in order of arrival at the gate; `active` sessions are past it.

        Both are live views, as long as the question lasts. A session whose admission is not
        carried out yet is active, and still in the phase it was admitted from.
        """


class Open:
    """No admission control: every baseline that has none."""

    steers = False
    tick_s: float | None = None

    def observe(self, event: ev.Event) -> None:
        del event

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        del active, pressure, now_s
        return Verdict(admit=let_in(gated, "no admission control"), why_not="", window=None)


def overdue(gated: Iterable[GatedView], settings: GateSettings, now_s: float) -> Iterator[Admit]:
    """Who has waited for as long as is allowed, whatever room there is."""
    most_s = inf if settings.wait_s is None else settings.wait_s
    for view in gated:
        patience_s = inf if view.patience_s is None else view.patience_s
        waited_s = now_s - view.arrived_s
        if waited_s >= min(most_s, settings.patience_share * patience_s):
            why = f"it has waited {waited_s:.0f} s, room or not"
            yield Admit(session_id=view.session_id, why=why, by="overdue")


def let_in(gated: Iterable[GatedView], why: str) -> list[Admit]:
    return [Admit(session_id=view.session_id, why=why) for view in gated]


@dataclass(slots=True)
class Beat:
    """Once a period, for a policy that is asked at least as often, and at events besides."""

    period_s: float
    _next_s: float = -inf

    def due(self, now_s: float) -> bool:
        if now_s < self._next_s:
            return False
        self._next_s = now_s + self.period_s * (1.0 - 1e-9)  # sums of periods are not exact
        return True
