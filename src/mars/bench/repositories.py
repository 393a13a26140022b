"""Small real repositories with a mistake in them, and how an agent finds and mends it.

Everything is drawn from a seed: a package of several modules, its tests, a script that takes CPU
time, a history in git. Commands are real, and take as long as they take here: tests of the whole
package, searches, reading files, stress runs, waits. What the agent says and calls is recorded, so
it is the same whoever serves it; the check at the end is not: the tests pass, everything is
committed, and the tree that git has of it is the same in every round.
"""

import random
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mars.bench.functions import FUNCTIONS, Function
from mars.core.errors import ResultError

_TIMEOUT_S: Final = 120.0
_STRESS: Final = '''"""Calls functions of the package over and over: python3 stress.py ROUNDS."""

import sys


def work(number):
    total = 0
    for value in range(number, number + 4000):
        total = (total * 31 + value * value) % 1000003
    return total


rounds = int(sys.argv[1])
for done in range(rounds):
    result = work(done)
    if done % 100 == 99:
        print(f"round {done + 1} of {rounds}: {result}")
print("stress run passed")
'''
_THOUGHTS: Final = (
    "The tests tell where to look, so I read what they say before I change anything.",
    "I want to see how the rest of the package uses this before I touch it.",
    "It is worth knowing whether the other modules have the same mistake.",
    "The names suggest what each function should do; the docstrings say it in full.",
    "I keep the change as small as it can be, and run everything again afterwards.",
    "A stress run takes a little longer, but it shows what a unit test does not.",
)


@dataclass(frozen=True, slots=True)
class Step:
    says: str
    command: str


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    modules: Mapping[str, Sequence[Function]]
    broken: tuple[str, Function]
    """Module and function with the mistake."""
    steps: Sequence[Step]

    @property
    def statement(self) -> str:
        return f"The tests of the package {self.name} fail. Find the mistake, mend it, commit it."

    def make(self, folder: Path) -> None:
        """The repository as an agent finds it; whatever is at `folder` goes away."""
        shutil.rmtree(folder, ignore_errors=True)
        package = folder / self.name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f'"""The package {self.name}."""\n')
        for module, functions in self.modules.items():
            sources = [self._source(module, function) for function in functions]
            (package / f"{module}.py").write_text("\n\n".join(sources))
            (folder / f"test_{module}.py").write_text(self._tests(module, functions))
        (folder / "stress.py").write_text(_STRESS)
        (folder / ".gitignore").write_text("__pycache__/\n")
        _git(folder, "init", "--quiet", "--initial-branch=main")
        _git(folder, "config", "user.name", "An agent")
        _git(folder, "config", "user.email", "agent@example.org")
        _git(folder, "add", "--all")
        _git(folder, "commit", "--quiet", "--message", f"Add {self.name}")

    def check(self, folder: Path) -> str:
        """Git's name of the tree that an agent has left. Raises ResultError when it is no good."""
        if left := _git(folder, "status", "--porcelain"):
            raise ResultError(f"{self.name}: not everything is committed: {left}")
        tests = _run(folder, sys.executable, "-m", "unittest", "-q")
        if tests.returncode != 0:
            raise ResultError(f"{self.name}: its tests do not pass: {tests.stderr[-500:]}")
        return _git(folder, "rev-parse", "HEAD^{tree}")

    def _source(self, module: str, function: Function) -> str:
        if (module, function) == self.broken:
            return function.source.replace(function.right, function.wrong)
        return function.source

    def _tests(self, module: str, functions: Sequence[Function]) -> str:
        cases = "\n\n".join(
            f"    def test_{function.name}(self):\n        {function.test}"
            for function in functions
        )
        names = ", ".join(function.name for function in functions)
        return (
            f"import unittest\n\nfrom {self.name}.{module} import {names}\n\n\n"
            f"class {module.title()}Test(unittest.TestCase):\n{cases}\n"
        )


def make_tasks(count: int, seed: int) -> list[Task]:
    return [_task(number, random.Random(f"{seed}/{number}")) for number in range(count)]


def _task(number: int, rng: random.Random) -> Task:
    name = f"toolbox{number:02}"
    modules = {
        module: tuple(rng.sample(FUNCTIONS, rng.randint(5, 8)))
        for module in rng.sample(
            ("numbers", "texts", "lists", "tables", "dates"), rng.randint(3, 5)
        )
    }
    module = rng.choice(list(modules))
    function = rng.choice(modules[module])
    steps = [
        Step(rng.choice(_THOUGHTS), command)
        for command in _commands(name, modules, module, function, rng)
    ]
    return Task(name, modules, (module, function), steps)


def _commands(
    name: str,
    modules: Mapping[str, Sequence[Function]],
    module: str,
    function: Function,
    rng: random.Random,
) -> list[str]:
    others = [f"{name}/{other}.py" for other in modules if other != module]
    rng.shuffle(others)
    half = rng.randint(1, len(others))
    reading = [f"cat {' '.join(some)}" for some in (others[:half], others[half:]) if some]
    file = f"{name}/{module}.py"
    return [
        "ls -R . && git --no-pager log --stat",
        "python3 -m unittest -q",
        f"grep -rn {function.name} .",
        f"cat {file} test_{module}.py",
        *reading,
        f"python3 stress.py {rng.randint(300, 1200)} | tail -3",
        f"sleep {rng.choice((1, 2, 4))} && git --no-pager status",
        f"python3 - <<'EOF'\n{_mend(file, function)}EOF",
        "git --no-pager diff && python3 -m unittest -q",
        f"python3 stress.py {rng.randint(600, 2400)} | tail -3",
        f"git commit --quiet --all --message 'Mend {function.name}' && git --no-pager show --stat",
    ]


def _mend(file: str, function: Function) -> str:
    return (
        "from pathlib import Path\n"
        f"file = Path({file!r})\n"
        f"file.write_text(file.read_text().replace({function.wrong!r}, {function.right!r}))\n"
    )


def _git(folder: Path, *arguments: str) -> str:
    ran = _run(folder, "git", *arguments)
    if ran.returncode != 0:
        raise ResultError(f"git {arguments[0]} in {folder}: {ran.stderr.strip()}")
    return ran.stdout.strip()


def _run(folder: Path, *argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        argv, cwd=folder, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
