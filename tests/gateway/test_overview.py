"""Views of a fleet: one answer over all engines that says whose everything is."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.pair import FOUR_PLACES, eventually
from tests.gateway.test_fleet import OPEN, Two, two

from mars.gateway.overview import FleetStatus
from mars.gateway.shown import Status

pytestmark = pytest.mark.timeout(240)
Labels = frozenset[tuple[str, str]]
Scraped = dict[str, dict[Labels, float]]
OPTIONS = (*FOUR_PLACES, "--set", "gateway.health_s=0.2")


async def get(fleet: Two, path: str, **headers: str) -> bytes:
    async with fleet.http.get(fleet.url + path, headers=headers) as response:
        assert response.status == 200, path
        return await response.read()


async def scraped(fleet: Two, path: str) -> Scraped:
    found: Scraped = {}
    families = list(text_string_to_metric_families((await get(fleet, path)).decode()))
    assert len({family.name for family in families}) == len(families), "each family stands once"
    for family in families:
        for sample in family.samples:
            labels = frozenset(sample.labels.items())
            assert (
                found.setdefault(sample.name, {}).setdefault(labels, sample.value) is sample.value
            )
    return found


def series(found: Scraped) -> set[tuple[str, Labels]]:
    return {(name, labels) for name in found for labels in found[name]}


async def test_one_answer_over_all_engines_and_the_same_of_one(tmp_path: Path) -> None:
    async with two(tmp_path, *OPTIONS) as fleet:
        first, second = fleet.engine_urls
        streams = [await fleet.post(f"s{n}", chunks=400, gap_ms=50, final=True) for n in range(8)]
        late = [fleet.post(f"g{number}") for number in range(2)]

        async def whole() -> FleetStatus:
            return msgspec.json.decode(await get(fleet, "/mars/status"), type=FleetStatus)

        async def all_wait() -> bool:
            return (await whole()).gated == 2

        await eventually(all_wait)
        status = await whole()
        assert (status.sessions, status.active, status.gated, status.paused) == (10, 8, 2, 0)
        assert (status.phases["queued"], status.phases["gated"], status.faults) == (8, 2, 0)
        assert [(it.engine, it.state, it.active) for it in status.engines] == [
            (first, "up", 4),
            (second, "up", 4),
        ]

        homes = await fleet.sessions()
        for url in fleet.engine_urls:
            rows = msgspec.json.decode(await get(fleet, f"/mars/sessions?engine={url}"))
            assert {row["session_id"] for row in rows} == {s for s in homes if homes[s] == url}
            assert {row["engine"] for row in rows} == {url}
            of_one = msgspec.json.decode(
                await get(fleet, f"/mars/status?engine={url}/"), type=Status
            )
            assert (of_one.engine, of_one.active) == (url, 4)

        counted = await scraped(fleet, "/metrics")
        for url in fleet.engine_urls:
            assert counted["mars_sessions"][frozenset({("engine", url), ("phase", "queued")})] == 4
            assert counted["mars_engine_up"][frozenset({("engine", url)})] == 1
        assert list(counted["process_resident_memory_bytes"]) == [frozenset()]
        by_one = [await scraped(fleet, f"/metrics?engine={url}") for url in fleet.engine_urls]
        assert series(counted) == {it for one in by_one for it in series(one)}
        text = await get(fleet, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert list(open_metrics(text.decode()))  # type: ignore[no-untyped-call]

        for path in ("/mars/status", "/mars/sessions", "/metrics"):
            async with fleet.http.get(f"{fleet.url}{path}?engine=nowhere") as response:
                assert response.status == 404
                assert first in (await response.json())["error"]

        fleet.engines[1].end()
        await fleet.until_state(1, "down")
        down = (await whole()).engines[1]
        assert (down.state, down.sessions) == ("down", 0)
        assert down.state_why
        counted = await scraped(fleet, "/metrics")
        assert counted["mars_engine_up"][frozenset({("engine", second)})] == 0
        for stream in streams:
            stream.close()
        for waiting in late:
            waiting.cancel()


async def test_200_tenants_make_no_more_labels_than_engines_have_names(tmp_path: Path) -> None:
    """And an engine that is gone takes its series with it."""
    async with two(tmp_path, *OPEN, "--set", "gateway.tenant_header=X-Tenant") as fleet:
        turns = (fleet.turn(f"s{n}", chunks=2, final=True, tenant=f"t{n}") for n in range(200))
        await asyncio.gather(*turns)
        arrived = (await scraped(fleet, "/metrics"))["mars_sessions_arrived_total"]
        assert sum(arrived.values()) == 200
        assert len(arrived) == 2 * 31, "30 names and the others, of each engine"
        second = fleet.engine_urls[1]
        assert await fleet.tell("DELETE", f"/mars/engines?url={second}") == 200

        async def is_gone() -> bool:
            found = await scraped(fleet, "/metrics")
            return all(("engine", second) not in labels for _, labels in series(found))

        await eventually(is_gone)


async def test_a_fleet_without_engines_is_an_empty_one_and_no_error(tmp_path: Path) -> None:
    """A scrape that fails would look like a gateway that is down."""
    async with two(tmp_path, *OPEN) as fleet:
        for url in fleet.engine_urls:
            assert await fleet.tell("DELETE", f"/mars/engines?url={url}") == 200

        async def is_empty() -> bool:
            return not await fleet.rows()

        await eventually(is_empty)
        status = msgspec.json.decode(await get(fleet, "/mars/status"), type=FleetStatus)
        assert (status.sessions, status.active, status.engines) == (0, 0, [])
        assert await get(fleet, "/mars/sessions") == b"[]"
        found = await scraped(fleet, "/metrics")
        assert "process_resident_memory_bytes" in found
        assert "mars_engine_up" not in found, "no engine, no series"
        assert await fleet.tell("GET", f"/mars/status?engine={fleet.engine_urls[0]}") == 404
        refused = await fleet.post("s")
        assert refused.status == 503
        assert "none is here" in (await refused.json())["error"]["message"]
        assert await fleet.tell("POST", "/mars/engines", json={"url": fleet.engine_urls[0]}) == 200
        await fleet.turn("s", final=True)
