"""A tool server on loopback, in this process and on uvloop; the laws are checked when it stops."""

import asyncio
import contextlib
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import uvicorn
import uvloop

from mars.core.events import (
    Event,
    ToolFinished,
    ToolProgressed,
    ToolQueued,
    ToolsSampled,
    ToolStarted,
)
from mars.policy.tool_order import Fifo, ToolOrder
from mars.tools.cgroup_tree import find_tree
from mars.tools.client import ToolClient
from mars.tools.orphans import mark_of
from mars.tools.runtime import ToolRuntime
from mars.tools.server import build_app
from mars.tools.settings import ToolSettings
from mars.tools.shells import Shells
from mars.tools.wire import Finished, Output, RunRequest

TOKEN = "a token"


@pytest.fixture
def event_loop_policy() -> uvloop.EventLoopPolicy:
    return uvloop.EventLoopPolicy()


@dataclass
class Ran:
    finished: Finished
    stdout: bytes = b""
    stderr: bytes = b""


@dataclass
class Rig:
    url: str
    client: ToolClient
    runtime: ToolRuntime
    shells: Shells
    events: list[Event] = field(default_factory=list)

    async def sh(self, text: str, **changes: object) -> Ran:
        return await self.run("sh", "-c", text, **changes)

    async def python(self, text: str, **changes: object) -> Ran:
        return await self.run(sys.executable, "-c", text, **changes)

    async def run(self, *argv: str, **changes: object) -> Ran:
        streams: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

        def take(output: Output) -> None:
            assert (
                output.data or output.skipped_bytes
            )  # an empty line would say nothing and cost memory
            streams[output.stream].extend(output.data)

        finished = await self.client.run(request(*argv, **changes), take)
        return Ran(finished, bytes(streams["stdout"]), bytes(streams["stderr"]))

    async def started(self, count: int) -> None:
        await until(lambda: sum(isinstance(e, ToolStarted) for e in self.events) >= count)

    def idle(self) -> bool:
        return self.runtime.book.running == self.runtime.book.waiting == 0


def request(*argv: str, **changes: object) -> RunRequest:
    known: dict[str, object] = {"argv": list(argv), "session_id": "s"}
    return RunRequest(**(known | changes))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, "it never came true"
        await asyncio.sleep(0.005)


_others: set[int] = set()
"""Children that were there before the test: multiprocessing keeps a tracker for other tests."""


@pytest.fixture(autouse=True)
def _children_of_others() -> None:
    _others.clear()
    _others.update(child.pid for child in psutil.Process().children(recursive=True))


def children(*, recursive: bool = True) -> list[psutil.Process]:
    found = psutil.Process().children(recursive=recursive)
    return [child for child in found if child.pid not in _others]


def all_gone() -> bool:
    """No children, once the orphans of a server that was another process have been waited for."""
    for child in children():
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)
    return children() == []


def groups_left() -> list[Path]:
    """Control groups that this process has made, but for the one it may stand in."""
    tree, mark = find_tree(), mark_of(os.getpid())
    folders = tree.folders.values() if tree else ()
    found = {child for folder in folders for child in folder.glob(f"mars-{mark}-*")}
    return sorted(child for child in found if not child.name.endswith("-server"))


@contextlib.asynccontextmanager
async def serving(
    order: ToolOrder | None = None, *, outlasting: bool = False, **settings: object
) -> AsyncIterator[Rig]:
    """Yields a server that lends core 0, once at a time, unless `settings` says else; None: `Fifo`.

    `outlasting`: a lease may last longer than its call, as those of shells do.
    """
    known: dict[str, object] = {"cores": (0,), "share": 1, "grace_s": 0.5}
    lent = ToolSettings(**(known | settings))  # type: ignore[arg-type]
    events: list[Event] = []
    app = build_app(lent, TOKEN, events.append, order or Fifo())
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, log_level="warning"))
    serve = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    try:
        async with ToolClient(url, TOKEN) as client:
            rig = Rig(url, client, app.state.runtime, app.state.shells, events)
            yield rig
            await until(rig.idle)
    finally:
        server.should_exit = True
        await serve
    rig.runtime.book.check()
    check_events(events, lent.share, outlasting=outlasting)
    assert children() == []
    assert groups_left() == []


def check_events(events: list[Event], share: int = 1, *, outlasting: bool = False) -> None:
    """Every call is queued, perhaps started, finished; what is sampled adds up at every moment."""
    queued: dict[str, ToolQueued] = {}
    running: dict[str, ToolStarted] = {}
    cores: dict[str, int] = {}
    progress: dict[str, list[ToolProgressed]] = {}
    wait_s = 0.0
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    for event in events:
        match event:
            case ToolQueued():
                assert event.tool_id not in queued | running
                queued[event.tool_id] = event
            case ToolStarted():
                before = queued.pop(event.tool_id)
                assert (event.session_id, event.tool) == (before.session_id, before.tool)
                assert event.wait_s == pytest.approx(event.at_s - before.at_s)
                assert len(event.cores) == before.cores or share > 1
                if event.wait_s:  # who joins a lease has not stood in line
                    wait_s += 0.2 * (event.wait_s - wait_s)
                running[event.tool_id] = event
                cores[event.tool_id] = before.cores
                lent = [core for started in running.values() for core in started.cores]
                if share == 1:
                    assert len({*lent}) == len(lent)
                else:
                    assert {started.cores for started in running.values()} == {event.cores}
                    assert sum(cores[it] for it in running) <= share * len(event.cores)
            case ToolProgressed():
                seen = progress.setdefault(event.tool_id, [])
                ran_s = event.at_s - running[event.tool_id].at_s
                assert event.run_s == pytest.approx(ran_s)
                assert ran_s > 0.99 * 2 ** len(seen)
                assert event.cpu_s >= max((it.cpu_s for it in seen), default=0.0)
                seen.append(event)
            case ToolFinished(exit_code=None):
                assert event.why == "cancelled"
                queued.pop(event.tool_id)
            case ToolFinished():
                assert 0 <= event.run_s <= event.at_s - running.pop(event.tool_id).at_s
                assert event.cpu_s >= 0
            case ToolsSampled():
                assert event.waiting == len(queued)
                assert (
                    event.running >= len(running) if outlasting else event.running == len(running)
                )
                assert event.wait_s == pytest.approx(wait_s)
            case _:
                raise AssertionError(event)
    assert not queued
    assert not running
