"""In which order several take their turns, repetition after repetition.

    0  A B C      4  C B A
    1  C B A      5  A B C
    2  C B A      6  A B C
    3  A B C      7  C B A

A machine drifts by tens of percent within minutes. In this order, Thue and Morse's sequence, what
is straight of a drift falls on all alike over two repetitions, what bends over four (but for the
bend within one, which only those in the middle notice).
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def is_turned(repeat: int) -> bool:
    """Does this repetition (from 0) go through them from the last to the first?"""
    return repeat.bit_count() % 2 == 1


def in_turn(those: Sequence[T], repeat: int) -> Sequence[T]:
    return those[::-1] if is_turned(repeat) else those
