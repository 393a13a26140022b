"""What `mars calibrate` measures of a real server: the work of serving, one kind at a time.

    prompts   calls for one token, each with a prompt of its own: what n prompt tokens cost
    warm      the same again, now in the cache: what the way to the engine costs
    resumed   a prompt in the cache, and some more: what a continuation costs over its context
    decodes   B answers at once over contexts that are in the cache: what a step of B decodes costs
    mixed     a prompt while B answers are made: what chunks and decodes cost in one step
    commands  empty commands on the tool server while the engine works: what starting one costs

Each measurement is one equation for the constants of a law (mars.bench.calibrate).
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

from mars.bench import burn
from mars.bench.drive import FIRST_TOKEN, LAST_TOKEN
from mars.core.errors import InputError, PartDiedError
from mars.gateway.upstream import KEEP_S
from mars.tools.client import ToolClient
from mars.tools.wire import RunRequest

PROMPTS: Final = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
CONTEXTS: Final = (64, 1024, 4096, 16384)
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
REPEATS: Final = 3
RESUMED: Final = (64, 256, 1024)
"""Tokens that continue a context of each of CONTEXTS."""
MIXED: Final = tuple(itertools.product((1, 4, 16), (256, 1024, 4096)))
"""Answers under way, tokens of the prompt that comes."""
COMMANDS: Final = 30
AT_WORK: Final = 4
ANSWER_TOKENS: Final = 96
MIXED_CONTEXT: Final = 512
_FILL: Final = 0.8
"""Of the KV, so that no measurement is of preemption."""
UNDER_WAY: Final = 4
"""Tokens of an answer that have come when it counts as under way."""


@dataclass(frozen=True, slots=True)
class Point:
    """One equation: what was done, how often each constant counts, how long it took."""

    kind: str
    what: str
    counts: tuple[float, ...]
    """Of api_s, api_token_s, step_s, prefill_token_s, decode_call_s, context_token_s, pair_s."""
    took_s: float


@dataclass(frozen=True, slots=True)
class Server:
    http: aiohttp.ClientSession
    base_url: str
    """Ends with /v1."""
    engine_url: str
    model: str
    step_tokens: int


def http_to_engine() -> aiohttp.ClientSession:
    """Waits for ever, opens any number of connections, and sends nothing into one that vLLM is
    about to close.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S),
        timeout=aiohttp.ClientTimeout(total=None),
    )


async def measure(server: Server, *, most_tokens: int, seed: int = 1) -> list[Point]:
    """All points, from the smallest on. Raises PartDiedError when the server fails."""
    rng = random.Random(seed)
    points: list[Point] = []
    await call(
        server, random_prompt(rng, PROMPTS[0]), 1
    )  # the first call of all warms the server up
    kv_tokens, block_tokens = await kv_capacity(server)
    for tokens in (n for n in PROMPTS if n < most_tokens):
        for _ in range(REPEATS):
            points += await _prompt_points(server, rng, tokens, block_tokens)
    for context, tokens in itertools.product(CONTEXTS, RESUMED):
        if context + tokens < min(most_tokens, kv_tokens):
            for _ in range(REPEATS):
                points.append(await _resumed_point(server, rng, context, tokens, block_tokens))
    for context, batch in itertools.product(CONTEXTS, BATCHES):
        fits = batch * (context + ANSWER_TOKENS) < _FILL * kv_tokens
        if fits and context + ANSWER_TOKENS < most_tokens:
            points += await _decode_points(server, rng, context, batch)
    for batch, tokens in MIXED:
        needs_tokens = batch * (MIXED_CONTEXT + ANSWER_TOKENS) + tokens
        if needs_tokens < _FILL * kv_tokens and tokens < most_tokens:
            points += await _mixed_points(server, rng, batch, tokens)
    return points


async def _prompt_points(
    server: Server, rng: random.Random, tokens: int, block_tokens: int
) -> list[Point]:
    """The same prompt twice: all of it is computed, then what is in no whole block."""
    prompt = random_prompt(rng, tokens)
    points = []
    for kind, cached in (("prompt", 0), ("warm", (tokens - 1) // block_tokens * block_tokens)):
        start_s = time.monotonic()
        await call(server, prompt, 1)
        took_s = time.monotonic() - start_s
        fresh = tokens - cached
        steps = -(-fresh // server.step_tokens)
        pairs = fresh * (cached + fresh / 2.0)
        counts = (1.0, tokens, steps, fresh, 0.0, 0.0, pairs)
        points.append(Point(kind, f"{tokens} tokens", counts, took_s))
    return points


async def _resumed_point(
    server: Server, rng: random.Random, context: int, tokens: int, block_tokens: int
) -> Point:
    """A prompt of `context` tokens is in the cache, and `tokens` more come after it."""
    prompt = random_prompt(rng, context)
    await call(server, prompt, 1)
    prompt += random_prompt(rng, tokens)
    start_s = time.monotonic()
    await call(server, prompt, 1)
    took_s = time.monotonic() - start_s
    cached = context // block_tokens * block_tokens
    fresh = len(prompt) - cached
    steps = -(-fresh // server.step_tokens)
    pairs = fresh * (cached + fresh / 2.0)
    counts = (1.0, len(prompt), steps, fresh, 0.0, 0.0, pairs)
    return Point("resumed", f"{tokens} after {context} tokens", counts, took_s)


async def _decode_points(
    server: Server, rng: random.Random, context: int, batch: int
) -> list[Point]:
    """Answers at once; what counts is the time in which all of them are under way. No point when
    the server does not run so many at once (--max-num-seqs).
    """
    prompts = [random_prompt(rng, context) for _ in range(batch)]
    for prompt in prompts:
        await call(server, prompt, 1)  # now it is in the cache
    times = await asyncio.gather(*(stream(server, prompt, ANSWER_TOKENS, []) for prompt in prompts))
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


async def _mixed_points(server: Server, rng: random.Random, batch: int, tokens: int) -> list[Point]:
    """A prompt comes while answers are made: the steps of the first answer from its last token
    before the prompt was sent to its first one after the prompt was answered. All the while the
    engine was at work, so the way to it does not count. No point when an answer ended meanwhile.
    """
    answers: list[list[float]] = [[] for _ in range(batch)]
    under_way = [asyncio.Event() for _ in answers]
    streams = asyncio.gather(
        *(
            stream(server, random_prompt(rng, MIXED_CONTEXT), ANSWER_TOKENS, came_s, event)
            for came_s, event in zip(answers, under_way, strict=True)
        )
    )
    for event in under_way:
        await event.wait()
    sent_s = time.monotonic()
    await call(server, random_prompt(rng, tokens), 1)
    answered_s = time.monotonic()
    await streams
    before = [s for s in answers[0] if s <= sent_s]
    after = [s for s in answers[0] if s >= answered_s]
    if not before or not after or min(map(max, answers)) < answered_s:
        return []
    steps = len(answers[0]) - len(before) - len(after) + 1
    middle = MIXED_CONTEXT + len(before) + steps / 2.0
    pairs = tokens * tokens / 2.0
    counts = (0.0, 0.0, steps, tokens, batch * steps, batch * steps * middle, pairs)
    return [Point("mixed", f"{tokens} tokens beside {batch}", counts, after[0] - before[-1])]


def random_prompt(rng: random.Random, tokens: int) -> list[int]:
    return [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(tokens)]


def _body(server: Server, prompt: list[int], tokens: int) -> dict[str, Any]:
    return {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }


async def call(server: Server, prompt: list[int], tokens: int) -> None:
    url = f"{server.base_url}/completions"
    try:
        async with server.http.post(url, json=_body(server, prompt, tokens)) as response:
            text = await response.text()
    except aiohttp.ClientError as error:
        raise PartDiedError(f"no answer from {url}: {error!r}") from error
    if response.status != 200:  # noqa: PLR2004
        raise PartDiedError(f"{url}: HTTP {response.status}: {text[:500]}")


async def stream(
    server: Server,
    prompt: list[int],
    tokens: int,
    came_s: list[float],
    under_way: asyncio.Event | None = None,
) -> list[float]:
    """When each token came, added to `came_s`; `under_way` is set after the first few."""
    body = {**_body(server, prompt, tokens), "stream": True, "return_token_ids": True}
    try:
        async with server.http.post(f"{server.base_url}/completions", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    now_s = time.monotonic()
                    choices = json.loads(line[6:])["choices"]
                    made = len(choices[0].get("token_ids") or ()) if choices else 0
                    came_s += [now_s] * made
                    if under_way is not None and len(came_s) >= UNDER_WAY:
                        under_way.set()
    finally:
        if under_way is not None:
            under_way.set()  # nobody waits for an answer that has failed
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
    prompts = [random_prompt(rng, CONTEXTS[0]) for _ in range(AT_WORK)]
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
        await asyncio.gather(*(call(server, p, ANSWER_TOKENS) for p in prompts))
