"""Keeps the `Pressure`: what engine and tools tell, and what sessions past the gate do to KV."""

from dataclasses import dataclass, field

from msgspec.structs import replace

from mars.core import events as ev
from mars.core.estimate import Newcomers
from mars.core.ids import SessionId
from mars.core.pressure import Pressure
from mars.core.session import Session


@dataclass(slots=True)
class Meter:
    pressure: Pressure = field(default_factory=Pressure)
    tool_controls: str = ""
    open_calls: int = 0
    context_tokens: int = 0
    """Of the sessions past the gate."""
    _kv_capacity_tokens: int = 0
    _newcomers: Newcomers = field(default_factory=Newcomers)

    def sample(self, event: ev.EngineSampled | ev.ToolsSampled) -> None:
        match event:
            case ev.EngineSampled():
                self._kv_capacity_tokens = event.kv_total_blocks * event.block_tokens
                self.pressure = replace(
                    self.pressure,
                    kv_used_frac=event.kv_used_blocks / event.kv_total_blocks,
                    engine_at_s=event.at_s,
                    owes_since_s=self.pressure.owes_since_s if self.open_calls else None,
                )
                self.foresee()
            case ev.ToolsSampled():
                self.tool_controls = event.controls
                self.pressure = replace(
                    self.pressure,
                    tool_load=(event.running + event.waiting) / event.slots,
                    tool_wait_s=event.wait_s,
                    tools_at_s=event.at_s,
                )

    def enter(self, session: Session, prompt_bytes: int) -> None:
        """It is past the gate; `prompt_bytes` stand for the context of one that has none yet."""
        if not session.context_tokens:
            self._newcomers.enter(session.session_id, prompt_bytes)
        self.context_tokens += session.context_tokens

    def leave(self, session: Session) -> None:
        self._newcomers.leave(session.session_id)
        self.context_tokens -= session.context_tokens

    def served(self, session_id: SessionId, prompt_tokens: int) -> None:
        """The first time it is a newcomer no more."""
        self._newcomers.served(session_id, prompt_tokens)

    def grow(self, tokens: int) -> None:
        """The context of a session past the gate."""
        self.context_tokens += tokens
        self.foresee()

    def count_calls(self, now_s: float, calls: int) -> None:
        """So many more (less, if negative) are open."""
        self.open_calls += calls
        if self.open_calls and self.pressure.owes_since_s is None:
            self.pressure = replace(self.pressure, owes_since_s=now_s)
        elif not self.open_calls and self.pressure.engine_at_s is not None:
            self.pressure = replace(self.pressure, owes_since_s=None)

    def foresee(self) -> None:
        """KV that the sessions past the gate have or are about to have."""
        capacity_tokens = self._kv_capacity_tokens
        if capacity_tokens:
            tokens = self.context_tokens + self._newcomers.tokens
            self.pressure = replace(
                self.pressure,
                kv_session_frac=tokens / capacity_tokens,
                kv_frac_per_byte=self._newcomers.tokens_per_byte / capacity_tokens,
            )
