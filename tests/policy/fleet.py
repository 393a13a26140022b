"""A control plane with sessions in it, told in numbers: for the admissions that read sessions."""

from mars.core import events as ev
from mars.core.admission import Admission
from mars.core.control import UNBOUNDED, ControlPlane
from mars.core.decisions import Admit, Decision, FailOpen, Pause, Shut, said
from mars.core.ids import CallId, SessionId
from mars.core.quotas import Quotas
from mars.core.settings import GateSettings

BYTES_A_TOKEN = 4


class Fleet:
    """Carries decisions out at once, as the gateway does."""

    def __init__(
        self,
        admission: Admission,
        *,
        kv_tokens: int = 10_000,
        gate: GateSettings = UNBOUNDED,
        quotas: Quotas | None = None,
    ) -> None:
        self.plane = ControlPlane(admission, gate, quotas)
        self.told: list[ev.Event] = []
        self.now_s = 0.0
        self.kv_tokens = kv_tokens
        self.sample(0)

    def tell(self, event: ev.Event) -> None:
        facts = [event]
        for fact in facts:
            self.told.append(fact)
            facts += map(self.carried_out, self.plane.handle(fact))
            self.plane.check()

    def carried_out(self, decision: Decision) -> ev.Event:
        match decision:
            case Admit():
                return ev.SessionAdmitted(
                    at_s=self.now_s,
                    session_id=decision.session_id,
                    why=decision.why,
                    by=decision.by,
                )
            case Pause():
                return ev.SessionPaused(
                    at_s=self.now_s, session_id=decision.session_id, why=decision.why
                )
            case Shut() | FailOpen():
                return said(decision, self.now_s)

    def tick(self, passed_s: float) -> None:
        self.now_s += passed_s
        for decision in self.plane.tick(self.now_s):
            self.tell(self.carried_out(decision))

    def sample(self, used_tokens: int) -> None:
        self.tell(
            ev.EngineSampled(
                at_s=self.now_s,
                kv_used_blocks=used_tokens // 10,
                kv_held_blocks=0,
                kv_total_blocks=self.kv_tokens // 10,
                block_tokens=10,
                running_calls=0,
                waiting_calls=0,
            )
        )

    def arrive(
        self, *names: str, tokens: int = 0, tenant: str = "", parent: str | None = None
    ) -> None:
        for name in names:
            self.tell(
                ev.SessionArrived(
                    at_s=self.now_s,
                    session_id=SessionId(name),
                    prompt_bytes=tokens * BYTES_A_TOKEN,
                    tenant=tenant,
                    parent_id=None if parent is None else SessionId(parent),
                )
            )

    def come_back(self, name: str) -> None:
        self.tell(ev.SessionReturned(at_s=self.now_s, session_id=SessionId(name)))

    def begin(self, name: str) -> None:
        self.tell(
            ev.CallQueued(at_s=self.now_s, session_id=SessionId(name), call_id=CallId(name), turn=1)
        )

    def finish(self, name: str, tokens: int, *, cached_tokens: int = 0) -> None:
        """Its context is now so long."""
        session_id, call_id = SessionId(name), CallId(name)
        self.tell(
            ev.CallServed(
                at_s=self.now_s,
                session_id=session_id,
                call_id=call_id,
                prompt_tokens=tokens,
                cached_tokens=cached_tokens,
                computed_tokens=tokens,
                made_tokens=0,
                queued_s=0.0,
                ok=True,
            )
        )
        self.tell(ev.CallFinished(at_s=self.now_s, session_id=session_id, call_id=call_id, ok=True))

    def call(self, name: str, tokens: int, *, cached_tokens: int = 0) -> None:
        self.begin(name)
        self.finish(name, tokens, cached_tokens=cached_tokens)

    def end(self, name: str) -> None:
        self.tell(ev.SessionEnded(at_s=self.now_s, session_id=SessionId(name), why=""))

    @property
    def phases(self) -> dict[str, str]:
        return {name: session.phase.value for name, session in self.plane.sessions.items()}
