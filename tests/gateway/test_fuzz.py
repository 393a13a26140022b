"""300 sessions that call, wait, leave, are ended and come back, and at the end nothing is left."""

import asyncio
import random
from collections.abc import Collection

import aiohttp
import pytest
from tests.gateway.conftest import CHAT, Rig, gateway, kv_sample
from tests.gateway.scripted import STREAM, Engine, Exchange, event_of, polite, until

from mars.core import events as ev
from mars.core.admission import Admission, GatedView, Open, Verdict, let_in
from mars.core.decisions import Pause
from mars.core.ids import SessionId
from mars.core.pressure import Pressure
from mars.core.session import Phase, Session
from mars.core.settings import WindowSettings
from mars.gateway.settings import GatewaySettings
from mars.policy.presets import Scheduling

SESSIONS = 300
SETTINGS = GatewaySettings(idle_s=0.1, gone_s=0.02, keepalive_s=0.01)
FEW = Scheduling(policy="mars-aimd", window=WindowSettings(first=16, least=16))
"""With the engine's KV full: 16 at a time."""


class Churn(Open):
    """An instrument: 16 at a time, and whoever rests is sent back while others wait."""

    steers = True

    def choose(
        self,
        gated: Collection[GatedView],
        active: Collection[Session],
        pressure: Pressure,
        now_s: float,
    ) -> Verdict:
        at_rest = [it.session_id for it in active if gated and it.phase is Phase.ACTING]
        room = max(0, 16 - len(active) + len(at_rest))
        return Verdict(
            admit=let_in([*gated][:room], "room"),
            pause=[Pause(session_id=session_id, why="churn") for session_id in at_rest],
            why_not="16 at a time",
            window=16,
        )


async def moody(exchange: Exchange) -> None:
    """An engine that answers, dawdles, refuses, dies or hangs."""
    mood = random.Random(exchange.body).random()
    if mood < 0.1:
        await exchange.answer(503, [], b"busy")
    elif mood < 0.2:
        await exchange.begin(200, STREAM)
        await exchange.write(event_of("half"))  # and dies
    elif mood < 0.3:
        await exchange.hang()
    else:
        await asyncio.sleep(mood / 50)
        await polite(exchange)


async def agent(rig: Rig, number: int, rng: random.Random) -> None:
    session_id = f"s{number % 250}"  # some are one session in two agents
    for turn in range(rng.randint(1, 4)):
        headers = {"X-Session-ID": session_id} if rng.random() < 0.9 else {}
        if rng.random() < 0.2:
            headers["X-Session-Final"] = "1"
        body = {"stream": rng.random() < 0.5, "n": [number, turn]}
        patience_s = rng.choice([0.005, 0.05, 0.3, 1.0])
        try:
            async with asyncio.timeout(patience_s):
                async with rig.http.post(rig.url + CHAT, json=body, headers=headers) as response:
                    if rng.random() < 0.9:
                        await response.read()
        except (TimeoutError, aiohttp.ClientError):
            pass
        if rng.random() < 0.1:
            rig.desk.end(SessionId(session_id), "fuzz")
        if rng.random() < 0.1:
            await (await rig.http.delete(f"{rig.url}/mars/sessions/{session_id}")).read()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("scheduling", [FEW, Churn()], ids=["window", "pauses"])
async def test_nothing_is_left(
    engine: Engine, scheduling: Scheduling | Admission, seed: int
) -> None:
    engine.script = moody
    rng = random.Random(seed)
    async with gateway(engine.url, SETTINGS, scheduling) as rig:
        rig.desk.emit(kv_sample(100))
        agents = [agent(rig, number, random.Random(rng.random())) for number in range(SESSIONS)]
        await asyncio.gather(*agents)
        desk, control = rig.desk, rig.desk.control
        await until(lambda: not control.sessions)
        await until(lambda: engine.open == 0)
        await until(lambda: not desk._calls._names)
        assert bool(rig.of(ev.SessionPaused)) == isinstance(scheduling, Churn)
        status = await rig.status()
        assert (status.sessions, status.active, status.gated, status.faults) == (0, 0, 0, 0)
        assert (control._gate, control.paused) == ({}, 0)
        assert control._meter.open_calls == 0
        assert (desk._stays, desk._calls._orphans) == ({}, {})
        queued = sorted(event.call_id for event in rig.of(ev.CallQueued))
        finished = sorted(event.call_id for event in rig.of(ev.CallFinished))
        assert queued == finished, "each call has one end"
        assert len(queued) > SESSIONS / 10  # a busy machine outlasts much patience
        assert len(rig.of(ev.SessionArrived)) == len(rig.of(ev.SessionEnded))
        whys = {event.why for event in rig.of(ev.SessionEnded)}
        assert {"fuzz", "its final request is answered"} <= whys
        await rig.say("afterwards")
