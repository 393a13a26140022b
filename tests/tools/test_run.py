"""Commands that end on their own."""

import json
import os
import signal
import sys
from pathlib import Path

import aiohttp
import msgspec
import psutil
import pytest
from tests.tools.conftest import TOKEN, request, serving, until

from mars.core.events import ToolFinished, ToolQueued, ToolsSampled, ToolStarted
from mars.tools.wire import Finished, Line, Output, Queued, Started

BURN = "import time\nwhile time.process_time() < 0.3: pass"

EXIT_CODES = (
    (["no-such-command"], 127, "mars: no-such-command: command not found\n"),
    (["/no/such/file"], 127, "mars: /no/such/file: command not found\n"),
    (["/etc"], 126, "mars: cannot run /etc: Permission denied\n"),
    (["/etc/passwd"], 126, "mars: cannot run /etc/passwd: Permission denied\n"),
    (["sh", "-c", "kill -9 $$"], 137, ""),
    (["sh", "-c", "kill -15 $$"], 143, ""),
)


async def test_output_exit_code_and_events() -> None:
    async with serving() as rig:
        ran = await rig.sh("echo out; echo err >&2; exit 7", tool="build", session_id="agent")
        assert (ran.stdout, ran.stderr) == (b"out\n", b"err\n")
        assert ran.finished.exit_code == 7
        assert ran.finished.why == "ended"
        assert ran.finished.dropped_bytes == 0
        kinds = [type(event) for event in rig.events]
        assert kinds == [ToolQueued, ToolStarted, ToolsSampled, ToolFinished, ToolsSampled]
        queued, _, _, finished, _ = rig.events
        assert isinstance(queued, ToolQueued)
        assert isinstance(finished, ToolFinished)
        assert (queued.tool, queued.session_id) == ("build", "agent")
        assert finished.exit_code == 7
        assert finished.run_s == ran.finished.run_s


async def test_cpu_time_is_the_whole_trees(tmp_path: Path) -> None:
    """Also of an orphan, whose parent did not wait for it."""
    burn, done = f"{sys.executable} -c '{BURN}'", tmp_path / "done"
    script = f"(({burn}; touch {done}) &); {burn}; until [ -e {done} ]; do sleep 0.01; done"
    async with serving() as rig:
        one = await rig.python(BURN)
        assert 0.3 <= one.finished.cpu_s < 0.45
        two = await rig.sh(script)
        assert 0.6 <= two.finished.cpu_s < 1.0
        assert two.finished.run_s > 0.6  # both on one core


async def test_peak_memory() -> None:
    async with serving() as rig:
        ran = await rig.python("x = b'x' * 200_000_000")
        assert 200e6 < ran.finished.peak_memory_bytes < 260e6


@pytest.mark.parametrize("core", [0, 1])
async def test_runs_on_the_leased_core(core: int) -> None:
    text = "import os; print(sorted(os.sched_getaffinity(0)))"
    async with serving(cores=(core,)) as rig:
        assert (await rig.python(text)).stdout == f"[{core}]\n".encode()


async def test_where_leases_share_the_cores_any_of_them_is_everybodys() -> None:
    text = "import os; print(sorted(os.sched_getaffinity(0)))"
    async with serving(cores=(0, 1), share=2) as rig:
        assert (await rig.python(text)).stdout == b"[0, 1]\n"


async def test_what_a_command_inherits(tmp_path: Path) -> None:
    """Its own session, default signals, no stdin, and no descriptor but the three."""
    text = """
import json, os, signal, sys
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
status = dict(line.split(":\\t") for line in open("/proc/self/status") if ":\\t" in line)
print(json.dumps([os.getcwd(), os.environ["WORD"], sys.stdin.read(), os.getsid(0) == os.getpid(),
      [int(fd) for fd in os.listdir("/proc/self/fd")], status["SigBlk"], status["SigIgn"]]))
"""
    async with serving() as rig:
        env = {"WORD": "münchen"}
        ran = await rig.run(sys.executable, "-S", "-c", text, cwd=str(tmp_path), env=env)
        assert ran.stderr == b""
        cwd, word, stdin, leads, fds, blocked, ignored = json.loads(ran.stdout)
        assert (cwd, word, stdin, leads) == (str(tmp_path), "münchen", "", True)
        assert set(fds) <= {0, 1, 2, 3}  # 3: the listing itself
        assert int(blocked, 16) == 0
        # The interpreter asked ignores these two itself; libc keeps others for its own threads, and
        # lets nobody set them back.
        settable = signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}
        assert not [n for n in settable if int(ignored, 16) >> n - 1 & 1]
        bare = await rig.run("env", "-u", "nothing")
        assert set(bare.stdout.split(b"\n")) >= {
            f"{name}={value}".encode() for name, value in os.environ.items() if "\n" not in value
        }


async def test_sigpipe_is_not_ignored() -> None:
    async with serving() as rig:
        ran = await rig.run("bash", "-c", "yes | head -n 1; echo ${PIPESTATUS[0]}")
        assert ran.stdout == b"y\n141\n"


async def test_exit_codes() -> None:
    async with serving() as rig:
        for argv, code, reason in EXIT_CODES:
            ran = await rig.run(*argv)
            assert (ran.finished.exit_code, ran.finished.why) == (code, "ended")
            assert ran.stderr.decode() == reason


async def test_a_directory_that_is_not_there() -> None:
    async with serving() as rig:
        ran = await rig.sh("true", cwd="/no/such/place")
        assert ran.finished.exit_code == 126
        assert b"/no/such/place" in ran.stderr


async def test_output_comes_while_the_command_runs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo first; while [ ! -e {gate} ]; do sleep 0.01; done; echo second"
    seen: list[Line] = []
    decoder = msgspec.json.Decoder(Line)
    async with serving() as rig, aiohttp.ClientSession() as http:
        body = msgspec.json.encode(request("sh", "-c", script))
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        async with http.post(rig.url + "/run", data=body, headers=bearer) as answer:
            async for text in answer.content:
                seen.append(decoder.decode(text))
                if seen[-1] == Output(stream="stdout", data=b"first\n"):
                    gate.touch()
    assert [type(line) for line in seen] == [Queued, Started, Output, Output, Finished]


async def test_start_and_end_of_a_gigabyte_are_kept_in_little_memory() -> None:
    process = psutil.Process()
    script = "printf first; head -c 1000000000 /dev/zero; printf last; head -c 1500 /dev/zero >&2"
    async with serving(output_bytes=1001) as rig:
        before_bytes = process.memory_info().rss
        ran = await rig.sh(script)
        assert process.memory_info().rss - before_bytes < 20e6
        assert (len(ran.stdout), len(ran.stderr)) == (1001, 1001)
        assert ran.stdout == b"first" + b"\0" * (1001 - 9) + b"last"
        assert ran.finished.dropped_bytes == 1_000_000_009 - 1001 + 1500 - 1001
        assert ran.finished.exit_code == 0


@pytest.mark.parametrize("keep_bytes", [0, 1, 2, 99_999, 100_000, 100_001, 1_000_000])
async def test_what_is_left_out_is_said_where_it_is_left_out(keep_bytes: int) -> None:
    """Put together again, what came and what was skipped is what was written."""
    text = "import sys; sys.stdout.write(''.join(f'{n:09}\\n' for n in range(10_000)))"
    seen: list[Output] = []
    async with serving(output_bytes=keep_bytes) as rig:
        finished = await rig.client.run(request(sys.executable, "-c", text), seen.append)
    written = "".join(f"{n:09}\n" for n in range(10_000)).encode()
    at = 0
    for output in seen:
        at += output.skipped_bytes
        assert output.data == written[at : at + len(output.data)]
        at += len(output.data)
    assert at == len(written)
    assert finished.dropped_bytes == sum(o.skipped_bytes for o in seen)
    assert finished.dropped_bytes == max(0, len(written) - keep_bytes)


async def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    """Its command runs to the end, and the core goes to the next."""
    async with serving(output_bytes=20_000_000) as rig, aiohttp.ClientSession() as http:
        body = msgspec.json.encode(request("head", "-c", "20000000", "/dev/zero"))
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        async with http.post(rig.url + "/run", data=body, headers=bearer):
            await until(lambda: any(isinstance(event, ToolFinished) for event in rig.events))
            assert (await rig.sh("echo here")).stdout == b"here\n"
