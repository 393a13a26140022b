"""Cost profiles: a model on a card, as a file with its provenance and its error bars.

    load_profile("h100-nvl/qwen3-coder-30b")   a bundled one (profile_names() lists them)
    load_profile("mine.json")                  one of `mars calibrate` (write_profile)

The bundled ones are src/mars/data/costs/**.json, each with where its figures come from; beside them
published.json, servers' figures that the profiles are tested against.
"""

from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from mars.core.errors import InputError
from mars.sim.cost import Cost
from mars.sim.laws import Kernel, Law

_FOLDER: Final = Path(str(resources.files("mars") / "data" / "costs"))
_NOT_A_PROFILE: Final = "published"
_GIB: Final = 2**30

Frac = Annotated[float, Meta(ge=0.0)]
Bytes = Annotated[int, Meta(ge=0)]


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    source: str
    licence: str
    versions: str
    fitted: str
    """Which figures are measured or fitted, and how."""
    fit_error: str
    assumed: str = ""
    """Which are not."""
    scaled: str = ""
    """From which card, how; empty: this card was measured."""
    error_bars: str
    """Where `decode_error_frac` and `prefill_error_frac` come from."""


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    model: str
    card: str
    law: Law
    decode_error_frac: Frac
    """A real step of decodes takes the law's seconds times 1 - this to 1 + this."""
    prefill_error_frac: Frac
    """The same for what prompts add to a step."""
    memory_bytes: Bytes
    """Of the card, as its driver reports them."""
    weight_bytes: Bytes
    reserve_bytes: Bytes = 0
    """What the engine takes besides weights and KV: activations, CUDA graphs."""
    kv_bytes_per_token: Annotated[int, Meta(ge=1)]
    """Of one KV group: of the layers that keep the whole context, or as many that see a window."""
    kv_tokens: Annotated[int, Meta(ge=1)] | None = None
    """KV of an engine that was asked, or told (--num-gpu-blocks-override): goes before the sum."""
    pcie_bytes_s: Annotated[float, Meta(gt=0.0)] = 50e9
    """One way, to host memory. PCIe 5.0 x16 has 64e9; about four fifths arrive."""
    api_s: Frac = 0.0
    """Between client and engine, once a call: HTTP, tokenizer, gateway."""
    api_token_s: Frac = 0.0
    """The same, once a prompt token."""
    command_s: Frac = 0.0
    """To start a command on this machine and to hear of its end."""
    provenance: Provenance

    def cost(self, step_factor: float = 1.0, prefill_factor: float = 1.0) -> Cost:
        """The law at one corner of the cost band: all of a step, and what prompts add, so much
        dearer.
        """
        return self.law.cost(step_factor, prefill_factor)

    def kv_capacity_tokens(self, utilisation: float = 0.9) -> int:
        """(memory * utilisation - weights - reserve) / bytes of a token, as vLLM reckons its pool.

        What calls take of it for a window is not taken off: EngineSettings.call_blocks has it.
        """
        if self.kv_tokens is not None:
            return self.kv_tokens
        if not 0.0 < utilisation <= 1.0:
            raise InputError(f"`utilisation` is {utilisation}; give a share above 0, at most 1")
        usable_bytes = self.memory_bytes * utilisation - self.weight_bytes - self.reserve_bytes
        if usable_bytes < self.kv_bytes_per_token:
            raise InputError(
                f"{self.model} leaves no room for KV on {self.card} at `utilisation` "
                f"{utilisation}; raise it, or take a larger card"
            )
        return int(usable_bytes // self.kv_bytes_per_token)

    @property
    def window_tokens(self) -> int:
        """What the layers of a second KV group see; 0: there is one group."""
        return self.law.window_tokens if isinstance(self.law, Kernel) else 0

    def kv_blocks(self, block_tokens: int = 16, utilisation: float = 0.9) -> int:
        return self.kv_capacity_tokens(utilisation) // block_tokens

    def host_blocks(self, host_gib: float, block_tokens: int = 16) -> int:
        return int(host_gib * _GIB // (self.kv_bytes_per_token * block_tokens))

    def host_block_s(self, block_tokens: int = 16) -> float:
        """What a block takes over PCIe."""
        return self.kv_bytes_per_token * block_tokens / self.pcie_bytes_s


def profile_names() -> list[str]:
    names = (str(p.relative_to(_FOLDER).with_suffix("")) for p in _FOLDER.rglob("*.json"))
    return sorted(name for name in names if name != _NOT_A_PROFILE)


def load_profile(name_or_path: str | Path) -> Profile:
    path = Path(name_or_path)
    if path.suffix != ".json":
        path = _bundled(str(name_or_path))
    try:
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    except OSError as error:
        raise InputError(f"cost profile {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise InputError(f"cost profile {path}: {error}") from error


def write_profile(path: Path, profile: Profile) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")


def _bundled(name: str) -> Path:
    names = profile_names()
    if name in names:
        return _FOLDER / f"{name}.json"
    card, _, model = name.partition("/")
    if not model:
        what = f"no cost profile {name!r}"
    elif not any(known.startswith(f"{card}/") for known in names):
        what = f"no cost profile for the GPU {card!r}"
    else:
        what = f"no cost profile of the model {model!r} on {card}"
    known = ", ".join(names)
    raise InputError(f"{what}; give one of {known}, or a .json file of `mars calibrate`")
