"""`mars soak`: a gateway under churn for as long as one likes, and whether anything is left of it.

Two stub engines with little KV behind one gateway; agents that come, cancel, vanish (bench.churn);
every few seconds one engine is killed and started again. At the end nobody comes any more, and what
has to hold then is checked: nothing is left, memory and descriptors have not grown, and in the
event log each arrival and each call has one end.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import msgspec
import psutil

from mars.bench.churn import SETTINGS, Churn
from mars.config import Settings, save_settings
from mars.core import events as ev
from mars.core.errors import PartDiedError
from mars.core.ids import CallId, SessionId
from mars.gateway.front import EngineRow
from mars.policy.presets import Scheduling
from mars.serve.parts import Part, Parts
from mars.serve.stack import free_ports
from mars.stream.log import read_log

_READY_S: Final = 60.0
_DOWN_S: Final = 1.0
_KV_BLOCKS: Final = 1000
"""Of 16 tokens: room for some 30 of the churn's sessions, so that others wait."""
_MORE_FRAC, _MORE_MB, _MORE_DESCRIPTORS = 0.05, 5.0, 20
"""What a steady state may differ by: the medians of the second and the last quarter."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    at_s: float
    """Since the beginning."""
    memory_mb: float
    descriptors: int
    sessions: int
    turns: int
    restarts: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    samples: Sequence[Sample]
    met: dict[str, int]
    broken: Sequence[str]
    """What does not hold, in words."""


class _Stage(NamedTuple):
    parts: Parts
    url: str
    log: Path
    engines: Sequence[Part]
    gateway: psutil.Process


async def soak(
    *,
    minutes: float,
    agents: int,
    policy: str,
    restart_s: float,
    seed: int,
    tell: Callable[[Sample], None],
) -> Outcome:
    """A sample every sixtieth of the time. Raises PartDiedError when the gateway dies."""
    connector = aiohttp.TCPConnector(limit=0)
    async with _stage(policy) as stage, aiohttp.ClientSession(connector=connector) as http:
        churn = Churn(stage.url, http, seed)
        restarts = [0]
        samples: list[Sample] = []
        begin_s = time.monotonic()
        killing = asyncio.create_task(_restart(stage, restart_s, restarts))
        async with asyncio.TaskGroup() as group:
            for number in range(agents):
                group.create_task(churn.agent(number))
            while (at_s := time.monotonic() - begin_s) < minutes * 60:
                await asyncio.sleep(minutes)
                sessions = sum(row.sessions for row in await _engines(http, stage.url))
                samples.append(_sample(stage.gateway, at_s, sessions, churn, restarts[0]))
                tell(samples[-1])
            killing.cancel()
            churn.stop.set()
        left = await _left(http, stage.url)
        broken = [*left, *grown(samples)]
        await asyncio.sleep(1.0)  # what was told is in the log within a fifth of that
        broken += broken_laws(read_log(stage.log)[1])
    return Outcome(samples=samples, met=dict(churn.met), broken=broken)


@asynccontextmanager
async def _stage(policy: str) -> AsyncIterator[_Stage]:
    port, *engine_ports = free_ports(3)
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="mars-") as made:
        folder = Path(made)
        log, config = folder / "events.jsonl", folder / "settings.json"
        save_settings(Settings(scheduling=Scheduling(policy=policy), gateway=SETTINGS), config)
        engines, upstreams = [], []
        for engine_port in engine_ports:
            facts = f"ipc://{folder}/{engine_port}"
            argv = [
                sys.executable, "-m", "mars.bench.stub_engine",
                str(engine_port), facts, str(_KV_BLOCKS),
            ]  # fmt: skip
            at = f"http://127.0.0.1:{engine_port}"
            engines.append(Part("stub engine", argv, f"{at}/health", folder / "engine.log"))
            upstreams += ["--upstream", f"{at}={facts}"]
        argv = [
            sys.executable, "-m", "mars", "gateway", "--config", str(config), *upstreams,
            "--port", str(port), "--events", str(log), "--publish", f"ipc://{folder}/gateway",
        ]  # fmt: skip
        async with Parts() as parts:
            for engine in engines:
                await parts.start(engine)
            await parts.start(Part("gateway", argv, f"{url}/health", folder / "gateway.log"))
            await parts.ready(_READY_S)
            yield _Stage(parts, url, log, engines, psutil.Process(parts.pids[-1]))


async def _restart(stage: _Stage, every_s: float, restarts: list[int]) -> None:
    """One engine after the other is killed, and started again."""
    while True:
        for engine in stage.engines:
            await asyncio.sleep(every_s - _DOWN_S)
            await stage.parts.kill(engine)
            await asyncio.sleep(_DOWN_S)
            await stage.parts.start(engine)
            restarts[0] += 1


def _sample(
    gateway: psutil.Process, at_s: float, sessions: int, churn: Churn, restarts: int
) -> Sample:
    return Sample(
        at_s=at_s,
        memory_mb=gateway.memory_info().rss / 1e6,
        descriptors=gateway.num_fds(),
        sessions=sessions,
        turns=churn.met["turns"],
        restarts=restarts,
    )


async def _engines(http: aiohttp.ClientSession, url: str) -> list[EngineRow]:
    try:
        async with http.get(f"{url}/mars/engines") as response:
            return msgspec.json.decode(await response.read(), type=list[EngineRow])
    except aiohttp.ClientError as error:
        raise PartDiedError(f"the gateway does not answer any more: {error}") from None


async def _left(http: aiohttp.ClientSession, url: str) -> list[str]:
    """What is still there when all sessions should have ended: of silence, the last of them."""
    ends_s = time.monotonic() + 10 * SETTINGS.idle_s
    while True:
        rows = await _engines(http, url)
        left = [
            f"{row.url} has {row.sessions} sessions, {row.waiting} at its gate, {row.calls} calls"
            for row in rows
            if row.sessions or row.waiting or row.calls
        ]
        if not left or time.monotonic() > ends_s:
            return left
        await asyncio.sleep(0.2)


def grown(samples: Sequence[Sample]) -> list[str]:
    """Memory and descriptors, in the last quarter against the second; the first one warms up."""
    quarter = len(samples) // 4
    if not quarter:
        return []
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    was_mb = statistics.median(sample.memory_mb for sample in early)
    is_mb = statistics.median(sample.memory_mb for sample in late)
    had = statistics.median(sample.descriptors for sample in early)
    has = statistics.median(sample.descriptors for sample in late)
    said = []
    if is_mb > was_mb * (1 + _MORE_FRAC) + _MORE_MB:
        said.append(f"memory has grown from {was_mb:.1f} to {is_mb:.1f} MB")
    if has > had + _MORE_DESCRIPTORS:
        said.append(f"descriptors have grown from {had:.0f} to {has:.0f}")
    return said


def broken_laws(events: Iterable[ev.Event]) -> list[str]:
    """Each arrival and each call has one end, and no session arrives before it has ended."""
    here: set[SessionId] = set()
    calls: dict[CallId, SessionId] = {}
    broken: Counter[str] = Counter()
    for event in events:
        match event:
            case ev.SessionArrived():
                broken["arrivals of a session that is here"] += event.session_id in here
                here.add(event.session_id)
            case ev.SessionEnded():
                broken["ends of a session that is not here"] += event.session_id not in here
                here.discard(event.session_id)
            case ev.CallQueued():
                broken["calls with a name that is taken"] += event.call_id in calls
                calls[event.call_id] = event.session_id
            case ev.CallFinished():
                broken["ends of a call that is not open"] += calls.pop(event.call_id, None) is None
            case _:
                pass
    broken["sessions that never ended"] += len(here)
    broken["calls that never ended"] += len(calls)
    return [f"{count} {what}" for what, count in broken.items() if count]
