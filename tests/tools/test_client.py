"""`mars exec`, as a process of its own in front of a server."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import msgspec
import pytest
from tests.tools.conftest import TOKEN, Rig, request, serving, until

from mars.core.errors import InputError
from mars.tools.client import LOCAL, ToolClient, default_state_file, exec_command, find_server
from mars.tools.wire import Finished, Queued, RunRequest, ServerState


async def mars_exec(rig: Rig, folder: Path, asked: RunRequest) -> Process:
    state_file = folder / "tools.json"
    state_file.write_bytes(msgspec.json.encode(ServerState(url=rig.url, token=TOKEN)))
    text = """
import sys, msgspec
from pathlib import Path
from mars.tools.client import exec_command
from mars.tools.wire import RunRequest
sys.exit(exec_command(msgspec.json.decode(sys.argv[1], type=RunRequest), Path(sys.argv[2])))
"""
    words = ("-c", text, msgspec.json.encode(asked).decode(), str(state_file))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    return await asyncio.create_subprocess_exec(
        sys.executable, *words, env=env, stdout=PIPE, stderr=PIPE
    )


async def test_exec_gives_output_and_exit_code(tmp_path: Path) -> None:
    async with serving(output_bytes=5) as rig:
        asked = request("sh", "-c", "printf '\\377ut'; echo error >&2; exit 3")
        process = await mars_exec(rig, tmp_path, asked)
        stdout, stderr = await process.communicate()
        assert (process.returncode, stdout) == (3, b"\xffut")
        assert stderr == b"err\nmars: 1 bytes of stderr are left out here\nr\n"


async def test_exec_says_that_it_timed_out(tmp_path: Path) -> None:
    async with serving() as rig:
        process = await mars_exec(rig, tmp_path, request("sleep", "1000", timeout_s=0.2))
        _, stderr = await process.communicate()
        assert process.returncode == 124
        assert b"time limit" in stderr


async def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    async with serving() as rig:
        process = await mars_exec(rig, tmp_path, request("sleep", "1000"))
        await rig.started(1)
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        await until(rig.idle)


async def test_exec_whose_reader_left(tmp_path: Path) -> None:
    async with serving() as rig:
        asked = request("sh", "-c", "while :; do echo y; sleep 0.01; done")
        process = await mars_exec(rig, tmp_path, asked)
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.readline()
        process.stdout._transport.close()  # type: ignore[attr-defined]
        assert await process.wait() == 141
        assert await process.stderr.read() == b""
        await until(rig.idle)


@pytest.mark.parametrize("local", [True, False])
async def test_a_connection_that_the_server_closes_after_an_answer(
    tmp_path: Path, local: bool
) -> None:
    """As one does that has idled: the next command must not be sent into the closing."""
    said = b"".join(
        msgspec.json.encode(line) + b"\n"
        for line in (
            Queued(tool_id="t"),
            Finished(
                exit_code=0, why="ended", wait_s=0.0, run_s=0.0, cpu_s=0.0,
                peak_memory_bytes=0, dropped_bytes=0,
            ),
        )
    )  # fmt: skip

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(said), said))
        await reader.read(1)  # the next command, or the end
        writer.transport.abort()

    if local:
        path = tmp_path / "sock"
        server, url = await asyncio.start_unix_server(answer, path), f"{LOCAL}{path}"
    else:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = "http://127.0.0.1:{1}".format(*server.sockets[0].getsockname())
    async with server, ToolClient(url, TOKEN) as client:
        for _ in range(2):
            assert (await client.run(request("true"))).why == "ended"


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="start `mars serve` or `mars tools`"):
        exec_command(request("true"), tmp_path / "tools.json")


def test_a_state_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="url"):
        find_server(path)


def test_a_state_file_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_bytes(msgspec.json.encode(ServerState(url="http://evil", token="t")))
    os.chown(path, 12345, 12345)
    with pytest.raises(InputError, match="another user"):
        find_server(path)


def test_where_the_state_file_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_state_file() == Path("/run/user/7/mars/tools.json")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_state_file() == Path(f"/tmp/mars-{os.getuid()}/tools.json")  # noqa: S108


async def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    async with serving() as rig:
        with pytest.raises(InputError, match="UTF-8"):
            await rig.run("echo", os.fsdecode(b"\xff"))
