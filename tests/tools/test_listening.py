"""Where a tool server listens: over TCP, and on a socket of its owner's."""

import socket
import stat
from pathlib import Path

import msgspec
import pytest
from tests.tools.conftest import request
from tests.tools.test_server import server_process

from mars.core.errors import InputError
from mars.tools.client import LOCAL, ToolClient, find_server
from mars.tools.listening import leave_word, listen
from mars.tools.wire import ServerState


def state_in(path: Path) -> ServerState:
    return msgspec.json.decode(path.read_bytes(), type=ServerState)


def mode_of(path: str) -> int:
    return Path(path).stat().st_mode


async def test_commands_run_over_both_with_the_token(tmp_path: Path) -> None:
    async with server_process(tmp_path) as server:
        url, token = find_server(server.state_file)
        assert url == f"{LOCAL}{server.state_file}.sock"
        mode = mode_of(url.removeprefix(LOCAL))
        assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
        over_tcp = state_in(server.state_file).url
        for way in (url, over_tcp):
            async with ToolClient(way, token) as client:
                assert (await client.run(request("sh", "-c", "exit 7"))).exit_code == 7
                assert (await client.health()).cores == (0,)
            async with ToolClient(way, "guessed") as client:
                with pytest.raises(InputError, match="wrong or missing token"):
                    await client.run(request("true"))


def test_a_successor_s_word_outlives_its_predecessor(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    with listen("127.0.0.1", 0) as one, listen("127.0.0.1", 0) as two:
        with leave_word(path, one, "one"):
            late = leave_word(path, two, "two")
            _, local = late.__enter__()
        assert state_in(path).token == "two"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{path}.sock")
            local.accept()[0].close()
        late.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{path}.sock")
    path.write_text("left")
    with listen("127.0.0.1", 0) as listener, leave_word(path, listener, "t") as sockets:
        assert len(sockets) == 2
        assert state_in(path).socket == "tools.json.sock"
    assert list(tmp_path.iterdir()) == []


def test_where_the_path_is_too_long_for_a_local_socket_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120) / "tools.json"
    with listen("127.0.0.1", 0) as listener, leave_word(path, listener, "t") as sockets:
        assert sockets == [listener]
        assert find_server(path) == (state_in(path).url, "t")
        assert state_in(path).url.startswith("http://127.0.0.1:")


def test_a_state_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        listen("127.0.0.1", 0) as listener,
        pytest.raises(InputError, match="cannot write its state file"),
        leave_word(tmp_path / "file" / "tools.json", listener, "t"),
    ):
        pass
