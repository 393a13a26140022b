"""What a session needs at the least, whatever is scheduled: alone on the machine, KV cached.

Prompt tokens, decodes and their contexts, tools, and the gaps between calls, through which its KV
is kept or computed again. A system prompt that sessions share is no session's own: it is there once
for all of them, and is taken to be warm.
"""

from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from mars.sim.cost import Cost
from mars.sim.settings import EngineSettings, ToolSettings
from mars.workload.trace import Recorded, Tool, Turn


class Gap(NamedTuple):
    """Between two calls: its own KV (tokens) is kept for a time, or computed again."""

    token_s: float
    prompt_tokens: int
    pairs: float


@dataclass(slots=True)
class Need:
    """The least work of a session, its shared system prompt given. `own` tokens are the others."""

    isolated_s: float = 0.0
    alone_s: float = 0.0
    """As `isolated_s`, with the system prompt warm: no schedule is faster."""
    decodes: int = 0
    context_tokens: float = 0.0
    """Sum over decodes of the context that they read."""
    own_tokens: float = 0.0
    """Sum over decodes of their own KV."""
    least_own_tokens: float = inf
    """Own KV of its smallest call."""
    prompt_tokens: int = 0
    pairs: float = 0.0
    """Sum over prompt tokens of the context before them."""
    call_token_s: float = 0.0
    """Integral of own KV during calls."""
    gap_token_s: float = 0.0
    gaps: list[Gap] = field(default_factory=list)
    lease_core_s: float = 0.0
    cpu_s: float = 0.0
    before_tools_s: float = 0.0
    """Of `alone_s` what is before the first tool; all of it if there is none."""
    after_tools_s: float = 0.0


def need_of(session: Recorded, cost: Cost, engine: EngineSettings, tools: ToolSettings) -> Need:
    need = _stayed(session, cost, engine, tools)
    if session.leaves_s is None:
        return need
    alone_s = min(session.leaves_s, need.alone_s)
    isolated = min(session.leaves_s, need.isolated_s)
    return Need(isolated_s=isolated, alone_s=alone_s, before_tools_s=alone_s)


def _stayed(session: Recorded, cost: Cost, engine: EngineSettings, tools: ToolSettings) -> Need:
    need, block = Need(), engine.block_tokens
    shared_tokens = session.shared_tokens // block * block
    kv_tokens = context_tokens = 0
    tools_s: list[float] = []  # starts and ends of them, alone
    following = (*session.turns[1:], None)
    for number, (turn, after) in enumerate(zip(session.turns, following, strict=True)):
        if turn.reset or not number:
            kv_tokens, context_tokens = shared_tokens, 0
        prompt_tokens = context_tokens + turn.new_tokens
        hit_tokens = min(kv_tokens, prompt_tokens - 1) // block * block
        prefill_s = _prefill_s(hit_tokens, prompt_tokens, cost, engine.step_tokens)
        if not number:  # the system prompt is cold
            need.isolated_s = _prefill_s(0, prompt_tokens, cost, engine.step_tokens) - prefill_s
        own = (prompt_tokens, hit_tokens, min(hit_tokens, shared_tokens))
        need.alone_s += engine.api_s + _add_call(need, turn, own, prefill_s, cost.decode_line(1))
        context_tokens = prompt_tokens + turn.output_tokens
        kv_tokens = context_tokens - 1
        if after is None:
            break
        ran_s = sum(_tool_s(need, tool, tools) for tool in turn.tools)
        if turn.tools:
            tools_s += (need.alone_s, need.alone_s + ran_s)
        gap_s = ran_s + turn.think_s
        need.alone_s += gap_s
        if not after.reset:
            kept = kv_tokens // block * block - shared_tokens
            need.gap_token_s += kept * gap_s
            need.gaps.append(Gap(kept * gap_s, kept, kept * (shared_tokens + kept / 2.0)))
    need.isolated_s += need.alone_s
    need.before_tools_s = tools_s[0] if tools_s else need.alone_s
    need.after_tools_s = need.alone_s - tools_s[-1] if tools_s else 0.0
    return need


def _add_call(
    need: Need, turn: Turn, own: tuple[int, int, int], prefill_s: float, line: tuple[float, float]
) -> float:
    """Adds one call, returns its seconds. `own`: tokens of its prompt, cached ones, shared ones.

    Prompts: on average at least half of the new tokens are in KV while they are computed, as later
    tokens take no less time than earlier ones. Token 1 comes of the prompt's last step, token i + 1
    of a decode over prompt + i.
    """
    prompt_tokens, hit_tokens, shared_tokens = own
    new_tokens, decodes = prompt_tokens - hit_tokens, turn.output_tokens - 1
    (a, b), steps = line, decodes * (decodes + 1) / 2.0
    context_tokens = decodes * prompt_tokens + steps
    squares = steps * (2 * decodes + 1) / 3.0
    own_tokens = prompt_tokens - shared_tokens
    # sum of (a + b (prompt + i)) (own + i)
    decode_token_s = (a + b * prompt_tokens) * (decodes * own_tokens + steps)
    decode_token_s += b * (own_tokens * steps + squares)
    need.decodes += decodes
    need.context_tokens += context_tokens
    need.own_tokens += context_tokens - decodes * shared_tokens
    need.least_own_tokens = min(need.least_own_tokens, own_tokens)
    need.prompt_tokens += new_tokens
    need.pairs += new_tokens * (hit_tokens + new_tokens / 2.0)
    need.call_token_s += prefill_s * (hit_tokens - shared_tokens + new_tokens / 2.0)
    need.call_token_s += decode_token_s
    return prefill_s + decodes * a + b * context_tokens


def _prefill_s(done_tokens: int, prompt_tokens: int, cost: Cost, step_tokens: int) -> float:
    took_s = 0.0
    while done_tokens < prompt_tokens:
        tokens = min(step_tokens, prompt_tokens - done_tokens)
        if tokens == 1:  # costs like a decode
            took_s += cost.step_s(1, done_tokens + 1, ())
        else:
            took_s += cost.step_s(0, 0, ((tokens, done_tokens),))
        done_tokens += tokens
    return took_s


def _tool_s(need: Need, tool: Tool, tools: ToolSettings) -> float:
    cores = min(tool.cores, tools.cores)
    took_s = max(tool.run_s, tool.cpu_s / cores)
    need.lease_core_s += cores * took_s
    need.cpu_s += tool.cpu_s
    return took_s
