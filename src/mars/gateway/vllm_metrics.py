"""What a vLLM without our plugin tells of its KV: its own /metrics, as a sample."""

import re
from typing import Final

from mars.core.events import EngineSampled

_LINE: Final = re.compile(r"^(vllm:\w+)\{([^}]*)\} (\S+)$", re.MULTILINE)
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


def sample_of(text: str, at_s: float) -> EngineSampled | None:
    """Over all of its data-parallel ranks; None: the size of its KV cache does not stand there."""
    used_fracs: list[float] = []
    counts = {"vllm:num_requests_running": 0.0, "vllm:num_requests_waiting": 0.0}
    blocks = block_tokens = 0
    for name, labels, value in _LINE.findall(text):
        if name == "vllm:kv_cache_usage_perc":
            used_fracs.append(float(value))
        elif name in counts:
            counts[name] += float(value)
        elif name == "vllm:cache_config_info":
            given = dict(_LABEL.findall(labels))
            if given.get("num_gpu_blocks", "").isdecimal():
                blocks += int(given["num_gpu_blocks"])
                block_tokens = int(given.get("block_size", "0"))
    if not (used_fracs and blocks and block_tokens):
        return None
    return EngineSampled(
        at_s=at_s,
        kv_used_blocks=round(blocks * sum(used_fracs) / len(used_fracs)),
        kv_held_blocks=0,
        kv_total_blocks=blocks,
        block_tokens=block_tokens,
        running_calls=round(counts["vllm:num_requests_running"]),
        waiting_calls=round(counts["vllm:num_requests_waiting"]),
    )
