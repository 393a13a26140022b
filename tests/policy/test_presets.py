"""Every system is a row; a mistake in a setting names the setting."""

import msgspec
import pytest

from mars.core.admission import Open
from mars.core.errors import InputError
from mars.core.events import ToolFinished
from mars.core.ids import CallId, SessionId, ToolId
from mars.core.pressure import Pressure
from mars.core.window import Window
from mars.policy.autellix import LeastServed
from mars.policy.base import CallView, IdleView, KeepNothing
from mars.policy.concur import Concur
from mars.policy.continuum import DynamicTtl, HeldFirst, StaticTtl
from mars.policy.fcfs import Fcfs
from mars.policy.infercept import LeastWaste
from mars.policy.mars import ContinuationsFirst, SkiRental
from mars.policy.mars_preview import PreviewLevels
from mars.policy.mars_preview_window import PreviewWindow
from mars.policy.presets import PRESETS, Scheduling, build_admission, build_policy
from mars.policy.session_fcfs import SessionFcfs
from mars.policy.thunderagent import ThunderAgent

ROWS = {
    "fcfs": (Open, Fcfs, KeepNothing),
    "session_fcfs": (Open, SessionFcfs, KeepNothing),
    "autellix": (Open, LeastServed, KeepNothing),
    "autellix-released": (Open, LeastServed, KeepNothing),
    "infercept": (Open, Fcfs, LeastWaste),
    "infercept-released": (Open, Fcfs, LeastWaste),
    "continuum": (Open, HeldFirst, StaticTtl),
    "continuum-dynamic": (Open, HeldFirst, DynamicTtl),
    "continuum-dynamic-released": (Open, HeldFirst, DynamicTtl),
    "thunderagent": (ThunderAgent, Fcfs, KeepNothing),
    "concur": (Concur, Fcfs, KeepNothing),
    "mars_preview": (PreviewWindow, PreviewLevels, KeepNothing),
    "mars": (Window, ContinuationsFirst, SkiRental),
    "mars-no-admission": (Open, ContinuationsFirst, SkiRental),
    "mars-no-order": (Window, Fcfs, SkiRental),
    "mars-no-hold": (Window, ContinuationsFirst, KeepNothing),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_builds_its_three_parts(name: str) -> None:
    scheduling = msgspec.convert({"policy": name}, Scheduling)
    policy = build_policy(scheduling)
    parts = (build_admission(scheduling), policy.ordering, policy.retention)
    assert tuple(type(part) for part in parts) == ROWS[name]
    assert PRESETS[name].about


def test_each_build_is_fresh() -> None:
    """Parts learn: two engines, or two runs, must not share them."""
    scheduling = Scheduling()
    assert build_admission(scheduling) is not build_admission(scheduling)
    assert build_policy(scheduling).retention is not build_policy(scheduling).retention


def test_settings_reach_the_parts() -> None:
    given = {"window": {"first": 9}, "order": {"ageing_s": 5}, "hold": {"cold_wait_s": 3}}
    scheduling = msgspec.convert(given, Scheduling)
    assert build_admission(scheduling).choose([], [], Pressure(), 0.0).window == 9
    policy = build_policy(scheduling)
    view = CallView(CallId("c"), SessionId("s"), 0.0, 0.0, uncached_tokens=50_000)
    assert policy.ordering.run_key(view, 5.1) < policy.ordering.run_key(view, 5.0)
    assert policy.retention.takes_held_at_s(view) == 3.0


def test_released_baselines_pay_the_flat_price() -> None:
    """200 us a token: 2 s for 10k tokens, where the engine's estimate is 0 s."""
    idle = IdleView(
        session_id=SessionId("s"),
        stage="left",
        tool="",
        session_arrived_s=0.0,
        context_tokens=10_000,
        others_tokens=0,
        kv_capacity_tokens=100_000,
        refill_s=0.0,
        idle_s=0.0,
    )
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
            keep_s[row] = policy.retention.hold(idle).keep_s
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
