"""Agents that behave as agents do at their worst: they cancel, vanish, forget to say goodbye.

Closed loop, seeded. Each agent opens session after session, of a few turns; a turn is a stream of
the stub engine, of some length and pace.
"""

import asyncio
import random
from collections import Counter
from typing import Final

import aiohttp

from mars.gateway.settings import GatewaySettings

SETTINGS: Final = GatewaySettings(idle_s=2.0, gone_s=1.0, keepalive_s=0.5, health_s=0.5)
"""Those of the gateway that is soaked: short, so that much ends in a short time."""
_DONE: Final = b"data: [DONE]\n\n"
_CANCELS: Final = 0.1
"""Share of turns that are cut by their client, wherever they are."""
_ENDS: Final = 0.7
"""Share of sessions that say that they are over: half of them with the last turn, half by the
endpoint. The others fall silent."""


class Churn:
    def __init__(self, url: str, http: aiohttp.ClientSession, seed: int) -> None:
        self._url = url
        self._http = http
        self._seed = seed
        self.stop = asyncio.Event()
        self.met: Counter[str] = Counter()
        """What the agents met with: `sessions`, `turns`, `cancelled`, `broken` (streams that had
        begun and ended in an error), and HTTP errors by status."""

    async def agent(self, number: int) -> None:
        """Until `stop`."""
        rng = random.Random(f"{self._seed}/{number}")
        while not self.stop.is_set():
            self.met["sessions"] += 1
            await self._session(f"soak-{number}-{self.met['sessions']}", rng)

    async def _session(self, session_id: str, rng: random.Random) -> None:
        turns = rng.randint(1, 6)
        goodbye = rng.random() < _ENDS and rng.choice(["final", "endpoint"])
        for turn in range(turns):
            final = goodbye == "final" and turn == turns - 1
            patience_s = rng.uniform(0.0, 0.5) if rng.random() < _CANCELS else None
            try:
                async with asyncio.timeout(patience_s):
                    await self._turn(session_id, rng, final=final)
            except TimeoutError:
                self.met["cancelled"] += 1
                if rng.random() < 0.5:  # noqa: PLR2004 half of those who cut never come back
                    return
            await asyncio.sleep(rng.expovariate(10.0))
        if goodbye == "endpoint":
            await (await self._http.delete(f"{self._url}/mars/sessions/{session_id}")).read()

    async def _turn(self, session_id: str, rng: random.Random, *, final: bool) -> None:
        model = rng.choice(["stub-0ms", "stub-5ms", "stub-25ms"])
        body = {"model": model, "max_tokens": rng.randint(1, 20), "stream": True}
        padding = "x" * rng.choice([100, 2_000, 50_000])
        headers = {"X-Session-ID": session_id} | ({"X-Session-Final": "1"} if final else {})
        async with self._http.post(
            f"{self._url}/v1/chat/completions", json=body | {"user": padding}, headers=headers
        ) as response:
            said = await response.read()
        self.met["turns"] += 1
        if response.status != 200:  # noqa: PLR2004
            self.met[f"HTTP {response.status}"] += 1
        elif not said.endswith(_DONE):
            self.met["broken"] += 1
