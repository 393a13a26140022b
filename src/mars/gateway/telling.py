"""The one way of every fact: control plane, readers, publisher.

What the control plane decides on it is carried out at once and is a fact in its turn, behind those
before it. A control plane that fails costs the gate, not the traffic.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from mars.core import events as ev
from mars.core.control import ControlPlane
from mars.core.decisions import Admit, Decision
from mars.core.errors import InputError
from mars.core.ids import SessionId

_log: Final = logging.getLogger(__name__)


class Telling:
    def __init__(
        self,
        control: ControlPlane,
        *,
        publish: Callable[[Sequence[ev.Event]], None],
        carry_out: Callable[[Sequence[Decision]], list[ev.Event]],
        notice: Callable[[ev.Event], None],
        everybody: Callable[[], Iterable[SessionId]],
    ) -> None:
        """`notice` is handed each fact last. `everybody`: whom a failed control plane lets in."""
        self.readers: list[Callable[[ev.Event], None]] = []
        """Each is handed every fact; none may raise."""
        self.faults = 0
        self._control = control
        self._publish = publish
        self._carry_out = carry_out
        self._notice = notice
        self._everybody = everybody
        self._facts: deque[ev.Event] = deque()
        """The fact that is being told, and those that wait for their turn."""

    def tell(self, *facts: ev.Event) -> None:
        """Tell facts, and those that the decisions taken on them turn into."""
        is_telling = bool(self._facts)
        self._facts.extend(facts)
        if not is_telling:  # else: the loop that is under way comes to them
            try:
                self._tell_all()
            finally:
                self._facts.clear()

    def ask(self, question: Callable[[], Sequence[Decision]]) -> None:
        """Put a question to the control plane, and tell what comes of its answer."""
        self.tell(*self._carry_out(self._answer(question)))

    def _tell_all(self) -> None:
        own: list[ev.Event] = []
        while self._facts:
            fact = self._facts[0]
            decisions = self._answer(lambda: self._control.handle(fact))  # noqa: B023 asked at once
            for read in self.readers:
                read(fact)
            if decisions:
                self._facts.extend(self._carry_out(decisions))
            self._notice(fact)
            if type(fact) in ev.OF_GATEWAY:
                own.append(fact)
            self._facts.popleft()
        if own:
            self._publish(own)

    def _answer(self, question: Callable[[], Sequence[Decision]]) -> Sequence[Decision]:
        """When the control plane fails, everybody enters: traffic goes on."""
        try:
            return question()
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 no bug of ours may stop the engine
            self.faults += 1
            if self.faults == 1:
                _log.error("the control plane failed, the gate is open", exc_info=error)
            why = f"the control plane failed: {error!r}"
            opened = self._control.failsafe.fault(error, time.monotonic())
            return [
                *opened,
                *(Admit(session_id=it, why=why, by="fault") for it in self._everybody()),
            ]
