"""`mars calibrate` at a terminal: which server, then measure, fit, say, write."""

import asyncio
import contextlib
import platform
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from mars.bench.calibrate import Fit, fit, profile_of
from mars.bench.own_stack import offered, own_stack
from mars.bench.points import Point, Server, command_s, http_to_engine, kv_capacity, measure
from mars.core.errors import InputError
from mars.sim.profiles import Profile, write_profile
from mars.tools.client import ToolClient

_STEP_TOKENS = "--max-num-batched-tokens"


def calibrate_command(
    *,
    model: str | None,
    upstream: str | None,
    out: Path,
    name: str | None,
    step_tokens: int | None,
    folder: Path,
    vllm_args: tuple[str, ...],
) -> None:
    """Raises InputError, PartDiedError."""
    if upstream is not None and (model is not None or vllm_args):
        raise InputError("--upstream measures a server that runs: give no MODEL and no vLLM args")
    points, fitted, profile = asyncio.run(
        _calibrate(
            model=model,
            upstream=upstream,
            name=name or out.stem,
            step_tokens=step_tokens,
            folder=folder,
            vllm_args=vllm_args,
        )
    )
    _print(points, fitted, profile)
    write_profile(out, profile)
    click.echo(f"profile: {out}")


async def _calibrate(
    *,
    model: str | None,
    upstream: str | None,
    name: str,
    step_tokens: int | None,
    folder: Path,
    vllm_args: tuple[str, ...],
) -> tuple[list[Point], Fit, Profile]:
    async with contextlib.AsyncExitStack() as exits:
        http = await exits.enter_async_context(http_to_engine())
        tools: ToolClient | None = None
        if upstream is None:
            stack, vllm_args = await exits.enter_async_context(own_stack(model, folder, vllm_args))
            base_url, engine_url = stack.base_url, stack.engine_url
            tools = await exits.enter_async_context(ToolClient(stack.tools_url, stack.tools_token))
        else:
            engine_url = upstream.rstrip("/").removesuffix("/v1")
            base_url = f"{engine_url}/v1"
        served, most_tokens = await offered(http, base_url)
        step_tokens = step_tokens or given(vllm_args, _STEP_TOKENS) or 8192
        server = Server(http, base_url, engine_url, served, step_tokens)
        points = await measure(server, most_tokens=most_tokens)
        start_s = await command_s(server, tools) if tools else 0.0
        fitted = fit(points)
        profile = profile_of(
            fitted,
            name=name,
            model=Path(served).name,
            card=platform.processor() or platform.machine() if upstream is None else engine_url,
            kv_tokens=(await kv_capacity(server))[0],
            start_s=start_s,
        )
        return points, fitted, profile


def given(vllm_args: Sequence[str], option: str) -> int | None:
    """The value of an option among vLLM's arguments; the last one counts."""
    found = None
    for place, argument in enumerate(vllm_args):
        key, _, value = argument.partition("=")
        if key == option:
            found = int(value or vllm_args[place + 1])
    return found


def _print(points: Sequence[Point], fitted: Fit, profile: Profile) -> None:
    console = Console()
    table = Table("what", "measured (ms)", "error of the law", title="points")
    places = {kind: iter(errors) for kind, errors in fitted.errors.items()}
    for point in points:
        error = next(places[point.kind])
        steps = point.counts[2] if point.kind == "decode" else 1.0
        table.add_row(
            f"{point.kind} {point.what}", f"{point.took_s / steps * 1e3:.2f}", f"{error:+.1%}"
        )
    console.print(table)
    constants = Table(
        "constant", "seconds", title=f"{profile.model}, KV {profile.kv_tokens} tokens"
    )
    for constant, seconds in fitted.constants.items():
        constants.add_row(constant, f"{seconds:.3g}")
    constants.add_row("command_s", f"{profile.command_s:.3g}")
    console.print(constants)
