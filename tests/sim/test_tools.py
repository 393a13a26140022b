"""The tool pool under an order: short tools are not stuck behind heavy ones, and nobody starves."""

from statistics import fmean

import pytest

from mars.core import events as ev
from mars.core.ids import SessionId, ToolId
from mars.policy.settings import ToolOrderSettings
from mars.policy.tool_order import Fifo, ShortestFirst, ToolOrder
from mars.sim.agenda import Agenda
from mars.sim.settings import ToolSettings
from mars.sim.tools import ToolPool
from mars.workload.make import make
from mars.workload.synthetic import Synthetic
from mars.workload.trace import Tool


def played(
    settings: ToolSettings,
    order: ToolOrder,
    tools: list[tuple[float, Tool]],
    cancel: tuple[int, float] | None = None,
) -> list[ev.Event]:
    """What a pool tells of tools that are asked for at these times, each named by its place.

    `cancel`: which of them, and when.
    """
    agenda, facts = Agenda(), list[ev.Event]()
    pool = ToolPool(settings, order, emit=facts.append, at=agenda.at)
    for number, (at_s, tool) in enumerate(tools):
        name = str(number)

        def ask(now_s: float, name: str = name, tool: Tool = tool) -> None:
            pool.ask(SessionId(name), ToolId(name), tool, now_s)

        agenda.at(at_s, ask)
    if cancel is not None:
        agenda.at(cancel[1], lambda now_s: pool.cancel(ToolId(str(cancel[0])), now_s))
    while agenda.next_s < float("inf"):
        agenda.take()
    return facts


def waits(order: ToolOrder, tools: list[tuple[float, Tool]], cores: int) -> dict[str, list[float]]:
    """Seconds that each call waited for its cores, in order of asking, by tool."""
    waited: dict[str, list[float]] = {tool.name: [] for _, tool in tools}
    facts = played(ToolSettings(cores=cores, share=1), order, tools)
    started = [fact for fact in facts if isinstance(fact, ev.ToolStarted)]
    assert len(started) == len(tools), "everybody got cores"
    for fact in sorted(started, key=lambda fact: int(fact.tool_id)):
        waited[fact.tool].append(fact.wait_s)
    return waited


def cpu_bound(seed: int) -> list[tuple[float, Tool]]:
    """The tools of `gittask`, as they would come if nothing else took time: 90 % of four cores."""
    sessions = make(Synthetic(session_class="gittask"), 60, 1.0, seed)
    tools = [tool for session in sessions for turn in session.turns for tool in turn.tools]
    work_core_s = sum(tool.run_s * tool.cores for tool in tools)
    gap_s = work_core_s / (0.9 * 4) / len(tools)
    return [(number * gap_s, tool) for number, tool in enumerate(tools)]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_mean_wait_falls_under_a_cpu_bound_mix(seed: int) -> None:
    tools = cpu_bound(seed)
    fifo = waits(Fifo(), tools, cores=4)
    shortest = waits(ShortestFirst(ToolOrderSettings()), tools, cores=4)
    everybody = [fmean(w for each in by.values() for w in each) for by in (fifo, shortest)]
    assert everybody[1] < everybody[0] / 2
    assert fmean(shortest["file"]) < fmean(fifo["file"]) / 4


def test_nobody_is_passed_for_ever() -> None:
    """Short calls take the one core without a pause; a long one goes in within its patience."""
    known = [(0.0, Tool(name="long", run_s=10.0)), (10.0, Tool(name="short", run_s=1.0))]
    stream = [(11.0 + number, Tool(name="short", run_s=1.0)) for number in range(200)]
    late = [(11.5, Tool(name="long", run_s=10.0))]
    order = ShortestFirst(ToolOrderSettings(patience_s=5.0, tool_samples=1))
    long = waits(order, sorted(known + stream + late, key=lambda item: item[0]), cores=1)["long"]
    # due at 11.5 + 5 x 10 s; the call that runs then ends first
    assert long == [0.0, pytest.approx(50.5)]
    order = ShortestFirst(ToolOrderSettings(patience_s=1e6, tool_samples=1))
    long = waits(order, sorted(known + stream + late, key=lambda item: item[0]), cores=1)["long"]
    assert long == [0.0, pytest.approx(199.5)], "it was the patience that let it in"


def test_among_equals_the_older_session_goes_first() -> None:
    agenda, facts = Agenda(), list[ev.Event]()
    order = ShortestFirst(ToolOrderSettings(patience_s=1e6, tool_samples=1))
    pool = ToolPool(ToolSettings(cores=1, share=1), order, emit=facts.append, at=agenda.at)
    for at_s, session in ((0.0, "old"), (1.0, "young")):
        pool.hear(ev.SessionArrived(at_s=at_s, session_id=SessionId(session)))
    tool = Tool(name="t", run_s=1.0)
    pool.ask(SessionId("first"), ToolId("0"), tool, 2.0)
    pool.ask(SessionId("young"), ToolId("1"), tool, 2.1)
    pool.ask(SessionId("old"), ToolId("2"), tool, 2.2)
    while agenda.next_s < float("inf"):
        agenda.take()
    started = [fact.session_id for fact in facts if isinstance(fact, ev.ToolStarted)]
    assert started == ["first", "old", "young"]


def ends(settings: ToolSettings, tools: list[tuple[float, Tool]]) -> list[tuple[str, float, float]]:
    """Who ended when, and after how many CPU seconds. The third is cancelled at 4 s."""
    facts = played(settings, Fifo(), tools, cancel=(2, 4.0))
    over = [fact for fact in facts if isinstance(fact, ev.ToolFinished)]
    return [(fact.tool, round(fact.at_s, 9), round(fact.cpu_s, 9)) for fact in over]


def test_an_idle_core_is_anybodys_where_leases_share_the_cores() -> None:
    """Two cores. From 0 `a` and `b` have one each, from 1 three share them, from 4 only two do."""
    tools = [
        (0.0, Tool(name="a", run_s=1.0, cpu_s=10.0)),
        (0.0, Tool(name="b", run_s=12.0, cpu_s=3.0)),
        (1.0, Tool(name="gone", run_s=9.0, cpu_s=9.0)),
    ]
    # until 4 each burns 2/3 of a core; then `b`, which then has burnt all its 3, sleeps on until 12
    assert ends(ToolSettings(cores=2, share=8), tools) == [
        ("gone", 4.0, 2.0),
        ("a", 11.0, 10.0),
        ("b", 12.0, 3.0),
    ]


def test_a_core_of_its_own_is_nobody_elses() -> None:
    tools = [
        (0.0, Tool(name="a", run_s=1.0, cpu_s=10.0)),
        (0.0, Tool(name="b", run_s=12.0, cpu_s=3.0)),
        (1.0, Tool(name="gone", run_s=9.0, cpu_s=9.0)),
        (5.0, Tool(name="c", run_s=1.0)),
    ]
    assert ends(ToolSettings(cores=2, share=1), tools) == [
        ("gone", 4.0, 0.0),
        ("a", 10.0, 10.0),
        ("c", 11.0, 0.0),
        ("b", 12.0, 3.0),
    ]
