"""Host memory by hand: a step takes 10 ms, 0.1 ms a prompt token, 1 ms a decode; a block of 16
tokens takes 5 ms from the host.
"""

from typing import Any

import pytest

from mars.core import events as ev
from mars.core.errors import InputError
from mars.policy.base import Hold, IdleView, KeepNothing, Policy
from mars.policy.fcfs import Fcfs
from mars.sim import run as run_module
from mars.sim.host import HostStore
from mars.sim.kv import Chain, Prefix
from mars.sim.run import Outcome
from mars.workload.trace import Recorded

from .test_hand import accounts, ends, play, session, turn

HOST: dict[str, Any] = {"host_blocks": 100, "host_block_s": 0.005}


def returning(name: str = "a", **rest: float) -> Recorded:
    """100 tokens and an answer of one, a second of thought, 20 tokens more."""
    return session(name, turn(100, 1, think_s=1.0), turn(20, 1), **rest)


def crowd() -> Recorded:
    """10 of the 12 blocks, while a thinks: of a's 6 the last 4 go."""
    return session("b", turn(160, 1), arrives_s=0.5)


def started(outcome: Outcome) -> dict[str, float]:
    return {e.call_id: round(e.at_s, 9) for e in outcome.events if isinstance(e, ev.CallStarted)}


def test_without_host_memory_what_was_evicted_is_computed_again() -> None:
    outcome = play(returning(), crowd(), kv_blocks=12)
    served = accounts(outcome)["a/1"]
    assert (served.cached_tokens, served.loaded_tokens, served.computed_tokens) == (32, 0, 89)
    assert served.at_s == pytest.approx(1.020 + 0.010 + 89 * 0.0001)


def test_what_was_evicted_is_loaded_and_the_call_waits_for_it() -> None:
    # the prompt's 6 whole blocks are on the host, 2 of them still on the GPU: 4 x 5 ms, then 25
    # tokens
    outcome = play(returning(), crowd(), kv_blocks=12, **HOST)
    served = accounts(outcome)["a/1"]
    assert (served.cached_tokens, served.loaded_tokens, served.computed_tokens) == (96, 64, 25)
    assert served.queued_s == pytest.approx(0.020)
    assert served.at_s == pytest.approx(1.020 + 0.020 + 0.010 + 25 * 0.0001)


def test_others_run_while_blocks_come_and_the_step_under_way_is_not_cut_short() -> None:
    # c's steps end at 32.6, 43.6 ms after 1 s. a's blocks are there at 40 ms, so it is in the
    # third: 10 + 2.5 + 1 ms
    c = session("c", turn(16, 3), arrives_s=1.021)
    outcome = play(returning(), crowd(), c, kv_blocks=12, **HOST)
    assert started(outcome)["c/0"] == 1.021
    assert started(outcome)["a/1"] == 1.0436
    assert ends(outcome)["a/1"] == ends(outcome)["c/0"] == 1.0571


def test_loads_follow_one_another() -> None:
    # a and d came back to nothing: 7 blocks each of theirs have gone to two of b's size
    a, d = returning("a"), returning("d", arrives_s=0.05)
    b, c = (session(n, turn(318, 1), arrives_s=t) for n, t in (("b", 0.4), ("c", 0.5)))
    outcome = play(a, d, b, c, kv_blocks=20, **HOST)
    assert [accounts(outcome)[f"{n}/1"].loaded_tokens for n in "ad"] == [96, 96]
    assert started(outcome)["a/1"] == pytest.approx(1.020 + 0.030)
    # d asks at 1.070, when the link is free again
    assert started(outcome)["d/1"] == pytest.approx(1.070 + 0.030)
    slow = play(a, d, b, c, kv_blocks=20, host_blocks=100, host_block_s=0.010)
    assert started(slow)["a/1"] == pytest.approx(1.020 + 0.060)
    assert started(slow)["d/1"] == pytest.approx(1.020 + 0.120)  # 10 ms after a's last block


def test_a_load_must_leave_room_for_the_prompts_under_way() -> None:
    # e computes 64 tokens a step and will own 11 of 12 blocks: a's second call, of 8, waits for it
    e = session("e", turn(170, 1), arrives_s=1.0)
    outcome = play(returning(), crowd(), e, kv_blocks=12, step_tokens=64, **HOST)
    assert started(outcome)["a/1"] == pytest.approx(ends(outcome)["e/0"] + 0.030)


def test_a_preempted_prompt_is_loaded_again() -> None:
    # as in test_hand: b is preempted with 64 tokens, its first 48 still warm: those of its prompt
    # that are whole blocks are on the host, too, and what is warm is not loaded
    outcome = play(session("a", turn(60, 20)), session("b", turn(60, 9)), kv_blocks=8, **HOST)
    assert accounts(outcome)["b/0"].loaded_tokens == 0
    # a second victim of the same: a grows into all of b's blocks before b is back
    outcome = play(session("a", turn(60, 60)), session("b", turn(60, 9)), kv_blocks=8, **HOST)
    assert accounts(outcome)["b/0"].loaded_tokens == 48


class Asked(KeepNothing):
    """Keeps nothing, but notes what it was told that this would cost."""

    def __init__(self) -> None:
        self.refill_s: list[float] = []

    def hold(self, idle: IdleView) -> Hold:
        self.refill_s.append(idle.refill_s)
        return super().hold(idle)


def test_a_policy_is_told_the_cheaper_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(**engine: Any) -> float:
        asked = Asked()
        monkeypatch.setattr(run_module, "build_policy", lambda _: Policy(Fcfs(), asked))
        play(session("a", turn(100, 1)), **engine)
        return asked.refill_s[0]

    computed_s = told()
    assert computed_s > 0.0
    assert told(host_blocks=100, host_block_s=1e-6) == pytest.approx(6e-6)
    assert told(host_blocks=100, host_block_s=1.0) == computed_s
    # 4 of its 6 blocks are stored: the others are to be computed
    assert told(host_blocks=4, host_block_s=1e-6) == pytest.approx(4e-6 + computed_s / 3)


def test_a_window_and_host_memory_are_not_simulated_together() -> None:
    with pytest.raises(InputError, match="host_gib"):
        play(returning(), window_tokens=32, **HOST)


def test_the_longest_unused_goes_first_its_end_before_its_beginning() -> None:
    host, (a, b, c) = HostStore(10, 0.0), (Chain(), Chain(), Chain())
    host.store(a, 4)
    host.store(b, 4)
    host.touch(a)
    host.store(c, 5)
    assert [host.reach(chain, 0) for chain in (a, b, c)] == [4, 1, 5]
    host.store(c, 20)  # more than there is: its beginning
    assert [host.reach(chain, 0) for chain in (a, b, c)] == [0, 0, 10]
    host.check()


def test_a_shared_prompt_is_stored_once() -> None:
    host, prefix = HostStore(100, 0.0), Prefix(8)
    one, other = Chain(prefix), Chain(prefix)
    host.store(one, 10)
    assert host.reach(other, 0) == 8
    assert host.reach(other, 3) == 8
    host.store(other, 9)
    assert (host.reach(one, 8), host.reach(other, 8)) == (10, 9)
    assert host.reach(one, 12) == 12
    host.check()


def test_blocks_that_are_written_to_are_freed_when_they_have_come() -> None:
    # a's client goes while 4 blocks come, from 1.020 to 1.040 s; d, of 10 blocks, has no room
    # beside c before the first step after that
    a = returning(leaves_s=1.030)
    c = session("c", turn(16, 3), arrives_s=1.021)
    d = session("d", turn(160, 1), arrives_s=1.031)
    outcome = play(a, crowd(), c, d, kv_blocks=12, **HOST)
    served = accounts(outcome)["a/1"]
    assert (served.at_s, served.ok, served.made_tokens) == (1.030, False, 0)
    assert started(outcome)["d/0"] == 1.0436


def test_who_waits_with_its_blocks_gives_them_back_when_its_client_goes() -> None:
    a = returning(leaves_s=1.050)
    c = session("c", turn(16, 9), arrives_s=1.021)
    d = session("d", turn(160, 1), arrives_s=1.031)
    outcome = play(a, crowd(), c, d, kv_blocks=12, most_calls=1, **HOST)
    assert not accounts(outcome)["a/1"].ok
    assert "a/1" not in started(outcome)
    assert started(outcome)["d/0"] == ends(outcome)["c/0"]
