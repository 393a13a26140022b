import random

import pytest
from vllm.v1.request import RequestStatus

from mars.core import events as ev
from mars.core.ids import SessionId, ToolId
from mars.vllm_plugin.bare import BLOCK_TOKENS, BareEngine, random_prompt

from .conftest import Engines

MARS = {"scheduling": {"policy": "mars"}}


def finish(engine: BareEngine, steps: int = 3000) -> None:
    while engine.scheduler.has_unfinished_requests():
        output, _ = engine.step()
        if not output.total_num_scheduled_tokens:  # it idles, before it gives up what it holds
            engine.scheduler._clock.now_s += 0.01
        steps -= 1
        assert steps > 0, "livelock"


def turn(engine: BareEngine, session: str, prompt: list[int], answer_tokens: int = 8) -> list[int]:
    request = engine.add(f"{session}-{len(prompt)}", prompt, answer_tokens, session)
    finish(engine)
    return list(request.all_token_ids)


def cached(engines: Engines, session: str) -> int:
    """Prefix hits of the last call of a session."""
    served = [f for f in engines.facts if isinstance(f, ev.CallServed) and f.session_id == session]
    return served[-1].cached_tokens


def released(engines: Engines) -> list[str]:
    return [fact.why for fact in engines.facts if isinstance(fact, ev.KvReleased)]


def tool(engine: BareEngine, engines: Engines, event: type, **fields: object) -> None:
    fact = event(
        at_s=engines.clock.now_s,
        session_id=SessionId("a"),
        tool_id=ToolId("t"),
        tool="pytest",
        **fields,
    )
    engine.scheduler._policy.observe(fact)
    engine.scheduler._holds.hear(fact, engines.clock.now_s)


TOOL_END = {"cpu_s": 0.0, "peak_memory_bytes": 0, "exit_code": 0}


def test_a_held_session_survives_a_sweep_of_the_cache_and_another_does_not(
    engines: Engines,
) -> None:
    for policy, warm in (("mars", True), ("mars-no-hold", False)):
        engine = engines(blocks=300, mars={"scheduling": {"policy": policy}})
        context = turn(engine, "a", random_prompt(1, 2000))
        for other in range(6):  # 6 x 125 blocks through the 299
            turn(engine, f"b{other}", random_prompt(10 + other, 2000))
            engine.scheduler._holds.forget(SessionId(f"b{other}"), engines.clock.now_s)
        turn(engine, "a", [*context, *random_prompt(2, 50)])
        assert (cached(engines, "a") >= 2000 - BLOCK_TOKENS) is warm, policy


def test_the_hold_ends_by_time_return_session_end_and_reset(engines: Engines) -> None:
    engine = engines(blocks=300, mars=MARS)
    context = turn(engine, "a", random_prompt(1, 1000))
    assert SessionId("a") in engine.scheduler._holds
    turn(engine, "a", [*context, 5])
    assert released(engines) == ["returned"]
    engines.clock.now_s += 61.0  # beyond the longest hold
    turn(engine, "c", random_prompt(3, 20))
    assert released(engines)[1] == "expired"
    engine.scheduler._holds.forget(SessionId("c"), engines.clock.now_s)
    assert released(engines)[2] == "ended"
    turn(engine, "d", random_prompt(4, 500))
    assert engine.scheduler.reset_prefix_cache()
    assert released(engines)[3] == "reset"
    assert engine.free_blocks == 299


def test_a_session_that_waits_in_the_queue_does_not_lose_its_hold_to_time(engines: Engines) -> None:
    engine = engines(blocks=300, mars=MARS)
    context = turn(engine, "a", random_prompt(1, 1000))
    engines.clock.now_s += 61.0
    engine.add("back", [*context, 5], 2, "a")
    finish(engine)
    assert released(engines) == ["returned"]


def test_held_memory_goes_before_a_running_call_is_preempted(engines: Engines) -> None:
    engine = engines(blocks=200, mars=MARS)
    turn(engine, "a", random_prompt(1, 1500))
    turn(engine, "b", random_prompt(2, 1200), answer_tokens=1500)  # grows into a's memory
    assert "pressure" in released(engines)
    assert not [f for f in engines.facts if isinstance(f, ev.CallPreempted)]


def test_a_cold_call_waits_for_held_memory_a_bounded_time(engines: Engines) -> None:
    patient = {"scheduling": {"policy": "mars-paper", "hold": {"cold_wait_s": 0.3}}}
    engine = engines(blocks=200, mars=patient)
    turn(engine, "a", random_prompt(1, 1500))  # held for 0.64 s: 3,184 tokens at 5,000 a second
    engine.add("small", random_prompt(2, 100), 400, "b")  # somebody runs: the machine is not idle
    engine.step()
    engine.add("cold", random_prompt(3, 2000), 2, "c")
    for _ in range(20):
        engine.step()
        engines.clock.now_s += 0.01
    assert "cold" in [r.request_id for r in engine.scheduler.waiting]
    assert released(engines) == []
    engines.clock.now_s += 0.2
    engine.step()
    assert released(engines) == ["pressure"]
    assert "cold" in [r.request_id for r in engine.scheduler.running]


def test_no_cold_call_takes_held_memory_while_anything_runs(engines: Engines) -> None:
    engine = engines(blocks=200, mars=MARS)
    turn(engine, "a", random_prompt(1, 1500))  # held for 2 s: nothing is known of gaps yet
    engine.add("small", random_prompt(2, 100), 400, "b")
    engine.step()
    engine.add("cold", random_prompt(3, 2000), 2, "c")
    for _ in range(19):
        engine.step()
        engines.clock.now_s += 0.1
    assert "cold" in [r.request_id for r in engine.scheduler.waiting]
    assert released(engines) == []
    engines.clock.now_s += 0.2
    engine.step()
    assert released(engines) == ["expired"]
    assert "cold" in [r.request_id for r in engine.scheduler.running]


def test_an_engine_in_which_nothing_runs_idles_before_it_gives_up_a_hold(engines: Engines) -> None:
    engine = engines(blocks=200, mars=MARS)
    turn(engine, "a", random_prompt(1, 1500))  # spared for 0.15 s: 1,504 tokens at 5,000 a second
    cold = random_prompt(3, 2000)
    for number, aborted in enumerate((True, False)):
        engine.add(f"cold{number}", cold, 2, "c")
        for _ in range(14):
            output, _ = engine.step()
            assert not output.total_num_scheduled_tokens
            engines.clock.now_s += 0.01
        if aborted:  # and it idles anew for the next one
            engine.scheduler.finish_requests("cold0", RequestStatus.FINISHED_ABORTED)
    assert released(engines) == []
    engines.clock.now_s += 0.02
    engine.step()
    (gone,) = (fact for fact in engines.facts if isinstance(fact, ev.KvReleased))
    assert (gone.why, gone.because) == (
        "pressure",
        "session c needed the room, and nothing had run for 0.2 s",
    )
    assert "cold1" in [r.request_id for r in engine.scheduler.running]


def test_who_is_back_while_the_engine_idles_finds_what_was_held(engines: Engines) -> None:
    engine = engines(blocks=200, mars=MARS)
    context = turn(engine, "a", random_prompt(1, 1500))
    engine.add("cold", random_prompt(3, 2000), 2, "c")
    engine.step()
    engines.clock.now_s += 0.1
    turn(engine, "a", [*context, *random_prompt(4, 20)])
    assert cached(engines, "a") == 1504
    assert released(engines)[0] == "returned"


def test_a_hold_is_asked_again_when_the_tool_starts_and_ends(engines: Engines) -> None:
    engine = engines(blocks=300, mars=MARS)
    holds = engine.scheduler._holds
    turn(engine, "a", random_prompt(1, 1000))
    tool(engine, engines, ev.ToolQueued, cores=1)
    tool(engine, engines, ev.ToolStarted, cores=(1,), wait_s=0.0)
    assert SessionId("a") in holds, "nothing is known of this tool yet"
    tool(engine, engines, ev.ToolProgressed, run_s=1.0, cpu_s=1.0, memory_bytes=1)
    assert SessionId("a") in holds, "that it goes on is no reason"
    tool(engine, engines, ev.ToolFinished, run_s=500.0, **TOOL_END)
    assert SessionId("a") in holds, "its tool has ended: it is on its way back"
    for _ in range(20):  # `worth.samples`
        tool(engine, engines, ev.ToolFinished, run_s=500.0, **TOOL_END)
    tool(engine, engines, ev.ToolStarted, cores=(1,), wait_s=0.0)
    assert SessionId("a") not in holds, "this tool is known to take longer than the KV is worth"
    assert released(engines) == ["tool"]
    assert not holds.blocks


def test_parallel_calls_of_a_session_hold_once(engines: Engines) -> None:
    engine = engines(blocks=300, mars=MARS)
    engine.add("x", random_prompt(1, 500), 4, "a")
    engine.add("y", random_prompt(2, 700), 9, "a")
    finish(engine)
    assert len([f for f in engines.facts if isinstance(f, ev.KvHeld)]) == 1
    engine.scheduler._holds.forget(SessionId("a"), engines.clock.now_s)
    assert engine.free_blocks == 299


def test_a_request_without_a_session_is_never_held(engines: Engines) -> None:
    engine = engines(blocks=300, mars=MARS)
    engine.add("x", random_prompt(1, 500), 4, None)
    finish(engine)
    assert engine.free_blocks == 299
    assert not [f for f in engines.facts if isinstance(f, ev.KvHeld)]
    assert not engine.scheduler._sessions._arrived_s


@pytest.mark.parametrize(
    ("is_async", "blocks", "window_tokens"),
    [(False, 400, 0), (True, 400, 0), (False, 500, 128), (True, 600, 128)],
)
def test_nothing_is_left_after_a_thousand_random_aborts(
    engines: Engines, is_async: bool, blocks: int, window_tokens: int
) -> None:
    engine = engines(
        blocks=blocks,
        mars=MARS,
        most_calls=12,
        async_scheduling=is_async,
        window_tokens=window_tokens,
    )
    scheduler, rng = engine.scheduler, random.Random(7)
    aborted = number = idle = 0
    contexts: dict[str, list[int]] = {}
    while aborted < 1000:
        engines.clock.now_s += 0.05
        if rng.random() < 0.5 and len(scheduler.requests) < 40:
            session, number = f"s{rng.randrange(25)}", number + 1
            prompt = contexts.get(session) or random_prompt(number, rng.randint(10, 2500))
            engine.add(f"c{number}", prompt, rng.randint(1, 60), session)
            grown = [*prompt, *random_prompt(-number, rng.randint(1, 300))]
            contexts[session] = grown if len(grown) < 4000 else []
        if rng.random() < 0.4 and scheduler.requests:
            call = rng.choice(list(scheduler.requests))
            scheduler.finish_requests(call, RequestStatus.FINISHED_ABORTED)
            aborted += 1
        if rng.random() < 0.03 and scheduler._holds:
            ended = rng.choice(sorted(scheduler._holds))
            scheduler._holds.forget(ended, engines.clock.now_s)
        if scheduler.has_requests():
            output, _ = engine.step()
            stuck = not output.total_num_scheduled_tokens and scheduler.has_unfinished_requests()
            idle = idle + 1 if stuck else 0
            assert idle < 50, "livelock"
        assert scheduler._holds.blocks == sum(
            held.kept.blocks for held in scheduler._holds._held.values()
        )
    finish(engine)
    assert scheduler.reset_prefix_cache()
    pool = scheduler.kv_cache_manager.block_pool
    assert engine.free_blocks == blocks - 1
    assert all(block.ref_cnt == 0 for block in pool.blocks if not block.is_null)
    assert not scheduler._calls
    assert not scheduler._pins
    assert not scheduler._sessions._open
    assert {fact.why for fact in engines.facts if isinstance(fact, ev.KvReleased)} >= {
        "returned",
        "pressure",
        "ended",
    }
