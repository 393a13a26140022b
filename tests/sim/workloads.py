"""Small random workloads that touch everything: shared prompts, resets, tools, departures."""

import random

import msgspec

from mars.workload.trace import Recorded, Tool, Turn

MOST_TOKENS = 9500


def random_sessions(seed: int) -> list[Recorded]:
    rng, arrives_s = random.Random(seed), 0.0
    sessions: list[Recorded] = []
    for number in range(rng.randrange(3, 25)):
        arrives_s += rng.expovariate(0.5)
        shared_tokens = rng.choice((0, 0, 1000))
        turns = _turns(rng, shared_tokens)
        turns[-1] = msgspec.structs.replace(turns[-1], tools=(), think_s=0.0)
        sessions.append(
            Recorded(
                session_id=f"s{number}",
                arrives_s=arrives_s,
                turns=tuple(turns),
                shared_prefix="prompt" if shared_tokens else "",
                shared_tokens=shared_tokens,
                leaves_s=rng.uniform(0.0, 60.0) if rng.random() < 0.05 else None,
            )
        )
    return sessions


def _turns(rng: random.Random, shared_tokens: int) -> list[Turn]:
    turns: list[Turn] = []
    context_tokens = 0
    for number in range(rng.randrange(1, 6)):
        reset = number > 0 and rng.random() < 0.1
        new_tokens = rng.choice((1, 40, 300, 1500, 5000)) + rng.randrange(60)
        new_tokens += shared_tokens if reset or not number else 0
        output_tokens = rng.choice((1, 5, 40, 300, 900)) + rng.randrange(9)
        context_tokens = (0 if reset else context_tokens) + new_tokens + output_tokens
        if context_tokens > MOST_TOKENS:
            break
        tools = tuple(
            Tool(
                name=rng.choice("ab"),
                run_s=rng.choice((0.1, 2.0, 15.0)) * rng.random(),
                cpu_s=rng.random(),
                cores=rng.choice((1, 1, 2)),
                memory_bytes=rng.choice((0, 1 << 20)),
            )
            for _ in range(rng.randrange(3))
        )
        turns.append(
            Turn(
                new_tokens=new_tokens,
                output_tokens=output_tokens,
                reset=reset,
                tools=tools,
                think_s=rng.choice((0.0, 0.0, rng.random())),
            )
        )
    return turns
