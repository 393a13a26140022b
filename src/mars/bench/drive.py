"""One recorded agent over HTTP: real prompts that grow, real answers, real tool processes.

Turn k sends the whole conversation as token ids: what was sent before, the engine's own answers,
and the recorded number of new tokens (drawn from a seed: the sources hold numbers, not text). The
answer has exactly the recorded length (greedy, end-of-text ignored). Then the turn's tools run, one
after the other, as processes under core leases.
"""

import asyncio
import hashlib
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from mars.bench import burn
from mars.core.errors import PartDiedError, ResultError
from mars.core.ids import SessionId
from mars.tools.client import ToolClient
from mars.tools.wire import RunRequest
from mars.workload.trace import Recorded, Tool, Turn

FIRST_TOKEN: Final = 300
LAST_TOKEN: Final = 4000
"""New tokens are drawn from [FIRST_TOKEN, LAST_TOKEN): plain words in any vocabulary."""


@dataclass(frozen=True, slots=True)
class Answered:
    session_id: SessionId
    tokens: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Agent:
    http: aiohttp.ClientSession
    tools: ToolClient
    base_url: str
    model: str

    async def play(self, recorded: Recorded, session_id: SessionId) -> Answered:
        """Raises PartDiedError (the server failed), ResultError (an answer not as asked)."""
        context: list[int] = []
        digest, tokens = hashlib.sha256(), 0
        for number, turn in enumerate(recorded.turns):
            if turn.reset:
                context = []
            context += new_tokens(recorded, number, turn)
            last = number + 1 == len(recorded.turns)
            answer = await self._ask(session_id, context, turn.output_tokens, last=last)
            digest.update(repr(answer).encode())
            tokens += len(answer)
            context += answer
            for tool in turn.tools:
                await self._run(session_id, tool)
            if turn.think_s and not last:
                await asyncio.sleep(turn.think_s)
        return Answered(session_id, tokens, digest.hexdigest())

    async def _ask(
        self, session_id: SessionId, prompt: list[int], answer_tokens: int, *, last: bool
    ) -> list[int]:
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": answer_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        headers = {"X-Session-ID": session_id, **({"X-Session-Final": "1"} if last else {})}
        try:
            async with self.http.post(
                f"{self.base_url}/completions", json=body, headers=headers
            ) as response:
                payload: Any = await response.json(content_type=None)
        except (aiohttp.ClientError, ValueError) as error:
            raise PartDiedError(f"session {session_id}: no answer: {error!r}") from error
        if response.status != 200:  # noqa: PLR2004
            raise PartDiedError(f"session {session_id}: HTTP {response.status}: {payload}")
        answer: list[int] = payload["choices"][0]["token_ids"]
        if len(answer) != answer_tokens:
            raise ResultError(
                f"session {session_id}: asked for {answer_tokens} tokens, got {len(answer)}"
            )
        return answer

    async def _run(self, session_id: SessionId, tool: Tool) -> None:
        finished = await self.tools.run(
            RunRequest(
                argv=[sys.executable, "-I", "-S", str(Path(burn.__file__)),
                      str(tool.cpu_s), str(tool.run_s)],
                session_id=session_id,
                tool=tool.name,
            )
        )  # fmt: skip
        if finished.exit_code != 0:
            raise ResultError(f"session {session_id}: {tool.name} ended with {finished.exit_code}")


def new_tokens(recorded: Recorded, number: int, turn: Turn) -> list[int]:
    """The same for every policy and repetition."""
    rng = random.Random(f"{recorded.session_id}/{number}")
    return [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(turn.new_tokens)]
