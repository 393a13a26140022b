"""Quantities in a reader's words, three digits at most. What was never seen is a dash."""

from typing import Final

_THOUSAND: Final = 1000


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{bare(value)} s"


def bare(value: float | None) -> str:
    """Without its unit: for columns that name it."""
    return "-" if value is None else _three_digits(value)


def percent(frac: float | None) -> str:
    return "-" if frac is None else f"{_three_digits(frac * 100, most_decimals=1)} %"


def ratio(value: float) -> str:
    return f"{value:.2f}x"


def count(value: float) -> str:
    for factor, unit in ((_THOUSAND**3, " G"), (_THOUSAND**2, " M"), (_THOUSAND, " k")):
        if value >= factor:
            return f"{_three_digits(value / factor)}{unit}"
    return str(value) if isinstance(value, int) else _three_digits(value)


def size(of_bytes: int) -> str:
    return f"{of_bytes} B" if of_bytes < _THOUSAND else f"{count(of_bytes)}B"


def number(of: int, what: str) -> str:
    return f"{of} {what}" if of == 1 else f"{of} {what}s"


def listing(parts: list[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last


def _three_digits(value: float, most_decimals: int = 2) -> str:
    """0.42, 4.25, 42.5, 425: no more decimals than the third digit carries."""
    if value == 0:
        return "0"
    whole_digits = len(str(int(abs(value))))
    return f"{value:.{min(most_decimals, max(0, 3 - whole_digits))}f}"
