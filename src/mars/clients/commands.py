"""Which program a line of shell runs: what its durations are learned by."""

import shlex
from typing import Final

_PREPARE: Final = frozenset({"cd", "export", "source", ".", "set", "unset", "pushd"})
_RUNNERS: Final = frozenset({"sudo", "time", "nice", "env", "exec", "nohup"})
_PYTHONS: Final = ("python", "python3")


def program(line: str) -> str:
    """`cd x && A=1 python -m pytest -q | tail` runs pytest. Empty: nothing that can be named."""
    prepares = ""
    for words in _parts(line):
        name = _program_of(words)
        if name and name not in _PREPARE:
            return name
        prepares = prepares or name
    return prepares


def _parts(line: str) -> list[list[str]]:
    """The words of each command of a list or pipeline, as far as they can be told."""
    lexer = shlex.shlex(line.partition("\n")[0], posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    try:
        for word in lexer:
            if word and set(word) <= set("();<>|&"):
                parts.append([])
            else:
                parts[-1].append(word)
    except ValueError:
        pass  # a quote that ends on another line: what came before it is enough
    return parts


def _program_of(words: list[str]) -> str:
    names = [word for word in words if word not in _RUNNERS and "=" not in word]
    match names:
        case [python, "-m", module, *_] if _base(python) in _PYTHONS:
            return module
        case [name, *_]:
            return _base(name)
        case _:
            return ""


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
