"""What the core asks its shell to do. Each decision says why: users read it."""

from typing import assert_never

import msgspec

from mars.core.events import Entry, FailOpenChanged, GateShut, Limit, Outage
from mars.core.ids import SessionId, ToolId


class Admit(msgspec.Struct, frozen=True, kw_only=True):
    session_id: SessionId
    why: str
    by: Entry = "admission"


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """Send a session back: what runs of it runs on, its next call waits at the gate."""

    session_id: SessionId
    why: str


class Shut(msgspec.Struct, frozen=True, kw_only=True):
    """Say why those at the gate are not let in."""

    limit: Limit
    why: str
    waiting: int


class FailOpen(msgspec.Struct, frozen=True, kw_only=True):
    """Say that the gate is open for all, or a gate again (`cause` is empty)."""

    cause: Outage
    why: str


Decision = Admit | Pause | Shut | FailOpen
"""Of the control plane."""


def said(decision: Shut | FailOpen, now_s: float) -> GateShut | FailOpenChanged:
    """The fact that the decision is: there is nothing to carry out."""
    match decision:
        case Shut():
            return GateShut(
                at_s=now_s, limit=decision.limit, why=decision.why, waiting=decision.waiting
            )
        case FailOpen():
            return FailOpenChanged(at_s=now_s, cause=decision.cause, why=decision.why)
        case _:
            assert_never(decision)


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    tool_id: ToolId
    cores: tuple[int, ...]
    """CPU numbers the command may run on: its own, or where leases share them all that are lent."""
