"""`mars calibrate`: a cost profile for the simulator from a short run against a real server.

    prompts   calls for one token, each with a prompt of its own: what n prompt tokens cost
    warm      the same again, now in the cache: what the way to the engine costs
    decodes   B answers at once over contexts that are in the cache: what a step of B decodes costs
    commands  empty commands on the tool server while the engine works: what starting one costs

The law is the simulator's Linear one; each call or row of steps is one equation for its constants,

    seconds = api + api_token sent + c0 steps + p prompt + d decodes + a context + q pairs

and the constants are the least squares of the relative errors, none below 0.
"""

import asyncio
import itertools
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np

from mars.bench import burn
from mars.bench.drive import FIRST_TOKEN, LAST_TOKEN
from mars.core.errors import InputError, PartDiedError
from mars.sim.cost import Linear
from mars.sim.profiles import Profile, Provenance
from mars.tools.client import ToolClient
from mars.tools.wire import RunRequest

PROMPTS: Final = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
CONTEXTS: Final = (64, 1024, 4096, 16384)
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
REPEATS: Final = 3
COMMANDS: Final = 30
AT_WORK: Final = 4
ANSWER_TOKENS: Final = 96
_NAMES: Final = (
    "api_s", "api_token_s", "step_s", "prefill_token_s", "decode_call_s", "context_token_s",
    "pair_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One equation: what was done, how often each constant counts, how long it took."""

    kind: str
    what: str
    counts: tuple[float, ...]
    """In the order of _NAMES."""
    took_s: float


@dataclass(frozen=True, slots=True)
class Fit:
    constants: dict[str, float]
    errors: dict[str, list[float]]
    """Relative errors of the points, by kind."""

    def error_frac(self, kind: str) -> float:
        """Nine of ten points are within this."""
        errors = sorted(abs(e) for e in self.errors[kind])
        return errors[int(0.9 * (len(errors) - 1))]


@dataclass(frozen=True, slots=True)
class Server:
    http: aiohttp.ClientSession
    base_url: str
    """Ends with /v1."""
    engine_url: str
    model: str
    step_tokens: int


async def measure(server: Server, *, most_tokens: int, seed: int = 1) -> list[Point]:
    """All points, from the smallest on. Raises PartDiedError when the server fails."""
    rng = random.Random(seed)
    points: list[Point] = []
    await _call(server, _prompt(rng, PROMPTS[0]), 1)  # the first call of all warms the server up
    kv_tokens, block_tokens = await kv_capacity(server)
    for tokens in (n for n in PROMPTS if n < most_tokens):
        for _ in range(REPEATS):
            points += await _prompt_points(server, rng, tokens, block_tokens)
    for context, batch in itertools.product(CONTEXTS, BATCHES):
        fits = batch * (context + ANSWER_TOKENS) < 0.8 * kv_tokens
        if fits and context + ANSWER_TOKENS < most_tokens:
            points += await _decode_points(server, rng, context, batch)
    return points


async def _prompt_points(
    server: Server, rng: random.Random, tokens: int, block_tokens: int
) -> list[Point]:
    """The same prompt twice: all of it is computed, then what is in no whole block."""
    prompt = _prompt(rng, tokens)
    points = []
    for kind, cached in (("prompt", 0), ("warm", (tokens - 1) // block_tokens * block_tokens)):
        start_s = time.monotonic()
        await _call(server, prompt, 1)
        took_s = time.monotonic() - start_s
        fresh = tokens - cached
        steps = -(-fresh // server.step_tokens)
        pairs = fresh * (cached + fresh / 2.0)
        counts = (1.0, tokens, steps, fresh, 0.0, 0.0, pairs)
        points.append(Point(kind, f"{tokens} tokens", counts, took_s))
    return points


async def _decode_points(
    server: Server, rng: random.Random, context: int, batch: int
) -> list[Point]:
    """Answers at once; what counts is the time in which all of them are under way. No point when
    the server does not run so many at once (--max-num-seqs).
    """
    prompts = [_prompt(rng, context) for _ in range(batch)]
    for prompt in prompts:
        await _call(server, prompt, 1)  # now it is in the cache
    times = await asyncio.gather(*(_stream(server, prompt, ANSWER_TOKENS) for prompt in prompts))
    start_s, end_s = max(t[0] for t in times), min(t[-1] for t in times)
    inside = [[t for t in token_s if start_s <= t <= end_s] for token_s in times]
    steps = max(len(t) for t in inside) - 1
    if steps < ANSWER_TOKENS // 8:
        return []
    longest = max(inside, key=len)
    took_s = longest[-1] - longest[0]
    middle = context + ANSWER_TOKENS - steps / 2.0
    counts = (0.0, 0.0, steps, 0.0, batch * steps, batch * steps * middle, 0.0)
    return [Point("decode", f"{batch} at {context} tokens", counts, took_s)]


def _prompt(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(tokens)]


def _body(server: Server, prompt: list[int], tokens: int) -> dict[str, Any]:
    return {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


async def _call(server: Server, prompt: list[int], tokens: int) -> None:
    url = f"{server.base_url}/completions"
    try:
        async with server.http.post(url, json=_body(server, prompt, tokens)) as response:
            text = await response.text()
    except aiohttp.ClientError as error:
        raise PartDiedError(f"no answer from {url}: {error!r}") from error
    if response.status != 200:  # noqa: PLR2004
        raise PartDiedError(f"{url}: HTTP {response.status}: {text[:500]}")


async def _stream(server: Server, prompt: list[int], tokens: int) -> list[float]:
    """When each token came."""
    body = {**_body(server, prompt, tokens), "stream": True, "return_token_ids": True}
    came_s: list[float] = []
    async with server.http.post(f"{server.base_url}/completions", json=body) as response:
        async for line in response.content:
            if line.startswith(b"data: {"):
                now_s = time.monotonic()
                choices = json.loads(line[6:])["choices"]
                made = len(choices[0].get("token_ids") or ()) if choices else 0
                came_s += [now_s] * made
    if len(came_s) != tokens:
        raise PartDiedError(f"asked for {tokens} tokens, {len(came_s)} came")
    return came_s


async def kv_capacity(server: Server) -> tuple[int, int]:
    """(tokens, tokens of a block), as vLLM's own metrics tell it."""
    async with server.http.get(f"{server.engine_url}/metrics") as response:
        text = await response.text()
    info = re.search(r"^vllm:cache_config_info\{([^}]*)\}", text, re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', info[1])) if info else {}
    try:
        block_tokens = int(labels["block_size"])
        return int(labels["num_gpu_blocks"]) * block_tokens, block_tokens
    except (KeyError, ValueError):
        raise InputError(
            f"{server.engine_url}/metrics does not tell vllm:cache_config_info: "
            "is this a vLLM 0.32 server?"
        ) from None


async def command_s(server: Server, tools: ToolClient, seed: int = 2) -> float:
    """From asking for an empty command to hearing of its end, s, while the engine is at work: what
    starts a command shares the machine with it.
    """
    argv = [sys.executable, "-I", "-S", str(Path(burn.__file__)), "0", "0"]
    rng = random.Random(seed)
    prompts = [_prompt(rng, CONTEXTS[0]) for _ in range(AT_WORK)]
    busy = asyncio.ensure_future(_keep_busy(server, prompts))
    took_s = []
    try:
        for _ in range(COMMANDS):
            start_s = time.monotonic()
            await tools.run(RunRequest(argv=argv, session_id="calibrate", tool="empty"))
            took_s.append(time.monotonic() - start_s)
    finally:
        busy.cancel()
        await asyncio.wait({busy})
    return statistics.fmean(took_s)


async def _keep_busy(server: Server, prompts: Sequence[list[int]]) -> None:
    while True:
        await asyncio.gather(*(_call(server, p, ANSWER_TOKENS) for p in prompts))


def fit(points: Sequence[Point]) -> Fit:
    """Least squares of the relative errors with all constants at least 0: a constant that would be
    negative is left out, and the others are fitted again.
    """
    rows = np.array([[c / p.took_s for c in p.counts] for p in points])
    used = list(range(len(_NAMES)))
    while True:
        found, *_ = np.linalg.lstsq(rows[:, used], np.ones(len(points)), rcond=None)
        if found.min() >= 0.0:
            break
        del used[int(found.argmin())]
    constants = np.zeros(len(_NAMES))
    constants[used] = found
    errors: dict[str, list[float]] = {}
    for point, predicted in zip(points, rows @ constants, strict=True):
        errors.setdefault(point.kind, []).append(float(predicted) - 1.0)
    return Fit(dict(zip(_NAMES, map(float, constants), strict=True)), errors)


def profile_of(
    fitted: Fit, *, name: str, model: str, card: str, kv_tokens: int, start_s: float
) -> Profile:
    constants = dict(fitted.constants)
    api_s, api_token_s = constants.pop("api_s"), constants.pop("api_token_s")
    points = sum(map(len, fitted.errors.values()))
    return Profile(
        name=name,
        model=model,
        card=card,
        law=Linear(**constants),
        decode_error_frac=fitted.error_frac("decode"),
        prefill_error_frac=fitted.error_frac("prompt"),
        memory_bytes=0,
        weight_bytes=0,
        kv_bytes_per_token=1,
        kv_tokens=kv_tokens,
        api_s=api_s,
        api_token_s=api_token_s,
        command_s=start_s,
        provenance=Provenance(
            source="mars calibrate",
            licence="",
            versions="",
            fitted=f"all constants of the law and of the way to the engine, from {points} points",
            fit_error=", ".join(
                f"{kind}s: nine of ten within {fitted.error_frac(kind):.0%}"
                for kind in fitted.errors
            ),
            error_bars="the fit's own; memory and weights were not asked",
        ),
    )
