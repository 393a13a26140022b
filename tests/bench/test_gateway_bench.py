"""The command that measures what a gateway adds: that it measures, not how fast this machine is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from mars.bench.added import AGAIN, Figure

BENCH = [sys.executable, "-m", "mars", "bench-gateway"]
QUICK = ["--rounds", "1", "--seconds", "0.3"]


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*BENCH, *QUICK, *options], check=False, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def figures() -> list[Figure]:
    """Of a run with a peer: another gateway of ours."""
    peer = f"{sys.executable} -m mars gateway --policy fcfs --upstream {{engine}} --port {{port}}"
    ran = bench("--json", "--peer", f"plain={peer}")
    assert ran.returncode == 0, ran.stderr
    return msgspec.json.decode(ran.stdout, type=list[Figure])


def of(figures: list[Figure], case: str, quantity: str) -> Figure:
    found = [f for f in figures if case in f.case and quantity == f.quantity]
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    ("case", "quantity"),
    [
        ("1 stream,", "first byte p50"),
        ("200 streams", "first byte p50"),
        ("200 streams", "first byte p99"),
        ("200 streams", "a chunk's way p50"),
        ("100 KB", "first byte p50"),
        ("saturation", "streams"),
    ],
)
def test_every_way_has_its_figure(figures: list[Figure], case: str, quantity: str) -> None:
    figure = of(figures, case, quantity)
    assert figure.direct is not None
    assert figure.direct > 0
    ways = set(figure.ways)
    if case == "200 streams":
        ways |= {"plain"}  # who cannot keep up has no figure: on a busy machine, the second gateway
    assert ways == {AGAIN, "mars", "plain"}


def test_chunks_pass_one_by_one(figures: list[Figure]) -> None:
    """Of 20 chunks of a stream one in two may be late enough to meet the next; not all of them."""
    joined = of(figures, "200 streams", "chunks that came with another")
    assert joined.ways["mars"].median < 50


def test_memory_is_that_of_the_gateways(figures: list[Figure]) -> None:
    held = of(figures, "2,000 open streams", "memory")
    before = of(figures, "before", "memory")
    assert set(held.ways) == {"mars", "plain"}
    assert held.ways["mars"].median > before.ways["mars"].median


@pytest.mark.parametrize(
    "peer", ["vllm-router", "=x {port} {engine}", "x=y {port}", "mars={port} {engine}"]
)
def test_a_peer_that_is_none_is_named(peer: str) -> None:
    ran = bench("--peer", peer)
    assert ran.returncode == 2
    assert f"--peer {peer}" in ran.stderr


def test_an_engine_that_is_not_there_is_named() -> None:
    ran = bench("--engine", "http://127.0.0.1:9")
    assert ran.returncode == 2
    assert "http://127.0.0.1:9" in ran.stderr


@pytest.fixture
def stub() -> Iterator[str]:
    from mars.serve.stack import free_ports  # noqa: PLC0415

    [port] = free_ports(1)
    process = subprocess.Popen([sys.executable, "-m", "mars.bench.stub_engine", str(port)])
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)


def test_an_engine_that_runs_already(stub: str) -> None:
    """The table as people see it."""
    ran = subprocess.run(
        [*BENCH, *QUICK, "--engine", stub, "--policy", "mars-no-admission"],
        check=False, capture_output=True, text=True, timeout=240,
        env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "1 streams, 2 KB" in ran.stdout
    assert "first byte p50 (ms)" in ran.stdout
