"""How a call is doing, told while it runs. That nothing is told before its start or after its end,
or twice in the same octave, is a law of every test here: `check_events`.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.tools.conftest import Rig, serving, until
from tests.tools.shells import Shell, ended, lending

from mars.core.events import ToolFinished, ToolProgressed, ToolQueued
from mars.tools.processes import cpu_s_below
from mars.tools.progress import Using, tell_progress

BURN = "import os, sys\nwhile not os.path.exists(sys.argv[1]): pass"
BURN_A_LITTLE = "import time\nwhile time.process_time() < 0.3: pass"
FILL = "import time\nx = b'x' * 200_000_000\ntime.sleep(1000)"

by_all_means = pytest.mark.parametrize(
    "settings",
    [{"cgroups": False}, {}, {"command_memory_bytes": 1 << 30}],
    ids=["by the tree", "by a group", "by a group that counts memory"],
)


def told(rig: Rig, tool: str) -> list[ToolProgressed]:
    return [e for e in rig.events if isinstance(e, ToolProgressed) and e.tool == tool]


@contextlib.asynccontextmanager
async def until_told(rig: Rig, *argv: str, tool: str = "it") -> AsyncIterator[ToolProgressed]:
    """A command, once something was told of it; then it is cancelled."""
    call = asyncio.create_task(rig.run(*argv, tool=tool))
    await until(lambda: bool(told(rig, tool)))
    yield told(rig, tool)[0]
    call.cancel()
    await until(lambda: any(isinstance(e, ToolFinished) and e.tool == tool for e in rig.events))


@by_all_means
async def test_one_that_computes(settings: dict[str, object], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with serving(**settings) as rig:  # type: ignore[arg-type]
        call = asyncio.create_task(rig.run(sys.executable, "-c", BURN, str(gate), tool="it"))
        await until(lambda: len(told(rig, "it")) == 2)
        gate.touch()
        ran = await call
        first, second = told(rig, "it")
        assert 0.99 < first.run_s < second.run_s < 10
        assert 0.1 < first.cpu_s < second.cpu_s <= ran.finished.cpu_s
        assert second.cpu_s < 1.1 * second.run_s
        assert 1e6 < first.memory_bytes < 100e6


@by_all_means
async def test_one_that_sleeps_on_much_memory(settings: dict[str, object]) -> None:
    async with serving(**settings) as rig:  # type: ignore[arg-type]
        async with until_told(rig, sys.executable, "-c", FILL):
            await until(lambda: told(rig, "it")[-1].memory_bytes > 200e6)
            assert told(rig, "it")[-1].memory_bytes < 260e6
        async with until_told(rig, "sleep", "1000", tool="sleep") as now:
            assert now.cpu_s < 0.1


@by_all_means
async def test_who_has_ended_counts_with_what_it_took(settings: dict[str, object]) -> None:
    """Also an orphan, whose parent did not wait for it."""
    burn = f"{sys.executable} -c '{BURN_A_LITTLE}'"
    async with (
        serving(**settings) as rig,  # type: ignore[arg-type]
        until_told(rig, "sh", "-c", f"(({burn}) &); {burn}; {burn}; exec sleep 1000"),
    ):
        await until(lambda: told(rig, "it")[-1].cpu_s > 0.8)


def test_who_has_ended_counts_before_anybody_has_waited_for_it() -> None:
    """Else its time would be that of whatever runs when somebody does."""
    before_s = cpu_s_below(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", BURN_A_LITTLE])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert cpu_s_below(os.getpid()) - before_s > 0.25
    child.wait()
    assert cpu_s_below(os.getpid()) - before_s > 0.25


async def test_of_a_short_one_and_of_one_that_is_over_nothing_is_told() -> None:
    async with serving(cores=(0, 1)) as rig:
        await rig.sh("true", tool="short")
        async with until_told(rig, "sleep", "1000") as now:
            pass
        assert told(rig, "it") == [now]
        call = asyncio.create_task(rig.run("sleep", "1000", tool="later"))
        await until(lambda: len(told(rig, "later")) == 2)  # so long after
        call.cancel()
        assert (told(rig, "it"), told(rig, "short")) == ([now], [])


async def test_one_that_waits_has_no_progress() -> None:
    async with serving() as rig:
        async with until_told(rig, "sleep", "1000"):
            waiting = asyncio.create_task(rig.run("sleep", "1000", tool="waiting"))
            await until(lambda: len(told(rig, "it")) == 2)
            (asked,) = (e for e in rig.events if isinstance(e, ToolQueued) and e.tool == "waiting")
            assert told(rig, "waiting") == []
        await until(lambda: bool(told(rig, "waiting")))
        now = told(rig, "waiting")[0]
        assert now.run_s < now.at_s - asked.at_s - 0.5, "it counts from its start"
        waiting.cancel()


@by_all_means
async def test_calls_in_a_shell(settings: dict[str, object], tmp_path: Path) -> None:
    """Each counts from where it began, whatever the shell has taken before."""
    gate = tmp_path / "gate"
    with ended([Shell()]) as shells:
        async with lending(shells, **settings) as (rig, calls):
            burning = await calls.enter(shells[0], tool="burning")
            shells[0].type(f"{sys.executable} -c '{BURN}' {gate}")
            await until(lambda: len(told(rig, "burning")) == 2)
            gate.touch()
            await calls.leave(burning)
            first, second = told(rig, "burning")
            assert 0.1 < first.cpu_s < second.cpu_s < 1.1 * second.run_s
            assert 1e6 < first.memory_bytes < 100e6
            await until(rig.idle)

            sleeping = await calls.enter(shells[0], tool="sleeping")
            shells[0].type("sleep 1000")
            await until(lambda: bool(told(rig, "sleeping")))
            assert told(rig, "sleeping")[0].cpu_s < 0.1
            assert told(rig, "burning") == [first, second]
            await calls.leave(sleeping)


async def test_the_loop_goes_on_while_processes_are_looked_at() -> None:
    """And CPU time that is lost from sight is not taken back."""
    looked, go_on, said = asyncio.Event(), threading.Event(), list[Using]()
    loop, readings = asyncio.get_running_loop(), iter([Using(3.0, 10), Using(2.0, 0)])

    def read() -> Using:
        loop.call_soon_threadsafe(looked.set)
        assert go_on.wait(20)
        return next(readings)

    started_s = time.monotonic() - 2
    telling = asyncio.create_task(
        tell_progress(started_s, read, lambda _now_s, using: said.append(using))
    )
    await asyncio.wait_for(looked.wait(), 20)
    go_on.set()
    await until(lambda: len(said) == 2)
    telling.cancel()
    assert said == [Using(3.0, 10), Using(3.0, 0)]
