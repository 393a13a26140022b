"""One command as the tool server sees it: a runner process, two pipes, and an outcome.

The runner (`runner.py`) ends the tree and reports. When the runner itself is killed, its orphans
become children of this process, which then ends what it can recognise of them.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from mars.core.events import ToolEnd
from mars.tools.orphans import mark_in
from mars.tools.wire import Output

_PR_SET_CHILD_SUBREAPER = 36
_RUNNER = str(Path(__file__).with_name("runner.py"))
_READ_BYTES = 1 << 15
_RESULT_BYTES = 1 << 12
_LAST_WORDS_S = 1.0  # a pipe outlives its tree when a process elsewhere was handed it
_KILL_AGAIN_S = 0.01


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What the runner reads; see there."""

    argv: list[str]
    cwd: str | None
    env: dict[str, str]
    cores: tuple[int, ...]
    nice: int
    groups: list[str]
    timeout_s: float
    grace_s: float
    parent_pid: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What the runner writes, see there; CPU and memory are 0 where it could not."""

    exit_code: int
    why: ToolEnd
    run_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory_bytes: int = 0
    dropped_bytes: int = 0

    def short_of_memory(self) -> "Outcome":
        """As it is where the kernel had to kill for memory: who coped with that has just ended."""
        failed = self.why == "ended" and self.exit_code != 0
        return msgspec.structs.replace(self, why="out of memory") if failed else self


class Capture:
    """Reads one stream as it comes: hands on the first half of `keep_bytes` at once, the last half
    at the end, counts what was between.
    """

    def __init__(
        self,
        stream: Literal["stdout", "stderr"],
        keep_bytes: int,
        on_output: Callable[[Output], None],
    ) -> None:
        self.dropped_bytes = 0
        self.ended = asyncio.Event()
        self._stream: Literal["stdout", "stderr"] = stream
        self._tail_bytes = keep_bytes // 2
        self._head_bytes = keep_bytes - self._tail_bytes
        self._tail = bytearray()
        self._on_output = on_output
        self._fd, self.write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._fd, False)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        head = data[: self._head_bytes]
        if head:
            self._head_bytes -= len(head)
            self._on_output(Output(stream=self._stream, data=head))
        self._tail += data[len(head) :]
        if len(self._tail) > self._tail_bytes + _READ_BYTES * 4:
            self._trim()
        if not data:
            self.close()

    def _trim(self) -> None:
        beyond = max(0, len(self._tail) - self._tail_bytes)
        self.dropped_bytes += beyond
        del self._tail[:beyond]

    def close(self) -> None:
        if not self.ended.is_set():
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self.ended.set()
            self._trim()
            skipped_bytes = self.dropped_bytes
            for start in range(0, max(len(self._tail), skipped_bytes > 0), _READ_BYTES):
                data = bytes(self._tail[start : start + _READ_BYTES])
                self._on_output(Output(stream=self._stream, data=data, skipped_bytes=skipped_bytes))
                skipped_bytes = 0


class CommandHost:
    """Runs commands. The process it lives in becomes a child subreaper.

    That process may start other children as well, but none with a session of its own on nothing
    but lent cores: such a child looks like the orphan of a runner that was killed, as does every
    one with `mark`, see `orphans.py`. `run` belongs on the main thread: a runner ends its tree when
    the thread that started it is gone.
    """

    def __init__(self, mark: str) -> None:
        self._mark = mark
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._runners: set[int] = set()

    async def run(
        self,
        spec: Spec,
        keep_bytes: int,
        on_output: Callable[[Output], None],
        cancelled: asyncio.Event,
        on_runner: Callable[[int], None],
    ) -> Outcome:
        """Run a command to the end of its process tree; `cancelled` ends the tree. `on_runner`
        hears the pid of the process that its tree is below.

        Raises OSError when no process can be started.
        """
        started_s = time.monotonic()
        with contextlib.ExitStack() as ours:
            result_fd = os.memfd_create("result")
            ours.callback(os.close, result_fd)
            captures: list[Capture] = []
            with contextlib.ExitStack() as handed_over:
                for stream in ("stdout", "stderr"):
                    capture = Capture(stream, keep_bytes, on_output)
                    handed_over.callback(os.close, capture.write_fd)
                    ours.callback(capture.close)
                    captures.append(capture)
                spec_fd = os.memfd_create("spec")
                handed_over.callback(os.close, spec_fd)
                os.pwrite(spec_fd, msgspec.json.encode(spec), 0)
                runner = _spawn(spec_fd, result_fd, captures)
            self._runners.add(runner.pid)
            on_runner(runner.pid)
            try:
                await _wait(runner, cancelled)
            finally:
                self._runners.discard(runner.pid)
            result = os.pread(result_fd, _RESULT_BYTES, 0)
            if result:
                outcome = msgspec.json.decode(result, type=Outcome)
            else:
                await self._end_orphans(set(spec.cores))
                outcome = _unreported(runner.returncode, time.monotonic() - started_s, cancelled)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS_S):
                    for capture in captures:
                        await capture.ended.wait()
            for capture in captures:
                capture.close()
            dropped_bytes = sum(capture.dropped_bytes for capture in captures)
            return msgspec.structs.replace(outcome, dropped_bytes=dropped_bytes)

    async def _end_orphans(self, cores: set[int]) -> None:
        """Kill what a killed runner left: our children that look as if they were commands."""
        while True:
            orphans = [
                child.pid
                for child in psutil.Process().children()
                if child.pid not in self._runners and self._looks_lent(child.pid, cores)
            ]
            if not orphans:
                return
            for pid in orphans:
                _kill(pid)
            await asyncio.sleep(_KILL_AGAIN_S)

    def _looks_lent(self, pid: int, cores: set[int]) -> bool:
        if mark_in(pid) == self._mark:
            return True
        try:
            return os.getsid(pid) != os.getsid(0) and os.sched_getaffinity(pid) <= cores
        except ProcessLookupError:
            return False


def _spawn(spec_fd: int, result_fd: int, captures: list[Capture]) -> subprocess.Popen[bytes]:
    stdout, stderr = captures
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _RUNNER, str(spec_fd), str(result_fd)],
        stdin=subprocess.DEVNULL,
        stdout=stdout.write_fd,
        stderr=stderr.write_fd,
        pass_fds=(spec_fd, result_fd),
        start_new_session=True,
    )


async def _wait(runner: subprocess.Popen[bytes], cancelled: asyncio.Event) -> None:
    """Until the runner has ended; pass `cancelled` on to it."""
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    pidfd = os.pidfd_open(runner.pid)
    loop.add_reader(pidfd, gone.set)
    first = [asyncio.create_task(event.wait()) for event in (gone, cancelled)]
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not gone.is_set():
            runner.terminate()
            await gone.wait()
    finally:
        for task in first:
            task.cancel()
        loop.remove_reader(pidfd)
        os.close(pidfd)
        if runner.poll() is None:  # this task was cancelled: the runner ends the tree on its own
            runner.terminate()


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, os.WNOHANG)


def _unreported(returncode: int, run_s: float, cancelled: asyncio.Event) -> Outcome:
    # A cancel may come before the runner can hear it; then nothing has run.
    if cancelled.is_set() and returncode == -signal.SIGTERM:
        return Outcome(exit_code=128 + signal.SIGTERM, why="cancelled", run_s=run_s)
    return Outcome(exit_code=128 + signal.SIGKILL, why="ended", run_s=run_s)
