"""Commands that share cores."""

import asyncio
from pathlib import Path

import pytest
from tests.tools.conftest import request, serving, until

from mars.core.errors import InputError
from mars.core.events import ToolStarted
from mars.policy.settings import ToolOrderSettings
from mars.policy.tool_order import ShortestFirst


async def test_the_second_waits_for_the_core(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with serving() as rig:
        first = asyncio.create_task(rig.sh(f"while [ ! -e {gate} ]; do sleep 0.01; done"))
        await rig.started(1)
        second = asyncio.create_task(rig.sh("true"))
        await until(lambda: rig.runtime.book.waiting == 1)
        await asyncio.sleep(0.2)  # a wait that can be told from none
        assert rig.runtime.book.running == 1
        gate.touch()
        assert (await first).finished.wait_s < 0.1
        assert 0.2 <= (await second).finished.wait_s < 5


async def test_a_shared_core_takes_as_many_as_settings_say(tmp_path: Path) -> None:
    script = f"touch {tmp_path}/$0; while [ $(ls {tmp_path} | wc -l) -lt 3 ]; do sleep 0.01; done"
    async with serving(share=3) as rig:
        calls = [rig.run("sh", "-c", script, str(n)) for n in range(3)]
        assert [ran.finished.exit_code for ran in await asyncio.gather(*calls)] == [0, 0, 0]


async def test_memory_is_lent_as_cores_are(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with serving(
        cores=(0, 1), share=2, memory_bytes=300_000_000, command_memory_bytes=100_000_000
    ) as rig:
        wait = f"while [ ! -e {gate} ]; do sleep 0.01; done"
        first = asyncio.create_task(rig.sh(wait, memory_bytes=250_000_000))
        await rig.started(1)
        second = asyncio.create_task(rig.sh("true"))
        await until(lambda: rig.runtime.book.waiting == 1)
        assert rig.runtime.book.running == 1
        with pytest.raises(InputError, match="300000001 bytes; this server lends 300000000"):
            await rig.client.run(request("true", memory_bytes=300_000_001))
        gate.touch()
        await asyncio.gather(first, second)


async def test_a_command_for_all_cores_is_not_overtaken(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with serving(cores=(0, 1)) as rig:
        narrow = asyncio.create_task(rig.sh(f"while [ ! -e {gate} ]; do sleep 0.01; done"))
        await rig.started(1)
        wide = asyncio.create_task(rig.sh("true", cores=2, tool="wide"))
        await until(lambda: rig.runtime.book.waiting == 1)
        late = asyncio.create_task(rig.sh("true", tool="late"))
        await until(lambda: rig.runtime.book.waiting == 2)
        gate.touch()
        await asyncio.gather(narrow, wide, late)
        started = [event.tool for event in rig.events if isinstance(event, ToolStarted)]
        assert started == ["sh", "wide", "late"]


async def test_a_command_known_to_be_short_goes_first(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    order = ShortestFirst(ToolOrderSettings(tool_samples=1, patience_s=1e6))
    async with serving(order) as rig:
        await rig.sh("true", tool="short")
        await rig.sh("sleep 0.3", tool="long")
        first = asyncio.create_task(rig.sh(f"while [ ! -e {gate} ]; do sleep 0.01; done"))
        await rig.started(3)
        waiting = []
        for number, name in enumerate(("long", "short", "long", "short"), 1):
            waiting.append(asyncio.create_task(rig.sh("true", tool=name, session_id=str(number))))
            await until(lambda: rig.runtime.book.waiting == len(waiting))
        gate.touch()
        await asyncio.gather(first, *waiting)
        started = [(e.tool, e.session_id) for e in rig.events if isinstance(e, ToolStarted)]
        assert started[3:] == [("short", "2"), ("short", "4"), ("long", "1"), ("long", "3")]


async def test_a_command_for_too_many_cores_leaves_no_trace() -> None:
    async with serving(ShortestFirst(ToolOrderSettings())) as rig:
        with pytest.raises(InputError, match="asked for 2 cores"):
            rig.runtime.open(request("true", cores=2))
        assert rig.events == []


async def test_cancelled_in_the_queue(tmp_path: Path) -> None:
    gate, never = tmp_path / "gate", tmp_path / "never"
    async with serving() as rig:
        first = asyncio.create_task(rig.sh(f"while [ ! -e {gate} ]; do sleep 0.01; done"))
        await rig.started(1)
        second = asyncio.create_task(rig.sh(f"touch {never}"))
        await until(lambda: rig.runtime.book.waiting == 1)
        second.cancel()
        await until(lambda: rig.runtime.book.waiting == 0)
        assert rig.runtime.book.running == 1
        gate.touch()
        await first
        assert (await rig.sh("true")).finished.exit_code == 0
        assert not never.exists()
