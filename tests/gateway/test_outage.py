"""An engine whose samples stop, as real processes: traffic flows, it is said, and it ends."""

import json
import signal
from pathlib import Path

from tests.gateway.processes import (
    ONE_AT_A_TIME,
    GatewayProcess,
    heard,
    mars_gateway,
    sampling,
    waits,
)
from tests.gateway.scripted import Engine, on_cue

from mars.core import events as ev
from mars.stream.log import read_log

BLIND_S = 5.0


async def until_cause(gateway: GatewayProcess, cause: str) -> None:
    while (await gateway.status()).fail_open != cause:
        pass


async def test_a_stopped_publisher_opens_the_gate_until_it_goes_on(
    engine: Engine, tmp_path: Path
) -> None:
    engine.script = on_cue
    stream, log = f"ipc://{tmp_path}/engine", tmp_path / "events.jsonl"
    journal = tmp_path / "gateway.log"
    options = (
        *(*ONE_AT_A_TIME, "--subscribe", stream, "--log", str(journal)),
        *("--set", f"scheduling.gate.blind_s={BLIND_S}"),
    )
    async with (
        sampling(stream) as publisher,
        mars_gateway(engine.url, *options, log=log) as gateway,
    ):
        await heard(gateway)
        calls = [gateway.post("in")]
        await engine.called(1)
        calls.append(gateway.post("waits"))
        await waits(gateway, "waits")
        publisher.send_signal(signal.SIGSTOP)
        await engine.called(2)  # `waits` is through
        status = await gateway.status()
        assert (status.fail_open, status.gated, status.window) == ("no samples", 0, None)
        assert status.engine_sample_age_s is not None
        assert status.engine_sample_age_s > BLIND_S
        assert 'mars_fail_open{cause="no samples"} 1.0' in (await gateway.get("/metrics")).decode()
        calls.append(gateway.post("new"))
        await engine.called(3)
        publisher.send_signal(signal.SIGCONT)
        await until_cause(gateway, "")
        calls.append(gateway.post("later"))
        await waits(gateway, "later")
        assert 'mars_fail_open{cause="no samples"} 0.0' in (await gateway.get("/metrics")).decode()
        calls[3].cancel()
        while (await gateway.status()).gated:  # else it may come in when the others leave
            pass
        for exchange in engine.seen:
            exchange.cue.set()
        for call in calls[:3]:
            assert (await call).status == 200
        await gateway.stop()
    said = [json.loads(line)["message"] for line in journal.read_text().splitlines()]
    assert [text for text in said if text.startswith("the gate is open for all: no engine samples")]
    assert "the gate is a gate again: the engine is heard again" in said
    told = list(read_log(log)[1])
    assert [e.cause for e in told if isinstance(e, ev.FailOpenChanged)] == ["no samples", ""]
    by = {e.session_id: e.by for e in told if isinstance(e, ev.SessionAdmitted)}
    assert by == {"in": "admission", "waits": "no samples", "new": "no samples"}
