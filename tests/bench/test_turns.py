"""What an order of turns takes out of a comparison."""

import pytest

from mars.bench.turns import in_turn


def _places(policies: int, repeats: int) -> list[list[int]]:
    """Of each policy the places of its rounds among all, the middle one being 0."""
    order = [policy for repeat in range(repeats) for policy in in_turn(range(policies), repeat)]
    middle = len(order) - 1
    return [[2 * at - middle for at, of in enumerate(order) if of == p] for p in range(policies)]


@pytest.mark.parametrize("policies", [2, 3, 5])
@pytest.mark.parametrize(("repeats", "bends"), [(2, 0), (4, 1), (6, 0), (8, 2)])
def test_a_drift_falls_on_all_alike(policies: int, repeats: int, bends: int) -> None:
    """Straight over two repetitions, bent once over four, twice over eight."""
    places = _places(policies, repeats)
    assert len({sum(of) for of in places}) == 1
    for power in range(2, bends + 2):
        assert sum(at**power for at in places[0]) == sum(at**power for at in places[-1])


def test_it_does_not_over_three() -> None:
    first, _, last = (sum(of) for of in _places(3, 3))
    assert first > last
