"""Many texts in few arrays."""

import os

import numpy as np
import pytest

from debias_ssl.system import texts
from debias_ssl.system.texts import places_in, texts_of

STRINGS = ["a/1.png", "", "ä漢.png", os.fsdecode(b"b/\xff.png"), "a/1.png", "two\nlines"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "BLOCK", 2)


def test_texts_come_back_as_they_were():
    made = texts_of(iter(STRINGS))
    assert [*made] == [made[i] for i in range(len(STRINGS))] == STRINGS == made
    assert made[-2] == STRINGS[-2] and made[1:5:2] == STRINGS[1:5:2] and made != STRINGS[1:]
    assert made.part(np.array([5, 0, 0])) == [STRINGS[5], STRINGS[0], STRINGS[0]]
    assert texts_of([]) == [] and len(texts_of([])) == 0


def test_places_of_texts_are_those_of_the_first_that_are_the_same():
    others = ["x", STRINGS[3], STRINGS[0], "", STRINGS[0]]
    expected = [others.index(string) if string in others else -1 for string in STRINGS]
    assert places_in(texts_of(STRINGS), texts_of(others)).tolist() == expected
    assert places_in(texts_of(STRINGS), texts_of([])).tolist() == [-1] * len(STRINGS)
    assert places_in(texts_of([]), texts_of(STRINGS)).tolist() == []


def test_a_text_takes_its_bytes_and_eight():
    made = texts_of(f"class_{i // 1000}/image_{i:07d}.png" for i in range(5000))
    assert made.text.nbytes + made.ends.nbytes == sum(map(len, made)) + 8 * len(made)
