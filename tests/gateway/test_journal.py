"""The gateway's own log: JSON lines, what an operator must know, and nothing of a prompt."""

import json
import sys
from datetime import datetime
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from tests.gateway.processes import mars_gateway
from tests.gateway.scripted import JSON, Engine, Exchange, until

SECRET = "my grandmother's recipe"


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


async def refusing(exchange: Exchange) -> None:
    await exchange.answer(500, JSON, b'{"error": "no"}')


@pytest.mark.parametrize("level", ["info", "debug"])
async def test_a_failed_call_is_one_line_without_its_prompt(
    engine: Engine, tmp_path: Path, level: str
) -> None:
    engine.script = refusing
    log = tmp_path / "gateway.log"
    options = ("--log", str(log), "--set", f"gateway.log_level={level}")
    async with mars_gateway(engine.url, *options) as gateway:
        assert (await gateway.post("a", prompt=SECRET)).status == 500
        await until(lambda: "a call failed" in log.read_text())
        await gateway.stop()
    (failed,) = [line for line in lines(log) if line["message"] == "a call failed: HTTP 500"]
    assert (failed["level"], failed["session_id"], failed["status"]) == ("warning", "a", 500)
    assert datetime.fromisoformat(failed["at"]).tzinfo is not None
    assert SECRET not in log.read_text()
    arrived = [line for line in lines(log) if line["message"] == "SessionArrived"]
    assert len(arrived) == (1 if level == "debug" else 0)


async def test_a_log_that_was_moved_away_is_opened_anew(engine: Engine, tmp_path: Path) -> None:
    engine.script = refusing
    log = tmp_path / "gateway.log"
    async with mars_gateway(engine.url, "--log", str(log)) as gateway:
        await gateway.post("a")
        await until(lambda: "a call failed" in log.read_text())
        log.rename(tmp_path / "old.log")
        await gateway.post("b")
        await until(lambda: log.exists() and "a call failed" in log.read_text())
        assert [line["session_id"] for line in lines(log)] == ["b"]


def test_a_log_that_cannot_be_written_is_named() -> None:
    ran = run(
        [sys.executable, "-m", "mars", "gateway", "--upstream", "http://127.0.0.1:9", "--log",
         "/nowhere/gateway.log"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "cannot write the log /nowhere/gateway.log" in ran.stderr
