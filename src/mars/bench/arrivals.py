"""When sessions begin: closed loop (so many agents, each takes the next) or open loop (Poisson)."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from mars.workload.trace import Recorded


@dataclass(frozen=True, slots=True)
class Load:
    agents: int | None = None
    """Closed loop: this many sessions are open at any time."""
    per_s: float | None = None
    """Open loop: sessions a second, Poisson."""
    seed: int = 1
    found: str = ""
    """How `agents` was found, in words."""

    def describe(self) -> str:
        if self.per_s is not None:
            return f"open loop, {self.per_s:g} sessions/s (Poisson, seed {self.seed})"
        how = f" ({self.found})" if self.found else ""
        return f"closed loop, {self.agents} agents{how}"

    async def run(
        self, sessions: Sequence[Recorded], play: Callable[[Recorded], Awaitable[None]]
    ) -> None:
        """Play every session; the first error ends all of them."""
        async with asyncio.TaskGroup() as group:
            if self.per_s is not None:
                for at_s, session in zip(self.starts_s(len(sessions)), sessions, strict=True):
                    group.create_task(_later(at_s, session, play))
            else:
                queue = iter(sessions)
                for _ in range(min(self.agents or 1, len(sessions))):
                    group.create_task(_agent(queue, play))

    def starts_s(self, count: int) -> list[float]:
        rng, at_s, starts = random.Random(self.seed), 0.0, []
        for _ in range(count):
            starts.append(at_s)
            at_s += rng.expovariate(self.per_s or 1.0)
        return starts


async def _later(
    at_s: float, session: Recorded, play: Callable[[Recorded], Awaitable[None]]
) -> None:
    await asyncio.sleep(at_s)
    await play(session)


async def _agent(queue: Iterator[Recorded], play: Callable[[Recorded], Awaitable[None]]) -> None:
    for session in queue:
        await play(session)
