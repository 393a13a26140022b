"""deploy/grafana.json asks for nothing that /metrics does not have."""

import json
import re
import time
from pathlib import Path

import msgspec
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.conftest import ONE_AT_A_TIME, Rig, gateway, kv_sample
from tests.gateway.scripted import Engine, on_cue, until
from tests.gateway.test_metrics import tool_finished, tool_started

from mars.core import events as ev
from mars.core.ids import CallId, SessionId
from mars.core.settings import Limits, TenantSettings

ROOT = Path(__file__).parents[2]
BOARD = json.loads((ROOT / "deploy" / "grafana.json").read_text())
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
SERIES = re.compile(r"\b((?:mars|process)_\w+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"by \(([\w, ]+)\)")
OF_PROMETHEUS = {"instance"}
"""Labels that Prometheus adds."""


async def families(rig: Rig) -> dict[str, Metric]:
    async with rig.http.get(rig.url + "/metrics") as response:
        text = await response.text()
    return {it.name: it for it in text_string_to_metric_families(text)}


async def names(engine: Engine) -> dict[str, set[str]]:
    """Each series of a gateway at which everything has happened once, and its labels."""
    one_call = TenantSettings(other_limits=Limits(most_calls=1))
    scheduling = msgspec.structs.replace(ONE_AT_A_TIME, tenants=one_call)
    async with gateway(engine.url, scheduling=scheduling) as rig:
        await rig.say("a")
        a = SessionId("a")
        engine.script = on_cue
        calls = [rig.post("a"), rig.post("a")]
        await until(lambda: rig.desk.in_line().total() == 1)
        await families(rig)  # its gauge is there once somebody was seen in line
        for number, call in enumerate(calls, 2):
            (await engine.called(number)).cue.set()
            await call
        rig.desk.emit(
            kv_sample(100),
            ev.ToolsSampled(at_s=time.monotonic(), running=0, waiting=0, slots=1, wait_s=0.0),
            tool_started("a", "1", "pytest", 2.0),
            tool_finished("a", "1", "pytest", 4.0),
            ev.CallServed(
                at_s=0.0, session_id=a, call_id=CallId("c"), prompt_tokens=1, cached_tokens=1,
                computed_tokens=1, made_tokens=1, queued_s=0.0, ok=True,
            ),
            ev.KvReleased(at_s=0.0, session_id=a, kv_tokens=1, held_s=0.0, why="expired"),
        )  # fmt: skip
        rig.desk.end(a, "test")
        found: dict[str, set[str]] = {}
        for family in (await families(rig)).values():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found


async def test_every_query_names_what_is_there(engine: Engine) -> None:
    there = await names(engine)
    asked = 0
    for expression in EXPRESSIONS:
        series = SERIES.findall(expression)
        assert series, expression
        for name, selector in series:
            assert name in there, f"{name} of: {expression}"
            labels = {part.split("=")[0].strip(" ~!") for part in selector.split(",") if part}
            labels |= {it for group in GROUPED.findall(expression) for it in group.split(", ")}
            assert labels - OF_PROMETHEUS <= there[name], expression
            asked += 1
    assert asked >= len(EXPRESSIONS) > 20


async def test_what_is_not_there_is_found(engine: Engine) -> None:
    assert "mars_moods" not in await names(engine)
    assert SERIES.findall('sum(rate(mars_moods{instance=~"x"}[1m]))') == [
        ("mars_moods", 'instance=~"x"')
    ]


async def test_every_metric_that_the_how_to_names_is_there(engine: Engine) -> None:
    there = {name.removesuffix("_count") for name in await names(engine)}
    named = set(re.findall(r"\bmars_[a-z_]+", (ROOT / "docs" / "howto" / "observe.md").read_text()))
    assert named
    assert named <= there


def test_panels_do_not_overlap() -> None:
    spots = [
        (x, y)
        for panel in BOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(spots) == len(set(spots))
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
