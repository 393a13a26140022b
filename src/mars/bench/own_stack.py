"""A stack of our own, to be measured, and what a server offers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import click

from mars.bench.tiny import tiny_engine
from mars.config import load_settings
from mars.core.errors import InputError
from mars.serve.stack import Stack, StackOptions, running_stack


@asynccontextmanager
async def own_stack(
    model: str | None, folder: Path, vllm_args: tuple[str, ...], overrides: Sequence[str] = ()
) -> AsyncIterator[tuple[Stack, tuple[str, ...]]]:
    """Under stock order, behind the gateway as sessions see it; and its arguments of vLLM.

    `model` None: the tiny one.
    """
    env: dict[str, str] = {}
    if model is None:
        model, tiny_args, env = tiny_engine()
        vllm_args = (*tiny_args, *vllm_args)
    options = StackOptions(
        model=model,
        settings=load_settings(None, ("scheduling.policy=fcfs", *overrides)),
        folder=folder,
        events=folder / "events.jsonl",
        port=0,
        vllm_args=vllm_args,
        engine_env=env,
    )
    async with running_stack(options, click.echo) as stack:
        yield stack, vllm_args


async def offered(http: aiohttp.ClientSession, base_url: str) -> tuple[str, int]:
    """(model, longest context) that a server offers."""
    try:
        async with http.get(f"{base_url}/models") as response:
            payload: Any = await response.json(content_type=None)
        first = payload["data"][0]
        return str(first["id"]), int(first["max_model_len"])
    except (aiohttp.ClientError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"no vLLM answers at {base_url}/models: {error!r}") from error
