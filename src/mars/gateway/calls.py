"""Calls in flight: what they are called, and those whose session has ended before them."""

import re
import time
from collections.abc import Iterable
from secrets import token_hex
from typing import Final

from mars.core.ids import CallId, SessionId
from mars.gateway.stay import Call, Stay

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


class OpenCalls:
    def __init__(self) -> None:
        self._names: set[CallId] = set()
        self._orphans: dict[SessionId, set[Call]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def open(self, stay: Stay, wanted: str, *, final: bool) -> Call:
        """A call, named `wanted` if that can be its name. To be followed by `close`."""
        usable = _NAME.fullmatch(wanted) and wanted not in self._names
        call_id = CallId(wanted if usable else token_hex(16))
        slot = stay.slots.pop() if stay.slots else None
        call = Call(call_id, stay, final, slot, queued_s=time.monotonic())
        self._names.add(call_id)
        stay.calls.add(call)
        return call

    def close(self, call: Call) -> None:
        self._names.discard(call.call_id)
        call.stay.calls.discard(call)
        if call.stay.over and not call.stay.calls and not call.told:
            self._orphans.pop(call.stay.session_id, None)

    def orphan(self, stay: Stay) -> None:
        """The stay has ended; its calls go on."""
        if stay.calls:
            self._orphans[stay.session_id] = set(stay.calls)

    def adopt(self, session_id: SessionId) -> Iterable[Call]:
        """Those of a stay that has ended, if its session comes back: no calls of the new one."""
        return self._orphans.pop(session_id, ())
