"""What a shell's commands cannot do, with a control group around the shell and without.

What only a control group can hold is asserted where one holds the shell, and its contrary where
not.
"""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from tests.tools.conftest import Rig, all_gone, groups_left, until
from tests.tools.shells import Shell, Terminal, ended, lending
from tests.tools.test_cgroups import v2
from tests.tools.test_escapes import BOTH, DAEMON, in_force, pid_in

from mars.core.events import Event, ToolFinished
from mars.tools.cgroup_tree import find_tree
from mars.tools.groups import Groups
from mars.tools.orphans import mark_of
from mars.tools.processes import in_front
from mars.tools.runtime import ToolRuntime
from mars.tools.shells import Shells
from mars.tools.wire import ShellEntry, ShellExit

BOMB = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    try:
        os.fork()
    except OSError:
        open({path!r}, "w").close()
"""
HOPPER = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
open({path!r}, "w").close()
while True:
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        pass
"""
"""Its process is another one by the time that somebody has seen it."""
BOUND, BIG = 100_000_000, "x = b'x' * 400_000_000"
HOLD = """
import sys, time
x = b"x" * {size}
open({path!r}, "w").write("has it")
time.sleep(600)
"""


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def membership(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


def script(folder: Path, text: str) -> str:
    path = folder / "script.py"
    path.write_text(text)
    return f"{sys.executable} {path}"


def read(runtime: ToolRuntime, controller: str, file: str) -> str:
    """A file of the one shell's group, of v1 or v2."""
    assert controller in in_force(runtime)
    files = (folder / file for folder in groups_left())
    [text] = {file.read_text().strip() for file in files if file.exists()}
    return text


def finished(events: list[Event]) -> ToolFinished:
    return next(event for event in events if isinstance(event, ToolFinished))


@BOTH
async def test_a_lease_sets_the_limits_of_the_shell_and_its_end_the_weight(cgroups: bool) -> None:
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal], cgroups=cgroups, cores=(0, 1), processes=70) as (rig, calls):
            other = await calls.enter(terminal, cores=2, memory_bytes=1 << 30)
            assert (other.held_by == "group") == (rig.runtime.controls.groups is not None)
            if "cpuset" in in_force(rig.runtime):
                assert read(rig.runtime, "cpuset", "cpuset.cpus") == "0-1"
            if "pids" in in_force(rig.runtime):
                assert read(rig.runtime, "pids", "pids.max") == "70"
            await calls.leave(other)
            await until(rig.idle)
            assert len({folder.name for folder in groups_left()}) == (other.held_by == "group")
            one = await calls.enter(terminal)
            assert psutil.Process(terminal.pid).cpu_affinity() == [*one.cores]
            if "cpuset" in in_force(rig.runtime):
                assert read(rig.runtime, "cpuset", "cpuset.cpus") == str(one.cores[0])
            await calls.leave(one)


@BOTH
async def test_a_command_in_a_shell_wants_another_core(tmp_path: Path, cgroups: bool) -> None:
    text = "import os; os.sched_setaffinity(0, {0, 1}); print(len(os.sched_getaffinity(0)))"
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal], cgroups=cgroups) as (rig, calls):
            call = await calls.enter(terminal)
            terminal.type(f"{script(tmp_path, text)} > {tmp_path}/had; touch {tmp_path}/done")
            await until((tmp_path / "done").exists)
            held = "cpuset" in in_force(rig.runtime)
            assert (tmp_path / "had").read_text() == ("1\n" if held else "2\n")
            await calls.leave(call)


@BOTH
async def test_a_daemon_from_a_shell_ends_with_the_shell(tmp_path: Path, cgroups: bool) -> None:
    path = tmp_path / "pid"
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal], cgroups=cgroups) as (rig, calls):
            call = await calls.enter(terminal)
            terminal.type(script(tmp_path, DAEMON.format(path=str(path))))
            await until(lambda: pid_in(path) != 0)
            await calls.leave(call)
            await until(rig.idle)
            assert runs(pid_in(path)), "it is in nobody's way"
            terminal.end()
            if call.held_by == "group":
                await until(lambda: not runs(pid_in(path)))
            else:
                os.kill(pid_in(path), signal.SIGKILL)


@pytest.mark.parametrize("text", [BOMB, HOPPER], ids=["bomb", "hopper"])
async def test_who_forks_without_end_in_a_shell_is_ended_and_the_shell_is_not(
    tmp_path: Path, text: str
) -> None:
    full = tmp_path / "full"
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal], processes=50, grace_s=0.1) as (rig, calls):
            await calls.enter(terminal, timeout_s=1.0)
            if "pids" in in_force(rig.runtime):  # nothing else would stop it
                terminal.type(script(tmp_path, text.format(path=str(full))))
                await until(full.exists)
            await until(rig.idle)
            again = await calls.enter(terminal)
            terminal.type(f"touch {tmp_path}/after")
            await until(lambda: all_gone() or (tmp_path / "after").exists())
            if "pids" in in_force(rig.runtime):
                assert read(rig.runtime, "pids", "cgroup.procs") == str(terminal.pid)
            await calls.leave(again)


@BOTH
async def test_a_daemon_ends_with_the_command_whose_time_is_over(
    tmp_path: Path, cgroups: bool
) -> None:
    path = tmp_path / "pid"
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal], cgroups=cgroups, grace_s=0.1) as (rig, calls):
            call = await calls.enter(terminal, timeout_s=1.0)
            terminal.type(script(tmp_path, DAEMON.format(path=str(path))) + "; sleep 600")
            await until(lambda: pid_in(path) != 0)
            await until(rig.idle)
            assert runs(pid_in(path)) == (call.held_by == "affinity")
            assert runs(terminal.pid)
            if call.held_by == "affinity":
                os.kill(pid_in(path), signal.SIGKILL)


@BOTH
async def test_memory_of_a_shell(tmp_path: Path, cgroups: bool) -> None:
    had = tmp_path / "had"
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal], cgroups=cgroups) as (rig, calls):
            call = await calls.enter(terminal, memory_bytes=100_000_000)
            command = script(tmp_path, HOLD.format(size=400_000_000, path=str(had)))
            terminal.type(f"{command}; echo $? > {tmp_path}/code; mv {tmp_path}/code {tmp_path}/is")
            if "memory" in in_force(rig.runtime):
                await until((tmp_path / "is").exists)
                assert (tmp_path / "is").read_text() == "137\n"
                await calls.leave(call, 137)
                assert finished(rig.events).why == "out of memory"
                assert 90e6 < finished(rig.events).peak_memory_bytes < 110e6
            else:
                await until(had.exists)
                os.kill(in_front(terminal.pid)[0].pid, signal.SIGKILL)
                await calls.leave(call, 137)
                assert finished(rig.events).why == "ended"
            assert runs(terminal.pid)


@BOTH
async def test_what_ran_out_of_memory_before_a_call_is_not_the_calls(
    tmp_path: Path, cgroups: bool
) -> None:
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal], cgroups=cgroups) as (rig, calls):
            for number, command in enumerate((script(tmp_path, BIG), "false")):
                call, over = await calls.enter(terminal, memory_bytes=BOUND), tmp_path / f"{number}"
                terminal.type(f"{command}; echo $? > {over}.new; mv {over}.new {over}")
                await until(over.exists)
                await calls.leave(call, int(over.read_text()))
                await until(rig.idle)
            ends = [it.why for it in rig.events if isinstance(it, ToolFinished)]
            limited = "memory" in in_force(rig.runtime)
            assert ends == ["out of memory" if limited else "ended", "ended"]


async def test_a_peak_before_a_call_is_not_the_calls(tmp_path: Path) -> None:
    had = tmp_path / "had"
    with ended([Terminal()]) as [terminal]:
        async with lending([terminal]) as (rig, calls):
            first = await calls.enter(terminal)
            terminal.type(script(tmp_path, HOLD.format(size=200_000_000, path=str(had))))
            await until(had.exists)
            os.kill(in_front(terminal.pid)[0].pid, signal.SIGKILL)
            await calls.leave(first, 137)
            await until(rig.idle)
            await calls.leave(await calls.enter(terminal))
            peaks = [e.peak_memory_bytes for e in rig.events if isinstance(e, ToolFinished)]
            if "memory" in in_force(rig.runtime):
                assert peaks[0] > 200e6
                assert peaks[1] < 100e6


async def test_memory_that_a_shell_asks_for_is_leased() -> None:
    with ended([Shell(), Shell()]) as shells:
        async with lending(shells, cores=(0, 1), memory_bytes=300_000_000) as (rig, calls):
            first = await calls.enter(shells[0], memory_bytes=250_000_000)
            second = asyncio.create_task(calls.enter(shells[1], memory_bytes=100_000_000))
            await until(lambda: rig.runtime.book.waiting == 1)
            await calls.leave(first)
            await calls.leave(await second)


async def test_a_server_that_stops_lets_a_shell_go_where_it_was() -> None:
    with ended([Terminal()]) as [terminal]:
        before = membership(terminal.pid)
        async with lending([terminal]) as (rig, calls):
            call = await calls.enter(terminal)
            terminal.type("sleep 600 &")
            inside = membership(terminal.pid)
            assert (inside != before) == (call.held_by == "group")
            await calls.leave(call)
            await rig.runtime.stop()
            assert membership(terminal.pid) == before
            assert groups_left() == []
            assert runs(terminal.pid)


KILLED = """
import asyncio, sys
from mars.policy.tool_order import Fifo
from mars.tools.runtime import ToolRuntime
from mars.tools.settings import ToolSettings
from mars.tools.shells import Shells
from mars.tools.wire import ShellEntry

async def main():
    settings = ToolSettings(cores=(0,))
    runtime = ToolRuntime(settings, lambda event: None, Fifo())
    entered = await Shells(runtime, settings).enter(ShellEntry(session_id="s", pid={pid}))
    print(entered.held_by, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def groups_of_shell(pid: int) -> set[str]:
    tree = find_tree()
    folders = tree.folders.values() if tree else ()
    return {child.name for folder in folders for child in folder.glob(f"mars-*-shell-{pid}-*")}


async def test_a_shell_outlives_its_server_and_the_next_one_takes_it_over(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with ended([Terminal()]) as [terminal]:
        text = KILLED.format(pid=terminal.pid)
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        pipe = asyncio.subprocess.PIPE
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-c", text, env=env, stdout=pipe
        )
        assert server.stdout is not None
        held_by = (await server.stdout.readline()).decode().strip()
        server.kill()
        await server.wait()
        assert len(groups_of_shell(terminal.pid)) == (held_by == "group")
        async with lending([terminal]) as (rig, calls):
            await rig.runtime.end_orphans()
            rig.shells.take_over()
            assert runs(terminal.pid)
            call = await calls.enter(terminal)
            assert call.held_by == held_by
            assert len(groups_of_shell(terminal.pid)) == (held_by == "group")
            terminal.type(script(tmp_path, DAEMON.format(path=str(path))))
            await until(lambda: pid_in(path) != 0)
            await calls.leave(call)
            terminal.end()
            if held_by == "group":
                await until(lambda: not runs(pid_in(path)))
                await until(lambda: groups_of_shell(terminal.pid) == set())
            else:
                os.kill(pid_in(path), signal.SIGKILL)


async def test_a_shell_whose_group_is_refused_is_held_by_affinity(tmp_path: Path) -> None:
    """At its first lease, or at a later one: then it goes back to where it was."""
    tree = find_tree(v2(tmp_path).root, "0::/a/b")
    assert tree is not None
    with ended([Terminal(), Terminal()]) as terminals:
        async with lending(terminals) as (rig, _):
            groups = Groups.probe(tree, (0,))
            rig.runtime.controls = replace(rig.runtime.controls, groups=groups)
            rig.shells = Shells(rig.runtime, rig.runtime.controls.settings)
            first, second = (tree.folders[""] / group_name(terminal) for terminal in terminals)
            first.write_text("")  # nobody can make a folder of that name
            assert await held_by(rig, terminals[0]) == "affinity"
            assert await held_by(rig, terminals[1]) == "group"
            (second / "cpu.max").unlink()
            (second / "cpu.max").mkdir()  # nor write into that
            assert await held_by(rig, terminals[1]) == "affinity"
            assert (tmp_path / "cgroup.procs").read_text() == str(terminals[1].pid)


def group_name(shell: Shell) -> str:
    return f"mars-{mark_of(os.getpid())}-shell-{mark_of(shell.pid)}"


async def held_by(rig: Rig, shell: Shell) -> str:
    """By a whole call."""
    call = await rig.shells.enter(ShellEntry(session_id="s", pid=shell.pid))
    assert psutil.Process(shell.pid).cpu_affinity() == [0]
    rig.shells.leave(ShellExit(tool_id=call.tool_id, exit_code=0))
    await until(rig.idle)
    return call.held_by
