"""The soak: a short one for real, and that it would see what it looks for."""

import subprocess
import sys

import msgspec
import pytest

from mars.bench.soak import Outcome, Sample, broken_laws, grown
from mars.core import events as ev
from mars.core.ids import CallId, SessionId

S, C = SessionId("s"), CallId("c")


@pytest.mark.timeout(240)
def test_a_short_soak() -> None:
    """An engine dies and comes back, clients cut and vanish, and nothing is left."""
    ran = subprocess.run(
        [sys.executable, "-m", "mars", "soak", "--minutes", "0.2", "--agents", "20",
         "--restart", "3", "--json"],
        check=False, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    outcome = msgspec.json.decode(ran.stdout, type=Outcome)
    assert outcome.broken == []
    assert outcome.samples[-1].restarts >= 1
    assert outcome.met["turns"] > 0
    assert outcome.met["cancelled"] > 0
    assert not any(what.startswith("HTTP") for what in outcome.met), outcome.met


def samples(*memory_mb: float, descriptors: int = 100) -> list[Sample]:
    return [
        Sample(
            at_s=float(number),
            memory_mb=value,
            descriptors=descriptors + (40 * number if descriptors != 100 else 0),
            sessions=0,
            turns=0,
            restarts=0,
        )
        for number, value in enumerate(memory_mb)
    ]


def test_growth_is_seen_and_warming_up_is_not() -> None:
    assert grown(samples(*[50, 60], *[70] * 6)) == []
    assert grown(samples(*[70 + 5 * number for number in range(8)])) == [
        "memory has grown from 82.5 to 102.5 MB"
    ]
    assert grown(samples(*[70] * 8, descriptors=50)) == ["descriptors have grown from 150 to 310"]


def arrived() -> ev.SessionArrived:
    return ev.SessionArrived(at_s=0.0, session_id=S)


def ended() -> ev.SessionEnded:
    return ev.SessionEnded(at_s=0.0, session_id=S, why="")


def queued() -> ev.CallQueued:
    return ev.CallQueued(at_s=0.0, session_id=S, call_id=C, turn=1)


def finished() -> ev.CallFinished:
    return ev.CallFinished(at_s=0.0, session_id=S, call_id=C, ok=True)


@pytest.mark.parametrize(
    ("events", "broken"),
    [
        ([arrived(), queued(), finished(), ended(), arrived(), ended()], []),
        ([arrived(), queued(), ended(), finished()], []),
        ([arrived()], ["1 sessions that never ended"]),
        ([arrived(), arrived(), ended()], ["1 arrivals of a session that is here"]),
        ([arrived(), ended(), ended()], ["1 ends of a session that is not here"]),
        ([queued()], ["1 calls that never ended"]),
        ([queued(), queued(), finished()], ["1 calls with a name that is taken"]),
        ([queued(), finished(), finished()], ["1 ends of a call that is not open"]),
    ],
)
def test_each_law_is_seen_to_be_broken(events: list[ev.Event], broken: list[str]) -> None:
    assert broken_laws(events) == broken
