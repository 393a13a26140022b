"""`mars explain RUN [SESSION]`: the sessions of a run, or one session's life with its reasons.

chosen_rounds   RUN -> rounds: a replay's folder has several, any other log is one
find_life       SESSION -> its life: an id, that of the trace (without #repeat), or a beginning
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console, Group

from mars.bench.explain import Life, account, lives, overview, shown
from mars.bench.explain_table import printed_life, printed_sessions
from mars.bench.measure import read_run
from mars.bench.rounds import Round
from mars.bench.words import listing, number
from mars.core.errors import InputError, ResultError
from mars.stream.log import LogHead, read_log

_MOST_LINES: Final = 60
"""A longer life is folded, and a longer list of sessions cut."""
_NAMED: Final = 5
"""Of sessions or rounds in an error."""
_WIDTH: Final = 160
"""Of what is no terminal."""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Which of a run's rounds and of an id's stays."""

    policy: str | None = None
    repeat: int | None = None
    stay: int | None = None


def explain_command(
    *,
    run: Path,
    session: str | None,
    choice: Choice,
    around_s: float | None,
    last: int | None,
    everything: bool,
    as_json: bool,
) -> None:
    if around_s is not None and last is not None:
        raise InputError("--around (a time of its life) and --last (its end): give one")
    if session is None and not (around_s is None and last is None):
        raise InputError("--around and --last are of one session: name it after RUN")
    most = None if everything else _MOST_LINES
    found = [life for one in chosen_rounds(run, choice) for life in lives(one)]
    if not found:
        raise InputError(f"{run}: no session has come yet")
    if session is None:
        slowest = sorted(map(overview, found), key=lambda of: -of.total_s)
        _show(slowest, printed_sessions(slowest, most), as_json=as_json)
        return
    life = find_life(found, session, choice.stay)
    told = account(life)
    picked = shown(told.lines, around_s=around_s, last=last, most=None if as_json else most)
    told = msgspec.structs.replace(told, lines=picked)
    stays = sum(other.session_id == life.session_id for other in lives(life.round))
    _show(told, printed_life(told, stays), as_json=as_json)


def _show(built: object, printed: Group, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(built), indent=2).decode() + "\n")
        return
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else _WIDTH
    console.print(printed)


# -- which life -----------------------------------------------------------------------------------


def _find_rounds(run: Path) -> list[Round]:
    """Raises InputError where there is no log, or what `read_run` raises of a replay."""
    if (run / "run.jsonl").is_file():
        try:
            return [one for rounds in read_run(run).rounds.values() for one in rounds]
        except (InputError, ResultError) as error:
            hint = f"one policy's log can be explained alone: {run}/POLICY.jsonl"
            raise type(error)(f"{error}; {hint}") from None
    if run.is_dir():
        run = run / "events.jsonl"
        if not run.is_file():
            raise InputError(
                f"{run.parent} has no event log: neither events.jsonl (`mars serve`) nor run.jsonl "
                "(`mars replay`); `mars simulate --events FILE` and `mars gateway --events FILE` "
                "write one"
            )
    head, facts = read_log(run)
    events = sorted(facts, key=lambda event: event.at_s)  # several processes stamp
    if not events:
        raise InputError(f"{run} has no events: nothing has happened yet")
    return [
        Round(
            policy=_policy(head),
            repeat=0,
            started_s=events[0].at_s,
            ended_s=events[-1].at_s,
            events=events,
        )
    ]


def _policy(head: LogHead) -> str:
    scheduling: Any = head.settings.get("scheduling")
    return str(scheduling.get("policy")) if isinstance(scheduling, dict) else "unknown"


def chosen_rounds(run: Path, choice: Choice) -> list[Round]:
    there = _find_rounds(run)
    fit = [
        one
        for one in there
        if choice.policy in {None, one.policy} and choice.repeat in {None, one.repeat}
    ]
    if not fit:
        raise InputError(f"{run} has no such round; it has {_named(there)}")
    return fit


def _named(rounds: Sequence[Round]) -> str:
    return _some([f"--policy {one.policy} --repeat {one.repeat}" for one in rounds])


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return listing([*names[:_NAMED], *more])


def find_life(found: Sequence[Life], session: str, stay: int | None) -> Life:
    """The last stay, where none is named. Raises InputError where it is not one session's."""
    ids = dict.fromkeys(str(life.session_id) for life in found)
    chosen = (
        [each for each in ids if each == session]
        or [each for each in ids if each.rpartition("#")[0] == session]
        or [each for each in ids if each.startswith(session)]
    )
    if not chosen:
        close = get_close_matches(session, ids, n=_NAMED, cutoff=0.5)
        near = f"; close to it: {', '.join(close)}" if close else ""
        raise InputError(
            f"no session {session!r} among {len(ids)}{near}; without it, all are listed"
        )
    if len(chosen) > 1:
        raise InputError(f"{session!r} may be any of {_some(chosen)}: give more of the id")
    its = [life for life in found if life.session_id == chosen[0]]
    rounds = list({id(life.round): life.round for life in its}.values())
    if len(rounds) > 1:
        raise InputError(f"session {chosen[0]} is in several rounds, name one: {_named(rounds)}")
    if stay is None:
        return its[-1]
    if stay > len(its):
        raise InputError(f"--stay {stay}: session {chosen[0]} came {number(len(its), 'time')}")
    return its[stay - 1]
