"""What the plugin is told, under the key `mars` of vLLM's --additional-config."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from mars.core.errors import InputError
from mars.policy.presets import Scheduling


class PluginSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    scheduling: Scheduling = Scheduling()
    publish: str | None = None
    """Endpoint to bind for the engine's facts (`ipc:///path`, `tcp://127.0.0.1:port`)."""
    subscribe: tuple[str, ...] = ()
    """Endpoints of the gateway and the tool runtime."""
    sample_s: Annotated[float, Meta(gt=0.0)] = 0.2
    pcie_bytes_s: Annotated[float, Meta(gt=0.0)] = 50e9
    """One way from host memory to a GPU, where vLLM offloads: PCIe 5.0 x16 has 64e9, about four
    fifths arrive."""
    rank_s: Annotated[float, Meta(ge=0.0)] = 0.05
    """A live order of the waiting is refreshed this often at most. Ranking every waiting
    call in every step would cost more than the step itself."""


def read_settings(additional_config: Any) -> PluginSettings:
    """Raises InputError that names the field."""
    raw = additional_config.get("mars", {}) if isinstance(additional_config, dict) else {}
    try:
        return msgspec.convert(raw, PluginSettings)
    except msgspec.ValidationError as error:
        raise InputError(f"--additional-config, key `mars`: {error}") from None
