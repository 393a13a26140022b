"""A real vLLM on a machine without a GPU: which model, which arguments.

The model computes on the first core that we may use, in the process that schedules: with a worker
process of its own, as vLLM has it on CPUs, the scheduler would spin for every step on a core that
is lent to tools, and both would slow each other down by up to a third. The rest is for tools, API
and gateway. The KV cache holds 20,480 tokens: five to seven of the bundled sessions, so that a
dozen agents press. Weights are float32: vLLM would take bfloat16, which a CPU without instructions
for it (any before AVX-512) emulates, and prompts take seven times as long.
"""

import os
from importlib import resources
from pathlib import Path
from typing import Final

KV_BLOCKS: Final = 640
BLOCK_TOKENS: Final = 32
ONE_PROCESS: Final = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""By its class: asked for by its name ("uni"), vLLM takes "mp" on a CPU all the same, because it
cannot set OpenMP up in a process that runs. We set it up before that process starts."""


FORCED: Final = (
    "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
    "--logits-processors", "mars.vllm_plugin.forced:ForcedAnswer",
)  # fmt: skip
"""For agents whose answers are recorded (`bench.forcing`): calls of tools as the Hermes and Qwen
families write them, and the model made to write them."""


def tiny_engine_for_agents(
    kv_blocks: int, layers: int = 1
) -> tuple[str, tuple[str, ...], dict[str, str]]:
    """As `tiny_engine`, for agents that chat, and whose contexts are long: what OpenHands says of
    itself and its tools alone is 12,300 of this model's tokens, of which conversations in different
    folders share 8,200 (the folder is in the tools' descriptions). Its attention is narrow: with
    the other model's, a round was nothing but the engine computing lost contexts.
    """
    _, arguments, environment = tiny_engine()
    most_tokens = (kv_blocks - 1) * BLOCK_TOKENS  # vLLM keeps a block for itself
    template = Path(str(resources.files("mars") / "data" / "agents.jinja"))
    more = (
        "--max-model-len", str(min(32768, most_tokens)),
        "--num-gpu-blocks-override", str(kv_blocks),
        "--chat-template", str(template),
    )  # fmt: skip
    return str(_model(layers, narrow=True)), (*arguments, *more, *FORCED), environment


def tiny_engine() -> tuple[str, tuple[str, ...], dict[str, str]]:
    """Model path, vLLM arguments, vLLM's environment."""
    arguments = (
        "--load-format", "dummy",
        "--dtype", "float32",
        "--max-model-len", "8192",
        "--block-size", str(BLOCK_TOKENS),
        "--num-gpu-blocks-override", str(KV_BLOCKS),
        "--max-num-batched-tokens", "1024",
        "--max-num-seqs", "32",
        "--enforce-eager",
        "--distributed-executor-backend", ONE_PROCESS,
    )  # fmt: skip
    first_core = min(os.sched_getaffinity(0))
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": str(first_core),
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",  # a comparison calls nobody, and starts seconds sooner
    }
    return str(_model(4)), arguments, environment


def _model(layers: int, *, narrow: bool = False) -> Path:
    """Made on the first use. Raises InputError without a vLLM that the plugin knows."""
    from mars.vllm_plugin.contract import check_version
    from mars.vllm_plugin.tiny_model import NARROW, WIDE, make_tiny_model

    check_version()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"tiny-qwen3-{layers}x256" + "-narrow" * narrow
    return make_tiny_model(cache / "mars" / name, layers=layers, heads=NARROW if narrow else WIDE)
