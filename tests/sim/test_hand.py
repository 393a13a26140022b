"""Small cases computed by hand: a step takes 10 ms, 0.1 ms a prompt token, 1 ms a decode."""

import pytest

from mars.core import events as ev
from mars.core.errors import InputError
from mars.policy.presets import Scheduling
from mars.sim.laws import Linear
from mars.sim.run import Outcome, simulate
from mars.sim.settings import EngineSettings, SimSettings, ToolSettings
from mars.workload.trace import Recorded, Tool, Turn

COST = Linear(step_s=0.010, prefill_token_s=0.0001, decode_call_s=0.001).cost()


def session(name: str, *turns: Turn, arrives_s: float = 0.0, **rest: float | str) -> Recorded:
    return Recorded(session_id=name, arrives_s=arrives_s, turns=turns, **rest)  # type: ignore[arg-type]


def turn(new_tokens: int, output_tokens: int, *tools: Tool, think_s: float = 0.0) -> Turn:
    return Turn(new_tokens=new_tokens, output_tokens=output_tokens, tools=tools, think_s=think_s)


def play(
    *sessions: Recorded, tools: ToolSettings | None = None, policy: str = "fcfs", **engine: float
) -> Outcome:
    given = {"kv_blocks": 1000, "lag": 0, **engine}
    settings = SimSettings(
        scheduling=Scheduling(policy=policy),
        engine=EngineSettings(**given),  # type: ignore[arg-type]
        tools=tools or ToolSettings(),
    )
    return simulate(sessions, COST, settings)


def ends(outcome: Outcome) -> dict[str, float]:
    return {e.call_id: round(e.at_s, 9) for e in outcome.events if isinstance(e, ev.CallServed)}


def accounts(outcome: Outcome) -> dict[str, ev.CallServed]:
    return {str(e.call_id): e for e in outcome.events if isinstance(e, ev.CallServed)}


def test_one_call() -> None:
    # 10 + 100 x 0.1 = 20 ms for the prompt and the first token, 11 ms for each of the other two
    outcome = play(session("a", turn(100, 3)))
    assert ends(outcome) == {"a/0": 0.042}
    assert outcome.first_token_s == {"a/0": pytest.approx(0.020)}


def test_with_a_lag_a_call_that_comes_during_a_step_is_seen_a_step_later() -> None:
    # a's steps end at 20, 31, 42 ms. b comes at 5 ms. At once: the step from 20 ms takes it in
    # (10 + 2 + 1 ms). With a lag the one from 20 ms is already made up: b is in that from 31 ms.
    at_once = play(session("a", turn(100, 9)), session("b", turn(20, 1), arrives_s=0.005))
    later = play(session("a", turn(100, 9)), session("b", turn(20, 1), arrives_s=0.005), lag=1)
    assert ends(at_once)["b/0"] == 0.033
    assert ends(later)["b/0"] == 0.044
    assert ends(later)["a/0"] == ends(at_once)["a/0"] == 0.020 + 8 * 0.011 + 0.002


def test_prompts_in_chunks_share_a_step() -> None:
    # 64 tokens a step: a 64 | a 36 + b 28 | b 22 and a decodes
    outcome = play(session("a", turn(100, 2)), session("b", turn(50, 1)), step_tokens=64)
    assert ends(outcome) == {"a/0": 0.046, "b/0": 0.046}  # 16.4 + 16.4 + 13.2 ms
    assert outcome.steps == 3


def test_a_warm_continuation_computes_what_is_new() -> None:
    # 100 + 4 - 1 = 103 tokens are in KV, 6 whole blocks (96) of them found again by 134
    outcome = play(session("a", turn(100, 4), turn(30, 1)))
    second = [e for e in outcome.events if isinstance(e, ev.CallServed)][1]
    assert (second.prompt_tokens, second.cached_tokens, second.computed_tokens) == (134, 96, 38)
    assert second.at_s == pytest.approx(0.053 + 0.010 + 38 * 0.0001)


def test_a_shared_prompt_is_computed_once() -> None:
    one, other = (
        session(name, turn(100, 1), arrives_s=at, shared_prefix="p", shared_tokens=64)
        for name, at in (("a", 0.0), ("b", 1.0))
    )
    served = [e for e in play(one, other).events if isinstance(e, ev.CallServed)]
    assert [e.computed_tokens for e in served] == [100, 36]


def test_the_later_call_is_preempted_and_computed_again() -> None:
    # 8 blocks of 16: a and b with 60 tokens take 4 each. Both fill their 4th with the step that
    # makes token 64 (5 tokens made); the next step needs a block each and there is none: b goes.
    outcome = play(session("a", turn(60, 20)), session("b", turn(60, 9)), kv_blocks=8)
    preempted = [e for e in outcome.events if isinstance(e, ev.CallPreempted)]
    assert [(e.call_id, e.lost_tokens) for e in preempted] == [("b/0", 64)]
    assert preempted[0].at_s == pytest.approx(0.022 + 4 * 0.012)
    served = accounts(outcome)
    assert served["a/0"].computed_tokens == 79
    # a took the block that b freed last; b finds its first three blocks: 64 + 1 + 3 more, less 48
    assert served["b/0"].computed_tokens == 64 + (65 - 48) + 3


@pytest.mark.parametrize(
    ("tool_s", "policy", "b_ends_s", "a_finds_tokens"),
    [
        (1.0, "mars", 0.1 + 0.0192 + 0.040, 176),
        (1.0, "mars-no-idling", 0.1 + 0.040, 176),
        (0.07, "mars", 0.110 + 0.0133 + 0.040, 288),
        (0.07, "mars-no-idling", 0.1 + 0.040, 176),
    ],
)
def test_an_idle_engine_gives_up_a_hold_after_what_it_is_worth(
    tool_s: float, policy: str, b_ends_s: float, a_finds_tokens: int
) -> None:
    # a's prompt takes 40 ms. 18 of its blocks are held, of 30: having them again takes
    # 288 / (300 / 40 ms) = 38.4 ms, and half of it is idled. b comes at 100 ms and wants 19; 12 are
    # free. Who gets a's takes 7 of them. Back before that, at 110 ms, a computes 321 - 288 tokens.
    a = session("a", turn(300, 1, Tool(name="make", run_s=tool_s)), turn(20, 1))
    b = session("b", turn(300, 1), arrives_s=0.1)
    outcome = play(a, b, policy=policy, kv_blocks=30)
    assert ends(outcome)["b/0"] == pytest.approx(b_ends_s, abs=1e-9)
    assert accounts(outcome)["a/1"].cached_tokens == a_finds_tokens


def test_a_client_that_leaves_frees_its_place() -> None:
    outcome = play(session("a", turn(100, 1000), leaves_s=0.5), session("b", turn(16, 1)))
    served = accounts(outcome)
    assert not served["a/0"].ok
    assert served["a/0"].at_s == 0.5
    assert isinstance(outcome.events[-1], ev.SessionEnded)


def tool_ends(outcome: Outcome) -> list[float]:
    return [round(e.at_s, 9) for e in outcome.events if isinstance(e, ev.ToolFinished)]


def burn(run_s: float, cpu_s: float, cores: int = 1, memory_bytes: int = 0) -> Tool:
    return Tool(name="t", run_s=run_s, cpu_s=cpu_s, cores=cores, memory_bytes=memory_bytes)


@pytest.mark.parametrize(
    ("tools", "given", "expected"),
    [
        # one after the other on one core
        (ToolSettings(cores=1, share=1), [burn(2.0, 2.0), burn(1.0, 1.0)], [2.0, 3.0]),
        # both on one core, one also sleeps: 1 s each at half speed; then the rest alone
        (ToolSettings(cores=1, share=2), [burn(2.0, 2.0), burn(1.0, 1.0)], [2.0, 3.0]),
        (ToolSettings(cores=1, share=2), [burn(5.0, 1.0), burn(1.0, 1.0)], [2.0, 5.0]),
        # two cores halve the CPU seconds, not the sleep
        (ToolSettings(cores=2, share=1), [burn(1.0, 4.0, cores=2)], [2.0]),
        # memory is a second limit
        (ToolSettings(cores=4, memory_bytes=9), [burn(2.0, 0.0, 1, 5)] * 2, [2.0, 4.0]),
        # a start takes its time, and holds the core
        (ToolSettings(cores=1, share=1, start_s=0.5), [burn(1.0, 0.2), burn(1.0, 1.0)], [1.5, 3.0]),
        (ToolSettings(cores=1, share=2, start_s=0.5), [burn(1.0, 1.0)] * 2, [3.0, 3.0]),
    ],
)
def test_tools(tools: ToolSettings, given: list[Tool], expected: list[float]) -> None:
    sessions = [session(str(n), turn(1, 1, tool), turn(1, 1)) for n, tool in enumerate(given)]
    start_s = ends(play(*sessions))[f"{len(sessions) - 1}/0"]
    took = [at_s - start_s for at_s in tool_ends(play(*sessions, tools=tools))]
    assert took == pytest.approx(expected)


def test_closed_loop_keeps_so_many_sessions_open() -> None:
    sessions = [session(str(n), turn(100, 3)) for n in range(5)]
    settings = SimSettings(
        scheduling=Scheduling(policy="fcfs"), engine=EngineSettings(kv_blocks=1000)
    )
    open_now, most = 0, 0
    for event in simulate(sessions, COST, settings, agents=2).events:
        open_now += isinstance(event, ev.SessionArrived)
        open_now -= isinstance(event, ev.SessionEnded)
        most = max(most, open_now)
    assert (most, open_now) == (2, 0)


def test_what_cannot_be_simulated_is_named() -> None:
    with pytest.raises(InputError, match=r"session a: a call of 170 tokens .* `kv_blocks` 10"):
        play(session("a", turn(100, 70)), kv_blocks=10)
    with pytest.raises(InputError, match="two sessions are called 'a'"):
        play(session("a", turn(1, 1)), session("a", turn(1, 1)))
