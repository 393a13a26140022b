"""What the others publish is heard to its last fact, without a tick that looks again."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
from tests.gateway.conftest import checked_desk, kv_sample
from tests.gateway.scripted import until

from mars.core import events as ev
from mars.core.ids import SessionId, ToolId
from mars.gateway.desk import Desk
from mars.gateway.ear import Ear
from mars.gateway.settings import GatewaySettings
from mars.policy.presets import Scheduling
from mars.stream.link import Publisher


@pytest.fixture
def desk() -> Iterator[Desk]:
    broken: list[str] = []
    made, _ = checked_desk(Scheduling(policy="fcfs"), GatewaySettings(), broken)
    yield made
    assert (broken, made.faults) == ([], 0)


async def test_a_burst_is_heard_to_its_last_fact(desk: Desk, tmp_path: Path) -> None:
    """More than one look takes in, and nothing comes after it that would wake the reader."""
    theirs = f"ipc://{tmp_path}/tools"
    publisher = Publisher(theirs)

    def connected() -> bool:
        publisher.send([kv_sample(100)])
        return desk.control.pressure.kv_used_frac == 1

    try:
        with Ear.listening(desk, [theirs]):
            await until(connected)
            facts = [tool_of_nobody(number) for number in range(5000)]
            for first in range(0, 5000, 7):
                publisher.send(facts[first : first + 7])
            await until(lambda: desk.control.late == 5000)
            assert desk.lost == 0
    finally:
        publisher.close()


def tool_of_nobody(number: int) -> ev.ToolQueued:
    nobody, tool_id = SessionId("nobody"), ToolId(str(number))
    return ev.ToolQueued(at_s=0.0, session_id=nobody, tool_id=tool_id, tool="bash", cores=1)


async def test_what_is_no_message_is_counted_and_the_next_is_heard(
    desk: Desk, tmp_path: Path
) -> None:
    theirs = f"ipc://{tmp_path}/odd"
    odd: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
    odd.setsockopt(zmq.LINGER, 0)
    odd.bind(theirs)

    def counted() -> bool:
        odd.send(b"what?")
        return desk.lost > 0

    def heard() -> bool:
        odd.send(msgspec.msgpack.encode((theirs, 1, [kv_sample(100)])))
        return desk.control.pressure.kv_used_frac == 1

    try:
        with Ear.listening(desk, [theirs]):
            await until(counted)
            await until(heard)
    finally:
        odd.close()
