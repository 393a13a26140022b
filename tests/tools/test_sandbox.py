"""Commands that are not trusted, in a real bubblewrap."""

import asyncio
import socket
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from tests.tools.conftest import children, request, serving, until

from mars.core.errors import InputError

PYTHON = str(Path(sys.executable).resolve())
"""Not the environment's link to it: a checkout in /tmp is not seen in the sandbox."""
WRITABLE = """
for file in /usr/mars /etc/mars /tmp/mars-in-the-sandbox /proc/sys/vm/drop_caches ./here; do
    if touch $file 2>/dev/null && test -w $file; then echo $file; fi
done
"""
CONNECT = """
import socket, sys
kind = socket.AF_UNIX if sys.argv[1] == "unix" else socket.AF_INET
where = sys.argv[2] if sys.argv[1] == "unix" else ("127.0.0.1", int(sys.argv[2]))
try:
    socket.socket(kind).connect(where)
    print("connected")
except OSError as error:
    print(type(error).__name__)
"""


async def test_only_its_folder_and_its_own_tmp_are_writable(tmp_path: Path) -> None:
    async with serving() as rig:
        ran = await rig.sh(WRITABLE, sandbox=True, cwd=str(tmp_path))
        assert ran.finished.exit_code == 0
        assert ran.stdout.split() == [b"/tmp/mars-in-the-sandbox", b"./here"]
        assert (tmp_path / "here").exists()
        assert not Path("/tmp/mars-in-the-sandbox").exists()  # noqa: S108, ASYNC240
        remount = await rig.sh("mount -o remount,rw /", sandbox=True, cwd=str(tmp_path))
        assert remount.finished.exit_code != 0


async def test_no_network_and_no_socket_of_the_host(tmp_path: Path) -> None:
    async with serving() as rig:
        with (
            tempfile.TemporaryDirectory() as elsewhere,
            socket.create_server(("127.0.0.1", 0)) as tcp,
            socket.socket(socket.AF_UNIX) as unix,
        ):
            path = f"{elsewhere}/socket"
            unix.bind(path)
            unix.listen()
            for kind, where in (("inet", str(tcp.getsockname()[1])), ("unix", path)):
                argv = (PYTHON, "-c", CONNECT, kind, where)
                free = await rig.run(*argv)
                assert free.stdout == b"connected\n"
                boxed = await rig.run(*argv, sandbox=True, cwd=str(tmp_path))
                assert boxed.stdout in {b"ConnectionRefusedError\n", b"FileNotFoundError\n"}


async def test_it_sees_no_process_but_its_own_and_has_no_capability(tmp_path: Path) -> None:
    script = "ls -d /proc/[0-9]*; grep CapEff /proc/self/status"
    async with serving() as rig:
        ran = await rig.sh(script, sandbox=True, cwd=str(tmp_path))
        *processes, _, capabilities = ran.stdout.split()
        assert len(processes) <= 4
        assert int(capabilities, 16) == 0


async def test_exit_code_output_lease_and_usage_are_as_outside(tmp_path: Path) -> None:
    burn = "import os, time\nwhile time.process_time() < 0.3: pass\nprint(os.sched_getaffinity(0))"
    async with serving(cores=(1,)) as rig:
        ran = await rig.run(PYTHON, "-c", burn, sandbox=True, cwd=str(tmp_path))
        assert ran.stdout == b"{1}\n"
        assert 0.3 <= ran.finished.cpu_s < 2
        failed = await rig.sh("echo oh >&2; exit 7", sandbox=True, cwd=str(tmp_path))
        assert (failed.finished.exit_code, failed.stderr) == (7, b"oh\n")


@pytest.mark.parametrize("cgroups", [True, False])
async def test_what_it_leaves_behind_is_ended(tmp_path: Path, cgroups: bool) -> None:
    script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; touch up; sleep 1000 & sleep 1000' & wait"
    async with serving(cgroups=cgroups, grace_s=20) as rig:
        call = asyncio.create_task(rig.sh(script, sandbox=True, cwd=str(tmp_path)))
        await until((tmp_path / "up").exists)
        inside = children()
        call.cancel()
        await until(rig.idle)
        assert len(inside) >= 3
        assert not any(psutil.pid_exists(process.pid) for process in inside)


async def test_a_server_may_sandbox_every_command(tmp_path: Path) -> None:
    async with serving(sandbox=True) as rig:
        ran = await rig.sh("touch /usr/mars", cwd=str(tmp_path))
        assert b"Read-only file system" in ran.stderr


async def test_the_whole_system_cannot_be_its_folder() -> None:
    async with serving() as rig:
        with pytest.raises(InputError, match="other than /"):
            await rig.client.run(request("true", sandbox=True, cwd="/"))
        assert rig.events == []


async def test_without_bubblewrap_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with serving() as rig:
        assert "bubblewrap (bwrap) is not installed" in str(rig.runtime.controls)
        with pytest.raises(InputError, match="install your system's package `bubblewrap`"):
            await rig.client.run(request("true", sandbox=True))
    with pytest.raises(InputError, match="bwrap"):
        async with serving(sandbox=True):
            pass
