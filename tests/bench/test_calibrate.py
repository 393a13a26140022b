"""The fit of a cost profile, and the comparison of a run with its simulation; the measuring itself
runs against a real vLLM in tests/e2e.
"""

from pathlib import Path

import pytest

from mars.bench.calibrate import Fit, fit, profile_of
from mars.bench.calibrating import given
from mars.bench.fidelity import compare
from mars.bench.measure import Run
from mars.bench.points import Point
from mars.bench.rounds import Round
from mars.core.errors import InputError
from mars.policy.presets import Scheduling
from mars.sim.profiles import load_profile, write_profile
from mars.sim.run import simulate
from mars.sim.settings import EngineSettings, SimSettings, ToolSettings
from mars.workload.trace import Recorded, Tool, Turn

TRUE = {
    "api_s": 0.005,
    "api_token_s": 1e-6,
    "step_s": 0.002,
    "prefill_token_s": 3e-5,
    "decode_call_s": 2e-4,
    "context_token_s": 1e-7,
    "pair_s": 2e-8,
}


def points(true: dict[str, float], noise: float = 0.0) -> list[Point]:
    made: list[tuple[str, tuple[float, ...], float]] = []
    for place, tokens in enumerate((32, 128, 512, 2048, 4096)):
        for kind, fresh in (("prompt", tokens), ("warm", 16)):
            pairs = fresh * (tokens - fresh / 2.0)
            steps = float(-(-fresh // 1024))
            counts = (1.0, float(tokens), steps, float(fresh), 0.0, 0.0, pairs)
            made.append((kind, counts, 1.0 + noise * (-1) ** place))
    for batch in (1, 4, 16):
        for context in (64, 1024):
            counts = (0.0, 0.0, 50.0, 0.0, 50.0 * batch, 50.0 * batch * context, 0.0)
            made.append(("decode", counts, 1.0))
    return [
        Point(
            kind, "", counts, off * sum(c * v for c, v in zip(counts, true.values(), strict=True))
        )
        for kind, counts, off in made
    ]


def test_constants_are_found_again() -> None:
    fitted = fit(points(TRUE))
    assert fitted.constants == pytest.approx(TRUE, rel=1e-6)
    assert fitted.error_frac("prompt") == pytest.approx(0.0, abs=1e-9)


def test_no_constant_is_negative() -> None:
    fitted = fit(points({**TRUE, "api_s": -0.004, "api_token_s": 0.0}))
    assert min(fitted.constants.values()) >= 0.0
    assert fitted.constants["api_s"] == 0.0


def test_the_error_is_stated() -> None:
    assert 0.02 < fit(points(TRUE, noise=0.1)).error_frac("prompt") < 0.2


def profile_file(folder: Path, fitted: Fit) -> Path:
    made = profile_of(fitted, name="mine", model="tiny", card="this", kv_tokens=20_480, start_s=0.1)
    write_profile(folder / "mine.json", made)
    return folder / "mine.json"


def test_the_profile_can_be_loaded_and_says_where_it_comes_from(tmp_path: Path) -> None:
    profile = load_profile(profile_file(tmp_path, fit(points(TRUE))))
    assert profile.kv_capacity_tokens() == 20_480
    assert profile.api_s == pytest.approx(0.005)
    assert profile.command_s == 0.1
    assert profile.provenance.source == "mars calibrate"
    assert profile.cost().step_s(1, 100, ()) == pytest.approx(0.002 + 2e-4 + 100 * 1e-7)


def test_the_last_of_an_option_counts() -> None:
    assert given(("--a", "1", "--b=2", "--a=3"), "--a") == 3
    assert given(("--a", "1"), "--c") is None


SESSIONS = [
    Recorded(
        session_id=str(n),
        turns=(
            Turn(new_tokens=500, output_tokens=20, tools=(Tool(name="t", run_s=0.5, cpu_s=0.2),)),
            Turn(new_tokens=100, output_tokens=20),
        ),
    )
    for n in range(6)
]
ARGUMENTS = ["--block-size", "32", "--max-num-seqs", "4", "--max-num-batched-tokens", "256"]


def head(load: str) -> dict[str, object]:
    return {
        "load": load,
        "vllm_args": ARGUMENTS,
        "settings": {"scheduling": {}, "tools": {"share": 2}},
    }


@pytest.mark.parametrize("lag", [0, 1])
def test_a_run_that_was_simulated_is_simulated_again_exactly(tmp_path: Path, lag: int) -> None:
    """Every setting of the run reaches the simulator."""
    profile = load_profile(profile_file(tmp_path, fit(points(TRUE))))
    settings = SimSettings(
        scheduling=Scheduling(policy="mars"),
        engine=EngineSettings(
            kv_blocks=639, block_tokens=32, step_tokens=256, most_calls=4, lag=lag,
            api_s=profile.api_s, api_token_s=profile.api_token_s, sample_s=0.2,
        ),
        tools=ToolSettings(cores=3, share=2, start_s=0.1),
    )  # fmt: skip
    events = simulate(SESSIONS, profile.cost(), settings, agents=3).events
    one = Round(policy="mars", repeat=0, started_s=0.0, ended_s=events[-1].at_s, events=events)
    run = Run(
        folder=tmp_path,
        wall_s=0.0,
        settings=head("closed loop, 3 agents"),
        rounds={"mars": [one]},
        notes=[],
    )
    (of,) = compare(run, SESSIONS, profile, lag=lag)
    assert of.off_frac == pytest.approx(0.0, abs=1e-9)
    assert of.simulated_hits == of.real_hits


def test_an_open_loop_run_is_refused(tmp_path: Path) -> None:
    profile = load_profile(profile_file(tmp_path, fit(points(TRUE))))
    run = Run(folder=tmp_path, wall_s=0.0, settings=head("open loop, 1"), rounds={}, notes=[])
    with pytest.raises(InputError, match="only closed-loop runs"):
        compare(run, SESSIONS, profile, lag=0)
