"""Where a grid's figures come from: what its folder says of itself."""

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from mars.bench.words import listing, number, percent
from mars.compare.row import Row
from mars.core.errors import InputError
from mars.sim.profiles import load_profile

_GRID: Final = "grid.toml"
_FAILURES: Final = "failures.jsonl"


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    folder: str
    grid: str
    version: str | None
    """Of mars, when the runs were made."""
    commit: str | None
    """Ends in -dirty when files were changed since."""
    profiles: dict[str, str]
    """Of each cost profile its error bars, or why there are none."""
    policies: list[str]
    """Asked for, or seen where nothing says what was asked for."""
    seeds: list[int]
    sessions: list[int]
    """Per run; several numbers: cells differ."""
    baselines: str
    """How the baselines' own constants were set."""
    settings: dict[str, Any]
    """grid.toml as it is."""
    failures: list[str]


def provenance(folder: Path, rows: Sequence[Row]) -> Provenance:
    told = _told(folder / _GRID)
    made_by = told.get("made_by", {})
    policies = [*told.get("policies", []), *(row.policy for row in rows)]
    released = sorted({p for p in policies if p.endswith("-released")})
    own = sorted(told.get("scheduling", {}))
    return Provenance(
        folder=str(folder),
        grid=told.get("name", folder.resolve().name),
        version=made_by.get("version"),
        commit=made_by.get("commit") or None,
        profiles={name: _error_bars(name) for name in sorted({row.profile for row in rows})},
        policies=list(dict.fromkeys(policies)),
        seeds=sorted({*told.get("seeds", []), *(row.seed for row in rows)}),
        sessions=sorted({row.sessions for row in rows}),
        baselines=(
            f"calibrated; as released: {listing(released) if released else 'none'}; "
            f"settings of their own: {listing(own) if own else 'none'}"
        ),
        settings=told,
        failures=list(_failures(folder / _FAILURES)),
    )


def _told(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _error_bars(name: str) -> str:
    try:
        profile = load_profile(name)
    except InputError:
        return "error bars unknown: the profile is not at hand"
    decode, prefill = percent(profile.decode_error_frac), percent(profile.prefill_error_frac)
    return f"decode +-{decode}, prefill +-{prefill}"


class _Failure(msgspec.Struct):
    run: str
    error: str


def _failures(path: Path) -> Iterator[str]:
    lines = path.read_bytes().splitlines() if path.is_file() else []
    decoder = msgspec.json.Decoder(_Failure)
    for number_of, line in enumerate(lines, 1):
        try:
            failure = decoder.decode(line)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise InputError(f"{path}:{number_of}: not a failure: {error}") from None
        yield f"{failure.run}: {failure.error.strip().splitlines()[-1]}"


def told(of: Provenance, rows: int, cells: int) -> dict[str, str]:
    """For the top of a report, name by name."""
    seeds, sessions = ([str(n) for n in some] for some in (of.seeds, of.sessions))
    return {
        "grid": f"{of.grid} ({number(rows, 'run')} in {number(cells, 'cell')})",
        "made by": f"mars {of.version or '(version not recorded)'}, commit "
        f"{of.commit or 'not recorded'}",
        **{f"profile {name}": bars for name, bars in of.profiles.items()},
        "policies": listing(of.policies),
        "seeds": listing(seeds),
        "sessions per run": listing(sessions),
        "baselines": of.baselines,
    }
