"""The proxy that forces recorded answers, before an engine that is a script."""

import asyncio
import contextlib
import json
import logging

import aiohttp
import pytest
from aiohttp import web

from mars.bench.forcing import Forcing
from mars.core.errors import ResultError

TASK = "Mend the clock."
ANSWERS = {TASK: [[1, 2, 3], [4, 5]]}


def asked(*messages: tuple[str, str]) -> dict[str, object]:
    said = [{"role": role, "content": content} for role, content in messages]
    return {"messages": said, "max_completion_tokens": 9}


@pytest.mark.parametrize(
    ("messages", "tokens"),
    [
        ([("user", TASK)], [1, 2, 3]),
        ([("user", TASK), ("assistant", "so"), ("user", "on")], [4, 5]),
        ([("user", TASK), ("assistant", "so"), ("user", f"again: {TASK}")], [1, 2, 3]),
    ],
)
def test_the_newest_statement_and_the_answers_since_say_the_turn(
    messages: list[tuple[str, str]], tokens: list[int]
) -> None:
    body = asked(*messages)
    Forcing(ANSWERS).force(body)
    assert body["vllm_xargs"] == {"forced_tokens": tokens}
    assert body["max_tokens"] == len(tokens)
    assert "max_completion_tokens" not in body


def test_what_is_not_recorded_is_refused_and_remembered() -> None:
    forcing = Forcing(ANSWERS)
    with pytest.raises(ResultError, match="without recording"):
        forcing.force(asked(("user", "What time is it?")))
    with pytest.raises(ResultError, match="number 3"):
        forcing.force(asked(("user", TASK), ("assistant", "so"), ("assistant", "it is")))
    assert len(forcing.unknown) == 2


class Engine:
    """Streams for as long as anybody listens."""

    def __init__(self) -> None:
        self.open = self.left = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        assert (await request.json())["vllm_xargs"] == {"forced_tokens": [1, 2, 3]}
        self.open += 1
        try:
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"data: {}\n\n" * 1000)
                await asyncio.sleep(0)
        finally:
            self.open -= 1
            self.left += 1


async def test_an_agent_that_leaves_takes_its_call_along_and_nobody_complains(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, app = Engine(), web.Application()
    app.router.add_post("/v1/chat/completions", engine.answer)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    with caplog.at_level(logging.WARNING):
        async with Forcing(ANSWERS).before(f"http://127.0.0.1:{runner.addresses[0][1]}") as url:
            await asyncio.gather(*(leave_early(url, chunks) for chunks in (1, 2, 3, 5, 8) * 4))
            async with asyncio.timeout(20):
                while engine.left < 20:  # noqa: ASYNC110 - the engine is a script without events
                    await asyncio.sleep(0.005)
    assert engine.open == 0
    assert caplog.records == []
    await runner.cleanup()


async def leave_early(url: str, chunks: int) -> None:
    body = json.dumps(asked(("user", TASK)))
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", data=body) as answer,
    ):
        with contextlib.suppress(StopAsyncIteration):
            stream = answer.content.iter_any()
            for _ in range(chunks):
                await anext(stream)
        answer.close()
