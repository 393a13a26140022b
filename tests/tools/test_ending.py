"""Commands that have to be ended: whatever they left behind ends with them."""

import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from tests.tools.conftest import all_gone, children, groups_left, request, serving, until

from mars.core.events import ToolFinished, ToolStarted
from mars.tools.orphans import MARK, mark_of

STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in range(3):
            os.close(fd)
        open({path!r}, "w").write(str(os.getpid()))
        while True: time.sleep(1)
    os._exit(0)
while True: time.sleep(1)
"""
START_S = 1.5
"""A time limit within which a command has certainly begun, also on a busy machine."""
CHAIN = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    if os.fork():
        os._exit(0)
"""


def pid_in(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


async def test_timeout_ends_a_tree_that_ignores_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    async with serving(grace_s=0.3) as rig:
        ran = await rig.python(STUBBORN.format(path=str(path)), timeout_s=START_S)
        assert (ran.finished.why, ran.finished.exit_code) == ("timeout", 137)
        assert START_S + 0.3 <= ran.finished.run_s < START_S + 3
        assert pid_in(path) != 0
        assert not psutil.pid_exists(pid_in(path))
        assert children() == []


async def test_timeout_lets_a_command_clean_up() -> None:
    async with serving(grace_s=20) as rig:
        script = "trap 'echo bye; exit 3' TERM; while :; do sleep 0.01; done"
        ran = await rig.sh(script, timeout_s=START_S)
        assert (ran.stdout, ran.finished.exit_code, ran.finished.why) == (b"bye\n", 3, "timeout")
        assert ran.finished.run_s < 5


@pytest.mark.parametrize("cgroups", [True, False])
async def test_a_chain_of_forks_does_not_get_away(cgroups: bool) -> None:
    async with serving(cores=(0, 1), grace_s=0.1, cgroups=cgroups) as rig:
        ran = await rig.python(CHAIN, timeout_s=0.3, cores=2)
        assert ran.finished.run_s < 5
        assert children() == []


@pytest.mark.parametrize("command", ["sleep 1000", "setsid sleep 1000", "nohup sleep 1000"])
async def test_what_a_command_left_behind_is_ended(command: str) -> None:
    async with serving(grace_s=20) as rig:
        ran = await rig.sh(f"{command} & exit 5")
        assert (ran.finished.exit_code, ran.finished.why) == (5, "ended")
        assert ran.finished.run_s < 5
        assert children() == []


async def test_a_client_that_leaves_ends_its_command(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    async with serving() as rig:
        call = asyncio.create_task(rig.python(STUBBORN.format(path=str(path))))
        await until(lambda: pid_in(path) != 0)
        call.cancel()
        await until(rig.idle)
        assert not psutil.pid_exists(pid_in(path))
        finished = rig.events[-2]
        assert isinstance(finished, ToolFinished)
        assert (finished.why, finished.exit_code) == ("cancelled", 137)


async def test_a_pipe_that_somebody_else_holds_open() -> None:
    """The answer waits a moment for last words, not for a process outside the tree."""
    async with serving() as rig:
        call = asyncio.create_task(rig.sh("exec sleep 1000"))
        await until(lambda: _asleep() != [])
        (sleeper,) = _asleep()
        with Path(f"/proc/{sleeper.pid}/fd/1").open("wb"):  # noqa: ASYNC230
            sleeper.terminate()
            ran = await call
        assert (ran.finished.exit_code, ran.finished.why) == (143, "ended")


@pytest.mark.parametrize("cgroups", [True, False])
async def test_a_runner_that_is_killed(tmp_path: Path, cgroups: bool) -> None:
    path = tmp_path / "pid"
    async with serving(cgroups=cgroups) as rig:
        call = asyncio.create_task(rig.python(STUBBORN.format(path=str(path))))
        await until(lambda: pid_in(path) != 0)
        (runner,) = children(recursive=False)
        os.kill(runner.pid, signal.SIGKILL)
        ran = await call
        assert (ran.finished.exit_code, ran.finished.why) == (137, "ended")
        assert not psutil.pid_exists(pid_in(path))
        assert children() == []
        assert (await rig.sh("echo on")).stdout == b"on\n"


async def test_a_killed_runner_costs_no_other_command(tmp_path: Path) -> None:
    """Nor a child of the server's own, inside a command of another server."""
    gate = tmp_path / "gate"
    env = os.environ | {MARK: mark_of(os.getppid())}
    async with serving(cores=(0, 1), share=2) as rig:
        wait = f"while [ ! -e {gate} ]; do sleep 0.01; done"
        healthy = asyncio.create_task(rig.sh(wait, cores=2))
        await until(lambda: len(children()) >= 2)
        (kept,) = children(recursive=False)
        doomed = asyncio.create_task(rig.sh("setsid sleep 1000", cores=2))
        await rig.started(2)
        await until(lambda: _asleep() != [])
        runners = children(recursive=False)
        nested = await asyncio.create_subprocess_exec("sleep", "999", env=env)
        for runner in runners:
            if runner != kept:
                runner.kill()
        assert (await doomed).finished.exit_code == 137
        nested.terminate()
        assert await nested.wait() == -signal.SIGTERM, "not by SIGKILL, of the server"
        gate.touch()
        assert (await healthy).finished.exit_code == 0


def _asleep() -> list[psutil.Process]:
    found = []
    for child in children():
        try:
            if child.cmdline() == ["sleep", "1000"]:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


async def test_500_random_cancels() -> None:
    folders = _folders_of_ours()
    rng = random.Random(1)
    commands = (
        ("sleep", "1000"),
        ("sh", "-c", "setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & wait"),
        ("sh", "-c", "trap '' TERM; sleep 1000 & exit 0"),
        (sys.executable, "-I", "-S", "-c", "while True: pass"),
    )
    async with serving(cores=(0, 1), share=2, grace_s=0.05) as rig:

        async def one() -> None:
            argv = rng.choice(commands)
            call = asyncio.create_task(rig.client.run(request(*argv, cores=rng.choice((1, 1, 2)))))
            await asyncio.wait([call], timeout=rng.choice((0.01, 0.1, 0.4)) * rng.random())
            call.cancel()
            await asyncio.wait([call])

        async def many() -> None:
            for _ in range(25):
                await one()
                rig.runtime.book.check()

        await asyncio.gather(*(many() for _ in range(20)))
        await until(rig.idle)
        assert children() == []
        assert groups_left() == []
        assert _folders_of_ours() <= folders
        finished = [event for event in rig.events if isinstance(event, ToolFinished)]
        assert sum(event.exit_code is None for event in finished) >= 10  # left the queue
        assert sum(isinstance(event, ToolStarted) for event in rig.events) >= 50


def _folders_of_ours() -> set[Path]:
    """Temporary ones: others on the machine make theirs as well."""
    return {folder for folder in Path(tempfile.gettempdir()).iterdir() if "mars" in folder.name}


async def test_the_runner_dies_with_the_server(tmp_path: Path) -> None:
    """A server killed outright: its commands' trees end all the same."""
    path = tmp_path / "pid"
    text = f"""
import asyncio
from mars.tools.command import CommandHost, Spec
spec = Spec(argv=[{sys.executable!r}, "-c", {STUBBORN.format(path=str(path))!r}], cwd=None,
            env={{}}, cores=(0,), nice=0, groups=[],
            timeout_s=600, grace_s=0.1, parent_pid=__import__("os").getpid())
asyncio.run(CommandHost("a mark").run(spec, 0, print, asyncio.Event(), print))
"""
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", text, env=_with_source())
    await until(lambda: pid_in(path) != 0)
    server.kill()
    await server.wait()
    started_s = time.monotonic()
    await until(lambda: all_gone() and not psutil.pid_exists(pid_in(path)))
    assert time.monotonic() - started_s < 5


def _with_source() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
