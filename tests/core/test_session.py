"""The life of a session is the table, the whole table and nothing but the table."""

import copy
import itertools
from typing import get_args

import pytest

from mars.core import events as ev
from mars.core.errors import IllegalMoveError
from mars.core.ids import CallId, SessionId, ToolId
from mars.core.session import MOVES, Phase, Session

S = SessionId("s")
C = CallId("c")
T = ToolId("t")

SAMPLES: tuple[ev.SessionEvent, ...] = (
    ev.SessionArrived(at_s=9.0, session_id=S),
    ev.SessionAdmitted(at_s=9.0, session_id=S, why=""),
    ev.SessionPaused(at_s=9.0, session_id=S, why=""),
    ev.SessionReturned(at_s=9.0, session_id=S),
    ev.CallQueued(at_s=9.0, session_id=S, call_id=C, turn=7),
    ev.CallStarted(at_s=9.0, session_id=S, call_id=C, prompt_tokens=5, cached_tokens=0),
    ev.CallPreempted(at_s=9.0, session_id=S, call_id=C, lost_tokens=5),
    ev.CallServed(
        at_s=9.0,
        session_id=S,
        call_id=C,
        prompt_tokens=100,
        cached_tokens=60,
        computed_tokens=47,
        made_tokens=8,
        queued_s=0.0,
        ok=True,
    ),
    ev.CallFinished(at_s=9.0, session_id=S, call_id=C, ok=True),
    ev.KvHeld(at_s=9.0, session_id=S, kv_tokens=5, keep_s=1.0, why=""),
    ev.KvDropped(at_s=9.0, session_id=S, kv_tokens=5, why=""),
    ev.KvReleased(at_s=9.0, session_id=S, kv_tokens=5, held_s=1.0, why="expired"),
    ev.ToolQueued(at_s=9.0, session_id=S, tool_id=T, tool="sh", cores=1),
    ev.ToolStarted(at_s=9.0, session_id=S, tool_id=T, tool="sh", cores=(0,), wait_s=0.0),
    ev.ToolProgressed(
        at_s=9.0, session_id=S, tool_id=T, tool="sh", run_s=1.0, cpu_s=1.0, memory_bytes=1
    ),
    ev.ToolFinished(
        at_s=9.0,
        session_id=S,
        tool_id=T,
        tool="sh",
        run_s=1.0,
        cpu_s=1.0,
        peak_memory_bytes=1,
        exit_code=0,
    ),
    ev.SessionEnded(at_s=9.0, session_id=S, why=""),
)
SAMPLE = {type(event): event for event in SAMPLES}
CALL_EVENTS = get_args(ev.CallEvent)

# A call is what is queued or running, so only an event about that call meets those two phases.
MEETINGS = [
    (phase, event)
    for phase, event in itertools.product(Phase, SAMPLE)
    if phase not in {Phase.QUEUED, Phase.RUNNING} or event in CALL_EVENTS
]
LEGAL = [meeting for meeting in MEETINGS if meeting in MOVES]
ILLEGAL = [meeting for meeting in MEETINGS if meeting not in MOVES]


def queued(call: str) -> ev.CallQueued:
    return ev.CallQueued(at_s=1.0, session_id=S, call_id=CallId(call), turn=1)


def started(call: str) -> ev.CallStarted:
    return ev.CallStarted(
        at_s=2.0, session_id=S, call_id=CallId(call), prompt_tokens=5, cached_tokens=0
    )


def preempted(call: str) -> ev.CallPreempted:
    return ev.CallPreempted(at_s=3.0, session_id=S, call_id=CallId(call), lost_tokens=5)


def finished(call: str) -> ev.CallFinished:
    return ev.CallFinished(at_s=4.0, session_id=S, call_id=CallId(call), ok=True)


def paused() -> ev.SessionPaused:
    return ev.SessionPaused(at_s=5.0, session_id=S, why="")


def session_in(phase: Phase) -> Session:
    session = Session(S, 0.0)
    path: dict[Phase, list[ev.SessionEvent]] = {
        Phase.GATED: [],
        Phase.ACTING: [SAMPLE[ev.SessionAdmitted]],
        Phase.QUEUED: [SAMPLE[ev.SessionAdmitted], queued("c")],
        Phase.RUNNING: [SAMPLE[ev.SessionAdmitted], queued("c"), started("c")],
        Phase.PAUSED: [SAMPLE[ev.SessionAdmitted], paused()],
        Phase.ENDED: [SAMPLE[ev.SessionAdmitted], SAMPLE[ev.SessionEnded]],
    }
    for event in path[phase]:
        session.advance(event)
    assert session.phase is phase
    return session


def name(value: object) -> str:
    return value.value if isinstance(value, Phase) else getattr(value, "__name__", str(value))


def test_samples_cover_every_session_event_and_meetings_every_row() -> None:
    assert set(SAMPLE) == set(get_args(ev.SessionEvent))
    assert set(LEGAL) == set(MOVES)


@pytest.mark.parametrize(("phase", "event"), LEGAL, ids=name)
def test_every_row_of_the_table_walks(phase: Phase, event: type[ev.SessionEvent]) -> None:
    session = session_in(phase)
    since_s = session.since_s
    session.advance(SAMPLE[event])
    after = MOVES[phase, event]
    assert session.phase is after
    assert session.since_s == (since_s if after is phase else 9.0)
    assert session.open_calls == (after in {Phase.QUEUED, Phase.RUNNING})


@pytest.mark.parametrize(("phase", "event"), ILLEGAL, ids=name)
def test_every_other_pair_raises_and_changes_nothing(
    phase: Phase, event: type[ev.SessionEvent]
) -> None:
    session = session_in(phase)
    before = copy.deepcopy(session)
    with pytest.raises(IllegalMoveError, match=f"session s: {event.__name__} .*{phase.value}"):
        session.advance(SAMPLE[event])
    assert session == before  # a dataclass compares every field, the private ones too


def test_an_account_is_added_up_and_the_context_is_what_the_next_call_extends() -> None:
    session = session_in(Phase.RUNNING)
    session.advance(SAMPLE[ev.CallServed])
    assert (session.context_tokens, session.served_tokens) == (100 + 8, 47)
    session.advance(served(10))
    assert (session.context_tokens, session.served_tokens) == (108, 47 + 12)


def served(prompt_tokens: int, *, ok: bool = True) -> ev.CallServed:
    return ev.CallServed(
        at_s=9.0,
        session_id=S,
        call_id=C,
        prompt_tokens=prompt_tokens,
        cached_tokens=0,
        computed_tokens=12,
        made_tokens=2,
        queued_s=0.0,
        ok=ok,
    )


def test_one_short_call_is_beside_the_conversation_and_two_are_a_condensed_one() -> None:
    session = session_in(Phase.RUNNING)
    contexts = []
    for call in [
        served(900),
        served(50),  # a title
        served(950),
        served(400),  # a summary
        served(500),  # the conversation from here on
        served(520),
        served(30, ok=False),
        served(40, ok=False),
        served(530),
    ]:
        session.advance(call)
        contexts.append(session.context_tokens)
    assert contexts == [902, 902, 952, 952, 502, 522, 522, 522, 532]


def test_parallel_calls_show_the_busiest() -> None:
    session = session_in(Phase.ACTING)
    walk: list[tuple[ev.SessionEvent, Phase, int]] = [
        (queued("a"), Phase.QUEUED, 1),
        (queued("b"), Phase.QUEUED, 2),
        (started("b"), Phase.RUNNING, 2),
        (preempted("b"), Phase.QUEUED, 2),
        (started("a"), Phase.RUNNING, 2),
        (started("b"), Phase.RUNNING, 2),
        (finished("a"), Phase.RUNNING, 1),
        (finished("b"), Phase.ACTING, 0),
    ]
    for event, phase, calls in walk:
        session.advance(event)
        assert (session.phase, session.open_calls) == (phase, calls), event


def test_a_call_that_is_open_cannot_be_queued_again_beside_another() -> None:
    session = session_in(Phase.ACTING)
    session.advance(queued("a"))
    session.advance(queued("b"))
    with pytest.raises(IllegalMoveError):
        session.advance(queued("a"))
    assert session.open_calls == 2


def test_a_tool_moves_the_rest_while_a_call_runs() -> None:
    session = session_in(Phase.RUNNING)
    for event in (
        *(ev.ToolQueued, ev.ToolStarted, ev.ToolProgressed),
        *(ev.KvHeld, ev.KvReleased, ev.ToolFinished),
    ):
        session.advance(SAMPLE[event])
        assert session.phase is Phase.RUNNING
    session.advance(finished("c"))
    assert session.phase is Phase.ACTING


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.RUNNING])
def test_a_session_with_a_call_open_cannot_be_paused(phase: Phase) -> None:
    session = session_in(phase)
    before = copy.deepcopy(session)
    with pytest.raises(IllegalMoveError, match=f"SessionPaused .*{phase.value}"):
        session.advance(paused())
    assert session == before


def test_a_paused_session_comes_back_through_the_gate_or_is_let_in_before() -> None:
    session = session_in(Phase.PAUSED)
    walk: list[tuple[ev.SessionEvent, Phase]] = [
        (SAMPLE[ev.SessionReturned], Phase.GATED),
        (SAMPLE[ev.SessionAdmitted], Phase.ACTING),
        (paused(), Phase.PAUSED),
        (SAMPLE[ev.SessionAdmitted], Phase.ACTING),
    ]
    for event, phase in walk:
        session.advance(event)
        assert session.phase is phase


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.RUNNING])
def test_a_session_may_end_with_a_call_open(phase: Phase) -> None:
    session = session_in(phase)
    session.advance(SAMPLE[ev.SessionEnded])
    assert session.phase is Phase.ENDED
    session.advance(finished("c"))  # its last call leaves: the session stays ended
    assert (session.phase, session.open_calls) == (Phase.ENDED, 0)
