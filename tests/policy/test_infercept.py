"""InferCept's least waste, computed by hand."""

from functools import partial
from math import inf
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy import made

from mars.core.ids import CallId, SessionId
from mars.policy.base import CallView, IdleStage
from mars.policy.infercept import LeastWaste
from mars.policy.settings import InferceptSettings

idle = partial(made.idle, stage="left", others_tokens=30_000, refill_s=1.5, idle_s=0.0)
"""tau = 1.5 s * (10k + 30k) / (2 * 10k) = 3 s."""


def test_kept_until_keeping_has_wasted_as_much_as_letting_go() -> None:
    hold = LeastWaste(InferceptSettings()).hold(idle())
    assert (hold.keep_s, hold.value, hold.why) == (3.0, 3.0, "least waste for 3.0 s")


@pytest.mark.parametrize("stage", get_args(IdleStage))
def test_idle_time_counts_whatever_has_happened(stage: IdleStage) -> None:
    policy = LeastWaste(InferceptSettings())
    assert policy.hold(idle(stage=stage, idle_s=2.0)).keep_s == 1.0
    assert policy.hold(idle(stage=stage, idle_s=3.0)).keep_s == 0.0


def test_alone_it_is_worth_half_of_what_it_costs() -> None:
    assert LeastWaste(InferceptSettings()).hold(idle(others_tokens=0)).keep_s == 0.75


def test_a_flat_price_goes_before_the_engines_estimate() -> None:
    """200 us a token: 2 s for 10k, times 2."""
    released = LeastWaste(InferceptSettings(reload_s_per_token=200e-6))
    assert released.hold(idle()).keep_s == pytest.approx(4.0)
    assert LeastWaste(InferceptSettings(reload_s_per_token=0.0)).hold(idle()).keep_s == 0.0


@pytest.mark.parametrize("price", [None, 200e-6])
def test_an_empty_context_is_not_kept(price: float | None) -> None:
    policy = LeastWaste(InferceptSettings(reload_s_per_token=price))
    assert policy.hold(idle(context_tokens=0)).keep_s == 0.0


def test_what_is_pinned_is_pinned() -> None:
    call = CallView(CallId("c"), SessionId("s"), 0.0, 0.0)
    assert LeastWaste(InferceptSettings()).takes_held_at_s(call) == inf


@given(
    context_tokens=st.integers(1, 10**6),
    others_tokens=st.integers(0, 10**7),
    refill_s=st.floats(0.0, 1e3),
    idle_s=st.floats(0.0, 1e5),
    price=st.none() | st.floats(0.0, 1e-2),
)
def test_the_least_waste_wins(
    context_tokens: int, others_tokens: int, refill_s: float, idle_s: float, price: float | None
) -> None:
    """Whatever is known: held if and only if the time so far has wasted less than letting go."""
    asked = idle(
        context_tokens=context_tokens,
        others_tokens=others_tokens,
        refill_s=refill_s,
        idle_s=idle_s,
    )
    keep_s = LeastWaste(InferceptSettings(reload_s_per_token=price)).hold(asked).keep_s
    t_fwd_s = refill_s if price is None else price * context_tokens
    keeping = idle_s * context_tokens
    letting_go = t_fwd_s * (context_tokens + others_tokens) / 2
    assert 0.0 <= keep_s < inf
    if keeping != pytest.approx(letting_go):
        assert (keep_s > 0.0) == (keeping < letting_go)
    if keep_s > 0.0:
        assert (idle_s + keep_s) * context_tokens == pytest.approx(letting_go)
