"""The fit of `mars calibrate`: a cost profile for the simulator from what was measured.

The law is the simulator's Linear one; each point is one equation for its constants,

    seconds = api + api_token sent + c0 steps + p prompt + d decodes + a context + q pairs

and the constants are the least squares of the relative errors, none below 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from mars.bench.points import Point
from mars.sim.laws import Linear
from mars.sim.profiles import Profile, Provenance

_NAMES: Final = (
    "api_s", "api_token_s", "step_s", "prefill_token_s", "decode_call_s", "context_token_s",
    "pair_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fit:
    constants: dict[str, float]
    errors: dict[str, list[float]]
    """Relative errors of the points, by kind."""

    def error_frac(self, kind: str) -> float:
        """Nine of ten points are within this."""
        errors = sorted(abs(e) for e in self.errors[kind])
        return errors[int(0.9 * (len(errors) - 1))]


def fit(points: Sequence[Point]) -> Fit:
    """Least squares of the relative errors with all constants at least 0: a constant that would be
    negative is left out, and the others are fitted again.
    """
    rows = np.array([[c / p.took_s for c in p.counts] for p in points])
    used = list(range(len(_NAMES)))
    while True:
        found, *_ = np.linalg.lstsq(rows[:, used], np.ones(len(points)), rcond=None)
        if found.min() >= 0.0:
            break
        del used[int(found.argmin())]
    constants = np.zeros(len(_NAMES))
    constants[used] = found
    errors: dict[str, list[float]] = {}
    for point, predicted in zip(points, rows @ constants, strict=True):
        errors.setdefault(point.kind, []).append(float(predicted) - 1.0)
    return Fit(dict(zip(_NAMES, map(float, constants), strict=True)), errors)


def profile_of(
    fitted: Fit, *, name: str, model: str, card: str, kv_tokens: int, start_s: float
) -> Profile:
    constants = dict(fitted.constants)
    api_s, api_token_s = constants.pop("api_s"), constants.pop("api_token_s")
    points = sum(map(len, fitted.errors.values()))
    return Profile(
        name=name,
        model=model,
        card=card,
        law=Linear(**constants),
        decode_error_frac=fitted.error_frac("decode"),
        prefill_error_frac=fitted.error_frac("prompt"),
        memory_bytes=0,
        weight_bytes=0,
        kv_bytes_per_token=1,
        kv_tokens=kv_tokens,
        api_s=api_s,
        api_token_s=api_token_s,
        command_s=start_s,
        provenance=Provenance(
            source="mars calibrate",
            licence="",
            versions="",
            fitted=f"all constants of the law and of the way to the engine, from {points} points",
            fit_error=", ".join(
                f"{kind}s: nine of ten within {fitted.error_frac(kind):.0%}"
                for kind in fitted.errors
            ),
            error_bars="the fit's own; memory and weights were not asked",
        ),
    )
