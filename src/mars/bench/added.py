"""What a gateway adds: the same load straight to an engine and through each gateway, in turns.

A round plays every way once, direct twice, in turn (mars.bench.turns); what is added is taken round
by round, so that what else the machine does falls on all. `direct again` is the noise
floor: what two ways that are one differ by.
"""

import asyncio
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import msgspec
import psutil

from mars.bench.streams import Load, Seen, held_open, play
from mars.bench.turns import in_turn
from mars.core.errors import PartDiedError

DIRECT: Final = "direct"
AGAIN: Final = "direct again"
_SETTLE_S: Final = 0.5
_HELD: Final = 2000
_HOLD_MODEL: Final = "stub-1000ms"


class Way(NamedTuple):
    name: str
    url: str
    pid: int | None = None
    """The gateway's process, with its children; None: there is none."""


class Quantity(NamedTuple):
    name: str
    unit: str
    of: Callable[[Seen], float | None]
    target: str = ""
    adds: bool = False
    """Told as the difference from direct."""


class Case(NamedTuple):
    name: str
    load: Load
    quantities: Sequence[Quantity]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    case: str
    quantity: str
    unit: str
    target: str
    adds: bool
    direct: float | None
    """Median over the rounds."""
    ways: dict[str, "Over"]


class Over(msgspec.Struct, frozen=True, kw_only=True):
    """Of one way, over the rounds; of a quantity that adds, its difference from direct."""

    median: float
    least: float
    most: float


def quantile_ms(values_s: Sequence[float], percent: int) -> float | None:
    if len(values_s) < 2:  # noqa: PLR2004
        return None
    return statistics.quantiles(values_s, n=100, method="inclusive")[percent - 1] * 1000


def first_ms(percent: int, target: str = "") -> Quantity:
    return Quantity(
        f"first byte p{percent}",
        "ms",
        lambda seen: quantile_ms(seen.first_s, percent),
        target,
        adds=True,
    )


def late_ms(percent: int) -> Quantity:
    return Quantity(
        f"a chunk's way p{percent}",
        "ms",
        lambda seen: quantile_ms(seen.late_s, percent),
        adds=True,
    )


_JOINED: Final = Quantity(
    "chunks that came with another", "%", lambda seen: 100 * seen.joined / max(1, seen.events)
)
_PER_S: Final = Quantity("streams", "/s", lambda seen: seen.per_s, ">= 3,500")
_CPU: Final = Quantity(
    "CPU of 1,000 streams",
    "s",
    lambda seen: None if seen.cpu_s is None else 1000 * seen.cpu_s / max(1, seen.streams),
)


def stub_cases(seconds: float) -> list[Case]:
    """Of the stub engine; each load lasts so long."""

    def load(gap_ms: int, streams: int, body_bytes: int) -> Load:
        spread_s = 20 * gap_ms / 1000 if streams > 1 else 0.0
        return Load(
            model=f"stub-{gap_ms}ms",
            streams=streams,
            body_bytes=body_bytes,
            lasts_s=seconds,
            spread_s=spread_s,
        )

    return [
        Case("1 stream, 2 KB", load(1, 1, 2_000), [first_ms(50)]),
        Case(
            "200 streams, 2 KB, a chunk per 25 ms",
            load(25, 200, 2_000),
            [first_ms(50, "<= 0.8"), first_ms(99, "<= 2.5"), late_ms(50), late_ms(99), _JOINED],
        ),
        Case(
            "16 streams, 100 KB, a chunk per 25 ms",
            load(25, 16, 100_000),
            [first_ms(50, "<= 1.5"), first_ms(99)],
        ),
        Case("saturation, 64 connections", load(0, 64, 2_000), [_PER_S, _CPU]),
    ]


def engine_cases(model: str, seconds: float) -> list[Case]:
    """Of a real engine, which sets the pace."""
    quantities = [first_ms(50), first_ms(99)]
    return [
        Case(
            f"{streams} streams, 2 KB",
            Load(model=model, streams=streams, body_bytes=2_000, lasts_s=seconds, spread_s=1.0),
            quantities,
        )
        for streams in (1, 16)
    ]


async def measure(
    case: Case, ways: Sequence[Way], *, rounds: int, tell: Callable[[str], None]
) -> list[Figure]:
    """The first way is the direct one. Raises PartDiedError when a stream has no answer."""
    played: dict[str, list[Seen]] = {way.name: [] for way in ways}
    for number in range(rounds):
        for way in in_turn(ways, number):
            tell(f"{case.name}: round {number + 1} of {rounds}, {way.name}")
            played[way.name].append(await _play(case.load, way))
            await asyncio.sleep(_SETTLE_S)
    return [_figure(case, quantity, played) for quantity in case.quantities]


async def _play(load: Load, way: Way) -> Seen:
    before_s = _cpu_s(way)
    with _naming(way):
        seen = await play(way.url, load, f"bench-{load.model}-{load.streams}")
    if before_s is not None and (after_s := _cpu_s(way)) is not None:
        seen.cpu_s = after_s - before_s
    return seen


def _figure(case: Case, quantity: Quantity, played: dict[str, list[Seen]]) -> Figure:
    values = {way: [quantity.of(seen) for seen in runs] for way, runs in played.items()}
    direct = [value for value in values[DIRECT] if value is not None]
    ways = {}
    for way, of_rounds in values.items():
        if way != DIRECT and all(value is not None for value in of_rounds):
            known = [value for value in of_rounds if value is not None]
            if quantity.adds:
                known = [value - base for value, base in zip(known, direct, strict=True)]
            ways[way] = _over(known)
    return Figure(
        case=case.name,
        quantity=quantity.name,
        unit=quantity.unit,
        target=quantity.target,
        adds=quantity.adds,
        direct=statistics.median(direct) if direct else None,
        ways=ways,
    )


def _over(values: Sequence[float]) -> Over:
    return Over(median=statistics.median(values), least=min(values), most=max(values))


async def measure_memory(ways: Sequence[Way]) -> list[Figure]:
    """Resident memory of the gateways, now and with thousands of open streams."""
    load = Load(model=_HOLD_MODEL, streams=_HELD, body_bytes=2_000, lasts_s=60.0, chunks=600)
    idle: dict[str, Over] = {}
    held: dict[str, Over] = {}
    for way in ways:
        if way.pid is not None:
            idle[way.name] = _over([_rss_mb(way.pid)])
            with _naming(way):
                async with held_open(way.url, load, "held"):
                    held[way.name] = _over([_rss_mb(way.pid)])
            await asyncio.sleep(_SETTLE_S)

    def figure(case: str, target: str, of: dict[str, Over]) -> Figure:
        return Figure(
            case=case, quantity="memory", unit="MB", target=target, adds=False, direct=None, ways=of
        )

    return [figure("before", "", idle), figure(f"{_HELD:,} open streams", "< 200", held)]


@contextmanager
def _naming(way: Way) -> Iterator[None]:
    try:
        yield
    except PartDiedError as error:
        raise PartDiedError(f"{way.name}: {error}") from None


def _processes(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _cpu_s(way: Way) -> float | None:
    if way.pid is None:
        return None
    times = [process.cpu_times() for process in _processes(way.pid)]
    return sum(time.user + time.system for time in times)


def _rss_mb(pid: int) -> float:
    return sum(process.memory_info().rss for process in _processes(pid)) / 1e6
