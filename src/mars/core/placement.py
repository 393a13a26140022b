"""Which of several engines a new session goes to.

To the one that will be the least full with it. Where all tell of their KV, full is

    (what admitted sessions have or are about to have + those at the gate and the newcomer) / KV

else the number of calls that are open or wait, which every gateway knows of every engine. An engine
that has just come up counts as fuller than it is: by 1 / warmth, and warmth grows from COLD to 1 in
`slow_start_s`. Its caches are empty, and all that comes at once would run cold beside each other.

Who waits at one gate, and was never in, goes on to another engine that has room: nobody waits
there, its gate is not shut, and its KV is known and with the newcomer at most ROOM full.
"""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

State = Literal["up", "down", "draining"]
"""`down`: it does not answer; `draining`: it is to get no new calls."""
COLD: Final = 0.1
ROOM: Final = 0.9
"""Share of KV that may be taken where one who waits elsewhere is brought: below what the gates of
the presets fill, so that it is let in."""


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    url: str
    state: State
    up_since_s: float
    """Since when it is `up` without a pause; -inf: since before we came."""
    kv_frac: float | None
    """KV that its sessions have or are about to have, over its capacity; None: not known."""
    newcomer_frac: float | None
    """What the newcomer's prompt is expected to take of its KV."""
    waiting: int
    """Sessions at its gate, but for those that a limit of their tenant keeps out."""
    calls: int
    """Open ones."""
    is_shut: bool = False
    """Its gate lets nobody in for now, whatever room there is; or it cannot see, and lets all."""


def place(engines: Iterable[EngineView], now_s: float, slow_start_s: float) -> EngineView | None:
    """None: no engine is up. Of equals, the one with fewer calls, then the first."""
    up = [engine for engine in engines if engine.state == "up"]
    by_kv = all(engine.kv_frac is not None and engine.newcomer_frac for engine in up)

    def fullness(engine: EngineView) -> tuple[float, int]:
        more = engine.waiting + 1
        full = float(engine.calls + more)
        if by_kv:
            full = (engine.kv_frac or 0.0) + more * (engine.newcomer_frac or 0.0)
        return full / warmth(engine, now_s, slow_start_s), engine.calls

    return min(up, key=fullness, default=None)


def elsewhere(
    engines: Iterable[EngineView], now_s: float, slow_start_s: float
) -> EngineView | None:
    """Where one who waits at another gate would be let in at once, by what is known; None: nowhere.

    Of several the one where a newcomer would go.
    """
    return place((engine for engine in engines if _has_room(engine)), now_s, slow_start_s)


def _has_room(engine: EngineView) -> bool:
    if engine.kv_frac is None or engine.newcomer_frac is None or engine.waiting or engine.is_shut:
        return False
    return engine.kv_frac + engine.newcomer_frac <= ROOM


def warmth(engine: EngineView, now_s: float, slow_start_s: float) -> float:
    """Share of its part that an engine gets of what comes, COLD to 1."""
    return min(1.0, max(COLD, (now_s - engine.up_since_s) / slow_start_s))
