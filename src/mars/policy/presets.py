"""Every system is a row of four parts; an ablation is a row too."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from mars.core.admission import Admission, Open
from mars.core.errors import InputError
from mars.core.residency import Residency
from mars.core.settings import GateSettings, ResidencySettings, TenantSettings, WindowSettings
from mars.core.tenants import TenantShares
from mars.core.window import Window
from mars.policy.autellix import LeastServed
from mars.policy.base import KeepNothing, Ordering, Policy, Retention
from mars.policy.by_share import ByShare
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
from mars.policy.session_fcfs import SessionFcfs
from mars.policy.settings import (
    AutellixSettings,
    ConcurSettings,
    ContinuumSettings,
    HoldSettings,
    InferceptSettings,
    LeastLeftSettings,
    OrderSettings,
    PreviewOrderSettings,
    PreviewWindowSettings,
    ThunderAgentSettings,
    ToolOrderSettings,
    WorthSettings,
)
from mars.policy.thunderagent import ThunderAgent
from mars.policy.tool_order import Fifo, ShortestFirst, ToolOrder


class Scheduling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which policy, and the settings of its parts (a part that a policy lacks ignores its own)."""

    policy: str = "mars"
    gate: GateSettings = GateSettings()
    residency: ResidencySettings = ResidencySettings()
    least_left: LeastLeftSettings = LeastLeftSettings()
    worth: WorthSettings = WorthSettings()
    tenants: TenantSettings = TenantSettings()
    window: WindowSettings = WindowSettings()
    order: OrderSettings = OrderSettings()
    hold: HoldSettings = HoldSettings()
    tool_order: ToolOrderSettings = ToolOrderSettings()
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
    tools: Callable[[Scheduling], ToolOrder]
    about: str


def _open(_: Scheduling) -> Admission:
    return Open()


def _residency(s: Scheduling) -> Admission:
    return Residency(s.residency, TenantShares(s.tenants) if s.tenants.weights else None)


def _residency_no_host(s: Scheduling) -> Admission:
    blind = msgspec.structs.replace(s.residency, host_share=0.0)
    return _residency(msgspec.structs.replace(s, residency=blind))


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


def _least_left(s: Scheduling) -> Ordering:
    order = LeastLeftFirst(s.least_left)
    return ByShare(order, s.tenants) if s.tenants.weights else order


def _continuations(s: Scheduling) -> Ordering:
    return ContinuationsFirst(s.order)


def _nothing(_: Scheduling) -> Retention:
    return KeepNothing()


def _worth(s: Scheduling) -> Retention:
    return WorthKeeping(s.worth)


def _worth_at_once(s: Scheduling) -> Retention:
    return WorthKeeping(msgspec.structs.replace(s.worth, spares=0.0))


def _worth_no_host(s: Scheduling) -> Retention:
    return ComputedAgain(s.worth)


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


def _fifo(_: Scheduling) -> ToolOrder:
    return Fifo()


def _shortest(s: Scheduling) -> ToolOrder:
    return ShortestFirst(s.tool_order)


PRESETS: Final[Mapping[str, Preset]] = {
    #                       who enters  who runs  what stays warm  who gets cores
    "fcfs": Preset(_open, _fcfs, _nothing, _fifo, "stock vLLM"),
    "session_fcfs": Preset(_open, _session_fcfs, _nothing, _fifo, "vLLM priority = session start"),
    "autellix": Preset(_open, _least_served, _nothing, _fifo, "PLAS: least served program first"),
    "autellix-released": Preset(
        _open, _least_served_released, _nothing, _fifo, "autellix, prompts cut to quanta"
    ),
    "infercept": Preset(_open, _fcfs, _least_waste, _fifo, "keep KV while that wastes less"),
    "infercept-released": Preset(
        _open, _fcfs, _least_waste_released, _fifo, "infercept, 200 us a token"
    ),
    "continuum": Preset(_open, _held_first, _static_ttl, _fifo, "program FCFS, KV pinned for 2 s"),
    "continuum-dynamic": Preset(
        _open, _held_first, _dynamic_ttl, _fifo, "continuum, learned pin times"
    ),
    "continuum-dynamic-released": Preset(
        _open, _held_first, _dynamic_ttl_released, _fifo, "continuum-dynamic, 200 us a token"
    ),
    "thunderagent": Preset(
        _thunderagent, _fcfs, _nothing, _fifo, "sends sessions back while KV is short"
    ),
    "concur": Preset(_concur, _fcfs, _nothing, _fifo, "congestion window on KV use and cache hits"),
    "mars_preview": Preset(_preview_window, _preview_levels, _nothing, _fifo, "its published code"),
    "mars-paper": Preset(
        _window, _continuations, _ski_rental, _fifo, "the paper's mechanisms, its faults mended"
    ),
    "mars": Preset(
        _residency, _least_left, _worth, _shortest, "room in KV, least work left, keep what pays"
    ),
    "mars-no-admission": Preset(_open, _least_left, _worth, _shortest, "mars, everybody enters"),
    "mars-aimd": Preset(_window, _least_left, _worth, _shortest, "mars, the paper's gate"),
    "mars-no-order": Preset(_residency, _fcfs, _worth, _shortest, "mars, calls as they come"),
    "mars-no-hold": Preset(_residency, _least_left, _nothing, _shortest, "mars, nothing kept warm"),
    "mars-no-idling": Preset(
        _residency, _least_left, _worth_at_once, _shortest, "mars, never idle while a call waits"
    ),
    "mars-no-tool-order": Preset(
        _residency, _least_left, _worth, _fifo, "mars, tools as they come"
    ),
    "mars-no-host": Preset(
        _residency_no_host, _least_left, _worth_no_host, _shortest, "mars, blind to host memory"
    ),
}


def build_admission(scheduling: Scheduling) -> Admission:
    return PRESETS[scheduling.policy].admission(scheduling)


def build_policy(scheduling: Scheduling) -> Policy:
    preset = PRESETS[scheduling.policy]
    return Policy(preset.ordering(scheduling), preset.retention(scheduling))


def build_tool_order(scheduling: Scheduling) -> ToolOrder:
    return PRESETS[scheduling.policy].tools(scheduling)
