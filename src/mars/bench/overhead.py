"""What the plugin costs per scheduler step, against stock vLLM in the same process.

Both schedulers are vLLM's real one, without a model (vllm_plugin.bare), in the same state: 64 calls
decode, 256 wait. The plugin publishes its facts and listens for others', as under `mars serve`.
Rounds alternate stock / plugin, and the ratio is taken pair by pair, so that what else the machine
does falls on both.
"""

import gc
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

_RUNNING: Final = 64
_WAITING: Final = 256
_PROMPT_TOKENS: Final = 1024


class Overhead(msgspec.Struct, frozen=True, kw_only=True):
    policy: str
    stock_us: float
    """Median over the rounds of the mean time of schedule + update_from_output, microseconds."""
    plugin_us: float
    ratio_median: float
    ratio_min: float
    ratio_max: float
    pairs: int


def measure_overhead(
    model: Path, policies: list[str], *, rounds: int = 15, steps: int = 200
) -> list[Overhead]:
    """`rounds` pairs of `steps` decode steps for each policy."""
    from mars.vllm_plugin.bare import STOCK
    from mars.vllm_plugin.scheduler import MarsScheduler

    with tempfile.TemporaryDirectory(prefix="mars-") as links:
        return [
            _overhead(
                policy,
                _loaded(STOCK, model, None),
                _loaded(MarsScheduler, model, _settings(policy, links)),
                rounds,
                steps,
            )
            for policy in policies
        ]


def _overhead(policy: str, stock: Any, ours: Any, rounds: int, steps: int) -> Overhead:
    gc.collect()
    gc.freeze()
    pairs = [(_time_us(stock, steps), _time_us(ours, steps)) for _ in range(rounds)]
    gc.unfreeze()
    ratios = [plugin / base for base, plugin in pairs]
    return Overhead(
        policy=policy,
        stock_us=statistics.median(base for base, _ in pairs),
        plugin_us=statistics.median(plugin for _, plugin in pairs),
        ratio_median=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        pairs=len(ratios),
    )


def _settings(policy: str, links: str) -> dict[str, Any]:
    return {
        "scheduling": {"policy": policy},
        "publish": f"ipc://{links}/{policy}",
        "subscribe": [f"ipc://{links}/gateway", f"ipc://{links}/tools"],
    }


def _loaded(scheduler: Any, model: Path, mars: dict[str, Any] | None) -> Any:
    from mars.vllm_plugin.bare import BLOCK_TOKENS, BareEngine, random_prompt

    answer_tokens = 15_000
    engine = BareEngine(
        scheduler,
        model=str(model),
        blocks=_RUNNING * (_PROMPT_TOKENS + answer_tokens) // BLOCK_TOKENS + 2000,
        most_calls=_RUNNING,
        step_tokens=8192,
        mars=mars,
    )
    for i in range(_RUNNING + _WAITING):
        engine.add(f"c{i}", random_prompt(i, _PROMPT_TOKENS), answer_tokens, f"s{i}")
    while True:
        engine.step()
        running = engine.scheduler.running
        if len(running) == _RUNNING and not any(r.is_prefill_chunk for r in running):
            return engine


def _time_us(engine: Any, steps: int) -> float:
    """Mean microseconds of schedule + update_from_output; the model's answer is not timed."""
    from mars.vllm_plugin.bare import answer

    scheduler, total_s = engine.scheduler, 0.0
    for _ in range(steps):
        start_s = time.perf_counter()
        output = scheduler.schedule()
        total_s += time.perf_counter() - start_s
        made = answer({r: scheduler.requests[r] for r in output.num_scheduled_tokens})
        start_s = time.perf_counter()
        scheduler.update_from_output(output, made)
        total_s += time.perf_counter() - start_s
    return total_s / steps * 1e6
