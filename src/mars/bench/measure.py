"""A run folder (`bench.record`) read, checked and measured.

Only repetitions that every policy finished count: every number is then over the same work, and
ratios can be taken pair by pair. What each number is stands in `bench.rounds`.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mars.bench import record
from mars.bench.rounds import Figures, Round, figures
from mars.bench.turns import is_turned
from mars.core import events as ev
from mars.core.errors import InputError, ResultError
from mars.stream.log import read_log

_REFERENCE = "mars"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    folder: Path
    wall_s: float
    """Calendar time of its start, seconds since 1970."""
    settings: dict[str, Any]
    rounds: Mapping[str, Sequence[Round]]
    """Of each policy, in order of first appearance: its rounds, the same repeats for each."""
    notes: Sequence[str]
    """What a reader has to know before believing the numbers."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Over the pairs: repetition i of the policy / repetition i of the reference (1 = equal)."""

    median: float
    min: float
    max: float
    pairs: int


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """Above 1: the reference is faster."""

    mean: Spread
    """mean_s of a round / mean_s of the reference's round."""
    p95: Spread
    """p95_s of a round / p95_s of the reference's round."""


class PolicyFigures(Figures, frozen=True, kw_only=True):
    """All rounds of a policy pooled, and each on its own."""

    noise_frac: float
    """(max - min) / median of the rounds' mean_s (a share of 1; 0 when there is one round)."""
    rounds: list[Figures]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    reference: str
    repeats: list[int]
    sessions_per_round: int
    policies: dict[str, PolicyFigures]
    ratios: dict[str, Ratio]
    """Every policy but the reference."""
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        built[f"ratio_to_{self.reference}"] = built.pop("ratios")
        return built


def read_run(folder: Path) -> Run:
    """Raise InputError when the run is incomplete, ResultError when answers differ by policy."""
    path = folder / "run.jsonl"
    if not folder.is_dir():
        raise InputError(f"no run folder at {folder}")
    head, _ = read_log(path)
    records = list(_records(path))
    windows, notes = _finished(folder, records)
    rounds = {
        policy: _read_rounds(folder, policy, [w for w in windows if w[0].policy == policy])
        for policy in dict.fromkeys(started.policy for started, _ in windows)
    }
    for started, _ in windows:
        _check_sessions(started, rounds[started.policy], records)
    _check_answers(records)
    return Run(
        folder=folder, wall_s=head.wall_s, settings=head.settings, rounds=rounds, notes=notes
    )


def _records(path: Path) -> Iterator[record.Record]:
    decoder = msgspec.json.Decoder(record.Record)
    for number, line in enumerate(path.read_bytes().split(b"\n")[1:-1], 2):
        try:
            yield decoder.decode(line)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise InputError(f"{path}:{number}: not a record of a run: {error}") from None


_Window = tuple[record.RoundStarted, record.RoundEnded]


def _finished(folder: Path, records: Sequence[record.Record]) -> tuple[list[_Window], list[str]]:
    """Start and end of every round of the repetitions that all policies finished, in order."""
    started = {(r.policy, r.repeat): r for r in records if isinstance(r, record.RoundStarted)}
    ended = {(r.policy, r.repeat): r for r in records if isinstance(r, record.RoundEnded)}
    policies = list(dict.fromkeys(policy for policy, _ in started))
    if not policies:
        raise InputError(f"{folder}: no round was started; the run has nothing to report")
    repeats = sorted({repeat for _, repeat in started})
    whole = [i for i in repeats if all((p, i) in started and (p, i) in ended for p in policies)]
    if not whole:
        done = ", ".join(f"{p} {sum((p, i) in ended for i in repeats)}" for p in policies)
        raise InputError(
            f"{folder}: no repetition was finished under every policy (rounds finished: {done}); "
            "let the run go on to its end, or start it again"
        )
    notes = [
        f"repetition {i} is left out: not finished under "
        + ", ".join(p for p in policies if (p, i) not in ended)
        for i in repeats
        if i not in whole
    ]
    return [(started[p, i], ended[p, i]) for p in policies for i in whole], notes


def _read_rounds(folder: Path, policy: str, windows: Sequence[_Window]) -> list[Round]:
    if "/" in policy:
        raise InputError(f"{folder}: {policy!r} cannot name a policy's log")
    logs: dict[Path, list[ev.Event]] = {}
    rounds = []
    for started, ended in windows:
        whose = started.log or policy
        path = folder / f"{whose}-{started.repeat}.jsonl"  # an engine for each round
        if not path.is_file():
            path = folder / f"{whose}.jsonl"
        if path not in logs:  # several processes stamp, so some lines are late
            logs[path] = sorted(read_log(path)[1], key=lambda event: event.at_s)
        rounds.append(
            Round(
                policy=policy,
                repeat=started.repeat,
                started_s=started.at_s,
                ended_s=ended.at_s,
                events=[e for e in logs[path] if started.at_s <= e.at_s <= ended.at_s],
            )
        )
    return rounds


def _check_sessions(
    started: record.RoundStarted, rounds: Sequence[Round], records: Sequence[record.Record]
) -> None:
    """The driver and the gateway must tell of the same sessions, and of all of them."""
    one = next(r for r in rounds if r.repeat == started.repeat)
    where = f"{started.policy}, repetition {started.repeat}"
    answered = {
        r.session_id
        for r in records
        if isinstance(r, record.SessionAnswered)
        and (r.policy, r.repeat) == (started.policy, started.repeat)
    }
    if not answered or len(answered) != started.sessions:
        raise InputError(f"{where}: {len(answered)} of {started.sessions} sessions were answered")
    for kind in (ev.SessionArrived, ev.SessionAdmitted, ev.SessionEnded):
        seen = {e.session_id for e in one.events if isinstance(e, kind)}
        if odd := sorted(answered ^ seen):
            verb = "is not in its event log" if odd[0] in answered else "is not one of the driver's"
            raise InputError(
                f"{where}: {kind.__name__} of session {odd[0]} {verb} "
                f"(such sessions: {len(odd)} of {started.sessions})"
            )


def _check_answers(records: Sequence[record.Record]) -> None:
    first: dict[str, record.SessionAnswered] = {}
    for one in records:
        if not isinstance(one, record.SessionAnswered):
            continue
        other = first.setdefault(one.recorded_id, one)
        if one.answers_sha256 != other.answers_sha256:
            raise ResultError(
                f"session {one.recorded_id} got other answers under {one.policy}, repetition "
                f"{one.repeat}, than under {other.policy}, repetition {other.repeat}: "
                "policies that did different work cannot be compared"
            )


def measure(run: Run) -> Summary:
    policies = {policy: _pooled(rounds) for policy, rounds in run.rounds.items()}
    reference = _REFERENCE if _REFERENCE in policies else list(policies)[-1]
    base = policies[reference].rounds
    return Summary(
        reference=reference,
        repeats=[r.repeat for r in run.rounds[reference]],
        sessions_per_round=base[0].sessions,
        policies=policies,
        ratios={p: _ratio(f.rounds, base) for p, f in policies.items() if p != reference},
        notes=[*run.notes, *_one_sided(run.rounds[reference]), *_lost_accounts(policies)],
    )


def _one_sided(rounds: Sequence[Round]) -> Iterator[str]:
    """One repetition says for itself that it proves little."""
    turned = sum(is_turned(one.repeat) for one in rounds)
    if len(rounds) > 1 and 2 * turned != len(rounds):
        yield (
            f"{turned} of {len(rounds)} repetitions went through the policies from the last to the "
            "first: not half of them, so what the machine drifted meanwhile is in the ratios"
        )


def _lost_accounts(policies: Mapping[str, Figures]) -> Iterator[str]:
    for policy, of in policies.items():
        if of.calls_unaccounted:
            yield (
                f"{policy}: the engine's account of {of.calls_unaccounted} of "
                f"{of.calls + of.calls_unaccounted} calls was lost; the sums lack their tokens"
            )


def _pooled(rounds: Sequence[Round]) -> PolicyFigures:
    each = [figures([one]) for one in rounds]
    means_s = [f.mean_s for f in each]
    return PolicyFigures(
        **msgspec.structs.asdict(figures(rounds)),
        noise_frac=(max(means_s) - min(means_s)) / statistics.median(means_s),
        rounds=each,
    )


def _ratio(rounds: Sequence[Figures], base: Sequence[Figures]) -> Ratio:
    pairs = list(zip(rounds, base, strict=True))
    return Ratio(
        mean=_spread([a.mean_s / b.mean_s for a, b in pairs]),
        p95=_spread([a.p95_s / b.p95_s for a, b in pairs]),
    )


def _spread(ratios: Sequence[float]) -> Spread:
    return Spread(
        median=statistics.median(ratios), min=min(ratios), max=max(ratios), pairs=len(ratios)
    )
