"""What a line of shell is called."""

import pytest

from mars.clients.commands import program


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("pytest -q", "pytest"),
        ("cd /repo && python -m pytest -q tests | tail -3", "pytest"),
        ("PYTHONPATH=src /usr/bin/python3 tools/run.py", "python3"),
        ("export A=1; make -j2", "make"),
        ("sudo nice make", "make"),
        ("cat > a.py <<'EOF'\nprint('it is')\nEOF", "cat"),
        ("echo 'one that ends\non another line'", "echo"),
        ("cd /repo", "cd"),
        ("(grep -rn x . || true) && ls", "grep"),
        ("", ""),
        ("A=1", ""),
    ],
)
def test_the_program_that_the_time_goes_to(line: str, name: str) -> None:
    assert program(line) == name
