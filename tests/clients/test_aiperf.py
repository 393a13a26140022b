"""AIPerf, a load tool that knows nothing of sessions, against a whole `mars serve`."""

import asyncio
import json
from pathlib import Path

import pytest
from tests.clients.conftest import Fleet

from mars.core import events as ev

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

AIPERF = Path(__file__).parents[2] / ".venv-aiperf" / "bin" / "aiperf"
CONVERSATIONS, TURNS = 4, 3


@pytest.mark.parametrize("endpoint", ["chat", "responses"])
@pytest.mark.parametrize("streaming", [True, False])
async def test_each_conversation_is_a_session_and_every_request_is_answered(
    fleet: Fleet, tmp_path: Path, endpoint: str, streaming: bool
) -> None:
    assert AIPERF.exists(), "AIPerf's environment is missing: make .venv-aiperf/.ready"
    before = len(fleet.served.events())
    load = await asyncio.create_subprocess_exec(
        str(AIPERF), "profile", "--url", fleet.served.root, "--model", fleet.served.model,
        "--tokenizer", fleet.served.model, "--endpoint-type", endpoint, "--ui", "none",
        "--num-conversations", str(CONVERSATIONS), "--concurrency", "2", "--random-seed", "1",
        "--conversation-turn-mean", str(TURNS), "--conversation-turn-stddev", "0",
        "--isl", "40", "--osl", "8", "--output-artifact-dir", str(tmp_path / "found"),
        *(["--streaming"] if streaming else []),
        cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await load.communicate()
    assert load.returncode == 0, said.decode()
    found = json.loads((tmp_path / "found" / "profile_export_aiperf.json").read_text())
    assert found["request_count"]["avg"] == CONVERSATIONS * TURNS
    assert found.get("error_request_count") is None
    events = fleet.served.events()[before:]
    arrived = [e for e in events if isinstance(e, ev.SessionArrived)]
    assert {e.rule for e in arrived} == {"header x-session-affinity"}
    assert len(arrived) == CONVERSATIONS
    for session in arrived:
        calls = fleet.of(ev.CallFinished, session.session_id)
        assert [(e.ok, e.status) for e in calls] == [(True, 200)] * TURNS
