"""How a request waits: at the gate for its session, then past it for a slot of its tenant.

A slot is asked for past the gate only. Were it had before, the calls of sessions that wait there
would keep those from calling for whose end they wait.
"""

import asyncio
import time
from collections.abc import Callable

from mars.core.slots import Slot, Slots
from mars.gateway.stay import Asking, SessionOverError, Stay


class WaitingRoom:
    def __init__(
        self, slots: Slots, keepalive_s: float, come_back: Callable[[Stay, Asking], None]
    ) -> None:
        """`come_back`: tell that a session that was sent back is at the gate again."""
        self._slots = slots
        self._keepalive_s = keepalive_s
        self._come_back = come_back

    async def wait(self, stay: Stay, asking: Asking) -> None:
        """Until its session is in and a slot is had. Raises SessionOverError."""
        gate = stay.line_up()
        slot: Slot | None = None
        try:
            while not stay.over:
                slot = self._in_line(stay, slot)
                if slot is not None and slot.is_had:
                    stay.slots.append(slot)
                    return
                if stay.away:
                    self._come_back(stay, asking)
                elif gate.done():  # woken for another one, or sent back before it could go on
                    stay.waiting.discard(gate)
                    gate = stay.line_up()
                else:
                    await asyncio.wait((gate,), timeout=self._keepalive_s)
                    if not gate.done():
                        await asking.still_waiting()
        except BaseException:
            self._slots.give(slot)
            raise
        finally:
            stay.waiting.discard(gate)
        self._slots.give(slot)
        raise SessionOverError(stay.over, stay.session_id)

    def _in_line(self, stay: Stay, slot: Slot | None) -> Slot | None:
        if stay.admitted:
            return slot or self._slots.ask(stay.tenant, stay.wake, time.monotonic())
        self._slots.give(slot)
        return None
