"""A language model small enough for a laptop core, made on the spot; no download.

Random weights (vLLM's `--load-format dummy` fills them), a byte-level tokenizer trained on this
package's own sources, a Qwen3 of 4 layers and width 256: about 16k prefill and 460 decode tokens/s
on one core. What it says is noise; what it costs is real.
"""

from pathlib import Path
from typing import Final, NamedTuple

_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY: Final = 4096


class Heads(NamedTuple):
    """Of its attention, the part whose cost grows with the context."""

    query: int
    kv: int
    width: int


WIDE: Final = Heads(4, 2, 64)
NARROW: Final = Heads(1, 1, 32)
"""For long contexts, which then cost less beside the rest of the model."""


def make_tiny_model(
    folder: Path, *, layers: int = 4, heads: Heads = WIDE, context_tokens: int = 32768
) -> Path:
    """Write config and tokenizer into `folder` (done once: an existing one is left as it is)."""
    if (folder / "config.json").exists():
        return folder
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(str(path) for path in Path(__file__).parents[1].rglob("*.py"))
    tokenizer.train(sources, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=heads.query,
        num_key_value_heads=heads.kv,
        head_dim=heads.width,
        max_position_embeddings=context_tokens,
    )
    config.architectures = ["Qwen3ForCausalLM"]
    config.dtype = "bfloat16"
    config.save_pretrained(folder)
    return folder
