"""Several engines: each has a gate of its own, and sessions stay with the engine that has them.

    request -> Dispatch -> one Member: its desk, control plane and connections, as with one engine

A member knows only its own sessions, pressure and KV, so nothing in the middle knows of fleets. A
session is where its stay is; what it is placed by when it has none is `core.placement`. When its
engine is down or drains, its stay there ends, and its next call arrives at another one, cold. One
that waits and was never in has nothing to lose: it is moved where there is room.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from math import inf
from typing import Final, Self

import msgspec
from starlette.routing import Router

from mars.core import events as ev
from mars.core.errors import InputError
from mars.core.ids import SessionId
from mars.core.placement import EngineView, State, elsewhere, place
from mars.gateway.desk import Desk
from mars.gateway.identity import Identity
from mars.gateway.places import Place
from mars.gateway.settings import GatewaySettings
from mars.gateway.shown import Shown, Status
from mars.gateway.upstream import FAILURES, Upstream
from mars.gateway.vllm_metrics import sample_of

_SICK_TIMES: Final = 2
"""So many failed checks in a row are an engine that is down; a call that failed asks once."""
_MAY_MAKE_ROOM: Final = (ev.SessionEnded, ev.SessionAdmitted, ev.EngineSampled)
"""Facts after which somebody may be moved. An admission may be the last of its gate."""


@dataclass(slots=True, eq=False)
class Member:
    """An engine, and the gate before it."""

    url: str
    facts: str
    """Endpoint on which its plugin publishes; empty: it has none, and its /metrics is read."""
    desk: Desk
    app: Router
    upstream: Upstream
    shown: Shown
    state: State = "up"
    why: str = ""
    """Why it is down."""
    up_since_s: float = -inf
    sick_times: int = 0
    leaving: bool = False
    """To be forgotten once its calls have ended."""
    life: AsyncExitStack = field(default_factory=AsyncExitStack)

    def view(self, prompt_bytes: int) -> EngineView:
        control = self.desk.control
        pressure = control.pressure
        known = pressure.kv_frac_per_byte > 0.0
        return EngineView(
            url=self.url,
            state=self.state,
            up_since_s=self.up_since_s,
            kv_frac=pressure.kv_frac if known else None,
            newcomer_frac=pressure.kv_frac_per_byte * max(1, prompt_bytes) if known else None,
            waiting=control.gated - len(control.held_back),
            calls=self.desk.open_calls,
            is_shut=bool(control.failsafe.cause)
            or (control.window is not None and control.active >= control.window),
        )

    def status(self) -> Status:
        return msgspec.structs.replace(self.shown.status(), state=self.state, state_why=self.why)


class Fleet:
    """As a context: its members live, and their health is watched."""

    def __init__(
        self,
        make: Callable[[str, str], Member],
        live: Callable[[Member], AbstractAsyncContextManager[None]],
        settings: GatewaySettings,
    ) -> None:
        """`make` makes a member of URL and facts, or raises InputError; `live` is its life."""
        self._make, self._live, self._set = make, live, settings
        self._members: dict[str, Member] = {}
        self._life = AsyncExitStack()
        self._looking: asyncio.Handle | None = None
        self.lost = 0
        """Messages of other processes that never came."""

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    async def __aenter__(self) -> Self:
        for member in self:
            await self._begin(member)
        watching = asyncio.create_task(self._watch())
        self._life.callback(watching.cancel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._life.aclose()
        for member in self:
            await member.life.aclose()

    # -- members ----------------------------------------------------------------------------------

    def found(self, url: str, facts: str = "") -> Member:
        """A member that is there from the start. Raises InputError."""
        member = self._make(url, facts)
        if member.url in self._members:
            raise InputError(f"the engine {member.url} is named twice")
        self._members[member.url] = member
        member.desk.read_by(self._observe)
        return member

    async def add(self, url: str, facts: str = "") -> Member:
        """A new engine, or one that drains and is to stay. Raises InputError."""
        member = self._members.get(url)
        if member is None:
            member = self.found(url, facts)
            member.state, member.why = "down", "not asked yet"
            await self._begin(member)
        elif member.state == "draining":
            member.state, member.leaving, member.why = "down", False, "not asked yet"
        await self.check(member)
        return member

    def drain(self, url: str, *, leave: bool) -> Member:
        """No new call for this engine; those that are open go on. Raises InputError."""
        member = self._members.get(url)
        if member is None:
            raise InputError(f"no engine {url!r} is here: GET /mars/engines lists them")
        member.leaving |= leave
        self._leave(member, "draining", "it drains")
        return member

    async def _begin(self, member: Member) -> None:
        await member.life.enter_async_context(self._live(member))

    async def _forget(self, member: Member) -> None:
        del self._members[member.url]
        await member.life.aclose()

    # -- health -----------------------------------------------------------------------------------

    async def check(self, member: Member, *, urgent: bool = True) -> None:
        """Ask an engine how it is. `urgent`: one failure is enough."""
        why = await member.upstream.sick()
        if member.state == "draining":
            return
        if why:
            member.sick_times += 1
            if urgent or member.sick_times >= _SICK_TIMES:
                self._leave(member, "down", why)
        else:
            member.sick_times, member.why = 0, ""
            if member.state == "down":
                member.state, member.up_since_s = "up", time.monotonic()

    def _leave(self, member: Member, state: State, why: str) -> None:
        """Its sessions end here, to arrive elsewhere; calls that are open are not touched."""
        member.state, member.why = state, why
        for session_id in list(member.desk.control.sessions):
            member.desk.end(session_id, f"its engine {member.url} is {state}: it goes on elsewhere")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._set.health_s)
            await asyncio.gather(*(self._look_at(member) for member in list(self)))

    async def _look_at(self, member: Member) -> None:
        await self.check(member, urgent=False)
        if member.leaving and not member.desk.open_calls:
            await self._forget(member)
        elif member.state == "up" and not member.facts:
            await self._sample(member)

    async def _sample(self, member: Member) -> None:
        """What the plugin would tell of KV, as far as a vLLM without it does."""
        try:
            async with asyncio.timeout(self._set.connect_s):
                response = await member.upstream.send("GET", "/metrics", [], b"")
                text = (await response.read()).decode("utf-8", "replace")
        except FAILURES:
            return  # the next check says so
        if sample := sample_of(text, time.monotonic()):
            member.desk.emit(sample)

    # -- sessions ---------------------------------------------------------------------------------

    def home(self, session_id: SessionId | None) -> Member | None:
        """Where the session is; None: nowhere."""
        return next((it for it in self if session_id in it.desk.control.sessions), None)

    def member_for(self, identity: Identity | None, prompt_bytes: int) -> Member | None:
        """Where a request goes; None: no engine is up. A child goes where its parent is."""
        if identity is not None:
            for session_id in (identity.session_id, identity.parent_id):
                if (home := self.home(session_id)) and home.state == "up":
                    return home
        views = [member.view(prompt_bytes) for member in self]
        placed = place(views, time.monotonic(), self._set.slow_start_s)
        return None if placed is None else self._members[placed.url]

    def restore(self, place: Place) -> None:
        """A session of a gateway that is gone, at its engine, if that is here."""
        if member := self._members.get(place.engine):
            member.desk.restore(place)

    def _observe(self, fact: ev.Event) -> None:
        """A session that ends may make room for one of its tenant at another engine's gate, and
        each of these for one that waits at another.
        """
        if not isinstance(fact, _MAY_MAKE_ROOM) or not any(it.desk.control.gated for it in self):
            return
        loop = asyncio.get_running_loop()
        for member in self if isinstance(fact, ev.SessionEnded) else ():
            if member.desk.control.held_back:
                loop.call_soon(member.desk.tick, time.monotonic())
        if self._looking is None:
            self._looking = loop.call_soon(self._move)

    def _move(self) -> None:
        """Who has waited longest of those that may move goes where there is room, if there is; what
        comes of that asks about the next. Each is moved once.
        """
        self._looking = None
        firsts = [(view, it) for it in self if (view := it.desk.first_to_move()) is not None]
        if not firsts:
            return
        view, home = min(firsts, key=lambda first: first[0].arrived_s)
        views = [it.view(view.prompt_bytes) for it in self if it is not home]
        to = elsewhere(views, time.monotonic(), self._set.slow_start_s)
        if to is not None:
            home.desk.hand_over(view.session_id, self._members[to.url].desk)

    def hear(self, fact: ev.Event) -> None:
        """A fact of the tool server: of a session to where it is, a sample to all."""
        members = list(self)
        if isinstance(fact, ev.ToolsSampled):
            for member in members:
                member.desk.hear(fact)
        elif isinstance(fact, ev.ToolEvent) and members:
            (self.home(fact.session_id) or members[0]).desk.hear(fact)

    def close(self, why: str) -> None:
        """End all sessions, and let nobody in any more."""
        for member in self:
            member.desk.close(why)

    async def cut(self) -> None:
        """Close all connections to engines."""
        for member in self:
            await member.upstream.close()
