"""`mars top`, as a process of its own, on a real gateway."""

import asyncio
import os
import pty
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from starlette.routing import Route, Router
from tests.gateway.conftest import ONE_AT_A_TIME, Rig, gateway
from tests.gateway.pair import FOUR_PLACES, eventually
from tests.gateway.scripted import Engine, closed_port, on_cue, serving, until
from tests.gateway.test_fleet import OPEN, Two, two

from mars.core import events as ev
from mars.core.ids import SessionId, ToolId
from mars.gateway.keys import KeyRing, make_key

TOP = [sys.executable, "-m", "mars", "top"]


@asynccontextmanager
async def one_in_one_waiting() -> AsyncIterator[Rig]:
    engine = Engine(script=on_cue)
    async with (
        serving(Router(routes=[Route("/{rest:path}", engine)])) as url,
        gateway(url, scheduling=ONE_AT_A_TIME) as rig,
    ):
        first = rig.post("[bold]inside")
        exchange = await engine.called(1)
        second = rig.post("outside")
        await rig.gated("outside")
        yield rig
        second.cancel()
        exchange.cue.set()
        await first


async def run(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *TOP, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "COLUMNS": "120"},
    )  # fmt: skip
    said, failed = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode is not None
    return process.returncode, said.decode(), failed.decode()


async def test_once_prints_who_is_in_who_waits_and_why() -> None:
    async with one_in_one_waiting() as rig:
        tool = {"session_id": SessionId("[bold]inside"), "tool_id": ToolId("t"), "tool": "make"}
        now_s = time.monotonic()
        rig.desk.emit(
            ev.ToolStarted(at_s=now_s - 4, cores=(1,), wait_s=0.0, **tool),  # type: ignore[arg-type]
            ev.ToolProgressed(
                at_s=now_s, run_s=4.0, cpu_s=3.0, memory_bytes=210 * 10**6,
                **tool,  # type: ignore[arg-type]
            ),
        )  # fmt: skip
        code, said, failed = await run(rig.url + "/v1", "--once")
    assert code == 0, failed
    assert re.search(r"make running \d.* s \(CPU 75.0 %, 210 MB\)", said)
    lines = said.splitlines()
    assert "2 sessions: 1 of 1 active; 1 gated, 1 queued" in lines
    assert "gate: 1 wait: KV is at 100% (limit 90%)" in lines
    assert any(line.startswith("KV used") and "100 %" in line for line in lines)
    assert any(line.startswith("tools per slot") and "never heard" in line for line in lines)
    at = {line.split()[0]: number for number, line in enumerate(lines) if line.strip()}
    assert at["outside"] < at["[bold]inside"], "who waits stands first, and no id is markup"


async def test_before_several_engines_it_shows_each_and_whose_a_session_is(tmp_path: Path) -> None:
    async with two(tmp_path, *FOUR_PLACES, "--set", "gateway.health_s=0.2") as fleet:
        streams = [await fleet.post(f"s{n}", chunks=400, gap_ms=50, final=True) for n in range(8)]
        waiting = fleet.post("outside")
        await eventually(lambda: has(fleet, "outside"))
        fleet.engines[1].end()
        await fleet.until_state(1, "down")
        await eventually(lambda: has(fleet, "outside"))
        code, said, failed = await run(fleet.url, "--once")
        first, second = fleet.engine_urls
        code_of_one, of_one, _ = await run(fleet.url, "--once", "--engine", first + "/")
        _, of_other, _ = await run(fleet.url, "--once", "--engine", second)
        code_of_none, _, of_none = await run(fleet.url, "--once", "--engine", "http://nowhere")
        for stream in streams:
            stream.close()
        waiting.cancel()
    assert code == 0, failed
    urls = ", ".join(fleet.engine_urls)
    first, second = (url.removeprefix("http://") for url in fleet.engine_urls)
    lines = [line.strip() for line in said.splitlines()]
    assert "5 sessions: 4 active; 1 gated, 4 queued" in lines
    (of_first,) = (line for line in lines if line.startswith(first))
    assert "gate: 1 wait: the engine's KV capacity is not known yet" in of_first
    (of_second,) = (line for line in lines if line.startswith(second))
    assert "down: " in of_second
    (row,) = (line for line in lines if line.startswith("outside"))
    assert row.split()[:3] == ["outside", first, "-"]
    assert code_of_one == 0
    assert "gate: 1 wait: the engine's KV capacity is not known yet" in of_one.splitlines()
    assert "outside" in of_one
    assert "0 sessions: 0 active; " in of_other
    assert any(line.startswith("down: ") for line in of_other.splitlines())
    assert code_of_none == 2
    assert f"has no engine http://nowhere; it has: {urls}" in of_none


async def test_a_gateway_that_has_lost_its_last_engine_says_that(tmp_path: Path) -> None:
    async with two(tmp_path, *OPEN) as fleet:
        for url in fleet.engine_urls:
            assert await fleet.tell("DELETE", f"/mars/engines?url={url}") == 200
        await eventually(lambda: is_empty(fleet))
        code, said, failed = await run(fleet.url, "--once")
    assert code == 0, failed
    assert "no engine is here: POST /mars/engines adds one" in said.splitlines()


async def is_empty(fleet: Two) -> bool:
    return not await fleet.rows()


async def has(fleet: Two, session_id: str) -> bool:
    return session_id in await fleet.sessions()


async def test_where_no_gateway_is_it_says_so_and_what_to_do() -> None:
    code, _, said = await run(closed_port(), "--once")
    assert code == 2
    assert said.startswith("mars: no gateway of mars answers at http://127.0.0.1:")
    assert "`mars serve`" in said


async def test_what_is_no_gateway_is_told_apart() -> None:
    engine = Engine()
    async with serving(Router(routes=[Route("/{rest:path}", engine)])) as url:
        code, _, said = await run(url, "--once")
    assert code == 2
    assert "no gateway of mars answers" in said


async def test_a_gateway_with_keys_wants_an_admin_s(tmp_path: Path) -> None:
    keys, mine = tmp_path / "keys.jsonl", tmp_path / "mine"
    mine.write_text(make_key(keys, name="me", tenant="", admin=True) + "\n")
    engine = Engine()
    async with (
        serving(Router(routes=[Route("/{rest:path}", engine)])) as url,
        gateway(url, ring=KeyRing(keys)) as rig,
    ):
        code, _, said = await run(rig.url, "--once")
        assert code == 2
        assert "asks for an admin's key (HTTP 401): give it with --key-file" in said
        code, said, failed = await run(rig.url, "--once", "--key-file", str(mine))
        assert code == 0, failed
        assert "0 sessions: 0 active" in said


@dataclass
class Terminal:
    """The other end of the terminal that the process runs in."""

    process: asyncio.subprocess.Process
    descriptor: int
    shown: bytearray = field(default_factory=bytearray)

    def read(self) -> None:
        try:
            self.shown += os.read(self.descriptor, 1 << 16)
        except OSError:  # the process has closed its end
            asyncio.get_running_loop().remove_reader(self.descriptor)

    def shows(self, text: str) -> Callable[[], bool]:
        return lambda: text.encode() in self.shown


def _hears_ctrl_c() -> None:
    """As at a terminal, even where the tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@asynccontextmanager
async def in_terminal(*arguments: str) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *TOP, *arguments, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "COLUMNS": "120", "LINES": "30", "TERM": "xterm"},
        preexec_fn=_hears_ctrl_c,
    )  # fmt: skip
    os.close(theirs)
    terminal = Terminal(process, ours)
    asyncio.get_running_loop().add_reader(ours, terminal.read)
    try:
        yield terminal
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)


@pytest.mark.parametrize("leave", ["q", "Ctrl-C"])
async def test_it_follows_the_gateway_until_it_is_told_to_leave(leave: str) -> None:
    async with one_in_one_waiting() as rig, in_terminal(rig.url, "--every", "0.1") as terminal:
        await until(terminal.shows("1 gated"), within_s=120)
        third = rig.post("third")
        await until(terminal.shows("2 gated"), within_s=120)
        if leave == "q":
            os.write(terminal.descriptor, b"q")
        else:
            terminal.process.send_signal(signal.SIGINT)
        code = await asyncio.wait_for(terminal.process.wait(), 120)
        assert code == (0 if leave == "q" else 130)
        third.cancel()


async def test_a_gateway_that_goes_away_is_shown_and_the_view_goes_on() -> None:
    async with in_terminal_of_a_gateway() as terminal:
        await until(terminal.shows("no answer, this is old"), within_s=120)
        assert terminal.process.returncode is None


@asynccontextmanager
async def in_terminal_of_a_gateway() -> AsyncIterator[Terminal]:
    """The gateway is gone when this yields."""
    rig = one_in_one_waiting()
    running = await rig.__aenter__()
    async with in_terminal(running.url, "--every", "0.1") as terminal:
        await until(terminal.shows("1 gated"), within_s=120)
        await rig.__aexit__(None, None, None)
        yield terminal
