"""Leases for agents that are not asynchronous, on a tool server as a process."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mars.clients.leases import ShellLeases
from mars.core.errors import InputError, PartDiedError
from mars.tools.wire import ShellEntry


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    state = tmp_path / "tools.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "mars", "tools", "--state", str(state)],
        stdout=subprocess.DEVNULL,
        text=True,
    )
    end_s = time.monotonic() + 60
    while not state.exists():
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.01)
    yield process, state
    process.terminate()
    process.wait(timeout=30)


def test_a_shell_is_moved_and_its_call_told(server: tuple[object, Path]) -> None:
    shell = subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=True)  # noqa: S607
    try:
        leases = ShellLeases(server[1])
        with leases.entered(ShellEntry(session_id="s", pid=shell.pid)) as call:
            assert len(os.sched_getaffinity(shell.pid)) == 1
            call.exit_code = 0
        with (
            pytest.raises(InputError, match="tool server: a tool asked for 99 cores"),
            leases.entered(ShellEntry(session_id="s", pid=shell.pid, cores=99)),
        ):
            raise AssertionError
    finally:
        shell.kill()
        shell.communicate()


def test_a_server_that_is_gone_is_named(
    server: tuple["subprocess.Popen[str]", Path], tmp_path: Path
) -> None:
    leases = ShellLeases(server[1])
    server[0].terminate()
    server[0].wait(timeout=30)
    with (
        pytest.raises(PartDiedError, match="is gone"),
        leases.entered(ShellEntry(session_id="s", pid=1)),
    ):
        raise AssertionError
    with pytest.raises(InputError, match="no tool server is running"):
        ShellLeases(tmp_path / "tools.json")
