"""Shares of tenants: whoever has had the least for its weight goes first.

    service = seconds of its calls on the GPU + `core_price` * core seconds of its tools
    v       = service / weight, of a tenant that has sessions here

This is start-time fair queueing (Goyal, Vin, Cheng 1996) over attained service, which counts both
machines. Who comes starts at the least v of those that are here: nobody saves up a right to the
machine while away, and nobody pays for having had it alone. In any stretch of time in which two
tenants have work, their v grow alike, up to what the sessions under way will still take.

A tenant alone is at the least v, so nothing of its own order changes.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from mars.core import events as ev
from mars.core.admission import GatedView
from mars.core.ids import CallId, SessionId, ToolId
from mars.core.settings import TenantSettings

_MOST: Final = 100_000
"""Sessions, calls, tools and tenants that nobody ends: beyond so many the oldest are forgotten."""
_WEIGHT: Final = 0.1
"""Of the newest session in the mean."""

K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class _Tenant:
    weight: float
    service_s: float = 0.0
    sessions: int = 0
    """Open ones."""

    @property
    def v_s(self) -> float:
        return self.service_s / self.weight


@dataclass(slots=True)
class _Guest:
    """A session that is open."""

    tenant: str
    service_s: float = 0.0
    is_in: bool = False


class TenantShares:
    def __init__(self, settings: TenantSettings) -> None:
        self._set = settings
        self._weights = {it.tenant: it.weight for it in settings.weights}
        self._tenants: dict[str, _Tenant] = {}
        self._guests: dict[SessionId, _Guest] = {}
        self._started_s: dict[CallId, float] = {}
        self._cores: dict[ToolId, int] = {}
        self._session_s = 1.0
        """Mean service of the sessions that have ended; before the first: any, it counts them."""
        self._has_mean = False

    def observe(self, event: ev.Event) -> None:
        match event:
            case ev.SessionArrived():
                self._arrive(event)
            case ev.SessionAdmitted():
                if guest := self._guests.get(event.session_id):
                    guest.is_in = True
            case ev.SessionEnded():
                self._end(event)
            case ev.CallStarted():
                self._started_s[event.call_id] = event.at_s
                _bound(self._started_s)
            case ev.CallServed():
                started_s = self._started_s.pop(event.call_id, event.at_s)
                self._charge(event.session_id, event.at_s - started_s)
            case ev.ToolQueued():
                self._cores[event.tool_id] = event.cores
                _bound(self._cores)
            case ev.ToolFinished():
                cores = self._cores.pop(event.tool_id, 0)
                self._charge(event.session_id, self._set.core_price * cores * event.run_s)
            case _:
                pass

    def _arrive(self, event: ev.SessionArrived) -> None:
        tenant = self._tenants.pop(event.tenant, None)
        if tenant is None:
            tenant = _Tenant(self._weights.get(event.tenant, self._set.other_weight))
        if not tenant.sessions:
            tenant.service_s = max(tenant.service_s, self._least_s() * tenant.weight)
        tenant.sessions += 1
        self._tenants[event.tenant] = tenant
        self._guests[event.session_id] = _Guest(event.tenant)
        _bound(self._tenants)
        _bound(self._guests)

    def _end(self, event: ev.SessionEnded) -> None:
        guest = self._guests.pop(event.session_id, None)
        if guest is None:
            return
        if tenant := self._tenants.get(guest.tenant):
            tenant.sessions -= 1
        if guest.service_s > 0.0:
            share = _WEIGHT if self._has_mean else 1.0
            self._session_s += share * (guest.service_s - self._session_s)
            self._has_mean = True

    def _charge(self, session_id: SessionId, service_s: float) -> None:
        if guest := self._guests.get(session_id):
            guest.service_s += service_s
            if tenant := self._tenants.get(guest.tenant):
                tenant.service_s += service_s

    def _least_s(self) -> float:
        return min((it.v_s for it in self._tenants.values() if it.sessions), default=0.0)

    # -- questions --------------------------------------------------------------------------------

    def ahead_s(self, session_id: SessionId) -> float:
        """By how much v its tenant is ahead of the last that is here; 0 if nothing is known."""
        guest = self._guests.get(session_id)
        tenant = self._tenants.get(guest.tenant) if guest else None
        return max(0.0, tenant.v_s - self._least_s()) if tenant else 0.0

    def in_turn(self, gated: Iterable[GatedView]) -> Iterator[GatedView]:
        """In which order to let them in: of each tenant as given, the tenants by v.

        Sessions that are in count what the mean session takes, or what they have taken if that is
        more: else a tenant would have all places before the first of its calls is served.
        """
        lines: dict[str, deque[GatedView]] = {}
        for view in gated:
            guest = self._guests.get(view.session_id)
            lines.setdefault(guest.tenant if guest else "", deque()).append(view)
        v_s = self._expected_s(lines)
        while lines:
            name = min(lines, key=lambda of: (v_s[of], lines[of][0].arrived_s, of))
            yield lines[name].popleft()
            v_s[name] += self._session_s / self._weight(name)
            if not lines[name]:
                del lines[name]

    def _expected_s(self, names: Collection[str]) -> dict[str, float]:
        """Of these tenants, v when the sessions that are in will have ended."""
        v_s = {name: self._tenants[name].v_s if name in self._tenants else 0.0 for name in names}
        for guest in self._guests.values():
            if guest.is_in and guest.tenant in v_s:
                to_come_s = max(0.0, self._session_s - guest.service_s)
                v_s[guest.tenant] += to_come_s / self._weight(guest.tenant)
        return v_s

    def _weight(self, name: str) -> float:
        return self._weights.get(name, self._set.other_weight)


def _bound(book: dict[K, V]) -> None:
    if len(book) > _MOST:
        del book[next(iter(book))]
