"""Shells as agents have them, and a client that asks for leases for them."""

import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from tests.tools.conftest import TOKEN, Rig, all_gone, serving, until

from mars.tools.processes import below
from mars.tools.wire import ShellEntered, ShellEntry, ShellExit


class Shell:
    """As an agent's terminal has one: interactive enough to control jobs, leader of its session."""

    def __init__(self) -> None:
        self.process = self._start()
        self.pid = self.process.pid

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", "-m"],  # noqa: S607
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        for process in below(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


class Terminal(Shell):
    """As OpenHands' terminal has it."""

    def _start(self) -> "subprocess.Popen[str]":
        self._master, slave = os.openpty()
        try:
            return subprocess.Popen(
                ["bash", "--norc", "-i"],  # noqa: S607
                stdin=slave,
                stdout=slave,
                stderr=slave,
                text=True,
                start_new_session=True,
            )
        finally:
            os.close(slave)

    def type(self, line: str) -> None:
        os.write(self._master, line.encode() + b"\n")

    def end(self) -> None:
        super().end()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


@contextlib.contextmanager
def ended(started: list[Shell]) -> Iterator[list[Shell]]:
    yield started
    for shell in started:
        shell.end()


@asynccontextmanager
async def lending(shells: list[Shell], **settings: object) -> AsyncIterator[tuple[Rig, "Calls"]]:
    """The shells end before the rig looks for processes that were left."""
    async with (
        serving(outlasting=True, **settings) as rig,  # type: ignore[arg-type]
        aiohttp.ClientSession() as http,
    ):
        yield rig, Calls(rig.url, http)
        for shell in shells:
            shell.end()
        await until(all_gone)


class Calls:
    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url, self._http = url, http

    async def post(self, path: str, body: object) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        data = msgspec.json.encode(body)
        async with self._http.post(self._url + path, data=data, headers=headers) as answer:
            return answer.status, await answer.read()

    async def enter(self, shell: Shell, **more: object) -> ShellEntered:
        entry = ShellEntry(session_id="s", pid=shell.pid, **more)  # type: ignore[arg-type]
        status, body = await self.post("/shells/enter", entry)
        assert status == 200, body
        return msgspec.json.decode(body, type=ShellEntered)

    async def leave(self, call: ShellEntered, exit_code: int = 0) -> tuple[int, bytes]:
        return await self.post(
            "/shells/leave", ShellExit(tool_id=call.tool_id, exit_code=exit_code)
        )
