"""Sessions that start others and wait for them, in simulated time."""

import random

import pytest

from mars.core import events as ev
from mars.core.errors import InputError
from mars.policy.presets import PRESETS, Scheduling
from mars.sim.families import Spawn
from mars.sim.run import Outcome, simulate
from mars.sim.settings import EngineSettings, SimSettings
from mars.workload.trace import Recorded, Tool

from .test_hand import COST, ends, session, turn
from .test_laws import COST as H100
from .test_laws import settings as crowded
from .workloads import random_sessions

SEEDS = range(6)
ROOM = SimSettings(
    scheduling=Scheduling(policy="fcfs"), engine=EngineSettings(kv_blocks=1000, lag=0)
)


def families(seed: int) -> tuple[list[Recorded], list[Spawn]]:
    """About every second session is started by an earlier one, if that is there for long enough."""
    sessions, rng = random_sessions(seed), random.Random(seed)
    spawns = []
    for number, one in enumerate(sessions[1:], 1):
        parent = sessions[rng.randrange(number)]
        if len(parent.turns) > 1 and rng.random() < 0.7:
            turn_number = rng.randrange(len(parent.turns) - 1)
            spawns.append(Spawn(parent.session_id, turn_number, one.session_id))
    assert spawns
    return sessions, spawns


def arrivals(outcome: Outcome) -> dict[str, ev.SessionArrived]:
    return {e.session_id: e for e in outcome.events if isinstance(e, ev.SessionArrived)}


def test_a_parent_goes_on_when_all_its_children_have_ended() -> None:
    # p's call takes 20 ms, its tool 100 ms; the children's prompts 10 + 100 x 0.1 ms together, two
    # decodes more 11 ms each; then p thinks for 8 ms
    tool = Tool(name="t", run_s=0.1)
    parent = session("p", turn(100, 1, tool, think_s=0.008), turn(40, 1))
    one, two = session("one", turn(50, 1)), session("two", turn(50, 3))
    spawns = [Spawn("p", 0, "one"), Spawn("p", 0, "two")]
    outcome = simulate([parent, one, two], COST, ROOM, spawns=spawns)
    assert {k: v for k, v in ends(outcome).items() if k != "p/1"} == {
        "p/0": 0.020,
        "one/0": 0.140,
        "two/0": 0.162,
    }
    (back,) = [e for e in outcome.events if isinstance(e, ev.CallQueued) and e.call_id == "p/1"]
    assert back.at_s == pytest.approx(0.170)
    born = arrivals(outcome)
    for name in ("one", "two"):
        assert born[name].at_s == pytest.approx(0.120)
        assert born[name].parent_id == "p"
    assert born["p"].parent_id is None


def test_a_child_goes_before_who_came_after_its_root() -> None:
    """One call at a time; the stranger came before the child, and after the child's root."""
    given = SimSettings(
        scheduling=Scheduling(policy="session_fcfs"),
        engine=EngineSettings(kv_blocks=1000, lag=0, most_calls=1),
    )
    root = session("root", turn(100, 1), turn(10, 1))
    long = session("long", turn(10, 50), arrives_s=0.001)
    strangers = [session(f"s{n}", turn(100, 1), arrives_s=0.002 + n / 1e3) for n in range(3)]
    outcome = simulate(
        [root, long, *strangers, session("sub", turn(50, 1))],
        COST,
        given,
        spawns=[Spawn("root", 0, "sub")],
    )
    order = sorted(ends(outcome), key=ends(outcome).__getitem__)
    assert order == ["root/0", "sub/0", "root/1", "long/0", "s0/0", "s1/0", "s2/0"]


def test_a_closed_loop_counts_families_as_one() -> None:
    root, sub = session("root", turn(100, 1), turn(10, 1)), session("sub", turn(50, 1))
    outcome = simulate(
        [root, sub, session("next", turn(10, 1))],
        COST,
        ROOM,
        agents=1,
        spawns=[Spawn("root", 0, "sub")],
    )
    (ended,) = [
        e for e in outcome.events if isinstance(e, ev.SessionEnded) and e.session_id == "root"
    ]
    assert arrivals(outcome)["next"].at_s == ended.at_s


def test_who_leaves_takes_its_children_along_and_those_to_come() -> None:
    root = session("root", turn(100, 1), turn(10, 1), turn(10, 1), leaves_s=0.025)
    names = ["now", "later", "never"]
    subs = [session(name, turn(50, 90), turn(5, 1)) for name in names]
    spawns = [Spawn("root", 0, "now"), Spawn("root", 1, "later"), Spawn("later", 0, "never")]
    outcome = simulate([root, *subs], COST, ROOM, spawns=spawns)
    assert sorted(arrivals(outcome)) == ["now", "root"]
    whys = {e.session_id: e.why for e in outcome.events if isinstance(e, ev.SessionEnded)}
    assert whys == {"now": "client left", "root": "client left"}


@pytest.mark.parametrize(
    ("spawns", "said"),
    [
        ([Spawn("a", 0, "x")], "no session 'x'"),
        ([Spawn("x", 0, "b")], "no session 'x'"),
        ([Spawn("a", 1, "b")], "not there after this turn"),
        ([Spawn("a", 0, "c"), Spawn("b", 0, "c")], "started twice"),
        ([Spawn("a", 0, "b"), Spawn("b", 0, "a")], "among those that started it"),
        ([Spawn("a", 0, "a")], "among those that started it"),
    ],
)
def test_what_is_no_family_is_refused(spawns: list[Spawn], said: str) -> None:
    three = [session(name, turn(10, 1), turn(10, 1)) for name in "abc"]
    with pytest.raises(InputError, match=said):
        simulate(three, COST, ROOM, spawns=spawns)


@pytest.mark.parametrize("policy", PRESETS)
def test_no_child_waits_at_the_gate_and_nobody_waits_for_ever(policy: str) -> None:
    """In a memory for about one long session, where gates send back and keep out whom they can."""
    born = 0
    for seed in SEEDS:
        sessions, spawns = families(seed)
        outcome = simulate(sessions, H100, crowded(policy, seed, seed % 2), spawns=spawns)
        came, active = arrivals(outcome), set[str]()
        ended = {e.session_id for e in outcome.events if isinstance(e, ev.SessionEnded)}
        assert ended == set(came)
        for event in outcome.events:
            match event:
                case ev.SessionArrived(parent_id=str(parent_id)) if parent_id in active:
                    born += 1
                    (entered,) = [
                        e.at_s
                        for e in outcome.events
                        if isinstance(e, ev.SessionAdmitted) and e.session_id == event.session_id
                    ][:1]
                    assert entered == event.at_s
                case ev.SessionAdmitted():
                    active.add(event.session_id)
                case ev.SessionPaused() | ev.SessionEnded():
                    active.discard(event.session_id)
                case _:
                    pass
    assert born, "else this is of nothing"


@pytest.mark.parametrize("policy", ["session_fcfs", "thunderagent", "mars"])
def test_macro_steps_change_nothing_for_families_either(policy: str) -> None:
    for seed in SEEDS:
        sessions, spawns = families(seed)
        given = crowded(policy, seed, 1)
        macro, micro = (
            simulate(sessions, H100, given, spawns=spawns, micro=micro) for micro in (False, True)
        )
        assert [type(e) for e in macro.events] == [type(e) for e in micro.events]
        assert [e.at_s for e in macro.events] == pytest.approx(
            [e.at_s for e in micro.events], abs=1e-9
        )
