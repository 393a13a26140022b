"""Every system is a row; a mistake in a setting names the setting."""

import msgspec
import pytest

from mars.core.admission import GatedView, Open
from mars.core.errors import InputError
from mars.core.events import ToolFinished
from mars.core.ids import CallId, SessionId, ToolId
from mars.core.pressure import Pressure
from mars.core.residency import Residency
from mars.core.window import Window
from mars.policy.autellix import LeastServed
from mars.policy.base import CallView, IdleView, KeepNothing
from mars.policy.concur import Concur
from mars.policy.continuum import DynamicTtl, HeldFirst, StaticTtl
from mars.policy.fcfs import Fcfs
from mars.policy.infercept import LeastWaste
from mars.policy.mars_hold import WorthKeeping
from mars.policy.mars_order import LeastLeftFirst
from mars.policy.mars_paper import ContinuationsFirst, SkiRental
from mars.policy.mars_preview import PreviewLevels
from mars.policy.mars_preview_window import PreviewWindow
from mars.policy.no_host import ComputedAgain
from mars.policy.presets import (
    PRESETS,
    Scheduling,
    build_admission,
    build_policy,
    build_tool_order,
)
from mars.policy.session_fcfs import SessionFcfs
from mars.policy.thunderagent import ThunderAgent
from mars.policy.tool_order import Fifo, ShortestFirst

ROWS = {
    "fcfs": (Open, Fcfs, KeepNothing, Fifo),
    "session_fcfs": (Open, SessionFcfs, KeepNothing, Fifo),
    "autellix": (Open, LeastServed, KeepNothing, Fifo),
    "autellix-released": (Open, LeastServed, KeepNothing, Fifo),
    "infercept": (Open, Fcfs, LeastWaste, Fifo),
    "infercept-released": (Open, Fcfs, LeastWaste, Fifo),
    "continuum": (Open, HeldFirst, StaticTtl, Fifo),
    "continuum-dynamic": (Open, HeldFirst, DynamicTtl, Fifo),
    "continuum-dynamic-released": (Open, HeldFirst, DynamicTtl, Fifo),
    "thunderagent": (ThunderAgent, Fcfs, KeepNothing, Fifo),
    "concur": (Concur, Fcfs, KeepNothing, Fifo),
    "mars_preview": (PreviewWindow, PreviewLevels, KeepNothing, Fifo),
    "mars-paper": (Window, ContinuationsFirst, SkiRental, Fifo),
    "mars": (Residency, LeastLeftFirst, WorthKeeping, ShortestFirst),
    "mars-no-admission": (Open, LeastLeftFirst, WorthKeeping, ShortestFirst),
    "mars-aimd": (Window, LeastLeftFirst, WorthKeeping, ShortestFirst),
    "mars-no-order": (Residency, Fcfs, WorthKeeping, ShortestFirst),
    "mars-no-hold": (Residency, LeastLeftFirst, KeepNothing, ShortestFirst),
    "mars-no-idling": (Residency, LeastLeftFirst, WorthKeeping, ShortestFirst),
    "mars-no-tool-order": (Residency, LeastLeftFirst, WorthKeeping, Fifo),
    "mars-no-host": (Residency, LeastLeftFirst, ComputedAgain, ShortestFirst),
}

IDLE = IdleView(
    session_id=SessionId("s"),
    stage="left",
    tool="",
    session_arrived_s=0.0,
    context_tokens=10_000,
    others_tokens=0,
    kv_capacity_tokens=100_000,
    compute_s=0.0,
    refill_s=0.0,
    idle_s=0.0,
)


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_builds_its_four_parts(name: str) -> None:
    scheduling = msgspec.convert({"policy": name}, Scheduling)
    policy = build_policy(scheduling)
    tools = build_tool_order(scheduling)
    parts = (build_admission(scheduling), policy.ordering, policy.retention, tools)
    assert tuple(type(part) for part in parts) == ROWS[name]
    assert PRESETS[name].about


def test_each_build_is_fresh() -> None:
    """Parts learn: two engines, or two runs, must not share them."""
    scheduling = Scheduling()
    assert build_admission(scheduling) is not build_admission(scheduling)
    assert build_policy(scheduling).retention is not build_policy(scheduling).retention
    assert build_tool_order(scheduling) is not build_tool_order(scheduling)


def test_settings_reach_the_parts() -> None:
    given = {
        "residency": {"first": 2},
        "least_left": {"samples": 1},
        "worth": {"first_s": 0.7},
        "tool_order": {"tool_samples": 2},
    }
    scheduling = msgspec.convert(given, Scheduling)
    gated = [GatedView(session_id=SessionId(name), arrived_s=0.0, prompt_bytes=0) for name in "abc"]
    assert len(build_admission(scheduling).choose(gated, [], Pressure(), 0.0).admit) == 2
    policy, tools = build_policy(scheduling), build_tool_order(scheduling)
    assert isinstance(policy.ordering, LeastLeftFirst)
    assert policy.ordering._set.samples == 1
    assert isinstance(tools, ShortestFirst)
    assert tools._set.tool_samples == 2
    assert policy.retention.hold(IDLE).keep_s == 0.7


def test_settings_reach_the_parts_of_the_paper() -> None:
    given = {
        "policy": "mars-paper",
        "window": {"first": 9},
        "order": {"ageing_s": 5},
        "hold": {"cold_wait_s": 3},
    }
    scheduling = msgspec.convert(given, Scheduling)
    assert build_admission(scheduling).choose([], [], Pressure(), 0.0).window == 9
    policy = build_policy(scheduling)
    view = CallView(CallId("c"), SessionId("s"), 0.0, 0.0, uncached_tokens=50_000)
    assert policy.ordering.run_key(view, 5.1) < policy.ordering.run_key(view, 5.0)
    assert policy.retention.takes_held_at_s(view) == 3.0


def test_released_baselines_pay_the_flat_price() -> None:
    """200 us a token: 2 s for 10k tokens, where the engine's estimate is 0 s."""
    ran = ToolFinished(
        at_s=0.0,
        session_id=SessionId("s"),
        tool_id=ToolId("t"),
        tool="sh",
        run_s=0.5,
        cpu_s=0.5,
        peak_memory_bytes=0,
        exit_code=0,
    )
    keep_s = {}
    for name in ("infercept", "continuum-dynamic"):
        for row in (name, f"{name}-released"):
            given = {"policy": row, "continuum": {"tool_samples": 0}}
            policy = build_policy(msgspec.convert(given, Scheduling))
            policy.observe(ran)
            keep_s[row] = policy.retention.hold(IDLE).keep_s
    assert keep_s == {
        "infercept": 0.0,
        "infercept-released": 1.0,
        "continuum-dynamic": 0.0,
        "continuum-dynamic-released": 0.5,
    }


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"polcy": "mars"}, "polcy"),
        ({"residency": {"overcommit": 0}}, r"> 0.0.*\$\.residency\.overcommit"),
        ({"residency": {"idle_share": 1.5}}, r"<= 1.0.*\$\.residency\.idle_share"),
        ({"residency": {"patience": -1}}, r">= 0.0.*\$\.residency\.patience"),
        ({"residency": {"first": 0}}, r">= 1.*\$\.residency\.first"),
        ({"least_left": {"samples": 0}}, r">= 1.*\$\.least_left\.samples"),
        ({"least_left": {"patience": 0}}, r"> 0.0.*\$\.least_left\.patience"),
        ({"worth": {"price": 0}}, r"> 0.0.*\$\.worth\.price"),
        ({"worth": {"prize": 1}}, r"prize.*\$\.worth"),
        ({"window": {"frist": 4}}, r"frist.*\$\.window"),
        ({"window": {"first": 0}}, r">= 1.*\$\.window\.first"),
        ({"window": {"first": 2.5}}, r"int.*\$\.window\.first"),
        ({"window": {"least": 5}}, r"`least` must not be above `first`.*\$\.window"),
        ({"window": {"shrink": 1.0}}, r"< 1.0.*\$\.window\.shrink"),
        ({"window": {"kv_high_frac": 1.5}}, r"<= 1.0.*\$\.window\.kv_high_frac"),
        ({"window": {"tool_load_low": 9}}, r"`tool_load_low` must not be above.*\$\.window"),
        ({"order": {"level_tokens": [5, 5]}}, r"`level_tokens` must rise.*\$\.order"),
        ({"order": {"ageing_s": 0}}, r"> 0.0.*\$\.order\.ageing_s"),
        ({"hold": {"most_s": "long"}}, r"float.*\$\.hold\.most_s"),
        ({"tool_order": {"patience_s": 0}}, r"> 0.0.*\$\.tool_order\.patience_s"),
        ({"hold": {"tool_samples": 0}}, r">= 1.*\$\.hold\.tool_samples"),
        ({"autellix": {"beta": 0}}, r"> 0.0.*\$\.autellix\.beta"),
        ({"infercept": {"reload_s_per_token": -1}}, r">= 0.0.*\$\.infercept\.reload_s_per_token"),
        ({"continuum": {"tool_samples": -1}}, r">= 0.*\$\.continuum\.tool_samples"),
    ],
)
def test_a_wrong_setting_is_named(given: dict[str, object], named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert(given, Scheduling)


def test_an_unknown_policy_is_named_and_the_known_ones_are_listed() -> None:
    with pytest.raises(InputError) as caught:
        msgspec.convert({"policy": "lifo"}, Scheduling)
    assert "unknown policy 'lifo'" in str(caught.value)
    assert all(name in str(caught.value) for name in PRESETS)
