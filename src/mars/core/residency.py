"""Admission by resources: a session enters when there is room for what it will keep in KV.

Sessions are not alike, so they are not counted: what counts is the KV that the active ones occupy,

    sum over active sessions of  share * (context - what it has in common with others)

    share  1 while a call is open or its KV is held; `idle_share` in a gap without a hold: its KV
           may be gone, but comes back with its next call

A newcomer's context is its prompt, in tokens as learned from earlier first calls, less what the
engine finds cached of a first prompt on average (a system prompt that all share is there once).
The sum may be `overcommit` times the capacity: not all are on the GPU at once.

Where the engine has host memory behind its KV, contexts of those in a gap count nothing up to
`host_share` of it: they come back by a load, in a hundredth of the time that computing takes.

Where nothing is ever held (a model with Mamba layers, a policy without retention) the KV of
those in a gap lives in the engine's LRU queue, and whoever runs evicts it. There every context
counts whole, and the sum may be `unheld_fill` of the capacity.

The smallest newcomer enters first, since more of them fit; one that has waited longer than
`patience` times the mean life of a session goes before the others, and nobody passes it. A session
in a long tool occupies little: it gives its room back without losing its place. Tools are no reason
to keep anybody out: a call that waits for cores occupies no memory (see policy.tool_order).

Compare core.window, the paper's window on the number of sessions.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from math import inf
from typing import Final

from mars.core import events as ev
from mars.core.admission import GatedView, Verdict, let_in
from mars.core.context import Context
from mars.core.ids import CallId, SessionId
from mars.core.pressure import Pressure
from mars.core.session import Session
from mars.core.settings import ResidencySettings
from mars.core.tenants import TenantShares

_WEIGHT: Final = 0.1
"""Of the newest value in what is learned."""
_FIRST_TOKENS_PER_BYTE: Final = 0.25
"""English text in JSON."""

InOrder = Callable[[Collection[GatedView], float], Sequence[GatedView]]
"""Of those at the gate, at this time (s)."""
_Occupying = ev.CallQueued | ev.CallFinished | ev.CallServed | ev.KvHeld | ev.KvReleased


@dataclass(slots=True)
class _Stay:
    """An active session, and what it occupies."""

    arrived_s: float | None
    """None: it entered unasked, as a child does; its first call tells its size, if not sooner."""
    prompt_bytes: int
    estimate_tokens: float
    """Its context while it is new."""
    shared_tokens: float
    context: Context = field(default_factory=Context)
    calls: set[CallId] = field(default_factory=set)
    is_held: bool = False
    is_new: bool = True
    """The engine has not accounted for a call of it."""
    needs_tokens: float = 0.0
    is_resident: bool = True


class Residency:
    steers = False
    tick_s: float | None = None

    def __init__(
        self,
        settings: ResidencySettings,
        shares: TenantShares | None = None,
        in_order: InOrder | None = None,
    ) -> None:
        """`shares`: of tenants, which come before all else; each one's sessions enter as above.
        `in_order`: who is next, instead of whoever has waited long and then the smallest.
        """
        self._set = settings
        self._shares = shares
        self._in_order = in_order or self._late_then_small
        self._capacity_tokens = 0
        self._stays: dict[SessionId, _Stay] = {}
        self._resident_tokens = self._idle_tokens = 0.0
        """Of active sessions with a call or a hold, and of the others."""
        self._host_tokens = 0
        self._tokens_per_byte = _FIRST_TOKENS_PER_BYTE
        self._common_tokens = 0.0
        """Of a first prompt, what was found cached."""
        self._life_s = 0.0
        self._holds = False
        """Something was held at some time."""
        self._fits_tokens = inf
        """While the active ones occupy more than this, nobody fits of those who were last asked
        about: not to be asked again. Who comes or goes, and what is learned, starts it anew."""
        self._asked = 0
        """How many they were: whoever its tenant's limit kept out may be among more of them."""

    # -- facts ------------------------------------------------------------------------------------

    def observe(self, event: ev.Event) -> None:
        if self._shares is not None:
            self._shares.observe(event)
        match event:
            case ev.CallQueued() | ev.CallFinished() | ev.CallServed():
                self._follow(event)
            case ev.KvHeld() | ev.KvReleased():
                if not self._holds:
                    self._begin_to_hold()
                self._follow(event)
            case ev.SessionArrived() | ev.SessionReturned():
                self._come(event)
            case ev.SessionAdmitted() if event.session_id not in self._stays:
                self._fits_tokens = inf
                self._stay(event.session_id, None, 0)
            case ev.EngineSampled():
                capacity_tokens = event.kv_total_blocks * event.block_tokens
                host_tokens = event.host_total_blocks * event.block_tokens
                if (capacity_tokens, host_tokens) != (self._capacity_tokens, self._host_tokens):
                    self._capacity_tokens, self._host_tokens = capacity_tokens, host_tokens
                    self._fits_tokens = inf
            case ev.SessionEnded():
                self._end(event)
            case _:
                pass

    def _come(self, event: ev.SessionArrived | ev.SessionReturned) -> None:
        self._fits_tokens = inf
        if isinstance(event, ev.SessionArrived) and event.was_in:  # it enters unasked
            self._stay(event.session_id, None, event.prompt_bytes)

    def _follow(self, event: _Occupying) -> None:
        stay = self._stays.get(event.session_id)
        if stay is None:
            return
        match event:
            case ev.CallQueued():
                stay.calls.add(event.call_id)
                if stay.arrived_s is None and stay.is_new:
                    stay.prompt_bytes = event.prompt_bytes
                    stay.estimate_tokens = self._tokens_per_byte * event.prompt_bytes
            case ev.CallFinished():
                stay.calls.discard(event.call_id)
            case ev.KvHeld():
                stay.is_held = True
            case ev.KvReleased():
                stay.is_held = False
            case ev.CallServed():
                if stay.is_new and event.ok:
                    self._learn(stay, event)
                stay.context.served(event)
        self._weigh(stay)

    def _begin_to_hold(self) -> None:
        self._holds = True
        self._fits_tokens = inf

    def _learn(self, stay: _Stay, event: ev.CallServed) -> None:
        """A newcomer's estimates become facts, and better estimates for the next ones."""
        stay.is_new, stay.shared_tokens = False, float(event.cached_tokens)
        self._common_tokens += _WEIGHT * (event.cached_tokens - self._common_tokens)
        if stay.prompt_bytes:
            ratio = event.prompt_tokens / stay.prompt_bytes
            self._tokens_per_byte += _WEIGHT * (ratio - self._tokens_per_byte)
        self._fits_tokens = inf

    def _weigh(self, stay: _Stay) -> None:
        self._count(stay, -1)
        stay.is_resident = bool(stay.calls) or stay.is_held or stay.is_new
        tokens = stay.estimate_tokens if stay.is_new else stay.context.tokens
        stay.needs_tokens = max(0.0, tokens - stay.shared_tokens)
        self._count(stay, 1)

    def _count(self, stay: _Stay, sign: int) -> None:
        if stay.is_resident:
            self._resident_tokens += sign * stay.needs_tokens
        else:
            self._idle_tokens += sign * stay.needs_tokens

    @property
    def _occupied_tokens(self) -> float:
        share = self._set.idle_share if self._holds else 1.0
        room_tokens = self._set.host_share * self._host_tokens
        return self._resident_tokens + share * max(0.0, self._idle_tokens - room_tokens)

    def _end(self, event: ev.SessionEnded) -> None:
        self._fits_tokens = inf
        stay = self._stays.pop(event.session_id, None)
        if stay is None:
            return
        self._count(stay, -1)
        if not self._stays:
            self._resident_tokens = self._idle_tokens = 0.0  # sums of fractions drift
        if stay.arrived_s is not None:
            life_s = event.at_s - stay.arrived_s
            self._life_s += (_WEIGHT if self._life_s else 1.0) * (life_s - self._life_s)

    # -- the gate ---------------------------------------------------------------------------------

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        del pressure
        if not self._capacity_tokens:
            room = max(0, self._set.first - len(active))
            why = "the engine's KV capacity is not known yet"
            return self._verdict(list(islice(gated, room)), why, "KV capacity unknown")
        share = self._occupied_tokens / self._capacity_tokens
        why = f"{len(active)} active sessions need {share:.0%} of KV"
        return self._verdict(self._fitting(gated, now_s, alone=not active), why, "room in KV")

    def _fitting(
        self, gated: Collection[GatedView], now_s: float, *, alone: bool
    ) -> list[GatedView]:
        """Whose turn it is, as far as there is room."""
        if len(gated) > self._asked:
            self._fits_tokens = inf
        self._asked = len(gated)
        if self._occupied_tokens > self._fits_tokens and not alone:
            return []
        fill = self._set.overcommit if self._holds else self._set.unheld_fill
        limit_tokens = fill * self._capacity_tokens - self._common_tokens
        occupied_tokens = self._occupied_tokens
        chosen: list[GatedView] = []
        for view in self._in_order(gated, now_s):
            occupied_tokens += self._needs_tokens(view)
            if occupied_tokens > limit_tokens and not alone:
                break
            chosen.append(view)
            alone = False
        left_tokens = (self._needs_tokens(view) for view in gated if view not in chosen)
        self._asked -= len(chosen)
        self._fits_tokens = limit_tokens - min(left_tokens, default=0.0)
        return chosen

    def _late_then_small(self, gated: Collection[GatedView], now_s: float) -> Sequence[GatedView]:
        most_s = self._set.patience * self._life_s if self._life_s else inf
        late = list(takewhile(lambda view: now_s - view.arrived_s > most_s, gated))
        views = [*late, *sorted(islice(gated, len(late), None), key=lambda view: view.prompt_bytes)]
        return views if self._shares is None else list(self._shares.in_turn(views))

    def _needs_tokens(self, view: GatedView) -> float:
        return max(0.0, self._tokens_per_byte * view.prompt_bytes - self._common_tokens)

    def _stay(self, session_id: SessionId, arrived_s: float | None, prompt_bytes: int) -> None:
        tokens = self._tokens_per_byte * prompt_bytes
        stay = _Stay(arrived_s, prompt_bytes, tokens, self._common_tokens)
        self._stays[session_id] = stay
        self._weigh(stay)

    def _verdict(self, chosen: Sequence[GatedView], why: str, limit: ev.Limit = "") -> Verdict:
        for view in chosen:
            self._stay(view.session_id, view.arrived_s, view.prompt_bytes)
        return Verdict(admit=let_in(chosen, why), why_not=why, limit=limit, window=None)
