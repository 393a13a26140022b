"""The desk: the asyncio shell around the control plane.

Every fact, own or foreign, takes one way (`telling`); what is decided on it is carried out here.
The desk owns what the core may not: futures of gated requests, timers of silent sessions.
Nothing here awaits between a check and what it guards: each method is one step of the loop.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from secrets import token_hex
from typing import Final

from mars.core import events as ev
from mars.core.admission import GatedView
from mars.core.control import ControlPlane
from mars.core.decisions import Decision, FailOpen, Shut, said
from mars.core.ids import SessionId
from mars.core.settings import TenantSettings
from mars.core.slots import Slots
from mars.gateway.calls import OpenCalls
from mars.gateway.identity import Identity
from mars.gateway.names import EngineNames
from mars.gateway.places import Place
from mars.gateway.queue import Queue
from mars.gateway.settings import GatewaySettings
from mars.gateway.stay import Asking, Call, CallEnd, OtherTenantError, SessionOverError, Stay
from mars.gateway.telling import Telling
from mars.gateway.waiting import WaitingRoom

_COME_BACK: Final = "its session was ended, and has come back"


class Desk:
    def __init__(
        self,
        control: ControlPlane,
        settings: GatewaySettings,
        *,
        record: Callable[[ev.Event], None],
        publish: Callable[[Sequence[ev.Event]], None],
        engine: str = "",
        slots: Slots | None = None,
    ) -> None:
        """`record` gets every fact, `publish` our own ones; neither may raise. `engine`: its URL,
        as facts and views name it. `slots`: of tenants, over all desks that are given the same.
        """
        self.control = control
        self.engine = engine
        self.stopped = False
        self.lost = 0
        """Messages of other processes that never came."""
        self.names = EngineNames()
        self._set = settings
        self._slots = slots or Slots(TenantSettings())
        self._telling = Telling(
            control,
            publish=publish,
            carry_out=self._carry_out,
            notice=self._notice,
            everybody=lambda: self._stays,
        )
        self._room = WaitingRoom(self._slots, settings.keepalive_s, self._return)
        self._queue = Queue(settings.queue_limit)
        self._stays: dict[SessionId, Stay] = {}
        self._calls = OpenCalls()
        self.read_by(record)

    @property
    def faults(self) -> int:
        """Failures of the control plane."""
        return self._telling.faults

    def read_by(self, *readers: Callable[[ev.Event], None]) -> None:
        """Each is handed every fact from now on; none may raise."""
        self._telling.readers += readers

    @property
    def open_calls(self) -> int:
        return len(self._calls)

    async def enter(
        self,
        identity: Identity,
        prompt_bytes: int,
        still_waiting: Callable[[], Awaitable[None]],
        patience_s: Callable[[], float | None] = lambda: None,
    ) -> Stay:
        """Return when the session of the request is past the gate, and its tenant may have another
        call open: at once if so it is.

        Start the call before the next `await`. `still_waiting` is called every `keepalive_s`.
        `patience_s`: how long the client waits for a byte; asked when it may have to wait.
        When the last request of a gated session is cancelled, so is the session. Raises
        SessionOverError when the session is ended meanwhile, OtherTenantError when another tenant's
        session has this id, QueueFullError when it is a new one and no more may wait.
        """
        if self.stopped:
            raise SessionOverError("the gateway stops")
        session_id = identity.session_id or SessionId(f"anon-{token_hex(16)}")
        stay = self._stays.get(session_id) or self._arrive(
            session_id, identity, prompt_bytes, patience_s()
        )
        if stay.tenant != identity.tenant:
            raise OtherTenantError(
                f"session {session_id!r} was opened by another tenant and has not ended; "
                "give yours an id of its own"
            )
        if not stay.admitted or self._slots.most(stay.tenant) is not None:
            try:
                await self._room.wait(stay, Asking(prompt_bytes, still_waiting, patience_s))
            except BaseException:
                self._left(stay)
                raise
        return stay

    def restore(self, place: Place) -> None:
        """A session that was past the gate of a gateway that is gone takes its place again."""
        parent = self._parent(place.identity)
        parent_id = parent.session_id if parent else None
        stay = self._begin(place.arrived(self.engine, parent_id), parent)
        stay.heard_s, stay.tools = place.heard_s, dict(place.tools)
        self._settle(stay)

    def first_to_move(self) -> GatedView | None:
        """Who has waited longest of those that could as well wait elsewhere."""
        may = (it for it in self.control.offered if self._stays[it.session_id].may_move)
        return next((it for it in may if not it.returning), None)

    def why_in_line(self, session_id: SessionId) -> str:
        """Why requests of a session past the gate wait; empty: none does."""
        stay = self._stays.get(session_id)
        if stay is None or not stay.admitted or not stay.waiting:
            return ""
        return self._slots.why_not(stay.tenant)

    def in_line(self) -> Counter[str]:
        """By tenant, requests past the gate that wait for one of its calls to end."""
        waiting: Counter[str] = Counter()
        for stay in self._stays.values():
            if self.why_in_line(stay.session_id):
                waiting[stay.tenant] += len(stay.waiting)
        return waiting

    def hand_over(self, session_id: SessionId, to: "Desk") -> None:
        """It waits on at another gate, to which its requests follow it."""
        stay = self._stays[session_id]
        arrived = stay.arrives_at(to.engine, time.monotonic())
        self._end(stay, f"it goes on at {to.engine}, which has room", "moved")
        taken = to._begin(arrived, None)  # noqa: SLF001 another of us
        taken.gone = True  # its client, as far as can be seen from there
        to._settle(taken)  # noqa: SLF001

    def call_started(
        self, stay: Stay, *, wanted: str = "", prompt_bytes: int = 0, final: bool = False
    ) -> Call:
        """Open a call, named `wanted` if that can be its name. To be closed by `call_finished`."""
        if stay.over:
            raise SessionOverError(stay.over)
        call = self._calls.open(stay, wanted, final=final)
        stay.stop_timer()
        stay.gone = False
        stay.turn += 1
        self.emit(call.queued(prompt_bytes))
        return call

    def call_finished(
        self,
        call: Call,
        *,
        ok: bool,
        why: str = "",
        gone: bool = False,
        status: int | None = None,
        first_byte_s: float | None = None,
    ) -> None:
        """Close a call. `gone`: its client cut it. `first_byte_s`: when the answer's first came."""
        self._calls.close(call)
        self._slots.give(call.slot)
        stay = call.stay
        self._tell_finished(call, CallEnd(ok, why, gone, status, first_byte_s))
        stay.heard_s = time.monotonic()
        stay.final |= call.final
        stay.gone = gone
        self._settle(stay)

    def end(self, session_id: SessionId, why: str) -> bool:
        """End a session, open calls or not; False when there is none of this id."""
        if (stay := self._stays.get(session_id)) is not None:
            self._end(stay, why, "asked for")
        return stay is not None

    def close(self, why: str) -> None:
        """End all sessions, and let nobody in any more."""
        self.stopped = True
        for stay in list(self._stays.values()):
            self._end(stay, why, "stop")

    def tick(self, now_s: float) -> None:
        """Let time open the gate while nothing happens."""
        self._telling.ask(lambda: self.control.tick(now_s))

    def watch(self, now_s: float) -> None:
        """Let time show that nothing is heard any more, or that somebody waits too long."""
        self._telling.ask(lambda: self.control.watch(now_s))

    def hear(self, fact: ev.Event) -> None:
        """Another process's fact."""
        self.emit(self.names.ours(fact))

    def emit(self, *facts: ev.Event) -> None:
        """Tell facts, our own and others', and what comes of them."""
        self._telling.tell(*facts)

    def _notice(self, fact: ev.Event) -> None:
        """What a fact means to a stay, and to the queue."""
        self._queue.observe(fact, self.control.gated)
        match fact:
            case ev.ToolQueued() | ev.ToolStarted() | ev.ToolProgressed() | ev.ToolFinished():
                if stay := self._stays.get(fact.session_id):
                    stay.hear(fact, time.monotonic())
                    self._settle(stay)
            case ev.SessionAdmitted():
                if stay := self._stays.get(fact.session_id):
                    stay.wake()
            case _:
                pass

    def _carry_out(self, decisions: Sequence[Decision]) -> list[ev.Event]:
        return [fact for decision in decisions if (fact := self._fact_of(decision))]

    def _fact_of(self, decision: Decision) -> ev.Event | None:
        """What the decision is now; None: it changes nothing."""
        now_s = time.monotonic()
        if isinstance(decision, Shut | FailOpen):
            return said(decision, now_s)
        stay = self._stays.get(decision.session_id)
        return None if stay is None else stay.obey(decision, now_s)

    def _arrive(
        self,
        session_id: SessionId,
        identity: Identity,
        prompt_bytes: int,
        patience_s: float | None,
    ) -> Stay:
        for call in self._calls.adopt(session_id):
            self._tell_finished(call, CallEnd(ok=False, why=_COME_BACK))
        now_s, parent = time.monotonic(), self._parent(identity)
        if parent is None or not parent.admitted:
            self._refuse_if_full(session_id, identity.tenant, now_s)
        arrived = ev.SessionArrived(
            at_s=now_s,
            session_id=session_id,
            rule=identity.rule,
            prompt_bytes=prompt_bytes,
            patience_s=patience_s,
            parent_id=parent.session_id if parent else None,
            tenant=identity.tenant,
            engine=self.engine,
        )
        return self._begin(arrived, parent)

    def _parent(self, identity: Identity) -> Stay | None:
        """Nobody enters on another tenant's word."""
        parent = self._stays.get(identity.parent_id) if identity.parent_id else None
        return parent if parent is not None and parent.tenant == identity.tenant else None

    def _begin(self, arrived: ev.SessionArrived, parent: Stay | None) -> Stay:
        stay = Stay.of(arrived, parent, time.monotonic())
        self._stays[arrived.session_id] = stay
        if parent is not None:
            parent.children += 1
            parent.stop_timer()
        self.emit(arrived)
        return stay

    def _refuse_if_full(self, session_id: SessionId, tenant: str, now_s: float) -> None:
        if (error := self._queue.full_for(tenant, self.control, now_s)) is not None:
            self.emit(error.refused(session_id, now_s))
            raise error

    def _return(self, stay: Stay, asking: Asking) -> None:
        stay.away = False
        self.emit(stay.returned(asking, time.monotonic()))

    def _left(self, stay: Stay) -> None:
        """A client has left while it waited."""
        if not (stay.turn or stay.waiting):
            where = "before its first call" if stay.admitted else "at the gate"
            self._end(stay, f"client left {where}", "client left")
            return
        if not stay.admitted:
            stay.gone, stay.heard_s = True, time.monotonic()
        self._settle(stay)

    def _tell_finished(self, call: Call, end: CallEnd) -> None:
        if not call.told:
            call.told = True
            self.emit(call.finished(time.monotonic(), end))

    def _settle(self, stay: Stay) -> None:
        """Nothing of a stay may be with us now: end it, or see to it that its silence ends."""
        stay.stop_timer()
        if not stay.quiet:
            return
        if stay.final:
            self._end(stay, "its final request is answered", "final request")
        else:
            end_s, why = stay.ends(self._set)
            delay_s = max(0.0, end_s - time.monotonic())
            by: ev.End = "client gone" if stay.gone else "silence"
            stay.timer = asyncio.get_running_loop().call_later(delay_s, self._end, stay, why, by)

    def _end(self, stay: Stay, why: str, by: ev.End) -> None:
        if stay.over:
            return
        stay.over = why
        stay.stop_timer()
        del self._stays[stay.session_id]
        self._calls.orphan(stay)
        now_s = time.monotonic()
        self.emit(ev.SessionEnded(at_s=now_s, session_id=stay.session_id, why=why, by=by))
        stay.wake()
        if (parent := stay.parent) is not None:
            parent.children, parent.heard_s = parent.children - 1, now_s
            self._settle(parent)
