"""Every system is a row of three parts; an ablation is a row too."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from mars.core.admission import Admission, Open
from mars.core.errors import InputError
from mars.core.window import Window, WindowSettings
from mars.policy.base import KeepNothing, Ordering, Policy, Retention
from mars.policy.fcfs import Fcfs
from mars.policy.mars import ContinuationsFirst, HoldSettings, OrderSettings, SkiRental
from mars.policy.session_fcfs import SessionFcfs


class Scheduling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which policy, and the settings of its parts (a part that a policy lacks ignores its own)."""

    policy: str = "mars"
    window: WindowSettings = WindowSettings()
    order: OrderSettings = OrderSettings()
    hold: HoldSettings = HoldSettings()

    def __post_init__(self) -> None:
        if self.policy not in PRESETS:
            known = ", ".join(PRESETS)
            raise InputError(f"unknown policy {self.policy!r}; one of: {known}")


class Preset(NamedTuple):
    admission: Callable[[Scheduling], Admission]
    ordering: Callable[[Scheduling], Ordering]
    retention: Callable[[Scheduling], Retention]
    about: str


def _open(_: Scheduling) -> Admission:
    return Open()


def _window(s: Scheduling) -> Admission:
    return Window(s.window)


def _fcfs(_: Scheduling) -> Ordering:
    return Fcfs()


def _session_fcfs(_: Scheduling) -> Ordering:
    return SessionFcfs()


def _continuations(s: Scheduling) -> Ordering:
    return ContinuationsFirst(s.order)


def _nothing(_: Scheduling) -> Retention:
    return KeepNothing()


def _ski_rental(s: Scheduling) -> Retention:
    return SkiRental(s.hold)


PRESETS: Final[Mapping[str, Preset]] = {
    #                       who enters  who runs  what stays warm
    "fcfs": Preset(_open, _fcfs, _nothing, "stock vLLM"),
    "session_fcfs": Preset(_open, _session_fcfs, _nothing, "vLLM priority = session start"),
    "mars": Preset(_window, _continuations, _ski_rental, "the paper's system"),
    "mars-no-admission": Preset(_open, _continuations, _ski_rental, "mars, everybody enters"),
    "mars-no-order": Preset(_window, _fcfs, _ski_rental, "mars, calls in order of arrival"),
    "mars-no-hold": Preset(_window, _continuations, _nothing, "mars, nothing kept warm"),
}


def build_admission(scheduling: Scheduling) -> Admission:
    return PRESETS[scheduling.policy].admission(scheduling)


def build_policy(scheduling: Scheduling) -> Policy:
    preset = PRESETS[scheduling.policy]
    return Policy(preset.ordering(scheduling), preset.retention(scheduling))
