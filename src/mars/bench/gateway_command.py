"""`mars bench-gateway` at a terminal: the processes, who runs where, and the table."""

import os
import shlex
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import click
import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from mars.bench.added import (
    AGAIN,
    DIRECT,
    Figure,
    Over,
    Way,
    engine_cases,
    measure,
    measure_memory,
    stub_cases,
)
from mars.core.errors import InputError
from mars.serve.parts import Part, Parts
from mars.serve.stack import free_ports

_READY_S: Final = 60.0


def bench_gateway_command(
    *,
    engine: str | None,
    peers: Sequence[str],
    policy: str,
    rounds: int,
    seconds: float,
    as_json: bool,
) -> None:
    commands = dict(_named(peer) for peer in peers)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:  # noqa: PLR2004
        raise InputError("bench-gateway wants two cores: one for the gateway, one for the load")
    os.sched_setaffinity(0, cores[:-1])  # ours and the stub's
    figures = uvloop.run(
        _measure(engine, commands, policy, cores[-1], rounds=rounds, seconds=seconds)
    )
    if as_json:
        click.echo(msgspec.json.encode(figures))
        return
    Console().print(_table(figures, ["mars", *commands]))


def _named(peer: str) -> tuple[str, str]:
    name, equals, command = peer.partition("=")
    if not equals or not name or "{port}" not in command or "{engine}" not in command:
        raise InputError(
            f"--peer {peer}: write it as NAME=COMMAND with {{port}}, where it has to listen, and "
            "{engine}, the URL of the engine"
        )
    if name in {DIRECT, AGAIN, "mars"}:
        raise InputError(f"--peer {peer}: {name} is taken")
    return name, command


async def _measure(
    engine: str | None,
    commands: dict[str, str],
    policy: str,
    core: int,
    *,
    rounds: int,
    seconds: float,
) -> list[Figure]:
    figures: list[Figure] = []
    cases = engine_cases(await _model_of(engine), seconds) if engine else stub_cases(seconds)
    async with _ways(engine, commands, policy, core) as ways:
        if engine is None:
            figures += await measure_memory(ways)
        for case in cases:
            figures += await measure(case, ways, rounds=rounds, tell=_progress)
    _progress("")
    return figures


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{text}", err=True, nl=False)


@asynccontextmanager
async def _ways(
    engine: str | None, commands: dict[str, str], policy: str, core: int
) -> AsyncIterator[list[Way]]:
    """Direct, direct again, our gateway, the peers; gateways run on `core`, one works at a time."""
    stub_port, *ports = free_ports(2 + len(commands))
    url = engine or f"http://127.0.0.1:{stub_port}"
    with tempfile.TemporaryDirectory(prefix="mars-") as made:
        folder = Path(made)
        facts = f"ipc://{folder}/engine"
        async with Parts() as parts:
            if engine is None:
                argv = [sys.executable, "-m", "mars.bench.stub_engine", str(stub_port), facts]
                await parts.start(Part("stub engine", argv, f"{url}/health", folder / "stub.log"))
                await parts.ready(_READY_S)
            ours = [
                sys.executable, "-m", "mars", "gateway", "--policy", policy, "--upstream", url,
                "--port", str(ports[0]), "--events", str(folder / "events.jsonl"),
                "--publish", f"ipc://{folder}/gateway", "--subscribe", facts,
            ]  # fmt: skip
            argvs = {"mars": ours} | {
                name: shlex.split(command.format(engine=url, port=port))
                for (name, command), port in zip(commands.items(), ports[1:], strict=True)
            }
            ways = [Way(DIRECT, url), Way(AGAIN, url)]
            for (name, argv), port in zip(argvs.items(), ports, strict=True):
                at = f"http://127.0.0.1:{port}"
                pinned = ["taskset", "-c", str(core), *argv]
                await parts.start(Part(name, pinned, f"{at}/health", folder / f"{name}.log"))
                ways.append(Way(name, at, parts.pids[-1]))
            await parts.ready(_READY_S)
            yield ways


async def _model_of(engine: str) -> str:
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{engine}/v1/models") as response:
            listed = await response.json()
            return str(listed["data"][0]["id"])
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"--engine {engine}: /v1/models names no model: {error!r}") from None


def _table(figures: Sequence[Figure], gateways: Sequence[str]) -> Table:
    table = Table("", "", DIRECT, AGAIN, *gateways, "target", title_justify="left")
    table.caption = "Median over the rounds (least to most); + is what is added to direct."
    last = ""
    for figure in figures:
        direct = "-" if figure.direct is None else f"{figure.direct:,.2f}"
        table.add_row(
            "" if figure.case == last else figure.case,
            f"{figure.quantity} ({figure.unit})",
            direct,
            *(_cell(figure.ways.get(way), adds=figure.adds) for way in (AGAIN, *gateways)),
            figure.target,
        )
        last = figure.case
    return table


def _cell(over: Over | None, *, adds: bool) -> str:
    if over is None:
        return "-"
    sign = "+" if adds else ""
    return f"{over.median:{sign},.2f} ({over.least:{sign},.2f} to {over.most:{sign},.2f})"
