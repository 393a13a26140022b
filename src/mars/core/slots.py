"""Slots of tenants: how many calls each may have open at once, and who waits for one to end.

Those beyond the limit wait in the order in which they asked, each tenant's in a line of its own. A
slot that is given back is the next one's at once, so nobody who comes then goes before it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mars.core.settings import Limits, TenantSettings


@dataclass(slots=True, eq=False)
class Slot:
    """Of one call: waited for, had, or given back."""

    tenant: str
    on_turn: Callable[[], None]
    """Called when it is had at last; not where it is had at once."""
    is_had: bool = False
    asked_s: float | None = None
    """When it was asked for, of one that had to be waited for; None: it was had at once."""


class Slots:
    """Over all gates that share this."""

    def __init__(self, settings: TenantSettings) -> None:
        self._limits: dict[str, Limits] = {it.tenant: it for it in settings.limits}
        self._others = settings.other_limits
        self._had: Counter[str] = Counter()
        self._lines: dict[str, dict[Slot, None]] = {}

    def most(self, tenant: str) -> int | None:
        """None: no limit, and no need to ask."""
        return self._limits.get(tenant, self._others).most_calls

    def ask(self, tenant: str, on_turn: Callable[[], None], now_s: float) -> Slot:
        """To be given back, had or not."""
        slot, most = Slot(tenant, on_turn), self.most(tenant)
        if most is None or self._had[tenant] < most:
            self._take(slot)
        else:
            slot.asked_s = now_s
            self._lines.setdefault(tenant, {})[slot] = None
        return slot

    def give(self, slot: Slot | None) -> None:
        """Twice is once, and None is none."""
        if slot is None:
            return
        line = self._lines.get(slot.tenant, {})
        if slot.is_had:
            slot.is_had = False
            self._had[slot.tenant] -= 1
            if line:
                following = next(iter(line))
                del line[following]
                self._take(following)
                following.on_turn()
        else:
            line.pop(slot, None)
        if not line:
            self._lines.pop(slot.tenant, None)
        if not self._had[slot.tenant]:
            del self._had[slot.tenant]

    def _take(self, slot: Slot) -> None:
        slot.is_had = True
        self._had[slot.tenant] += 1

    def why_not(self, tenant: str) -> str:
        """Of one that waits; empty where nobody does."""
        if tenant not in self._lines:
            return ""
        whose = f"tenant {tenant!r}" if tenant else "sessions without a tenant"
        calls = f"{self._had[tenant]} calls open, of {self.most(tenant)} that may be"
        return f"{whose}: {calls}, and {len(self._lines[tenant])} wait"
