"""Every system is a row of three parts; an ablation is a row too."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from mars.core.admission import Admission, Open
from mars.core.errors import InputError
from mars.core.window import Window, WindowSettings
from mars.policy.autellix import AutellixSettings, LeastServed
from mars.policy.base import KeepNothing, Ordering, Policy, Retention
from mars.policy.concur import Concur, ConcurSettings
from mars.policy.continuum import ContinuumSettings, DynamicTtl, HeldFirst, StaticTtl
from mars.policy.fcfs import Fcfs
from mars.policy.infercept import InferceptSettings, LeastWaste
from mars.policy.mars import ContinuationsFirst, HoldSettings, OrderSettings, SkiRental
from mars.policy.mars_preview import PreviewLevels, PreviewOrderSettings
from mars.policy.mars_preview_window import PreviewWindow, PreviewWindowSettings
from mars.policy.session_fcfs import SessionFcfs
from mars.policy.thunderagent import ThunderAgent, ThunderAgentSettings


class Scheduling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which policy, and the settings of its parts (a part that a policy lacks ignores its own)."""

    policy: str = "mars"
    window: WindowSettings = WindowSettings()
    order: OrderSettings = OrderSettings()
    hold: HoldSettings = HoldSettings()
    autellix: AutellixSettings = AutellixSettings()
    infercept: InferceptSettings = InferceptSettings()
    continuum: ContinuumSettings = ContinuumSettings()
    thunderagent: ThunderAgentSettings = ThunderAgentSettings()
    concur: ConcurSettings = ConcurSettings()
    preview_window: PreviewWindowSettings = PreviewWindowSettings()
    preview_order: PreviewOrderSettings = PreviewOrderSettings()

    def __post_init__(self) -> None:
        if self.policy not in PRESETS:
            known = ", ".join(PRESETS)
            raise InputError(f"unknown policy {self.policy!r}; one of: {known}")


_RELEASED_RELOAD_S_PER_TOKEN: Final = 200e-6
"""Flat price of computing a context again in the MARS paper's preview code, which ran the baselines
with it; the rows without `-released` ask the engine, which is usually 2-4 times cheaper."""


class Preset(NamedTuple):
    admission: Callable[[Scheduling], Admission]
    ordering: Callable[[Scheduling], Ordering]
    retention: Callable[[Scheduling], Retention]
    about: str


def _open(_: Scheduling) -> Admission:
    return Open()


def _window(s: Scheduling) -> Admission:
    return Window(s.window)


def _thunderagent(s: Scheduling) -> Admission:
    return ThunderAgent(s.thunderagent)


def _concur(s: Scheduling) -> Admission:
    return Concur(s.concur)


def _preview_window(s: Scheduling) -> Admission:
    return PreviewWindow(s.preview_window)


def _preview_levels(s: Scheduling) -> Ordering:
    return PreviewLevels(s.preview_order)


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


def _least_served(s: Scheduling) -> Ordering:
    return LeastServed(s.autellix)


def _least_served_released(s: Scheduling) -> Ordering:
    return LeastServed(msgspec.structs.replace(s.autellix, cut_chunks=True))


def _held_first(_: Scheduling) -> Ordering:
    return HeldFirst()


def _least_waste(s: Scheduling) -> Retention:
    return LeastWaste(s.infercept)


def _least_waste_released(s: Scheduling) -> Retention:
    price = _RELEASED_RELOAD_S_PER_TOKEN
    return LeastWaste(msgspec.structs.replace(s.infercept, reload_s_per_token=price))


def _static_ttl(s: Scheduling) -> Retention:
    return StaticTtl(s.continuum)


def _dynamic_ttl(s: Scheduling) -> Retention:
    return DynamicTtl(s.continuum)


def _dynamic_ttl_released(s: Scheduling) -> Retention:
    price = _RELEASED_RELOAD_S_PER_TOKEN
    return DynamicTtl(msgspec.structs.replace(s.continuum, reload_s_per_token=price))


PRESETS: Final[Mapping[str, Preset]] = {
    #                       who enters  who runs  what stays warm
    "fcfs": Preset(_open, _fcfs, _nothing, "stock vLLM"),
    "session_fcfs": Preset(_open, _session_fcfs, _nothing, "vLLM priority = session start"),
    "autellix": Preset(_open, _least_served, _nothing, "PLAS: least served program first"),
    "autellix-released": Preset(
        _open, _least_served_released, _nothing, "autellix, prompts cut to quanta"
    ),
    "infercept": Preset(_open, _fcfs, _least_waste, "keep KV while that wastes less"),
    "infercept-released": Preset(_open, _fcfs, _least_waste_released, "infercept, 200 us a token"),
    "continuum": Preset(_open, _held_first, _static_ttl, "program FCFS, KV pinned for 2 s"),
    "continuum-dynamic": Preset(_open, _held_first, _dynamic_ttl, "continuum, learned pin times"),
    "continuum-dynamic-released": Preset(
        _open, _held_first, _dynamic_ttl_released, "continuum-dynamic, 200 us a token"
    ),
    "thunderagent": Preset(_thunderagent, _fcfs, _nothing, "sends sessions back while KV is short"),
    "concur": Preset(_concur, _fcfs, _nothing, "congestion window on KV use and cache hits"),
    "mars_preview": Preset(_preview_window, _preview_levels, _nothing, "its published code"),
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
