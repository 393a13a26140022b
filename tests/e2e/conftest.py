"""A whole `mars serve` on a real vLLM with the tiny model, started as a user would."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.stream.collector import Collector, collecting

from mars.bench.tiny import tiny_engine
from mars.core.events import Event
from mars.stream.log import read_log

READY_S = 180.0


@dataclass
class Served:
    """One running `mars serve`."""

    process: "subprocess.Popen[str]"
    folder: Path
    runtime: Path
    """XDG_RUNTIME_DIR of the server: where `mars exec` finds it."""
    model: str
    said: list[str] = field(default_factory=list)
    base_url: str = ""

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key="none", max_retries=0, timeout=60)

    @property
    def root(self) -> str:
        return self.base_url.removesuffix("/v1")

    def events(self) -> list[Event]:
        return list(read_log(self.folder / "events.jsonl")[1])

    def part(self, argument: str) -> int:
        """Process id of a child whose command line holds the argument."""
        listed = subprocess.run(
            ["pgrep", "-P", str(self.process.pid), "-f", argument],  # noqa: S607
            check=True,
            capture_output=True,
            text=True,
        )
        return int(listed.stdout.split()[0])

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.match(r"base URL\s+(\S+)", line):
                self.base_url = found[1]
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError("mars serve ended: " + "".join(self.said))

    def rest(self) -> str:
        """What it says until it ends."""
        output, _ = self.process.communicate(timeout=60)
        return output


Serve = Callable[..., Served]
Engine = tuple[str, tuple[str, ...], dict[str, str]]
"""As `tiny_engine` gives it."""


def start(
    folder: Path, *options: str, vllm: tuple[str, ...] = (), engine: Engine | None = None
) -> Served:
    model, arguments, environment = engine or tiny_engine()
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mars", "serve", model, "--port", "0",
            "--dir", str(folder), *options, "--", *arguments, *vllm,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment, "XDG_RUNTIME_DIR": str(folder)},
    )  # fmt: skip
    return Served(process, folder, folder, model)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Served]:
    """Shared by the tests that leave it alive; gone before others look for processes left over."""
    served = start(tmp_path_factory.mktemp("served"), "--otlp", collector.url)
    try:
        served.wait_until_ready()
        yield served
    finally:
        served.process.send_signal(signal.SIGINT)
        said = served.rest()
    assert served.process.returncode == 0, said


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A server of the test's own, for tests that end it."""
    started: list[Served] = []

    def make(*options: str, **more: Any) -> Served:
        started.append(start(tmp_path / f"serve{len(started)}", *options, **more))
        return started[-1]

    yield make
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGINT)
        one.process.communicate(timeout=60)
