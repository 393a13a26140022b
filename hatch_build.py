"""Compiles what runs in the hot loops (mypyc), into a wheel, where the hook is asked for:

    HATCH_BUILD_HOOKS_ENABLE=1 pip install .

Without it mars is pure Python, with the same results. Nothing is written beside the sources.
"""

import contextlib
import re
import runpy
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from mypyc.build import mypycify
from setuptools import Extension, setup

HOT: Final = ("core/*.py", "policy/*.py", "sim/*.py", "bench/phases.py")
PYTHON: Final = {
    "core/errors.py",  # an exception gets attributes from whoever catches it
    "core/lifecycle.py",  # runs as a program
    "policy/base.py",  # what a policy of one's own inherits from
}
STRUCT: Final = re.compile(r"^class \w+\(.*\bmsgspec\.Struct\b", re.MULTILINE)
"""mypyc loses the arguments of such a class."""


class CompiledHook(BuildHookInterface):  # type: ignore[misc]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # a compiled module would hide the source that is being edited
        self._folder = TemporaryDirectory()
        root, folder = Path(self.root), Path(self._folder.name)
        made = compiled(root / "src" / "mars", folder)
        commit = folder / "commit"
        commit.write_text(
            runpy.run_path(str(root / "src/mars/bench/made_by.py"))["commit_of"](root / "src")
        )
        made[str(commit)] = "mars/commit"
        build_data["force_include"].update(made)
        build_data["infer_tag"], build_data["pure_python"] = True, False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        del build_data, artifact_path
        if version != "editable":
            self._folder.cleanup()


def sources(package: Path) -> list[str]:
    """Of the package at `package` what is compiled, from there."""
    files = sorted(p for pattern in HOT for p in package.glob(pattern))
    return [
        name
        for path in files
        if path.name != "__init__.py"
        and (name := path.relative_to(package).as_posix()) not in PYTHON
        and not STRUCT.search(path.read_text())
    ]


def compiled(package: Path, folder: Path) -> dict[str, str]:
    """Compile a copy of `package` in `folder`; returns files there, and their places in a wheel."""
    copy = folder / "mars"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    with contextlib.chdir(folder):
        extensions: list[Extension] = mypycify(
            [f"mars/{name}" for name in sources(copy)],
            opt_level="3",
            debug_level="0",
            group_name="mars",
        )
        setup(
            name="mars",
            packages=[],
            ext_modules=extensions,
            script_args=["-q", "build_ext", "--inplace"],
        )
    made = [*folder.glob("*.so"), *copy.glob("**/*.so")]
    return {str(path): path.relative_to(folder).as_posix() for path in made}
