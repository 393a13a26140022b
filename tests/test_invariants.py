"""docs/invariants.md and docs/faults.md name only tests that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "invariants.md").read_text()
FAULTS = (ROOT / "docs" / "faults.md").read_text()
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+(?:::\w+)?)`")
TEST = re.compile(r"test|Test")


def collected(path: Path) -> set[str]:
    """What pytest would collect: functions, classes with their methods, state machines."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                found.add(name)
                methods = (
                    it for it in body if isinstance(it, ast.FunctionDef | ast.AsyncFunctionDef)
                )
                found |= {f"{name}::{method.name}" for method in methods}
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Attribute(attr="TestCase")):
                found.add(name)
            case _:
                pass
    return {name for name in found if all(TEST.match(part) for part in name.split("::"))}


def invariants() -> dict[int, str]:
    """Number to text."""
    parts = re.split(r"^\* \*\*I(\d+)\*\* ", PAGE, flags=re.MULTILINE)[1:]
    numbers, texts = parts[::2], parts[1::2]
    assert len(set(numbers)) == len(numbers), "a number is used twice"
    return dict(zip(map(int, numbers), texts, strict=True))


def test_invariants_are_numbered_without_a_gap() -> None:
    numbers = list(invariants())
    assert numbers
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_invariant_names_a_test() -> None:
    bare = [f"I{number}" for number, text in invariants().items() if not NAMED.search(text)]
    assert bare == []


@pytest.mark.parametrize("page", [PAGE, FAULTS], ids=["invariants", "faults"])
def test_every_test_named_on_the_page_exists(page: str) -> None:
    # A reference that the pattern cannot read would never be checked.
    assert len(NAMED.findall(page)) == page.count(".py::")
    missing = [
        f"{path}::{name}"
        for path, name in NAMED.findall(page)
        if not (ROOT / path).is_file() or name not in collected(ROOT / path)
    ]
    assert missing == []
