"""The bundled profiles: complete, consistent, and inside their own error bars."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

import mars
from mars.core.errors import InputError
from mars.sim.cost import Cost
from mars.sim.laws import Kernel, Linear
from mars.sim.profiles import Profile, load_profile, profile_names, write_profile

QWEN, OSS = "qwen3-coder-30b", "gpt-oss-120b"
PUBLISHED = Path(mars.__file__).parent / "data" / "costs" / "published.json"
STEP_TOKENS = 8192
"""vLLM's budget of a step on a server card."""


class Point(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    profile: str
    source: str
    case: str
    at_a_time: int | None
    """Calls that are open, another as soon as one ends; None: more than run."""
    prompt_tokens: float
    output_tokens: float
    output_tokens_per_s: float
    step_s: float
    """Mean time between two tokens of a call."""
    decode_step_s: float | None
    """The same of steps without a prompt, where the source shows it."""
    comparable: bool
    note: str

    @property
    def decodes(self) -> float:
        """Little's law."""
        return self.output_tokens_per_s * self.step_s


class Published(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    about: str
    points: tuple[Point, ...]


POINTS = msgspec.json.decode(PUBLISHED.read_bytes(), type=Published).points


def test_what_is_bundled() -> None:
    cards = ("h100-nvl", "h100-sxm", "h200-nvl", "h200-sxm")
    assert profile_names() == [f"{c}/{m}" for c in cards for m in (OSS, QWEN)] + ["tiny-cpu"]


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_is_whole(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert 0.0 < profile.decode_error_frac <= profile.prefill_error_frac < 1.0
    told = profile.provenance
    assert all((told.source, told.licence, told.versions, told.fitted, told.error_bars))
    assert profile.window_tokens == (128 if name.endswith(OSS) else 0)
    assert 0.0 < profile.cost().step_s(1, 1000, ()) < 0.1


@pytest.mark.parametrize("model", [QWEN, OSS])
@pytest.mark.parametrize("card", ["h100", "h200"])
def test_a_scaled_card_is_the_measured_one_but_for_two_ratios(card: str, model: str) -> None:
    measured, scaled = (load_profile(f"{card}-{kind}/{model}") for kind in ("sxm", "nvl"))
    assert isinstance(measured.law, Kernel)
    assert isinstance(scaled.law, Kernel)
    ratios = {"bandwidth_ratio": 1.0, "compute_ratio": 1.0}
    assert msgspec.structs.replace(scaled.law, **ratios) == measured.law
    bandwidth_ratio = {"h100": 3.9 / 3.35, "h200": 1.0}[card]
    assert scaled.law.bandwidth_ratio == pytest.approx(bandwidth_ratio, rel=1e-4)
    assert scaled.law.compute_ratio == pytest.approx(835 / 989, rel=1e-4)
    assert scaled.provenance.scaled
    assert not measured.provenance.scaled
    assert scaled.decode_error_frac >= measured.decode_error_frac


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        (f"h100-nvl/{QWEN}", 260_000),
        (f"h200-nvl/{QWEN}", 720_000),
        (f"h100-nvl/{OSS}", 440_000),
        (f"h200-nvl/{OSS}", 1_667_000),
        ("tiny-cpu", 20_480),
    ],
)
def test_kv_capacity(name: str, tokens: int) -> None:
    profile = load_profile(name)
    assert profile.kv_capacity_tokens() == pytest.approx(tokens, rel=0.1)
    assert profile.kv_blocks() == profile.kv_capacity_tokens() // 16
    assert profile.kv_blocks(block_tokens=32) == profile.kv_capacity_tokens() // 32


def test_kv_capacity_of_a_server() -> None:
    """As vLLM 0.22 says on an H200 SXM (the log of a server of published.json): 93.59 calls of
    9,472 tokens, each 592 blocks of the whole context and 521 of the window and a step's tokens.
    """
    log_blocks = 93.59 * (592 + 521)
    assert load_profile(f"h200-sxm/{OSS}").kv_blocks() == pytest.approx(log_blocks, rel=0.005)


def test_kv_capacity_by_hand() -> None:
    profile = _mine()
    assert profile.kv_capacity_tokens(0.5) == (50_000 - 20_000 - 1_000) // 10
    with pytest.raises(InputError, match=r"leaves no room for KV on a card at `utilisation` 0\.2"):
        profile.kv_blocks(utilisation=0.2)
    with pytest.raises(InputError, match=r"`utilisation` is 1\.5"):
        profile.kv_blocks(utilisation=1.5)
    told = msgspec.structs.replace(profile, kv_tokens=640)
    assert told.kv_blocks(block_tokens=32, utilisation=0.2) == 20


def test_host_memory_by_hand() -> None:
    profile = load_profile("h100-nvl/qwen3-coder-30b")  # 98,304 bytes a token
    assert profile.host_blocks(3.0) == 3 * 2**30 // (16 * 98_304) == 2048
    assert profile.host_block_s() == pytest.approx(16 * 98_304 / 50e9)


def test_the_tiny_model_has_its_two_rates() -> None:
    cost = load_profile("tiny-cpu").cost()
    assert 1024 / cost.step_s(0, 0, [(1024, 0)]) == pytest.approx(16_000, rel=0.05)
    assert 4 / cost.step_s(4, 4 * 300, ()) == pytest.approx(460, rel=0.05)


def test_the_band_reaches_the_law() -> None:
    profile = load_profile(f"h100-nvl/{QWEN}")
    prompt = [(4000, 0)]
    plain_s, dear_s = profile.cost().step_s(0, 0, prompt), profile.cost(1.15, 1.45)
    assert plain_s < dear_s.step_s(0, 0, prompt) <= 1.15 * 1.45 * plain_s
    assert profile.cost(step_factor=0.85).step_s(0, 0, prompt) == pytest.approx(0.85 * plain_s)


def _steady(cost: Cost, point: Point, decodes: int) -> tuple[float, float]:
    """What a step takes on average: its decodes, and the prompts of the calls that follow others.

    A call leaves each output_tokens / decodes steps; the prompt that takes its place comes in
    chunks of a step's budget. Where several leave in a step, so many prompts come together. Of
    prompts a call sees the others' only: its own comes before its first token.
    """
    others = 1.0 if point.at_a_time is None else 1.0 - 1.0 / point.at_a_time
    prompt_tokens = round(point.prompt_tokens)
    context_tokens = round(decodes * (prompt_tokens + point.output_tokens / 2))
    decode_s = cost.step_s(decodes, context_tokens, ())
    together = max(1, round(decodes / point.output_tokens))
    prompts_s, done = 0.0, 0
    while done < prompt_tokens:
        n = min((STEP_TOKENS - decodes) // together, prompt_tokens - done)
        prompts_s += cost.step_s(decodes, context_tokens, [(n, done)] * together) - decode_s
        done += n
    return decode_s, others * prompts_s / together * decodes / point.output_tokens


def _between(cost: Cost, point: Point) -> tuple[float, float]:
    """_steady at a number of decodes that is not whole."""
    whole = math.floor(point.decodes)
    share = point.decodes - whole
    (low_decode_s, low_s), (high_decode_s, high_s) = (
        _steady(cost, point, b) for b in (whole, whole + 1)
    )
    return low_decode_s + share * (high_decode_s - low_decode_s), low_s + share * (high_s - low_s)


@pytest.mark.parametrize("point", POINTS, ids=lambda p: p.case)
def test_published_server_points(point: Point) -> None:
    profile = load_profile(point.profile)
    decode_s, prompts_s = _between(profile.cost(), point)
    if not point.comparable:
        assert point.note
        assert decode_s + prompts_s < point.step_s
        return
    error_s = profile.decode_error_frac * decode_s + profile.prefill_error_frac * prompts_s
    assert point.step_s == pytest.approx(decode_s + prompts_s, abs=error_s)
    if point.decode_step_s is not None:
        rest_s = point.step_s - point.decode_step_s
        assert point.decode_step_s == pytest.approx(decode_s, rel=profile.decode_error_frac)
        scatter_s = 0.01 * point.step_s  # steps of decodes alone differ by more
        assert rest_s == pytest.approx(prompts_s, rel=profile.prefill_error_frac, abs=scatter_s)


def test_every_card_and_model_was_looked_for() -> None:
    """So many servers were found; of Qwen on an H200 none."""
    found = Counter(point.profile for point in POINTS)
    assert found == {f"h200-sxm/{OSS}": 20, f"h100-sxm/{OSS}": 7, f"h100-sxm/{QWEN}": 1}


@pytest.mark.parametrize(
    ("of", "points", "bounds"),
    [
        pytest.param("mantile", 7, (0.92, 0.99), id="vLLM 0.13 on an H200"),
        pytest.param("gpustack", 5, (1.0, 1.26), id="vLLM 0.10.2 on an H100"),
        pytest.param("vllm-project", 1, (1.0, 1.1), id="Qwen3-30B-A3B on an H100"),
    ],
)
def test_servers_that_nothing_was_fitted_to(
    of: str, points: int, bounds: tuple[float, float]
) -> None:
    them = [point for point in POINTS if f"/{of}/" in point.source and point.comparable]
    ratios = [p.step_s / sum(_between(load_profile(p.profile).cost(), p)) for p in them]
    assert len(ratios) == points
    assert bounds[0] < min(ratios) <= max(ratios) < bounds[1]


def test_prompts_take_what_they_take_in_a_server() -> None:
    """A prompt alone, from its arrival to its first token (median of ten): the rest is HTTP, and
    7,244 tokens to be made of text.
    """
    ttft_s = 0.3288
    alone_s = load_profile(f"h200-sxm/{OSS}").cost().step_s(0, 0, [(7244, 0)])
    assert 0.8 * ttft_s < alone_s < ttft_s


def _mine() -> Profile:
    return Profile(
        name="mine",
        model="a model",
        card="a card",
        law=Linear(step_s=0.001, prefill_token_s=1e-5, decode_call_s=1e-4),
        decode_error_frac=0.1,
        prefill_error_frac=0.2,
        memory_bytes=100_000,
        weight_bytes=20_000,
        reserve_bytes=1_000,
        kv_bytes_per_token=10,
        provenance=msgspec.structs.replace(load_profile("tiny-cpu").provenance, fitted="by a test"),
    )


@pytest.mark.parametrize("profile", [_mine(), load_profile(f"h100-nvl/{OSS}")])
def test_what_is_written_is_read(tmp_path: Path, profile: Profile) -> None:
    path = tmp_path / "mine.json"
    write_profile(path, profile)
    assert load_profile(path) == profile
    assert load_profile(str(path)) == profile


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("h100", "no cost profile 'h100'; give one of h100-nvl/"),
        (f"b200/{OSS}", "no cost profile for the GPU 'b200'"),
        ("h100-nvl/llama", "no cost profile of the model 'llama' on h100-nvl"),
        ("published", "no cost profile 'published'"),
        ("../../../etc/passwd", "no cost profile for the GPU '..'"),
        ("nowhere.json", "cost profile nowhere.json: No such file"),
    ],
)
def test_bad_names(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load_profile(name)
    assert said in str(caught.value)
    assert name.endswith(".json") or all(known in str(caught.value) for known in profile_names())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, "unknown field `colour`"),
        ({"memory_bytes": -1}, "$.memory_bytes"),
        ({"law": {"type": "cubic"}}, "Invalid value 'cubic' - at `$.law.type`"),
        ({"law": {"type": "linear", "step_s": -1.0}}, "$.law.step_s"),
    ],
)
def test_a_bad_file(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(_mine()) | change))
    with pytest.raises(InputError) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("nothing")
    with pytest.raises(InputError, match="malformed"):
        load_profile(tmp_path / "bad.json")
