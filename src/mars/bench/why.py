"""The comparison in plain sentences: computed from the numbers, and saying no more than they do."""

from collections.abc import Iterator
from typing import Final

from mars.bench.measure import PolicyFigures, Ratio, Summary
from mars.bench.words import count, listing, percent, ratio, seconds

_WORTH_SAYING_FRAC: Final = 0.02
"""A phase is named when it moves the mean session time by at least this share."""


def why(summary: Summary) -> Iterator[str]:
    """The reference against the fastest of the others."""
    others = {p: f for p, f in summary.policies.items() if p != summary.reference}
    if not others:
        yield f"Only {summary.reference} was run: there is nothing to compare it with."
        return
    rival = min(others, key=lambda policy: others[policy].mean_s)
    names, pair = (summary.reference, rival), (summary.policies[summary.reference], others[rival])
    yield _verdict(names, pair, summary.ratios[rival], alone=len(others) == 1)
    yield from _where(names, pair)
    yield _work(names, pair)
    yield from _holds(names, pair)


_Names = tuple[str, str]
_Pair = tuple[PolicyFigures, PolicyFigures]


def _verdict(names: _Names, pair: _Pair, of: Ratio, *, alone: bool) -> str:
    ours, theirs = names
    who = theirs if alone else f"{theirs} (the fastest of the others)"
    mean, p95 = of.mean, of.p95
    spread = f", {ratio(mean.min)} to {ratio(mean.max)} over {mean.pairs} pairs"
    numbers = (
        f"mean session time {seconds(pair[0].mean_s)} against {seconds(pair[1].mean_s)} "
        f"({ratio(mean.median)}{spread if mean.pairs > 1 else ''}), "
        f"p95 {seconds(pair[0].p95_s)} against {seconds(pair[1].p95_s)} ({ratio(p95.median)})."
    )
    if mean.pairs == 1:
        return f"{ours} against {who}, in one repetition, which cannot show the noise: {numbers}"
    if mean.min > 1:
        return f"{ours} is faster than {who}, in every repetition: {numbers}"
    if mean.max < 1:
        return f"{ours} is slower than {who}, in every repetition: {numbers}"
    return f"{ours} is not better than {who} beyond the noise between repetitions: {numbers}"


def _where(names: _Names, pair: _Pair) -> Iterator[str]:
    """The difference of the means, phase by phase: the phases add up to the session time."""
    ours, theirs = (f.phase_mean_s for f in pair)
    saved_s = {phase: theirs[phase] - ours[phase] for phase in ours}
    least_s = _WORTH_SAYING_FRAC * pair[1].mean_s

    def named(sign: int) -> list[str]:
        phases = sorted(saved_s, key=lambda phase: -sign * saved_s[phase])
        return [
            f"'{phase}' ({seconds(ours[phase])} against {seconds(theirs[phase])})"
            for phase in phases
            if sign * saved_s[phase] >= least_s
        ]

    sides = (("less", named(1)), ("more", named(-1)))
    said = [f"{side} time {listing(phases)}" for side, phases in sides if phases]
    if said:
        yield f"A session under {names[0]} spends {'; '.join(said)}."
    else:
        yield f"No phase differs by {_WORTH_SAYING_FRAC * 100:.0f} % of the session time."


def _work(names: _Names, pair: _Pair) -> str:
    ours, theirs = pair
    return (
        f"{names[0]} computed {count(ours.recomputed_tokens)} tokens a second time, {names[1]} "
        f"{count(theirs.recomputed_tokens)}; prefix hits {percent(ours.hit_frac)} against "
        f"{percent(theirs.hit_frac)}, preemptions {ours.preemptions} against "
        f"{theirs.preemptions}; sessions waited {seconds(ours.gate_wait_mean_s)} at the gate "
        f"against {seconds(theirs.gate_wait_mean_s)}."
    )


def _holds(names: _Names, pair: _Pair) -> Iterator[str]:
    for name, of in zip(names, pair, strict=True):
        if of.holds:
            lost = [f"{n} {why}" for why, n in of.releases.items() if why != "returned"]
            rest = f"; the others: {', '.join(lost)}" if lost else ""
            yield f"{of.holds_paid} of {of.holds} holds of {name} paid off{rest}."
