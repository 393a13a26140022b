"""`mars bench-agents` at a terminal."""

import asyncio
import os
from pathlib import Path

import msgspec

from mars.bench.agents import CLIENTS, AgentsOptions, Runner, bench_agents
from mars.bench.command import Bars, read_policies
from mars.bench.report import report
from mars.bench.repositories import make_tasks
from mars.bench.tiny import FORCED, tiny_engine_for_agents
from mars.config import load_settings
from mars.core.errors import InputError

_PYTHON = Path(".venv-agents") / "bin" / "python"


def bench_agents_command(
    *,
    client: str,
    policies: str,
    agents: int,
    tasks: int | None,
    repeat: int,
    seed: int,
    tools: str,
    python: Path | None,
    folder: Path,
    model: str | None,
    kv_blocks: int | None,
    restart: bool,
    config: Path | None,
    overrides: tuple[str, ...],
    vllm_args: tuple[str, ...],
) -> None:
    """Run, then report. Raises what `bench_agents` raises."""
    if client not in CLIENTS:
        raise InputError(f"--client {client}: one of {', '.join(CLIENTS)}")
    python = python or _PYTHON
    if not python.exists():
        raise InputError(
            f"no agents' environment at {python}: make .venv-agents/.ready, or --python"
        )
    of = CLIENTS[client]
    names, settings = read_policies(policies), load_settings(config, overrides)
    cores = os.sched_getaffinity(0)
    engine_env: dict[str, str] = {}
    arguments: tuple[str, ...] = FORCED
    if model is None:
        model, arguments, engine_env = tiny_engine_for_agents(kv_blocks or of.kv_blocks, of.layers)
        cores = cores - {min(cores)} or cores  # the model computes there
    elif kv_blocks is not None:
        raise InputError("--kv-blocks is the tiny model's; for --model say it to vLLM, after --")
    options = AgentsOptions(
        client=of,
        python=python.absolute(),
        tasks=make_tasks(tasks or agents, seed),
        agents=agents,
        runners=_read_runners(tools),
        cores=frozenset(cores),
        policies=names,
        repeat=repeat,
        settings=settings,
        model=model,
        folder=folder,
        vllm_args=(*arguments, *vllm_args),
        engine_env=engine_env,
        restart=restart,
    )
    with Bars() as bars:
        asyncio.run(bench_agents(options, bars))
    report(folder, as_json=False, page=None)


def _read_runners(tools: str) -> tuple[Runner, ...]:
    try:
        return tuple(dict.fromkeys(msgspec.convert(tools.split(","), tuple[Runner, ...])))
    except msgspec.ValidationError:
        raise InputError(f"--tools {tools}: leased, own, or leased,own") from None
