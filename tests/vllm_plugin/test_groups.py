"""Models with several KV groups: what is seen of their cache, what is held, what a call takes."""

from types import SimpleNamespace

import msgspec
import pytest
import torch
from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec, MambaSpec

from mars.core import events as ev
from mars.sim.settings import EngineSettings
from mars.vllm_plugin.bare import BLOCK_TOKENS, random_prompt
from mars.vllm_plugin.residency import Residency

from .conftest import Engines
from .test_holds import cached, turn

WINDOW_TOKENS = 128


@pytest.mark.parametrize(("policy", "warm"), [("mars", True), ("mars-no-hold", False)])
def test_a_hold_keeps_what_each_group_needs(engines: Engines, policy: str, warm: bool) -> None:
    engine = engines(
        blocks=500, window_tokens=WINDOW_TOKENS, mars={"scheduling": {"policy": policy}}
    )
    context = turn(engine, "a", random_prompt(1, 2000))
    held = [fact for fact in engines.facts if isinstance(fact, ev.KvHeld)]
    # Up to the last whole block before the end of the prompt; of the window's group its last 8.
    assert [fact.kv_tokens for fact in held] == [1984] * warm
    assert engine.scheduler._holds.blocks == (124 + 8) * warm
    for other in range(6):
        turn(engine, f"b{other}", random_prompt(10 + other, 2000))
        engine.scheduler._holds.forget(f"b{other}", engines.clock.now_s)
    turn(engine, "a", context + random_prompt(2, 100))
    assert cached(engines, "a") == 1984 * warm


def test_what_a_session_goes_on_from_stays_while_its_answer_is_made(engines: Engines) -> None:
    for policy, warm in (("mars", True), ("mars-no-hold", False)):
        engine = engines(
            blocks=500, window_tokens=WINDOW_TOKENS, mars={"scheduling": {"policy": policy}}
        )
        request = engine.add("a", random_prompt(1, 2000), 600, "a")
        number = 0
        while engine.scheduler.has_unfinished_requests():
            if (
                len(engine.scheduler.requests) == 1
                and request.request_id in engine.scheduler.requests
            ):
                number += 1  # others sweep through what is free
                engine.add(f"b{number}", random_prompt(number + 1, 2000), 1, None)
            engine.step()
        assert number > 6
        turn(engine, "a", [*request.all_token_ids, *random_prompt(-1, 100)])
        assert cached(engines, "a") == 1984 * warm


def test_what_the_order_sees_is_what_a_call_finds(engines: Engines) -> None:
    engine = engines(blocks=500, window_tokens=WINDOW_TOKENS)
    scheduler = engine.scheduler
    context = turn(engine, "a", random_prompt(1, 2000), answer_tokens=50)
    request = engine.add("next", context + random_prompt(2, 100), 1, "a")
    _, found, _ = scheduler.kv_cache_manager.get_computed_blocks(request)
    assert scheduler._residency.tokens(request) == found == 1984


def test_of_other_groups_nothing_is_seen_or_held(engines: Engines) -> None:
    state = MambaSpec(block_size=BLOCK_TOKENS, shapes=((1,),), dtypes=(torch.float32,))
    whole = FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=1, dtype=torch.float32
    )
    groups = [KVCacheGroupSpec(["a"], whole), KVCacheGroupSpec(["b"], state)]
    manager = engines(blocks=100).scheduler.kv_cache_manager
    residency = Residency(manager, groups, BLOCK_TOKENS)
    assert not residency.is_known
    assert residency.tokens(SimpleNamespace(block_hashes=[b"x"])) == 0


@pytest.mark.parametrize("is_async", [False, True])
def test_the_simulator_reckons_a_call_s_memory_as_vllm_does(
    engines: Engines, is_async: bool
) -> None:
    scheduler = engines(
        blocks=4000, window_tokens=WINDOW_TOKENS, async_scheduling=is_async
    ).scheduler
    config = scheduler.vllm_config
    engine = EngineSettings(
        kv_blocks=4000,
        block_tokens=BLOCK_TOKENS,
        step_tokens=config.scheduler_config.max_num_batched_tokens,
        lag=int(is_async),
        window_tokens=WINDOW_TOKENS,
    )
    calls = get_max_concurrency_for_kv_cache_config(config, scheduler.kv_cache_config)
    longest_blocks = engine.call_blocks(config.model_config.max_model_len)
    assert calls == pytest.approx(4000 / longest_blocks)
    alone = msgspec.structs.replace(engine, kv_blocks=longest_blocks)
    assert alone.longest_context_tokens == config.model_config.max_model_len
