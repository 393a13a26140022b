"""A tenant with as many sessions in as it may: what its clients and the others see of that."""

from pathlib import Path

import pytest
from tests.gateway.conftest import gateway
from tests.gateway.pair import eventually
from tests.gateway.scripted import Engine, on_cue
from tests.gateway.test_fleet import OPEN, two

from mars.core import events as ev
from mars.core.settings import TenantLimits, TenantSettings
from mars.gateway.settings import GatewaySettings
from mars.policy.presets import Scheduling

pytestmark = pytest.mark.timeout(240)
BATCH = {"X-Tenant": "batch"}
ONE_OF_BATCH = Scheduling(
    policy="fcfs",
    tenants=TenantSettings(limits=(TenantLimits(tenant="batch", most_sessions=1),)),
)


async def test_it_waits_with_the_reason_and_nobody_else_does(engine: Engine) -> None:
    settings = GatewaySettings(tenant_header="X-Tenant", queue_limit=1)
    engine.script = on_cue
    async with gateway(engine.url, settings, ONE_OF_BATCH) as rig:
        first = rig.post("a", headers=BATCH)
        (await engine.called(1)).cue.set()
        assert (await first).status == 200
        second = rig.post("b", headers=BATCH)
        await rig.gated("b")
        row = (await rig.sessions())["b"]
        assert row.why == "tenant 'batch': 1 in, of 1 that may be"
        assert (await rig.status()).why_not == row.why
        async with rig.http.get(rig.url + "/metrics") as response:
            said = await response.text()
        assert 'mars_gated_sessions{limit="tenant limit"} 1.0' in said
        third = await rig.post("c", headers=BATCH)
        assert third.status == 429, "its own queue is full"
        other = rig.post("d")
        (await engine.called(2)).cue.set()
        assert (await other).status == 200, "and nobody else's"
        await rig.http.delete(rig.url + "/mars/sessions/a")
        (await engine.called(3)).cue.set()
        assert (await second).status == 200
        (shut,) = rig.of(ev.GateShut)
        assert shut.limit == "tenant limit"


async def test_a_place_given_up_at_one_engine_lets_in_who_waits_at_the_other(
    tmp_path: Path,
) -> None:
    limit = "scheduling.tenants.other_limits.most_sessions=1"
    async with two(tmp_path, *OPEN, "--set", limit) as fleet:
        stream = await fleet.post("in", chunks=400, gap_ms=50)
        waiting = fleet.post("waits")

        async def waits() -> bool:
            return "waits" in await fleet.sessions()

        await eventually(waits)
        homes = await fleet.sessions()
        assert homes["in"] != homes["waits"]
        assert await fleet.tell("DELETE", "/mars/sessions/in") == 200
        assert (await waiting).status == 200
        stream.close()
