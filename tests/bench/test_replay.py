"""The driver against scripted servers; the whole of it runs in tests/e2e."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mars.bench.arrivals import Load
from mars.bench.drive import Agent, Answered, new_tokens
from mars.bench.interleave import first_of
from mars.bench.replay import Answers
from mars.bench.tiny import tiny_engine
from mars.core.errors import InputError, PartDiedError, ResultError
from mars.core.ids import SessionId
from mars.tools.client import ToolClient
from mars.workload.trace import Recorded, Tool, Turn

TWO_TURNS = Recorded(
    session_id="s",
    turns=(Turn(new_tokens=5, output_tokens=3), Turn(new_tokens=2, output_tokens=4)),
)


@asynccontextmanager
async def agent(complete: Callable[[Any], Awaitable[web.Response]]) -> AsyncIterator[Agent]:
    """An agent before a scripted `/v1/completions`; its traces run no tools."""

    async def handle(request: web.Request) -> web.Response:
        return await complete({**await request.json(), "headers": request.headers})

    app = web.Application()
    app.router.add_post("/v1/completions", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with (
            aiohttp.ClientSession() as http,
            ToolClient("http://127.0.0.1:1", "token") as tools,
        ):
            yield Agent(http, tools, f"http://127.0.0.1:{port}/v1", "m")
    finally:
        await runner.cleanup()


def answer(tokens: list[int]) -> web.Response:
    return web.json_response({"choices": [{"token_ids": tokens}]})


async def test_the_prompt_grows_by_the_engines_own_answers_and_the_last_call_is_final() -> None:
    asked: list[Any] = []

    async def complete(body: Any) -> web.Response:
        asked.append(body)
        return answer(list(range(body["max_tokens"])))

    async with agent(complete) as one:
        answered = await one.play(TWO_TURNS, SessionId("s#0"))
    first, second = (new_tokens(TWO_TURNS, n, turn) for n, turn in enumerate(TWO_TURNS.turns))
    assert [body["prompt"] for body in asked] == [first, [*first, 0, 1, 2, *second]]
    assert [body["max_tokens"] for body in asked] == [3, 4]
    assert [body["headers"].get("X-Session-Final") for body in asked] == [None, "1"]
    assert {body["headers"]["X-Session-ID"] for body in asked} == {"s#0"}
    assert answered.tokens == 7


async def test_an_answer_of_another_length_is_not_valid() -> None:
    async def complete(body: Any) -> web.Response:
        return answer([1] * (body["max_tokens"] - 1))

    async with agent(complete) as one:
        with pytest.raises(ResultError, match="asked for 3 tokens, got 2"):
            await one.play(TWO_TURNS, SessionId("s#0"))


async def test_a_server_that_fails_or_is_gone_is_named() -> None:
    async def complete(_: Any) -> web.Response:
        return web.json_response({"error": {"message": "out of cheese"}}, status=500)

    async with agent(complete) as one:
        with pytest.raises(PartDiedError, match=r"HTTP 500.*out of cheese"):
            await one.play(TWO_TURNS, SessionId("s#0"))
        nowhere = Agent(one.http, one.tools, "http://127.0.0.1:1/v1", "m")
        with pytest.raises(PartDiedError, match="no answer"):
            await nowhere.play(TWO_TURNS, SessionId("s#0"))


async def test_a_tool_server_that_is_gone_is_named() -> None:
    async def complete(body: Any) -> web.Response:
        return answer([1] * body["max_tokens"])

    tooled = Recorded(
        session_id="s",
        turns=(
            Turn(new_tokens=5, output_tokens=3, tools=(Tool(name="t", run_s=0.1),)),
            Turn(new_tokens=5, output_tokens=3),
        ),
    )
    async with agent(complete) as one:
        with pytest.raises(PartDiedError):
            await one.play(tooled, SessionId("s#0"))


def test_answers_that_differ_end_the_run() -> None:
    answers = Answers()
    answers.check("fcfs", "s", Answered(SessionId("s#0"), 7, "aa"))
    answers.check("mars", "s", Answered(SessionId("s#0"), 7, "aa"))
    answers.check("mars", "t", Answered(SessionId("t#0"), 7, "bb"))
    with pytest.raises(ResultError, match="under mars differ from those under fcfs"):
        answers.check("mars", "s", Answered(SessionId("s#1"), 7, "bb"))


def test_new_tokens_are_the_same_each_time_and_differ_between_turns() -> None:
    long = Turn(new_tokens=50, output_tokens=1)
    assert new_tokens(TWO_TURNS, 0, long) == new_tokens(TWO_TURNS, 0, long)
    assert new_tokens(TWO_TURNS, 0, long) != new_tokens(TWO_TURNS, 1, long)


def test_of_several_errors_ours_is_told() -> None:
    group = BaseExceptionGroup("g", [KeyError("x"), BaseExceptionGroup("h", [PartDiedError("y")])])
    assert str(first_of(group)) == "y"


async def test_a_closed_loop_keeps_so_many_sessions_open() -> None:
    sessions = [Recorded(session_id=str(n), turns=TWO_TURNS.turns) for n in range(9)]
    open_now, most, done = 0, 0, []

    async def play(session: Recorded) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        done.append(session.session_id)

    await Load(agents=4).run(sessions, play)
    assert most == 4
    assert sorted(done) == [s.session_id for s in sessions]


async def test_an_open_loop_starts_at_the_same_times_for_every_policy() -> None:
    load = Load(per_s=200.0, seed=3)
    sessions = [Recorded(session_id=str(n), turns=TWO_TURNS.turns) for n in range(5)]
    order: list[str] = []

    async def play(session: Recorded) -> None:
        order.append(session.session_id)

    await load.run(sessions, play)
    assert order == ["0", "1", "2", "3", "4"]
    assert load.starts_s(5) == Load(per_s=200.0, seed=3).starts_s(5)
    assert load.starts_s(5) != Load(per_s=200.0, seed=4).starts_s(5)
    assert sum(Load(per_s=2.0).starts_s(2001)[-1:]) == pytest.approx(1000, rel=0.1)


def test_the_tiny_engine_holds_the_longest_bundled_session() -> None:
    model, arguments, _ = tiny_engine()
    assert (Path(model) / "config.json").exists()
    assert "--num-gpu-blocks-override" in arguments


def test_bundled_traces_go_by_name() -> None:
    from mars.bench.command import find_trace  # noqa: PLC0415 it draws on rich

    assert find_trace(Path("coding")).is_file()
    with pytest.raises(InputError, match="bundled ones: airline, coding"):
        find_trace(Path("nothing"))
