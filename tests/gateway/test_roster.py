"""/mars/sessions and /mars/status say what an operator asks about a session that is slow."""

import time

from tests.gateway.conftest import ONE_AT_A_TIME, Rig, gateway, kv_sample
from tests.gateway.scripted import Engine, on_cue

from mars.core import events as ev
from mars.core.ids import CallId, SessionId, ToolId
from mars.gateway.settings import GatewaySettings

A = SessionId("a")


async def served(rig: Rig, engine: Engine, *, prompt: int, cached: int) -> None:
    """A call of session `a`, and the engine's account of it."""
    await rig.say("a", headers={"X-Tenant": "people"})
    call_id = engine.last.header("x-request-id")
    rig.desk.emit(
        ev.CallServed(
            at_s=time.monotonic(), session_id=A, call_id=CallId(str(call_id)), prompt_tokens=prompt,
            cached_tokens=cached, computed_tokens=prompt - cached + 9, made_tokens=10, queued_s=0.0,
            ok=True,
        )
    )  # fmt: skip


async def test_what_a_session_has_in_the_cache_and_in_its_tool(engine: Engine) -> None:
    async with gateway(engine.url, GatewaySettings(tenant_header="X-Tenant")) as rig:
        await served(rig, engine, prompt=100, cached=0)
        row = (await rig.sessions())["a"]
        assert (row.phase, row.turn, row.context_tokens) == ("acting", 1, 110)
        assert (row.rule, row.tenant, row.parent_id) == ("header x-session-id", "people", None)
        assert (row.warm_frac, row.held_tokens, row.tools) == (0.0, 0, [])
        assert 0 <= row.phase_s <= row.age_s < 60

        now_s, tool = time.monotonic(), {"session_id": A, "tool_id": ToolId("t"), "tool": "pytest"}
        held = ev.KvHeld(at_s=now_s, session_id=A, kv_tokens=110, keep_s=5.0, why="worth it")
        rig.desk.emit(held, ev.ToolQueued(at_s=now_s - 7.0, cores=1, **tool))  # type: ignore[arg-type]
        row = (await rig.sessions())["a"]
        assert row.held_tokens == 110
        assert [(it.tool, it.state) for it in row.tools] == [("pytest", "queued")]
        assert 7 <= row.tools[0].state_s < 60
        rig.desk.emit(ev.ToolStarted(at_s=now_s, cores=(1,), wait_s=7.0, **tool))  # type: ignore[arg-type]
        (row_of_tool,) = (await rig.sessions())["a"].tools
        assert (row_of_tool.state, row_of_tool.run_s) == ("running", None)
        rig.desk.emit(
            ev.ToolProgressed(
                at_s=now_s, run_s=8.0, cpu_s=6.0, memory_bytes=512,
                **tool,  # type: ignore[arg-type]
            )
        )  # fmt: skip
        (row_of_tool,) = (await rig.sessions())["a"].tools
        assert row_of_tool.state == "running"
        assert 8 <= row_of_tool.state_s < 60
        assert (row_of_tool.run_s, row_of_tool.cpu_s, row_of_tool.memory_bytes) == (8.0, 6.0, 512)
        rig.desk.emit(
            ev.ToolFinished(
                at_s=now_s, run_s=1.0, cpu_s=1.0, peak_memory_bytes=1, exit_code=0,
                **tool,  # type: ignore[arg-type]
            ),
            ev.KvReleased(at_s=now_s, session_id=A, kv_tokens=110, held_s=1.0, why="returned"),
        )  # fmt: skip
        await served(rig, engine, prompt=120, cached=90)
        row = (await rig.sessions())["a"]
        assert (row.turn, row.warm_frac, row.held_tokens, row.tools) == (2, 0.75, 0, [])


async def test_a_child_names_its_parent(rig: Rig) -> None:
    await rig.say("parent")
    await rig.say("child", headers={"X-Parent-Session-ID": "parent"})
    rows = await rig.sessions()
    assert (rows["child"].parent_id, rows["parent"].parent_id) == ("parent", None)


async def test_the_status_counts_phases_and_says_how_old_the_samples_are(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        first = rig.post("a")
        exchange = await engine.called(1)
        second = rig.post("b")
        await rig.gated("b")
        status = await rig.status()
        assert status.phases == {"queued": 1, "gated": 1}
        assert status.engine_sample_age_s is not None
        assert 0 <= status.engine_sample_age_s < 60
        assert status.tools_sample_age_s is None, "no tool server was heard"
        rig.desk.emit(kv_sample(100), tools())
        assert (await rig.status()).tools_sample_age_s is not None
        exchange.cue.set()
        assert (await first).status == 200
        second.cancel()


def tools() -> ev.ToolsSampled:
    return ev.ToolsSampled(at_s=time.monotonic(), running=0, waiting=0, slots=1, wait_s=0.0)
