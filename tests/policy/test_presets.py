"""Every system is a row; a mistake in a setting names the setting."""

import msgspec
import pytest

from mars.core.admission import Open
from mars.core.errors import InputError
from mars.core.ids import CallId, SessionId
from mars.core.pressure import Pressure
from mars.core.window import Window
from mars.policy.base import CallView, KeepNothing
from mars.policy.fcfs import Fcfs
from mars.policy.mars import ContinuationsFirst, SkiRental
from mars.policy.presets import PRESETS, Scheduling, build_admission, build_policy
from mars.policy.session_fcfs import SessionFcfs

ROWS = {
    "fcfs": (Open, Fcfs, KeepNothing),
    "session_fcfs": (Open, SessionFcfs, KeepNothing),
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
    assert build_admission(scheduling).choose([], 0, Pressure(), 0.0).window == 9
    policy = build_policy(scheduling)
    view = CallView(CallId("c"), SessionId("s"), 0.0, 0.0, uncached_tokens=50_000)
    assert policy.ordering.run_key(view, 5.1) < policy.ordering.run_key(view, 5.0)
    assert policy.retention.takes_held_at_s(view) == 3.0


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
