"""Commands that try to get out of their lease, with control groups and without.

What only a control group can hold is asserted where `Groups.names` says that it is in force,
and its contrary where not: that this is said truly is part of the test.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from tests.tools.conftest import all_gone, children, request, serving, until

from mars.tools.runtime import ToolRuntime

BOTH = pytest.mark.parametrize("cgroups", [True, False])
BOMB = """
import os, time
end_s = time.monotonic() + 20
left, fill = os.pipe()
os.write(fill, bytes(5000))
os.set_blocking(left, False)
refused = 0
while time.monotonic() < end_s:
    try:
        os.read(left, 1)
    except BlockingIOError:
        continue
    try:
        os.fork()
    except OSError:
        if not refused:
            print("refused", flush=True)
        refused += 1
"""
"""Ends by itself, and with so many forks, should we fail."""
DAEMON = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
for fd in range(3):
    os.close(fd)
open({path!r}, "w").write(str(os.getpid()))
while True: time.sleep(1)
"""
NEGLECTFUL = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
if os.fork() == 0:
    while time.process_time() < 0.5: pass
    os._exit(0)
try:
    os.wait()
except ChildProcessError:
    pass
"""


def in_force(runtime: ToolRuntime) -> tuple[str, ...]:
    return runtime.controls.groups.names if runtime.controls.groups else ()


def pid_in(path: Path) -> int:
    return int(path.read_text() or 0) if path.exists() else 0


@BOTH
async def test_a_fork_bomb(cgroups: bool) -> None:
    async with serving(cgroups=cgroups, processes=50, grace_s=0.1) as rig:
        ran = await rig.python(BOMB, timeout_s=1.0)
        assert ran.finished.why == "timeout"
        assert ran.finished.run_s < 15
        assert (b"refused" in ran.stdout) == ("pids" in in_force(rig.runtime))
        assert children() == []
        assert (await rig.sh("echo on")).stdout == b"on\n"


@BOTH
async def test_a_daemon_of_a_command_that_has_ended(tmp_path: Path, cgroups: bool) -> None:
    path = tmp_path / "pid"
    script = tmp_path / "daemon.py"
    script.write_text(DAEMON.format(path=str(path)))
    async with serving(cgroups=cgroups) as rig:
        ran = await rig.sh(f"{sys.executable} {script}; while [ ! -s {path} ]; do sleep 0.01; done")
        assert (ran.finished.exit_code, ran.finished.why) == (0, "ended")
        assert pid_in(path)
        assert not psutil.pid_exists(pid_in(path))


@BOTH
async def test_a_killed_runner_whose_command_scrubbed_its_environment(
    tmp_path: Path, cgroups: bool
) -> None:
    path = tmp_path / "pid"
    script = DAEMON.format(path=str(path))
    async with serving(cgroups=cgroups) as rig:
        script = script.replace("os._exit(0)", "time.sleep(600)", 1)
        call = asyncio.create_task(rig.run("env", "-i", sys.executable, "-c", script))
        await until(lambda: pid_in(path) != 0)
        for runner in children(recursive=False):
            runner.kill()
        await call
        assert not psutil.pid_exists(pid_in(path))
        assert children() == []


@BOTH
async def test_a_command_that_wants_another_core(cgroups: bool) -> None:
    text = "import os; os.sched_setaffinity(0, {0, 1}); print(len(os.sched_getaffinity(0)))"
    async with serving(cgroups=cgroups) as rig:
        ran = await rig.python(text)
        held = "cpuset" in in_force(rig.runtime)
        assert ran.stdout == (b"1\n" if held else b"2\n")


@BOTH
async def test_a_command_that_wants_more_memory(cgroups: bool) -> None:
    text = "x = b'x' * 400_000_000; print('had it')"
    async with serving(cgroups=cgroups) as rig:
        ran = await rig.python(text, memory_bytes=100_000_000)
        if "memory" in in_force(rig.runtime):
            assert (ran.finished.exit_code, ran.stdout) == (137, b"")
            assert ran.finished.why == "out of memory"
            assert b"mars: the command ran out of its memory\n" in ran.stderr
            assert 90e6 < ran.finished.peak_memory_bytes < 110e6
        else:
            assert (ran.finished.exit_code, ran.stdout) == (0, b"had it\n")
            assert ran.finished.peak_memory_bytes > 400e6


@BOTH
async def test_a_command_that_copes_with_the_end_of_its_child(cgroups: bool) -> None:
    text = (
        "import subprocess, sys; big = 'x = b\\'x\\' * 400_000_000';"
        "print(subprocess.run([sys.executable, '-c', big]).returncode)"
    )
    async with serving(cgroups=cgroups) as rig:
        ran = await rig.python(text, memory_bytes=100_000_000)
        killed = "memory" in in_force(rig.runtime)
        assert ran.stdout == (b"-9\n" if killed else b"0\n")
        assert (ran.finished.exit_code, ran.finished.why) == (0, "ended")
        assert (b"ran out of its memory" in ran.stderr) == killed


async def test_cpu_seconds_of_children_that_nobody_waits_for() -> None:
    async with serving() as rig:
        ran = await rig.python(NEGLECTFUL)
        counted = rig.runtime.controls.groups is not None
        assert (ran.finished.cpu_s >= 0.5) == counted
        assert ran.finished.run_s > 0.5


BURNERS = """
import os, sys, time
end_s = time.monotonic() + 1.5
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        while time.monotonic() < end_s:
            pass
        os._exit(0)
for _ in range(int(sys.argv[1])):
    os.wait()
"""


async def test_many_processes_of_one_command_weigh_as_one_of_another() -> None:
    """On a core that leases share."""
    async with serving(share=2) as rig:
        one, many = await asyncio.gather(
            *(rig.run(sys.executable, "-c", BURNERS, count) for count in ("1", "8"))
        )
        assert one.finished.exit_code == many.finished.exit_code == 0
        if "cpu" in in_force(rig.runtime):
            assert many.finished.cpu_s < 3.0 * one.finished.cpu_s


async def test_a_quota_is_only_on_cores_of_its_own() -> None:
    async with serving(cores=(0, 1), share=2) as rig:
        shared = rig.runtime.controls.limits(request("true", cores=2), (0, 1))
        assert (shared.quota_cores, shared.on) == (0, (0, 1))
    async with serving(cores=(0, 1)) as rig:
        own = rig.runtime.controls.limits(request("true", cores=1), (1,))
        assert (own.quota_cores, own.on) == (1, (1,))


@BOTH
async def test_a_lighter_weight_yields(cgroups: bool) -> None:
    """A command and somebody else's on one core: what is said of weight is what the kernel does."""
    async with serving(cgroups=cgroups, weight=10) as rig:
        ran = await rig.sh("nice")
        assert int(ran.stdout) == (0 if "cpu" in in_force(rig.runtime) else 10)
        text = "import os; os.sched_setaffinity(0, [0])\nwhile True: pass"
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", text, start_new_session=True
        )
        theirs = psutil.Process(other.pid)
        before_s = theirs.cpu_times().user
        ours = await rig.run(sys.executable, "-c", BURNERS, "1")
        theirs_s = theirs.cpu_times().user - before_s
        other.kill()
        await other.wait()
        assert ours.finished.cpu_s < 0.5 * theirs_s


ORPHANED = """
import asyncio, sys
from mars.policy.tool_order import Fifo
from mars.tools.runtime import ToolRuntime
from mars.tools.settings import ToolSettings
from mars.tools.wire import RunRequest

async def main():
    settings = ToolSettings(cores=(0,), cgroups={cgroups})
    runtime = ToolRuntime(settings, lambda event: None, Fifo())
    runtime.open(RunRequest(argv=[sys.executable, "-c", {script!r} ], session_id="s"))
    await asyncio.sleep(600)

asyncio.run(main())
"""


@BOTH
async def test_orphans_of_a_server_killed_with_its_runners(tmp_path: Path, cgroups: bool) -> None:
    path = tmp_path / "pid"
    script = DAEMON.format(path=str(path)).replace("os._exit(0)", "time.sleep(600)", 1)
    text = ORPHANED.format(cgroups=cgroups, script=script)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    async with serving(cgroups=cgroups) as rig:  # another server, whose commands are left alone
        kept = asyncio.create_task(rig.sh("sleep 1000"))
        await rig.started(1)
        server = await asyncio.create_subprocess_exec(sys.executable, "-c", text, env=env)
        await until(lambda: pid_in(path) != 0)
        tree = psutil.Process(server.pid)
        runner = next(
            child for child in tree.children() if "runner.py" in " ".join(child.cmdline())
        )
        server.send_signal(signal.SIGSTOP)  # it cannot hear that its runner dies
        runner.kill()
        server.kill()
        await server.wait()
        assert psutil.pid_exists(pid_in(path))
        assert await rig.runtime.end_orphans() >= 1
        await until(lambda: not _runs(pid_in(path)))
        assert not kept.done()
        kept.cancel()
        await until(rig.idle)
        await until(all_gone)  # the killed server's orphans are this process's to wait for
        assert await rig.runtime.end_orphans() == 0


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
