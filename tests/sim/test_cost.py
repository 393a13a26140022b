"""Both laws: by hand, and what every Cost keeps."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars.core.errors import InputError
from mars.sim.cost import Cost
from mars.sim.laws import Kernel, Law, Linear
from mars.sim.profiles import load_profile

KERNEL = Kernel(
    step_s=1.0,
    call_s=0.5,
    tokens=(1, 10, 512, 2048),
    moe_s=(2.0, 11.0, 40.0, 100.0),
    dense_s=(1.0, 1.0, 2.0, 4.0),
    logits_s=3.0,
    decode_s=7.0,
    decode_call_s=0.25,
    context_token_s=0.01,
    window_tokens=4,
    window_token_s=0.02,
    pair_s=0.001,
    window_pair_s=0.01,
    prefill_s=2.0,
    prefill_token_s=0.1,
)
LINEAR = Linear(
    step_s=1.0, prefill_token_s=0.1, decode_call_s=0.5, context_token_s=0.01, pair_s=0.002
)
LAWS: dict[str, Law] = {
    "kernel": KERNEL,
    "linear": LINEAR,
    "qwen": load_profile("h100-nvl/qwen3-coder-30b").law,
    "gpt-oss": load_profile("h200-sxm/gpt-oss-120b").law,
}
A_HAIR = 1e-12
"""What rounding may take from an inequality, relative."""

laws = st.sampled_from(sorted(LAWS)).map(LAWS.__getitem__)
costs = st.builds(
    lambda law, step, prefill: law.cost(step, prefill),
    laws,
    st.floats(0.5, 2.0),
    st.floats(1.0, 2.0),
)
decodes = st.integers(0, 300)
contexts = st.integers(0, 2_000_000)
a_chunk = st.tuples(st.integers(1, 9_000), st.integers(0, 200_000))
chunks = st.lists(a_chunk, max_size=5)


def test_kernel_decodes_by_hand() -> None:
    # 1 + tok(4) + 7 + 4 (.25 + .5 + 4 * .02) + .01 * 1000; tok(4) = 3 + (12 - 3) * 3/9 + 3
    assert KERNEL.cost().step_s(4, 1000, ()) == pytest.approx(1 + 9 + 7 + 3.32 + 10)
    assert KERNEL.cost().decode_line(4) == pytest.approx((20.32, 0.01))


def test_kernel_prompts_by_hand() -> None:
    # tok(10) = 15; 10 * (.001 * (95 + 5) + .01 * min(4, 100) + .1) = 2.4, and the launch 2
    attention_s = math.cbrt(2.0**3 + 2.4**3)
    assert KERNEL.cost().step_s(0, 0, [(10, 95)]) == pytest.approx(1 + 15 + attention_s)
    # a context shorter than the window: 2 * (.001 * 1 + .01 * 1 + .1) = .222
    attention_s = math.cbrt(2.0**3 + 0.222**3)
    assert KERNEL.cost().step_s(0, 0, [(2, 0)]) == pytest.approx(1 + 7 + attention_s)


def test_kernel_mixed_by_hand() -> None:
    # tok of all 10 tokens, decode attention of 4, prompt attention of 6 after 97
    attention_s = math.cbrt(2.0**3 + (6 * (0.001 * 100 + 0.01 * 4 + 0.1)) ** 3)
    plain_s = 1 + 15 + 7 + 3.32 + 10 + attention_s
    assert KERNEL.cost().step_s(4, 1000, [(6, 97)]) == pytest.approx(plain_s)
    # the prompt alone: tok(6) = 3 + 9 * 5/9 + 3 = 11
    dearer_s = plain_s + 0.5 * (11 + attention_s)
    assert KERNEL.cost(1.0, 1.5).step_s(4, 1000, [(6, 97)]) == pytest.approx(dearer_s)


def test_kernel_beyond_its_table_is_proportional() -> None:
    cost = KERNEL.cost()
    a_line = [cost.decode_line(b)[0] - 1 - 7 - 0.83 * b for b in (2048, 4096)]
    assert a_line == pytest.approx([107.0, 214.0])


def test_linear_by_hand() -> None:
    # step 1, prompts .1 * 30, calls .5 * 4, contexts .01 * 1000, pairs .002 * (10 * 95 + 20 * 10)
    assert LINEAR.cost().step_s(4, 1000, [(10, 90), (20, 0)]) == pytest.approx(18.3)
    # of which the prompts 3 + 2.3
    assert LINEAR.cost(2.0, 1.5).step_s(4, 1000, [(10, 90), (20, 0)]) == pytest.approx(
        2 * (18.3 + 0.5 * 5.3)
    )


def test_a_scaled_card() -> None:
    scaled = msgspec.structs.replace(KERNEL, bandwidth_ratio=2.0, compute_ratio=0.5)
    # up to 512 tokens by bandwidth, from 2,048 by compute, logits by bandwidth
    assert scaled.table_s() == pytest.approx([3.0, 7.5, 22.5, 209.5])
    assert scaled.cost().decode_line(1) == pytest.approx((1 + 3 + 7 + 0.75 + 0.04, 0.005))
    attention_s = math.cbrt(2.0**3 + (10 * (2 * (0.001 * 100 + 0.01 * 4) + 0.1)) ** 3)
    assert scaled.cost().step_s(0, 0, [(10, 95)]) == pytest.approx(1 + 7.5 + attention_s)


def test_halfway_between_bandwidth_and_compute() -> None:
    law = msgspec.structs.replace(
        KERNEL, tokens=(1024,), moe_s=(2.0,), dense_s=(2.0,), bandwidth_ratio=2.0, compute_ratio=0.5
    )
    assert law.table_s() == pytest.approx([4 * (0.5 / 2 + 0.5 / 0.5) + 1.5])


@given(laws.filter(lambda law: isinstance(law, Kernel)), st.data())
def test_the_table_is_continuous_at_its_points(law: Kernel, data: st.DataObject) -> None:
    cost = law.cost()
    i = data.draw(st.integers(0, len(law.tokens) - 1))
    point = law.tokens[i]

    nothing = tuple(0.0 for _ in law.tokens)
    bare = msgspec.structs.replace(law, moe_s=nothing, dense_s=nothing, logits_s=0.0).cost()

    def tok_s(tokens: int) -> float:
        return cost.step_s(0, 0, [(tokens, 0)]) - bare.step_s(0, 0, [(tokens, 0)])

    assert tok_s(point) == pytest.approx(law.table_s()[i])
    slopes = [abs(b - a) / (n - m) for m, n, a, b in _segments(law)]
    last = law.table_s()[-1] / law.tokens[-1]
    for near in (max(1, point - 1), point + 1):
        assert abs(tok_s(near) - tok_s(point)) <= max(*slopes, last) + 1e-9


def _segments(law: Kernel) -> list[tuple[int, int, float, float]]:
    table_s = law.table_s()
    return list(zip(law.tokens, law.tokens[1:], table_s, table_s[1:], strict=False))


@given(costs, decodes, contexts)
def test_the_line_is_the_step(cost: Cost, b: int, s: int) -> None:
    fixed_s, per_token_s = cost.decode_line(b)
    assert cost.step_s(b, s, ()) == fixed_s + per_token_s * s


@given(costs, decodes, contexts, chunks, st.data())
def test_more_work_takes_no_less(
    cost: Cost, b: int, s: int, prompts: list[tuple[int, int]], data: st.DataObject
) -> None:
    took_s = cost.step_s(b, s, prompts)
    more = st.integers(0, 5_000)
    larger = [
        cost.step_s(b + data.draw(more), s, prompts),
        cost.step_s(b, s + data.draw(more), prompts),
        cost.step_s(b, s, [*prompts, data.draw(a_chunk)]),
        cost.step_s(b, s, [(n + data.draw(more), c) for n, c in prompts]),
        cost.step_s(b, s, [(n, c + data.draw(more)) for n, c in prompts]),
    ]
    assert min(larger) >= took_s * (1 - A_HAIR)
    assert took_s >= 0.0


@given(costs, decodes, contexts, chunks)
def test_a_mixed_step_costs_no_less_than_a_part(
    cost: Cost, b: int, s: int, prompts: list[tuple[int, int]]
) -> None:
    mixed_s = cost.step_s(b, s, prompts)
    parts_s = max(cost.step_s(b, s, ()), cost.step_s(0, 0, prompts))
    assert mixed_s >= parts_s * (1 - A_HAIR)


@given(laws, decodes, chunks, st.floats(0.5, 2.0), st.floats(1.0, 2.0))
def test_factors(
    law: Law, b: int, prompts: list[tuple[int, int]], step: float, prefill: float
) -> None:
    s = 1_000 * b
    plain, dearer = law.cost(), law.cost(1.0, prefill)
    step_s = dearer.step_s(b, s, prompts)
    assert law.cost(step, prefill).step_s(b, s, prompts) == pytest.approx(step * step_s)
    assert dearer.step_s(b, s, ()) == plain.step_s(b, s, ())
    # what the prompts would cost alone, beyond an empty step, is what gets dearer
    alone_s = plain.step_s(0, 0, prompts) - plain.step_s(0, 0, ())
    assert step_s == pytest.approx(plain.step_s(b, s, prompts) + (prefill - 1) * alone_s)


@pytest.mark.parametrize("law", [KERNEL, LINEAR])
def test_factors_out_of_range(law: Law) -> None:
    with pytest.raises(InputError, match="step_factor"):
        law.cost(0.0)
    with pytest.raises(InputError, match="prefill_factor"):
        law.cost(1.0, 0.9)
    with pytest.raises(InputError, match="prefill_factor"):
        law.cost(1.0, math.nan)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": (1, 10, 10, 20)}, "must rise"),
        ({"tokens": (1, 10)}, "equally long"),
        ({"moe_s": (2.0, 11.0, 9.0, 100.0)}, "must not fall"),
    ],
)
def test_a_bad_table(change: dict[str, object], said: str) -> None:
    fields = msgspec.to_builtins(KERNEL) | change
    with pytest.raises(msgspec.ValidationError, match=said):
        msgspec.convert(fields, Kernel, strict=False)
