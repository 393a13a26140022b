"""Limits of tenants: what each may have at once, whatever room there is.

A tenant's sessions beyond its limit wait at the gate until one of its own has ended. They are shown
to no admission, so nobody is overtaken by them or waits for them. A session and those that entered
as its children have one place together, as long as one of them lasts: a parent waits for its
children, so they must not wait for its place.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from math import inf

import msgspec

from mars.core.admission import GatedView, Verdict
from mars.core.ids import SessionId
from mars.core.settings import Limits, TenantSettings


class Quotas:
    """What tenants have, over all gates that share this."""

    def __init__(self, settings: TenantSettings) -> None:
        self._limits: dict[str, Limits] = {it.tenant: it for it in settings.limits}
        self._others = settings.other_limits
        self._taken: Counter[str] = Counter()

        self.bound_sessions = any(
            it.most_sessions is not None for it in [*settings.limits, self._others]
        )
        """Somebody's number of sessions is limited."""

    def room(self, tenant: str) -> float:
        """So many more sessions it may have in; less than 0 after a fault that let all in."""
        most = self._limits.get(tenant, self._others).most_sessions
        return inf if most is None else most - self._taken[tenant]

    def take(self, tenant: str) -> None:
        self._taken[tenant] += 1

    def give(self, tenant: str) -> None:
        self._taken[tenant] -= 1
        if not self._taken[tenant]:
            del self._taken[tenant]

    def why_not(self, tenant: str) -> str:
        """Of one beyond its room."""
        whose = f"tenant {tenant!r}" if tenant else "sessions without a tenant"
        most = self._limits.get(tenant, self._others).most_sessions
        more = self.room(tenant)
        before = f", and {more:.0f} of it wait before this one" if more > 0 else ""
        return f"{whose}: {self._taken[tenant]} in, of {most} that may be{before}"


@dataclass(slots=True)
class _Place:
    tenant: str
    members: int = 0


class Seats:
    """Of one gate: who has a place of its tenant's, and who may have one."""

    def __init__(self, quotas: Quotas | None) -> None:
        """None: nobody is limited."""
        self._quotas = quotas or Quotas(TenantSettings())
        self._bound = self._quotas.bound_sessions
        self._places: dict[SessionId, _Place] = {}

    def enter(self, view: GatedView) -> None:
        """It is let in. One that was in before has its place still."""
        if not self._bound or view.session_id in self._places:
            return
        place = self._of_parent(view)
        if place is None:
            place = _Place(view.tenant)
            self._quotas.take(view.tenant)
        place.members += 1
        self._places[view.session_id] = place

    def leave(self, session_id: SessionId) -> None:
        place = self._places.pop(session_id, None)
        if place is None:
            return  # it was not let in
        place.members -= 1
        if not place.members:
            self._quotas.give(place.tenant)

    def _of_parent(self, view: GatedView) -> _Place | None:
        place = self._places.get(view.parent_id) if view.parent_id else None
        return place if place is not None and place.tenant == view.tenant else None

    def offered(self, gated: Collection[GatedView]) -> Collection[GatedView]:
        """Who may be let in: of each tenant as many as it has room for, the first to come."""
        if not self._bound:
            return gated
        room: dict[str, float] = {}
        may: list[GatedView] = []
        for view in gated:
            if view.session_id not in self._places and self._of_parent(view) is None:
                left = room.setdefault(view.tenant, self._quotas.room(view.tenant))
                if left < 1:
                    continue
                room[view.tenant] = left - 1
            may.append(view)
        return may

    def held_back(self, gated: Collection[GatedView]) -> dict[SessionId, str]:
        """The others, and why."""
        if not self._bound:
            return {}
        may = {view.session_id for view in self.offered(gated)}
        return {
            view.session_id: self._quotas.why_not(view.tenant)
            for view in gated
            if view.session_id not in may
        }

    def explain(self, verdict: Verdict, gated: Collection[GatedView]) -> Verdict:
        """The verdict, which has been carried out; it cannot know why nobody else is let in."""
        held = self.held_back(gated)
        if not held or len(held) < len(gated):
            return verdict
        why_not = next(iter(held.values()))
        return msgspec.structs.replace(verdict, why_not=why_not, limit="tenant limit")
