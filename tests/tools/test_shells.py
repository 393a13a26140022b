"""Leases for the commands in shells that are not the server's."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.tools.conftest import until
from tests.tools.shells import Shell, Terminal, ended, lending

from mars.core.events import ToolFinished, ToolQueued, ToolStarted
from mars.tools.processes import below, in_front
from mars.tools.wire import ShellEntry


@pytest.fixture
def shells() -> Iterator[list[Shell]]:
    with ended([Shell(), Shell()]) as started:
        yield started


async def test_a_shell_and_what_it_starts_are_on_the_leased_cores(
    shells: list[Shell], tmp_path: Path
) -> None:
    async with lending(shells) as (rig, calls):
        call = await calls.enter(shells[0], tool="taskset")
        shells[0].type(f"(taskset -cp $BASHPID; echo) > {tmp_path}/cores; touch {tmp_path}/done")
        await until((tmp_path / "done").exists)
        assert (tmp_path / "cores").read_text().split()[-1] == "0"
        assert call.cores == (0,)
        await calls.leave(call, 7)
        finished = [e for e in rig.events if isinstance(e, ToolFinished)]
        assert [(e.tool, e.exit_code, e.why) for e in finished] == [("taskset", 7, "ended")]
        await until(rig.idle)


async def test_the_lease_ends_with_what_runs_not_with_the_call(shells: list[Shell]) -> None:
    async with lending(shells) as (rig, calls):
        first = await calls.enter(shells[0])
        shells[0].type("sleep 600 &")
        await until(lambda: bool(below(shells[0].pid)))
        await calls.leave(first, -1)
        second = asyncio.create_task(calls.enter(shells[1]))
        await until(lambda: rig.runtime.book.waiting == 1)
        again = await calls.enter(shells[0])
        assert again.cores == first.cores, "its own lease is no reason to wait"
        assert again.wait_s == 0
        await calls.leave(again)
        assert not second.done()
        os.kill(below(shells[0].pid)[0].pid, signal.SIGKILL)
        await calls.leave(await second)
        await until(rig.idle)


async def test_what_is_left_in_the_background_runs_on_without_a_lease(tmp_path: Path) -> None:
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal]) as (rig, calls):
            call = await calls.enter(terminal)
            terminal.type(f"sleep 600 & echo $! > {tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/is")
            await until((tmp_path / "is").exists)
            server = psutil.Process(int((tmp_path / "is").read_text()))
            await calls.leave(call)
            await until(rig.idle)
            assert server.status() == psutil.STATUS_SLEEPING
            assert (server.nice(), server.cpu_affinity()) == (19, [0])
            assert psutil.Process(terminal.pid).nice() == 0


async def test_what_is_given_up_waiting_for_is_in_the_foreground_and_keeps_the_lease(
    shells: list[Shell],
) -> None:
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal, *shells]) as (rig, calls):
            first = await calls.enter(terminal)
            terminal.type("sleep 600")
            await until(lambda: bool(in_front(terminal.pid)))
            await calls.leave(first, -1)
            second = asyncio.create_task(calls.enter(shells[0]))
            await until(lambda: rig.runtime.book.waiting == 1)
            again = await calls.enter(terminal)
            await calls.leave(again, -1)
            assert not second.done()
            os.kill(in_front(terminal.pid)[0].pid, signal.SIGKILL)
            await calls.leave(await second)
            await until(rig.idle)


async def test_a_client_that_leaves_gives_its_place_up(shells: list[Shell]) -> None:
    async with lending(shells) as (rig, calls):
        first = await calls.enter(shells[0])
        second = asyncio.create_task(calls.enter(shells[1]))
        await until(lambda: rig.runtime.book.waiting == 1)
        second.cancel()
        await until(lambda: rig.runtime.book.waiting == 0)
        assert [e.exit_code for e in rig.events if isinstance(e, ToolFinished)] == [None]
        await calls.leave(first)
        await calls.leave(await calls.enter(shells[1]))
        await until(rig.idle)


async def test_what_runs_longer_than_its_time_is_ended_and_the_shell_is_not(
    shells: list[Shell], tmp_path: Path
) -> None:
    async with lending(shells, grace_s=0.2) as (rig, calls):
        call = await calls.enter(shells[0], timeout_s=0.3)
        shells[0].type(f"sh -c 'trap \"\" TERM; touch {tmp_path}/runs; while :; do sleep 9; done'")
        await until((tmp_path / "runs").exists)
        shells[0].type(f"touch {tmp_path}/after")
        await until((tmp_path / "after").exists)
        await until(rig.idle)
        status, said = await calls.leave(call)
        assert (status, b"no call" in said) == (400, True)


async def test_a_shell_that_is_gone_gives_its_lease_back(shells: list[Shell]) -> None:
    async with lending(shells) as (rig, calls):
        await calls.enter(shells[0])
        shells[0].end()
        await until(rig.idle)
        assert [type(e) for e in rig.events if isinstance(e, ToolQueued | ToolStarted)] == [
            ToolQueued,
            ToolStarted,
        ]


async def test_a_server_that_stops_ends_what_runs_and_leaves_the_shell(shells: list[Shell]) -> None:
    async with lending(shells) as (rig, calls):
        await calls.enter(shells[0])
        shells[0].type("sleep 600")
        await until(lambda: bool(below(shells[0].pid)))
        await rig.runtime.stop()
        assert below(shells[0].pid) == []
        assert psutil.pid_exists(shells[0].pid)


async def test_bad_entries_are_named(shells: list[Shell]) -> None:
    async with lending(shells) as (_, calls):
        nobody = ShellEntry(session_id="s", pid=2**22 + 1)
        assert b"no process 4194305" in (await calls.post("/shells/enter", nobody))[1]
        many = ShellEntry(session_id="s", pid=shells[0].pid, cores=9)
        status, said = await calls.post("/shells/enter", many)
        assert (status, b"9 cores" in said) == (400, True)
        status, said = await calls.post("/shells/leave", {"tool_id": "t"})
        assert (status, b"exit_code" in said) == (400, True)
