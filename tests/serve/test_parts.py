"""Supervision, with real processes."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import psutil
import pytest

from mars.config import load_settings
from mars.core.errors import InputError, PartDiedError
from mars.serve.parts import Part, Parts, log_end
from mars.serve.stack import StackOptions, check_free, free_ports, running_stack

SERVER = """
import http.server, signal, sys
{before}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def part(folder: Path, name: str, before: str = "", **changes: float) -> Part:
    port = free_ports(1)[0]
    return Part(
        name=name,
        argv=[sys.executable, "-c", SERVER.format(before=before), str(port)],
        ready_url=f"http://127.0.0.1:{port}/",
        log=folder / f"{name}.log",
        **changes,  # type: ignore[arg-type]
    )


async def test_parts_become_ready_and_are_gone_after(tmp_path: Path) -> None:
    said: list[str] = []
    async with Parts() as parts:
        for name in ("one", "two"):
            await parts.start(part(tmp_path, name))
        await parts.ready(20.0, said.append)
        pids = parts.pids
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert said == ["one is ready", "two is ready"]
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_a_part_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    async with Parts() as parts:
        await parts.start(part(tmp_path, "engine", "sys.exit('no such model')"))
        with pytest.raises(PartDiedError, match=r"(?s)engine has ended \(exit code 1\).*no such"):
            await parts.ready(20.0)


async def test_a_part_that_is_killed_later_ends_the_watch(tmp_path: Path) -> None:
    async with Parts() as parts:
        await parts.start(part(tmp_path, "engine"))
        await parts.ready(20.0)
        os.kill(parts.pids[0], signal.SIGKILL)
        with pytest.raises(PartDiedError, match="killed by SIGKILL"):
            await asyncio.wait_for(parts.watch(), 10.0)


async def test_a_part_that_never_answers_is_named(tmp_path: Path) -> None:
    async with Parts() as parts:
        await parts.start(part(tmp_path, "engine", "import time; time.sleep(99)"))
        with pytest.raises(PartDiedError, match=r"did not become ready within 1 s.*engine.log"):
            await parts.ready(1.0)


async def test_a_part_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    async with Parts() as parts:
        await parts.start(part(tmp_path, "engine", stubborn, end_s=0.3))
        await parts.ready(20.0)
        pids = parts.pids
    assert not psutil.pid_exists(pids[0])


def test_of_a_long_log_our_own_error_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    noise = "\n".join(f"line {n}" for n in range(100))
    log.write_text(
        f"{noise}\n(EngineCore) mars.core.errors.InputError: vLLM 9 is not supported\n{noise}"
    )
    assert log_end(log) == "  vLLM 9 is not supported"
    log.write_text(noise)
    assert log_end(log, lines=2) == "  | line 98\n  | line 99"


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="choose another with --port"):
            check_free("127.0.0.1", taken.getsockname()[1])


async def test_vllm_arguments_that_are_ours_are_refused(tmp_path: Path) -> None:
    options = StackOptions(
        model="m",
        settings=load_settings(),
        folder=tmp_path,
        events=tmp_path / "events.jsonl",
        vllm_args=("--scheduler-cls=x",),
    )
    with pytest.raises(InputError, match="mars sets --scheduler-cls"):
        async with running_stack(options, lambda _: None):
            pass


def test_free_ports_are_none_that_connections_are_given() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = free_ports(200)
    assert len(set(ports)) == 200
    assert not any(first <= port <= last for port in ports)
    with socket.create_server(("127.0.0.1", ports[0])) as taken:
        assert taken.getsockname()[1] not in free_ports(3000)
