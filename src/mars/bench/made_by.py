"""Which code has made a run: every folder of figures says it."""

import subprocess
from importlib.metadata import version
from pathlib import Path

import mars


def made_by() -> dict[str, str]:
    """Version and commit."""
    return {"version": version("mars"), "commit": _commit()}


def _commit() -> str:
    """Of the checkout that this code is from, `-dirty` if it was changed; empty: no checkout."""
    here = Path(mars.__file__)
    tracked = ("git", "-C", here.parent, "ls-files", "--error-unmatch", here.name)
    named = ("git", "-C", here.parent, "describe", "--always", "--dirty", "--abbrev=40")
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        done = subprocess.run((*named, "--exclude=*"), check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
