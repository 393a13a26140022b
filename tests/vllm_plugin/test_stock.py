"""`fcfs` through our plugin is stock vLLM, step for step; the others lose nothing."""

import random
from typing import Any

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from mars.policy.presets import PRESETS
from mars.vllm_plugin.bare import BareEngine, random_prompt
from mars.vllm_plugin.scheduler import MarsScheduler

MOST_STEPS = 5000


def play(engine: BareEngine, seed: int) -> list[Any]:
    """Random multi-turn sessions; per step: tokens of each call, preemptions, ends, free blocks."""
    rng = random.Random(seed)
    sessions = [
        {
            "at": rng.randrange(40),
            "turns": [
                (rng.choice([30, 200, 1500, 3000]) + rng.randrange(50), rng.choice([3, 20, 200]))
                for _ in range(rng.randrange(1, 4))
            ],
        }
        for _ in range(rng.randrange(2, 9))
    ]
    due: dict[int, int] = {i: s["at"] for i, s in enumerate(sessions)}  # type: ignore[misc]
    context: dict[int, list[int]] = {i: [] for i in due}
    turn = dict.fromkeys(due, 0)
    trace: list[Any] = []
    step = 0
    while due or engine.scheduler.has_unfinished_requests():
        for i in sorted(i for i, at in due.items() if at <= step):
            del due[i]
            tokens, answer = sessions[i]["turns"][turn[i]]  # type: ignore[index]
            context[i] = context[i] + random_prompt(seed * 100 + i * 10 + turn[i], tokens)
            if (len(context[i]) + answer) // 16 + 2 < engine.scheduler._kv_total:
                engine.add(f"{i}/{turn[i]}", context[i], answer, f"s{i}")
        step += 1
        assert step < MOST_STEPS, "livelock"
        if not engine.scheduler.has_unfinished_requests():
            continue
        output, ended = engine.step()
        trace.append(
            (
                dict(output.num_scheduled_tokens),
                sorted(output.preempted_req_ids or ()),
                sorted(request.request_id for request in ended),
                engine.free_blocks,
            )
        )
        for request in ended:
            i = int(request.request_id.split("/")[0])
            context[i] = list(request.all_token_ids)
            turn[i] += 1
            if turn[i] < len(sessions[i]["turns"]):  # type: ignore[arg-type]
                due[i] = step + 3
    return trace


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("blocks", [1500, 450, 250])
def test_fcfs_is_stock_step_for_step(model: str, blocks: int, is_async: bool) -> None:
    stock = AsyncScheduler if is_async else Scheduler
    preempted = 0
    for seed in range(20):
        traces = []
        for scheduler, mars in (
            (stock, None),
            (MarsScheduler, {"scheduling": {"policy": "fcfs"}}),
        ):
            engine = BareEngine(
                scheduler, model=model, blocks=blocks, async_scheduling=is_async, mars=mars
            )
            engine.scheduler._kv_total = blocks
            traces.append(play(engine, seed))
        assert traces[0] == traces[1], f"seed {seed}"
        preempted += sum(len(p) for _, p, _, _ in traces[0])
    assert preempted > 0 or blocks > 250, "this memory is meant to be too small"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("policy", sorted(PRESETS))
def test_every_policy_finishes_all_work_and_returns_all_blocks(
    model: str, policy: str, is_async: bool
) -> None:
    for seed in range(5):
        engine = BareEngine(
            MarsScheduler,
            model=model,
            blocks=300,
            async_scheduling=is_async,
            mars={"scheduling": {"policy": policy}},
        )
        engine.scheduler._kv_total = 300
        assert play(engine, seed)
        assert engine.scheduler.reset_prefix_cache()
        assert engine.free_blocks == 299  # one is vLLM's null block
        assert not engine.scheduler._calls
