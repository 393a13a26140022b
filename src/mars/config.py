"""One typed, frozen tree of settings: defaults, then a TOML or JSON file, then `--set a.b=value`.

A setting's type, bounds and meaning stand beside its user; this module only joins them. An unknown
key or a value out of range is an error that names it.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from mars.core.errors import InputError
from mars.gateway.settings import GatewaySettings
from mars.policy.presets import Scheduling
from mars.tools.settings import ToolSettings


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    scheduling: Scheduling = Scheduling()
    gateway: GatewaySettings = GatewaySettings()
    tools: ToolSettings = ToolSettings()


def load_settings(
    path: Path | None = None, overrides: Sequence[str] = (), policy: str | None = None
) -> Settings:
    """Raises InputError that names the file, key and bound."""
    tree = {} if path is None else _read(path)
    for override in overrides:
        _apply(tree, override)
    if policy is not None:
        _apply(tree, f'scheduling.policy="{policy}"')
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        where = "settings" if path is None else f"settings ({path})"
        raise InputError(f"{where}: {error}") from None


def save_settings(settings: Settings, path: Path) -> None:
    path.write_bytes(msgspec.json.encode(settings))


def as_dict(settings: Settings) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.to_builtins(settings)
    return tree


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        tree = msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"cannot read settings: {error}") from None
    except (tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: settings are a table")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"--set {override}: write it as --set part.name=value")
    *parents, leaf = name.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InputError(f"--set {override}: {parent} is a value, not a table")
    try:
        tree[leaf] = msgspec.json.decode(text)
    except msgspec.DecodeError:
        tree[leaf] = text
