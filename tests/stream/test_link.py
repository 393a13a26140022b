"""The link between processes, over real sockets: order, bounds, and what was lost."""

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from mars.core import events as ev
from mars.core.errors import InputError
from mars.core.ids import SessionId
from mars.stream.link import Publisher, Subscriber

PATIENCE_MS = 20_000


def event(source: str, number: int) -> ev.SessionEnded:
    return ev.SessionEnded(at_s=float(number), session_id=SessionId(source), why="")


def message(source: str, sequence: int, *events: ev.Event) -> bytes:
    return msgspec.msgpack.encode((source, sequence, events))


def wait(socket: zmq.Socket[bytes], flag: zmq.PollEvent = zmq.POLLIN) -> None:
    assert socket.poll(PATIENCE_MS, flag), "nothing came"


def read(subscriber: Subscriber, until: Callable[[list[ev.Event]], bool]) -> list[ev.Event]:
    heard: list[ev.Event] = []
    while not until(heard):
        wait(subscriber.socket)
        heard += subscriber.drain()
    return heard


def join(subscriber: Subscriber, *publishers: tuple[str, Publisher]) -> None:
    """Greet until each publisher is heard: a subscription takes a while to reach it.

    Greetings that are still on their way are read as well, so that what comes next is the test's.
    """
    for source, publisher in publishers:
        greetings = 0
        while not (heard := [greeting.at_s for greeting in subscriber.drain()]):
            publisher.send([event(source, greetings)])
            greetings += 1
            subscriber.socket.poll(10)
        while heard[-1] != greetings - 1:
            wait(subscriber.socket)
            heard += [greeting.at_s for greeting in subscriber.drain()]


@pytest.fixture
def endpoint(tmp_path: Path) -> Callable[[str], str]:
    return lambda name: f"ipc://{tmp_path}/{name}"


@pytest.fixture
def raw(endpoint: Callable[[str], str]) -> Iterator[zmq.Socket[bytes]]:
    """One end of a pipe into `reader`: a publisher that may say anything."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.XPUB)
    socket.setsockopt(zmq.LINGER, 0)
    socket.bind(endpoint("raw"))
    yield socket
    socket.close()


@pytest.fixture
def reader(raw: zmq.Socket[bytes], endpoint: Callable[[str], str]) -> Iterator[Subscriber]:
    subscriber = Subscriber([endpoint("raw")])
    wait(raw)
    assert raw.recv() == b"\x01", "the subscription has arrived"
    yield subscriber
    subscriber.close()


def test_two_publishers_are_heard_each_in_order(endpoint: Callable[[str], str]) -> None:
    names, count = ("a", "b"), 500
    publishers = [(name, Publisher(endpoint(name))) for name in names]
    subscriber = Subscriber([endpoint(name) for name in names])
    try:
        join(subscriber, *publishers)
        for number in range(0, count, 2):
            for name, publisher in publishers:
                publisher.send([event(name, number), event(name, number + 1)])
        heard = read(subscriber, lambda heard: len(heard) == count * len(names))
        for name in names:
            sent = [event(name, number) for number in range(count)]
            assert [it for it in heard if it in sent] == sent
        assert subscriber.lost == 0
        assert list(subscriber.drain()) == []
    finally:
        subscriber.close()
        for _, publisher in publishers:
            publisher.close()


def test_nothing_to_say_is_not_said(endpoint: Callable[[str], str]) -> None:
    publisher = Publisher(endpoint("p"))
    subscriber = Subscriber([endpoint("p")])
    try:
        join(subscriber, ("p", publisher))
        publisher.send([])
        publisher.send([event("p", 77)])
        assert read(subscriber, bool) == [event("p", 77)]
        assert subscriber.lost == 0
    finally:
        subscriber.close()
        publisher.close()


def test_gaps_are_counted_for_each_source(raw: zmq.Socket[bytes], reader: Subscriber) -> None:
    """Sequences 3 and 4 of x and 11 of y are missing; who joins late has missed nothing."""
    for source, sequence in (("x", 1), ("y", 10), ("x", 2), ("x", 5), ("y", 12), ("x", 6)):
        raw.send(message(source, sequence, event(source, sequence)))
    heard = read(reader, lambda heard: len(heard) == 6)
    assert [it.at_s for it in heard] == [1.0, 10.0, 2.0, 5.0, 12.0, 6.0]
    assert reader.lost == 2 + 1


def test_a_publisher_that_starts_again_is_not_a_gap(
    raw: zmq.Socket[bytes], reader: Subscriber
) -> None:
    for sequence in (7, 8, 1, 2, 4):
        raw.send(message("x", sequence, event("x", sequence)))
    read(reader, lambda heard: len(heard) == 5)
    assert reader.lost == 1


def test_drain_does_not_wait(reader: Subscriber) -> None:
    assert list(reader.drain()) == []


def test_a_full_queue_drops_and_does_not_block(endpoint: Callable[[str], str]) -> None:
    """Nobody reads while far more is sent than both queues hold; then the books must agree."""
    publisher = Publisher(endpoint("p"))
    subscriber = Subscriber([endpoint("p")])
    try:
        join(subscriber, ("p", publisher))
        sent = 300_000
        flood = [event("flood", 0)]
        for _ in range(sent):
            publisher.send(flood)
        heard: list[ev.Event] = []
        last = flood[0]
        while last not in heard[-1:]:  # said to a full queue it is dropped itself: say it again
            last = event("last", sent)
            publisher.send([last])
            sent += 1
            while subscriber.socket.poll(100):
                heard += subscriber.drain()
        assert len(heard) + subscriber.lost == sent
        assert subscriber.lost > 0
    finally:
        subscriber.close()
        publisher.close()


def test_a_taken_tcp_endpoint_is_an_error() -> None:
    other: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
    with other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        with pytest.raises(InputError, match="in use"):
            Publisher(f"tcp://127.0.0.1:{port}")
