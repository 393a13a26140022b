"""The repositories that agents mend, without agents."""

import subprocess
import unittest
from pathlib import Path

import pytest

from mars.bench.functions import FUNCTIONS, Function
from mars.bench.repositories import Task, make_tasks
from mars.core.errors import ResultError


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_the_test_of_a_function_finds_its_mistake_and_the_mistake_can_be_mended(
    function: Function,
) -> None:
    broken = function.source.replace(function.right, function.wrong)
    assert broken.replace(function.wrong, function.right) == function.source
    case = unittest.TestCase()
    exec(function.source + function.test, {"self": case})  # noqa: S102
    with pytest.raises((AssertionError, IndexError, TypeError)):
        exec(broken + function.test, {"self": case})  # noqa: S102


def play(task: Task, folder: Path) -> str:
    for step in task.steps:
        subprocess.run(["bash", "-c", step.command], cwd=folder, check=False, capture_output=True)  # noqa: S607
    return task.check(folder)


def test_a_recorded_agent_mends_its_repository_and_leaves_the_same_tree_each_time(
    tmp_path: Path,
) -> None:
    first, second = make_tasks(2, seed=3)
    assert first.statement != second.statement
    trees = []
    for _ in range(2):
        first.make(tmp_path / "work")
        with pytest.raises(ResultError, match="its tests do not pass"):
            first.check(tmp_path / "work")
        trees.append(play(first, tmp_path / "work"))
    assert trees[0] == trees[1]
    second.make(tmp_path / "work")
    assert play(second, tmp_path / "work") != trees[0]


def test_what_is_not_committed_is_no_good(tmp_path: Path) -> None:
    [task] = make_tasks(1, seed=3)
    task.make(tmp_path)
    play(task, tmp_path)
    (tmp_path / "left.txt").touch()
    with pytest.raises(ResultError, match=r"not everything is committed: \?\? left.txt"):
        task.check(tmp_path)


def test_tasks_are_a_function_of_the_seed() -> None:
    assert make_tasks(3, seed=1) == make_tasks(3, seed=1)
    assert make_tasks(3, seed=1) != make_tasks(3, seed=2)
