"""A control plane with a bug must not stop the traffic."""

import asyncio
from collections.abc import Collection
from typing import ClassVar

import pytest
from tests.gateway.scripted import until

from mars.core import events as ev
from mars.core.admission import GatedView, Open, Verdict
from mars.core.control import ControlPlane
from mars.core.decisions import Admit
from mars.core.errors import InputError
from mars.core.ids import SessionId
from mars.core.pressure import Pressure
from mars.core.session import Session
from mars.gateway.desk import Desk
from mars.gateway.identity import Identity
from mars.gateway.settings import GatewaySettings

A = SessionId("a")


async def wait_on() -> None:
    pass


def identity(session_id: str) -> Identity:
    return Identity(session_id=SessionId(session_id), rule="test", final=False)


class Broken(Open):
    """An admission with a bug that shows now and then."""

    error: ClassVar[Exception | None] = None

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        if self.error is not None:
            raise self.error
        return Verdict(admit=[], why_not="nobody enters", window=0)


class TestFaults:
    def desk(self, admission: Broken) -> tuple[Desk, list[ev.Event]]:
        events: list[ev.Event] = []
        own: list[ev.Event] = []
        control = ControlPlane(admission)
        return Desk(control, GatewaySettings(), record=events.append, publish=own.extend), events

    async def test_a_control_plane_that_fails_lets_everybody_in(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        admission = Broken()
        desk, events = self.desk(admission)
        waiting = asyncio.ensure_future(desk.enter(identity("a"), 1, wait_on))
        await until(lambda: A in desk.control.sessions)
        admission.error = ZeroDivisionError("a bug")  # type: ignore[misc]
        for number in range(5):  # each arrives, calls and ends without a gate
            stay = await desk.enter(identity(str(number)), 1, wait_on)
            desk.call_finished(desk.call_started(stay, final=True), ok=True)
        assert (await waiting).admitted
        admitted = [event for event in events if isinstance(event, ev.SessionAdmitted)]
        assert len(admitted) == 6
        assert all("a bug" in event.why for event in admitted)
        assert all(event.by == "fault" for event in admitted)
        assert desk.faults == 1, "an admission that fails is not asked again for a while"
        assert [e.cause for e in events if isinstance(e, ev.FailOpenChanged)] == ["fault"]
        said = caplog.text
        assert said.count("ZeroDivisionError: a bug") == 1, "told once"
        assert "the gate is open" in said
        admission.error = None  # type: ignore[misc]
        desk.end(A, "test")
        assert not desk.control.sessions
        assert not desk._stays

    async def test_an_input_error_is_not_swallowed(self) -> None:
        admission = Broken()
        desk, _ = self.desk(admission)
        admission.error = InputError("no")  # type: ignore[misc]
        with pytest.raises(InputError, match="no"):
            await desk.enter(identity("a"), 1, wait_on)

    async def test_an_admit_of_nobody_is_no_fault(self) -> None:
        desk, events = self.desk(Broken())
        assert desk._carry_out([Admit(session_id=A, why="?")]) == []
        assert events == []
