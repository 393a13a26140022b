"""What several commands have in common."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from mars.core.errors import InputError

_Command = Callable[..., Any]
POSITIVE: Final = click.FloatRange(min=0, min_open=True)


def settings_options(command: _Command) -> _Command:
    for option in (
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="A.B=VALUE",
            help="One setting; repeatable.",
        ),
        click.option(
            "--config", type=click.Path(path_type=Path), help="Settings, a TOML or JSON file."
        ),
    ):
        command = option(command)
    return command


def otlp_option(command: _Command) -> _Command:
    text = "Send spans to this OpenTelemetry collector, e.g. http://127.0.0.1:4318 (gateway.otlp)."
    return click.option("--otlp", metavar="URL", help=text)(command)


def with_otlp(overrides: tuple[str, ...], url: str | None) -> tuple[str, ...]:
    return overrides if url is None else (*overrides, f"gateway.otlp={url}")


def fresh_folder(kind: str) -> Path:
    folder = Path("runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists():
        raise InputError(f"{folder} exists: name another folder")
    return folder
