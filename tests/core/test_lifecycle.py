"""docs/lifecycle.md is what the table says."""

import subprocess
import sys
from pathlib import Path

from mars.core.lifecycle import diagram
from mars.core.session import MOVES

PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"


def test_the_page_is_generated() -> None:
    assert PAGE.read_text() == diagram()


def test_the_module_prints_the_page() -> None:
    command = [sys.executable, "-m", "mars.core.lifecycle"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == diagram()


def test_every_move_is_drawn_once_and_nothing_else() -> None:
    drawn = []
    for line in diagram().splitlines():
        ends, _, events = line.strip().partition(" : ")
        before, arrow, after = ends.partition(" --> ")
        if arrow and "[*]" not in ends:
            drawn += [(before, event, after) for event in events.split(", ")]
    moves = [(phase.value, event.__name__, after.value) for (phase, event), after in MOVES.items()]
    assert sorted(drawn) == sorted(moves)
