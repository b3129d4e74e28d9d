"""Names above classes: sums, floors and levels by hand, and what contradicts itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from debias_ssl.labels.names.hierarchy import Hierarchy, hierarchy_of, parents_of
from debias_ssl.system.errors import InputError

CLASSES = ("maine coon", "tabby", "dog", "car")
PARENTS = {"maine coon": "cat", "cat": "animal", "tabby": "cat", "dog": "animal"}
# maine coon, tabby, dog, car, cat, animal
NUMBER = {name: k for k, name in enumerate([*CLASSES, "cat", "animal"])}


@pytest.fixture
def animals() -> Hierarchy:
    return hierarchy_of(CLASSES, PARENTS)


def test_names_have_the_sums_of_their_classes(animals):
    assert animals.names == tuple(NUMBER)
    probs = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.0, 0.0, 0.25, 0.75]])
    expected = [[0.5, 0.3, 0.1, 0.1, 0.8, 0.9], [0, 0, 0.25, 0.75, 0, 0.25]]
    np.testing.assert_allclose(animals.sums(probs), expected, atol=1e-7)


def test_levels_are_counted_from_above(animals):
    assert dict(zip(animals.names, animals.levels.tolist(), strict=True)) == {
        "animal": 1,
        "car": 1,
        "cat": 2,
        "dog": 2,
        "maine coon": 3,
        "tabby": 3,
    }
    assert [[animals.names[k] for k in animals.at_level(level)] for level in (1, 2, 3)] == [
        ["animal", "animal", "animal", "car"],
        ["cat", "cat", "dog", "car"],
        ["maine coon", "tabby", "dog", "car"],
    ]


@pytest.mark.parametrize(
    ("probs", "floor", "name", "confidence"),
    [
        ([0.85, 0.05, 0.05, 0.05], 0.8, "maine coon", 0.85),
        ([0.50, 0.30, 0.15, 0.05], 0.8, "cat", 0.8),
        ([0.40, 0.10, 0.40, 0.10], 0.8, "animal", 0.9),
        ([0.30, 0.10, 0.20, 0.40], 0.8, None, None),
        # Sums reach the floor but for their rounding: 0.7 + 0.1 is less than 0.8 in fp32, and all is 1.
        ([0.70, 0.10, 0.10, 0.10], 0.8, "cat", 0.8),
        ([0.10, 0.20, 0.70, 0.00], 1.0, "animal", 1.0),
        # Where several reach it: from above to the more probable one, though another one is deeper,
        ([0.30, 0.10, 0.60, 0.00], 0.3, "dog", 0.6),
        ([0.30, 0.40, 0.30, 0.00], 0.3, "tabby", 0.4),
        ([0.40, 0.00, 0.00, 0.60], 0.4, "car", 0.6),
        # and to the first of equal ones.
        ([0.25, 0.25, 0.25, 0.25], 0.25, "maine coon", 0.25),
        ([0.125, 0.125, 0.25, 0.5], 0.25, "car", 0.5),
        ([0.1875, 0.1875, 0.375, 0.25], 0.25, "dog", 0.375),
    ],
)
def test_a_row_gets_the_deepest_name_that_reaches_the_floor(animals, probs, floor, name, confidence):
    number, found = animals.deepest(torch.tensor([probs]), floor)
    assert number.tolist() == [-1 if name is None else NUMBER[name]]
    np.testing.assert_allclose(found, [np.nan if confidence is None else confidence], atol=1e-6)


def test_a_name_is_right_where_it_is_the_truth_or_above_it(animals):
    names = np.array([NUMBER[name] for name in ("maine coon", "cat", "animal", "cat", "car", "animal")])
    truth = np.array([NUMBER[name] for name in ("tabby", "tabby", "tabby", "dog", "car", "car")])
    assert animals.is_of(names, truth).tolist() == [False, True, True, False, True, False]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.floats(0.51, 1))
def test_above_a_half_the_name_is_the_deepest_of_a_chain(seed: int, num_classes: int, floor: float):
    """Random trees: by the membership of classes, and as two names that exclude each other cannot both reach it."""
    rng = np.random.default_rng(seed)
    classes = tuple(f"c{k}" for k in range(num_classes))
    above = {name: f"p{rng.integers(4)}" for name in classes if rng.random() < 0.8}
    above |= {f"p{k}": f"q{rng.integers(2)}" for k in range(4) if rng.random() < 0.5 and f"p{k}" in above.values()}
    tree = hierarchy_of(classes, above)

    def chain(name: str) -> list[str]:
        return [name, *(chain(above[name]) if name in above else [])]

    probs = torch.from_numpy(rng.dirichlet(np.full(num_classes, 0.3), size=5)).float()
    members = np.array([[name in chain(c) for name in tree.names] for c in classes])
    sums = probs.numpy().astype(float) @ members
    np.testing.assert_allclose(tree.sums(probs), sums, atol=1e-6)
    number, _ = tree.deepest(probs, floor)
    for row, k in zip(sums, number.tolist(), strict=True):
        reached = [name for name, value in zip(tree.names, row, strict=True) if value >= floor - 1e-6]
        deepest = max(reached, key=lambda name: len(chain(name)), default=None)
        assert (None if k < 0 else tree.names[k]) == deepest


def test_what_one_line_says_of_a_name_holds_in_all():
    chains = {1: ("maine coon", "cat", "animal"), 3: ("tabby", "cat"), 4: ("dog", "animal"), 9: ("car",)}
    assert parents_of(chains, "f") == PARENTS


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        (
            {1: ("a", "cat", "animal"), 4: ("b", "cat", "pet")},
            "f: 'cat' is below 'animal' in line 1 and below 'pet' in line 4; each name has only one name above it",
        ),
        (
            {2: ("a", "x", "y"), 5: ("b", "y", "x")},
            "f: 'x' is above itself in a circle, x < y < x, by lines 2 and 5: remove one",
        ),
        ({2: ("a", "x", "x")}, "f: 'x' is above itself in a circle, x < x, by line 2: remove one"),
        (
            {1: ("a", "x", "y"), 2: ("b", "y", "z"), 3: ("c", "z", "x")},
            "f: 'x' is above itself in a circle, x < y < z < x, by lines 1 and 2 and 3",
        ),
        (
            {1: ("tabby", "cat"), 7: ("cat",)},
            "f: 'cat' is a class in line 7 and stands above 'tabby' in line 1",
        ),
        ({1: ("a", "a")}, "f: 'a' is a class in line 1 and stands above 'a' in line 1"),
    ],
)
def test_what_contradicts_itself_is_refused_with_its_lines(chains, message):
    with pytest.raises(InputError) as error:
        parents_of(chains, "f", "line", "lines")
    assert str(error.value).startswith(message)
