"""Beside vLLM's OffloadingConnector: its half in the scheduler is real, its workers are played."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from mars.core import events as ev
from mars.policy.base import Hold, IdleView, KeepNothing
from mars.policy.presets import PRESETS
from mars.vllm_plugin import offload
from mars.vllm_plugin.bare import BLOCK_TOKENS, BareEngine, random_prompt
from mars.vllm_plugin.offload import NO_HOST, host_memory
from mars.vllm_plugin.scheduler import MarsScheduler

from .conftest import Engines
from .test_holds import MARS, cached, finish, turn
from .test_stock import play

PCIE_BYTES_S = 1e6


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("host_blocks", [200, 2000])
def test_fcfs_is_stock_step_for_step_with_host_memory_too(
    model: str, host_blocks: int, is_async: bool
) -> None:
    """The latter holds every prompt."""
    stock = AsyncScheduler if is_async else Scheduler
    for seed in range(8):
        traces = []
        for scheduler, mars in (
            (stock, None),
            (MarsScheduler, {"scheduling": {"policy": "fcfs"}}),
        ):
            engine = BareEngine(
                scheduler,
                model=model,
                blocks=250,
                async_scheduling=is_async,
                host_blocks=host_blocks,
                mars=mars,
            )
            engine.scheduler._kv_total = 250
            traces.append(play(engine, seed))
        assert traces[0] == traces[1], f"seed {seed}"


@pytest.mark.parametrize("policy", sorted(PRESETS))
def test_every_policy_finishes_all_work_with_host_memory(model: str, policy: str) -> None:
    for seed in range(3):
        engine = BareEngine(
            MarsScheduler,
            model=model,
            blocks=300,
            async_scheduling=bool(seed % 2),
            host_blocks=(100, 1000)[seed % 2],
            mars={"scheduling": {"policy": policy}},
        )
        engine.scheduler._kv_total = 300
        assert play(engine, seed)
        assert engine.scheduler.reset_prefix_cache()
        assert engine.free_blocks == 299
        assert not engine.scheduler._calls


class Asked(KeepNothing):
    """Keeps nothing, but notes what it was told that this would cost."""

    def __init__(self) -> None:
        self.idle: list[IdleView] = []

    def hold(self, idle: IdleView) -> Hold:
        self.idle.append(idle)
        return super().hold(idle)


def test_a_policy_is_told_the_cheaper_way_back_and_the_gate_how_much_there_is(
    engines: Engines,
) -> None:
    engine = engines(blocks=300, host_blocks=500, mars={**MARS, "pcie_bytes_s": PCIE_BYTES_S})
    asked = engine.scheduler._holds._retention = Asked()
    turn(engine, "a", random_prompt(1, 1000))
    (idle,) = asked.idle
    stored = 1000 // BLOCK_TOKENS
    page_bytes = 2 * BLOCK_TOKENS * 4  # K and V of one head of size one
    rest = idle.context_tokens - stored * BLOCK_TOKENS
    assert idle.refill_s == pytest.approx(
        stored * page_bytes / PCIE_BYTES_S + idle.compute_s * rest / idle.context_tokens
    )
    assert idle.refill_s < idle.compute_s
    sampled = [fact for fact in engines.facts if isinstance(fact, ev.EngineSampled)]
    assert {fact.host_total_blocks for fact in sampled} == {500}


def test_what_is_seen_on_the_host_is_what_a_call_is_loaded(engines: Engines) -> None:
    engine = engines(blocks=300, host_blocks=500, mars={"scheduling": {"policy": "fcfs"}})
    context = turn(engine, "a", random_prompt(1, 1000))
    for other in range(3):  # 3 x 156 blocks: a's are gone from the GPU, and its end from the host
        turn(engine, f"b{other}", random_prompt(10 + other, 2500))
    request = engine.add("again", [*context, 5], 1, "a")
    stored = engine.scheduler._host.stored_blocks(request.block_hashes)
    assert 0 < stored < 1000 // BLOCK_TOKENS
    assert engine.scheduler._residency.tokens(request) == 0
    finish(engine)
    assert cached(engines, "a") == stored * BLOCK_TOKENS


@pytest.mark.parametrize("is_async", [False, True])
def test_nothing_is_left_after_aborts_while_kv_is_loaded(engines: Engines, is_async: bool) -> None:
    engine = engines(blocks=250, host_blocks=2000, mars=MARS, async_scheduling=is_async)
    scheduler, rng = engine.scheduler, random.Random(7)
    prompts = [random_prompt(number, rng.randint(500, 2500)) for number in range(12)]
    aborted = number = 0
    while aborted < 100:
        engines.clock.now_s += 0.05
        if len(scheduler.requests) < 8:
            number += 1
            session = rng.randrange(len(prompts))
            engine.add(f"c{number}", prompts[session], rng.randint(1, 20), f"s{session}")
        loading = [
            call
            for call, request in scheduler.requests.items()
            if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        ]
        if loading:
            scheduler.finish_requests(rng.choice(loading), RequestStatus.FINISHED_ABORTED)
            aborted += 1
        engine.step()
        assert number < 5000, "too few loads"
    finish(engine)
    while scheduler.has_requests():  # blocks that are written to are freed when they have come
        engine.step()
    assert scheduler.reset_prefix_cache()
    assert engine.free_blocks == 249
    assert not scheduler._calls
    assert not scheduler._sessions._open


def seen(engine: BareEngine, *, connector: Any = None, block_tokens: int = BLOCK_TOKENS) -> Any:
    scheduler = engine.scheduler
    groups = scheduler.kv_cache_config.kv_cache_groups
    return host_memory(connector or scheduler.connector, groups, block_tokens, PCIE_BYTES_S)


def test_a_connector_that_is_not_known_is_left_alone(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = BareEngine(MarsScheduler, model=model, blocks=50, host_blocks=100)
    assert seen(engine).blocks == 100
    assert seen(engine, connector=SimpleNamespace()) is NO_HOST
    assert seen(engine, block_tokens=2 * BLOCK_TOKENS) is NO_HOST
    windowed = BareEngine(
        MarsScheduler, model=model, blocks=50, host_blocks=100, window_tokens=4 * BLOCK_TOKENS
    )
    assert windowed.scheduler._host is NO_HOST

    def changed(key: bytes) -> None:
        del key

    monkeypatch.setattr(offload, "_SEAMS", ((changed, ("self", "key", "req_context")),))
    assert seen(engine) is NO_HOST


def test_without_a_connector_there_is_no_host_memory(model: str) -> None:
    assert BareEngine(MarsScheduler, model=model, blocks=50).scheduler._host is NO_HOST
