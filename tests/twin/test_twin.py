"""The simulator and vLLM's scheduler under our plugin agree in every step.

`make test` plays a sample, `make twin` more than a thousand workloads.
"""

import itertools

import pytest

from mars.core.settings import TenantSettings, TenantWeight
from mars.policy.presets import PRESETS, Scheduling

from .lockstep import Twin

CELLS = [(*cell, 0) for cell in itertools.product((2500, 700, 340), (False, True), (0, 1))]
WINDOWS = [
    (2500, True, 1, 128),
    (500, False, 1, 128),
    (350, True, 1, 128),
    (350, False, 0, 32),
]
"""Models with two KV groups; asynchronous scheduling, as such models are served, above all."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", PRESETS)
def test_simulator_and_vllm_agree_in_every_step(
    model: str, policy: str, request: pytest.FixtureRequest
) -> None:
    """Tokens of every call, preemptions, ends, free blocks and holds, after every step."""
    each = request.config.getoption("--workloads", 1)
    preemptions = 0
    cells = CELLS + WINDOWS
    for number, (blocks, shared, lag, window_tokens) in enumerate(cells):
        # every cell gets seeds of its own
        for seed in range(number, number + len(cells) * each, len(cells)):
            twin = Twin(
                model,
                Scheduling(policy=policy),
                seed,
                blocks=blocks,
                shared=shared,
                lag=lag,
                window_tokens=window_tokens,
            )
            twin.play()
            preemptions += twin.preemptions
    assert preemptions, "some of these memories are meant to be too small"


HOST_BLOCKS = 100_000
"""What was stored stays: what is evicted there, and when, is simplified (mars.sim.host)."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy", PRESETS)
def test_they_agree_with_host_memory_too(
    model: str, policy: str, request: pytest.FixtureRequest
) -> None:
    """Without a lag: with one vLLM defers what a preemption frees while a connector is there."""
    loaded_blocks = 0
    for seed in range(3 * request.config.getoption("--workloads", 1)):
        twin = Twin(
            model,
            Scheduling(policy=policy),
            seed,
            blocks=(420, 700)[seed % 2],
            shared=False,
            lag=0,
            host_blocks=HOST_BLOCKS,
        )
        twin.play()
        assert twin.real.link is not None
        loaded_blocks += twin.real.link.loaded_blocks
    assert loaded_blocks, "some of these memories are meant to be too small"


@pytest.mark.parametrize("lag", [0, 1])
def test_they_agree_with_tenants_too(model: str, lag: int) -> None:
    """Groups of a shared prompt are tenants, whose classes change all the time."""
    weights = (TenantWeight(tenant="1", weight=2.0), TenantWeight(tenant="2", weight=1.0))
    tenants = TenantSettings(weights=weights, quantum_s=0.5, again_s=0.5)
    for seed in range(6):
        given = Scheduling(tenants=tenants)
        Twin(model, given, seed, blocks=700, shared=True, lag=lag).play()
