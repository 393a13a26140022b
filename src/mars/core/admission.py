"""Who may enter: the question, and the two plainest answers."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from mars.core import events as ev
from mars.core.decisions import Admit
from mars.core.ids import SessionId
from mars.core.pressure import Pressure


class GatedView(msgspec.Struct, frozen=True, kw_only=True):
    session_id: SessionId
    arrived_s: float
    prompt_bytes: int


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    admit: Sequence[Admit]
    why_not: str
    """Why the others wait."""
    window: int | None
    """How many sessions may be active; None: no limit."""


class Admission(Protocol):
    def observe(self, event: ev.Event) -> None: ...

    def choose(
        self, gated: Sequence[GatedView], active: int, pressure: Pressure, now_s: float
    ) -> Verdict:
        """`gated` in order of arrival; `active` sessions are past the gate."""


class Open:
    """No admission control: every baseline but MARS."""

    def observe(self, event: ev.Event) -> None:
        del event

    def choose(
        self, gated: Sequence[GatedView], active: int, pressure: Pressure, now_s: float
    ) -> Verdict:
        del active, pressure, now_s
        return Verdict(admit=let_in(gated, "no admission control"), why_not="", window=None)


def let_in(gated: Sequence[GatedView], why: str) -> list[Admit]:
    return [Admit(session_id=view.session_id, why=why) for view in gated]
