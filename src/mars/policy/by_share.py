"""An order of calls with shares of tenants before it (core.tenants).

    held first   as the order below says: memory that is taken should be used
    class        by how many quanta its tenant is ahead of the last that is here
    the order below, within a class

A tenant that is alone, or within its share, is in class 0, where nothing is changed. The class of a
waiting call is found anew every `again_s`; a call that runs keeps the one it started with.
"""

from mars.core import events as ev
from mars.core.ids import CallId
from mars.core.settings import TenantSettings
from mars.core.tenants import TenantShares
from mars.policy.base import CallView, EngineEvent, Key, Ordering, Stays


class ByShare:
    live = True  # classes change with time

    def __init__(self, order: Ordering, settings: TenantSettings) -> None:
        """`order`: one whose keys begin with who goes first whatever his share."""
        self._order, self._set = order, settings
        self.by_cache = order.by_cache
        self._shares = TenantShares(settings)
        self._classes: dict[CallId, tuple[int, float]] = {}
        """(class, until when it holds) of each open call."""

    def observe(self, event: EngineEvent) -> None:
        self._shares.observe(event)
        self._order.observe(event)
        if isinstance(event, ev.CallServed):
            self._classes.pop(event.call_id, None)

    def _class(self, call: CallView, now_s: float) -> tuple[int, float]:
        found = self._classes.get(call.call_id)
        if found is None or (now_s > found[1] and not call.kv_tokens):
            number = int(self._shares.ahead_s(call.session_id) / self._set.quantum_s)
            found = self._classes[call.call_id] = (number, now_s + self._set.again_s)
        return found

    def run_key(self, call: CallView, now_s: float) -> Key:
        first, *rest = self._order.run_key(call, now_s)
        return (first, self._class(call, now_s)[0], *rest)

    def victim_key(self, call: CallView, now_s: float) -> Key:
        return (self._class(call, now_s)[0], *self._order.victim_key(call, now_s))

    def stays(self, call: CallView, now_s: float) -> Stays:
        below = self._order.stays(call, now_s)
        return below._replace(until_s=min(below.until_s, self._class(call, now_s)[1]))

    def chunk_tokens(self, call: CallView, kv_used_frac: float) -> int | None:
        return self._order.chunk_tokens(call, kv_used_frac)
