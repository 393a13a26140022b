"""Answers that are known beforehand, made by the model all the same: teacher forcing.

    vllm serve ... --logits-processors mars.vllm_plugin.forced:ForcedAnswer
    a request:     "vllm_xargs": {"forced_tokens": [...]}

Every step runs the model and samples as ever; of the logits only the forced token's is left. The
answer is then what the request says, token for token, and in the KV cache it is what the next turn
finds. For benches that play the same agents under several policies; serving has no use for it.
"""

from typing import Any, Final

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor

FIELD: Final = "forced_tokens"

_Forced = tuple[list[int], list[int]]
"""The whole answer, and what of it has been made (vLLM appends to this very list)."""


class ForcedAnswer(LogitsProcessor):
    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raises ValueError, which vLLM's server answers with HTTP 400."""
        wanted = _wanted(sampling_params)
        if wanted is None:
            return
        if not isinstance(wanted, list) or not wanted or not all(map(_is_token, wanted)):
            raise ValueError(f"vllm_xargs.{FIELD} must be a list of token ids, at least one")

    def __init__(self, _config: Any, _device: torch.device, _pinned: bool) -> None:
        self._rows: dict[int, _Forced] = {}
        """By place in the batch."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, _forced)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        due = [
            (row, wanted[len(made)])
            for row, (wanted, made) in self._rows.items()
            if len(made) < len(wanted)
        ]
        if due:
            rows, tokens = zip(*due, strict=True)
            logits[list(rows)] = float("-inf")
            logits[list(rows), list(tokens)] = 0.0
        return logits


def _wanted(params: SamplingParams) -> Any:
    return (params.extra_args or {}).get(FIELD)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _forced(params: SamplingParams, _prompt: object, made: list[int]) -> _Forced | None:
    wanted = _wanted(params)
    return (wanted, made) if wanted else None
