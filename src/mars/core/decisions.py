"""What the core asks its shell to do. Each decision says why: users read it."""

import msgspec

from mars.core.events import Entry, Limit
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


Decision = Admit | Pause | Shut
"""Of the control plane."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    tool_id: ToolId
    cores: tuple[int, ...]
    """CPU numbers the command may run on."""
