"""Which code has made a run: every folder of figures says it."""

import subprocess
from importlib.metadata import version
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_COMPILED_FROM = _PACKAGE / "commit"
"""Which a compiled wheel has (hatch_build.py)."""


def made_by() -> dict[str, str]:
    """Version and commit."""
    return {"version": version("mars"), "commit": _commit()}


def _commit() -> str:
    return _COMPILED_FROM.read_text() if _COMPILED_FROM.exists() else commit_of(_PACKAGE)


def commit_of(folder: Path) -> str:
    """Of the checkout that a folder is in, `-dirty` if it was changed; empty: it is in none."""
    tracked = ("git", "-C", folder, "ls-files", "--error-unmatch", ".")
    named = ("git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40")
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        done = subprocess.run((*named, "--exclude=*"), check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
