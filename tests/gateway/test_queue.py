"""A gate with a limit to its queue, and clients that say how long they wait."""

import pytest
from openai import RateLimitError
from openai.types.chat import ChatCompletionMessageParam
from tests.gateway.conftest import ONE_AT_A_TIME, gateway
from tests.gateway.scripted import Engine, on_cue, until

from mars.core import events as ev
from mars.core.ids import SessionId
from mars.gateway.queue import Queue
from mars.gateway.settings import GatewaySettings

ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello?"}]
ONE_WAITS = GatewaySettings(queue_limit=1)


async def test_who_finds_the_queue_full_is_told_when_to_come_again(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, ONE_WAITS, ONE_AT_A_TIME) as rig:
        first = rig.post("a")
        exchange = await engine.called(1)
        second = rig.post("b")
        await rig.gated("b")
        with pytest.raises(RateLimitError, match="1 sessions wait at the gate") as refused:
            await rig.openai("c").chat.completions.create(model="m", messages=ASK)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.type == "queue_full"
        (told,) = rig.of(ev.SessionRefused)
        assert (told.session_id, told.waiting) == ("c", 1)
        assert set(rig.phases) == {"a", "b"}, "who was refused is no session"

        again = rig.post("a")  # those that are in, and their children, are never refused
        child = rig.post("d", headers={"X-Parent-Session-ID": "a"})
        for number in (2, 3):
            (await engine.called(number)).cue.set()
        assert {(await again).status, (await child).status} == {200}
        second_too = rig.post("b")  # nor a session that waits already
        await until(lambda: len(rig.desk._stays[SessionId("b")].waiting) == 2)
        exchange.cue.set()
        assert (await first).status == 200
        second.cancel()
        second_too.cancel()
        await rig.ended("b")
        async with rig.http.get(rig.url + "/metrics") as response:
            assert "mars_sessions_refused_total 1.0" in await response.text()


async def test_without_a_limit_all_wait(engine: Engine) -> None:
    engine.script = on_cue
    async with gateway(engine.url, scheduling=ONE_AT_A_TIME) as rig:
        calls = [rig.post(f"s{number}") for number in range(30)]
        await until(lambda: list(rig.phases.values()).count("gated") == 29)
        for call in calls:
            call.cancel()
        await until(lambda: len(rig.of(ev.SessionEnded)) >= 29)
        assert not rig.of(ev.SessionRefused)


@pytest.mark.parametrize(
    ("said", "stream", "patience_s"),
    [
        ("300.0", False, 300.0),
        ("300.0", True, None),  # comments keep it alive
        ("None", False, None),
        ("-1", False, None),
        ("nan", False, None),
        ("inf", False, None),
    ],
)
async def test_the_patience_of_a_client_is_what_its_header_says(
    engine: Engine, said: str, stream: bool, patience_s: float | None
) -> None:
    async with gateway(engine.url) as rig:
        await rig.say("a", headers={"X-Stainless-Read-Timeout": said}, stream=stream)
        (arrived,) = rig.of(ev.SessionArrived)
        assert arrived.patience_s == patience_s


async def test_the_openai_client_says_its_patience(engine: Engine) -> None:
    async with gateway(engine.url) as rig:
        client = rig.openai("a").with_options(timeout=77.0)
        await client.chat.completions.create(model="m", messages=ASK)
        (arrived,) = rig.of(ev.SessionArrived)
        assert arrived.patience_s == 77.0


class Line:
    """A queue, told in numbers."""

    def __init__(self) -> None:
        self.queue = Queue(limit=None)

    def at(self, at_s: float, waiting: int) -> None:
        self.queue.observe(ev.SessionEnded(at_s=at_s, session_id=SessionId("s"), why=""), waiting)


def test_the_time_to_come_again_is_the_pace_of_the_queue() -> None:
    line = Line()
    assert line.queue.retry_after_s(0.0) == 1
    line.at(100.0, 5)
    assert line.queue.retry_after_s(130.0) == 30, "nobody has left in 30 s"
    line.at(110.0, 4)
    line.at(120.0, 2)
    assert line.queue.retry_after_s(120.0) == 7, "three left in 20 s"
    assert line.queue.retry_after_s(190.0) == 30, "and nobody since"
    for number in range(40):
        line.at(200.0 + number, 2 + number % 2)
    assert line.queue.retry_after_s(238.0) == 2, "the last ones count"
    line.at(300.0, 0)
    line.at(5000.0, 1)
    assert line.queue.retry_after_s(5004.0) == 4, "a queue that forms anew has a pace of its own"
