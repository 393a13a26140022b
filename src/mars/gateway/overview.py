"""What can be seen of a fleet: of all engines in one answer, or of the one that is asked about."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from mars.gateway.fleet import Fleet, Member
from mars.gateway.roster import SessionRow
from mars.gateway.shown import Status, exposition

_ENGINE: Final = "engine"
"""Parameter of a query: URL of the engine that is asked about."""


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the engines, and the status of each."""

    sessions: int
    active: int
    gated: int
    paused: int
    phases: dict[str, int]
    lost: int
    """Messages of other processes that never came, those for all engines' gates among them."""
    faults: int
    engines: list[Status]


class Overview:
    def __init__(self, fleet: Fleet, process: CollectorRegistry) -> None:
        self._fleet = fleet
        self._process = process

    async def status(self, request: Request) -> Response:
        members = self._asked(request)
        if members is None:
            return self._unknown()
        if _ENGINE in request.query_params:
            return _json(members[0].status())
        return _json(_status(members, self._fleet.lost))

    async def sessions(self, request: Request) -> Response:
        members = self._asked(request)
        if members is None:
            return self._unknown()
        rows: list[SessionRow] = [row for it in members for row in it.shown.sessions()]
        return _json(rows)

    async def metrics(self, request: Request) -> Response:
        members = self._asked(request)
        if members is None:
            return self._unknown()
        registry = CollectorRegistry()
        registry.register(_OfEngines(self._process, members))
        return exposition(request, registry)

    def _asked(self, request: Request) -> list[Member] | None:
        """None: no engine is called what is asked for. All of none are none, and no error."""
        name = request.query_params.get(_ENGINE)
        if name is None:
            return list(self._fleet)
        return [it for it in self._fleet if it.url == name.rstrip("/")] or None

    def _unknown(self) -> Response:
        urls = ", ".join(member.url for member in self._fleet) or "none"
        return _json({"error": f"no engine of this name is here; these are: {urls}"}, 404)


class _OfEngines(Collector):
    """What each engine's gate counts, by engine; what is the process's stands once."""

    def __init__(self, process: CollectorRegistry, members: Iterable[Member]) -> None:
        self._process = process
        self._members = members

    def collect(self) -> Iterator[Metric]:
        yield from self._process.collect()
        up = GaugeMetricFamily(
            "mars_engine_up", "1: it gets calls; 0: it is down or drains.", labels=["engine"]
        )
        families: dict[str, Metric] = {}
        for member in self._members:
            up.add_metric([member.url], member.state == "up")
            for one in member.shown.registry.collect():
                whole = families.setdefault(
                    one.name, Metric(one.name, one.documentation, one.type, one.unit)
                )
                whole.samples += [
                    it._replace(labels={"engine": member.url, **it.labels}) for it in one.samples
                ]
        yield up
        yield from families.values()


def _status(members: Iterable[Member], lost: int) -> FleetStatus:
    engines = [member.status() for member in members]
    phases: Counter[str] = Counter()
    for engine in engines:
        phases.update(engine.phases)
    return FleetStatus(
        sessions=sum(it.sessions for it in engines),
        active=sum(it.active for it in engines),
        gated=sum(it.gated for it in engines),
        paused=sum(it.paused for it in engines),
        phases=phases,
        lost=lost + sum(it.lost for it in engines),
        faults=sum(it.faults for it in engines),
        engines=engines,
    )


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
