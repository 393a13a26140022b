"""What the repositories of `bench.repositories` are made of: small functions, a test of each, and
a mistake that the test finds.
"""

from typing import Final, NamedTuple


class Function(NamedTuple):
    name: str
    source: str
    test: str
    right: str
    """In the source, once."""
    wrong: str


FUNCTIONS: Final = (
    Function(
        "clamp",
        '''def clamp(value, low, high):
    """The nearest number to `value` that is not below `low` and not above `high`."""
    if low > high:
        raise ValueError(f"an empty range: {low} to {high}")
    return max(low, min(value, high))
''',
        "self.assertEqual([clamp(n, 0, 9) for n in (-5, 4, 12)], [0, 4, 9])",
        "max(low, min(value, high))",
        "min(low, max(value, high))",
    ),
    Function(
        "chunks",
        '''def chunks(items, size):
    """The items in lists of `size`; the last one may be shorter."""
    if size < 1:
        raise ValueError(f"size {size} is not positive")
    return [list(items[i : i + size]) for i in range(0, len(items), size)]
''',
        "self.assertEqual(chunks([1, 2, 3, 4, 5], 2), [[1, 2], [3, 4], [5]])",
        "items[i : i + size]",
        "items[i : i + size - 1]",
    ),
    Function(
        "median",
        '''def median(numbers):
    """The middle of the sorted numbers, or the mean of the two in the middle."""
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
''',
        "self.assertEqual([median([3, 1, 2]), median([4, 1, 3, 2])], [2, 2.5])",
        "ordered[middle - 1] + ordered[middle]",
        "ordered[middle] + ordered[middle + 1]",
    ),
    Function(
        "run_lengths",
        '''def run_lengths(text):
    """Each run of equal characters as (character, length)."""
    runs = []
    for character in text:
        if runs and runs[-1][0] == character:
            runs[-1] = (character, runs[-1][1] + 1)
        else:
            runs.append((character, 1))
    return runs
''',
        "self.assertEqual(run_lengths('aab'), [('a', 2), ('b', 1)])",
        "runs[-1][1] + 1",
        "runs[-1][1] + 2",
    ),
    Function(
        "flatten",
        '''def flatten(items):
    """Lists in lists, at any depth, as one list."""
    flat = []
    for item in items:
        if isinstance(item, list):
            flat.extend(flatten(item))
        else:
            flat.append(item)
    return flat
''',
        "self.assertEqual(flatten([1, [2, [3, []]], 4]), [1, 2, 3, 4])",
        "flat.extend(flatten(item))",
        "flat.append(flatten(item))",
    ),
    Function(
        "is_prime",
        '''def is_prime(number):
    """By trial division up to the square root."""
    if number < 2:
        return False
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True
''',
        "self.assertEqual([n for n in range(20) if is_prime(n)], [2, 3, 5, 7, 11, 13, 17, 19])",
        "divisor * divisor <= number",
        "divisor * divisor < number",
    ),
    Function(
        "roman",
        '''def roman(number):
    """A positive number in Roman numerals."""
    signs = [(1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"),
             (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")]
    text = ""
    for value, sign in signs:
        while number >= value:
            text += sign
            number -= value
    return text
''',
        "self.assertEqual([roman(n) for n in (4, 1990, 2026)], ['IV', 'MCMXC', 'MMXXVI'])",
        "while number >= value:",
        "while number > value:",
    ),
    Function(
        "transpose",
        '''def transpose(rows):
    """Rows as columns; all rows must be of one length."""
    if len({len(row) for row in rows}) > 1:
        raise ValueError("rows of different lengths")
    return [list(column) for column in zip(*rows)]
''',
        "self.assertEqual(transpose([[1, 2], [3, 4], [5, 6]]), [[1, 3, 5], [2, 4, 6]])",
        "[list(column) for column in zip(*rows)]",
        "[list(row) for row in rows]",
    ),
    Function(
        "caesar",
        '''def caesar(text, shift):
    """Small letters moved `shift` places along the alphabet, everything else as it was."""
    moved = []
    for character in text:
        if "a" <= character <= "z":
            character = chr((ord(character) - ord("a") + shift) % 26 + ord("a"))
        moved.append(character)
    return "".join(moved)
''',
        "self.assertEqual(caesar('xyz, Abc', 3), 'abc, Aef')",
        "+ shift) % 26",
        "+ shift) % 25",
    ),
    Function(
        "find_sorted",
        '''def find_sorted(items, wanted):
    """The place of `wanted` in a sorted list, or -1."""
    low, high = 0, len(items)
    while low < high:
        middle = (low + high) // 2
        if items[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < len(items) and items[low] == wanted else -1
''',
        "self.assertEqual([find_sorted([1, 3, 5, 7], n) for n in (1, 7, 4)], [0, 3, -1])",
        "else -1",
        "else low",
    ),
    Function(
        "moving_means",
        '''def moving_means(numbers, width):
    """The mean of every `width` neighbours."""
    means, total = [], 0
    for place, number in enumerate(numbers):
        total += number
        if place >= width:
            total -= numbers[place - width]
        if place >= width - 1:
            means.append(total / width)
    return means
''',
        "self.assertEqual(moving_means([1, 3, 5, 7], 2), [2, 4, 6])",
        "total -= numbers[place - width]",
        "total -= numbers[place - 1]",
    ),
    Function(
        "greatest_divisor",
        '''def greatest_divisor(a, b):
    """The greatest number that divides both (Euclid)."""
    while b:
        a, b = b, a % b
    return abs(a)
''',
        "self.assertEqual([greatest_divisor(12, 18), greatest_divisor(7, 0)], [6, 7])",
        "return abs(a)",
        "return abs(b)",
    ),
)  # fmt: skip
