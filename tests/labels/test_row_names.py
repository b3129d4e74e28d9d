"""Rows are found by the names that a file has for them."""

import tracemalloc

import numpy as np
import pytest

from debias_ssl.labels.tables.row_names import match, match_numbers
from debias_ssl.labels.tables.truth import RowNumbers

ROWS = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]


def test_rows_are_found_by_their_names_in_any_order():
    found = match(["dog/1.jpg", "cat/1.jpg"], ROWS)
    assert (found.entry_of.tolist(), found.notes, found.unmatched) == ([1, -1, 0], (), None)
    assert (found.num_matched, found.doubled) == (2, None)


def test_a_name_that_rows_have_twice_means_both():
    assert match(["a"], ["a", "b", "a"]).entry_of.tolist() == [0, -1, 0]


@pytest.mark.parametrize("entries", [["b", "a", "c", "a"], ["b", "a", "c", "./a"], ["b", "./a", "c", " a"]])
def test_two_entries_of_one_row_are_told(entries):
    found = match(entries, ["a", "b", "c"])
    assert found.doubled == (1, 3) and found.entry_of.tolist() == [1, 0, 2]


def test_rows_are_found_by_their_numbers():
    found = match_numbers(np.array([3, 0, 3]), 4)
    assert found.entry_of.tolist() == [1, -1, -1, 0] and (found.num_matched, found.doubled) == (3, (0, 2))


@pytest.mark.parametrize("front", ["", "./", "images/"])
def test_names_are_matched_in_some_bytes_each(front):
    """However they are spelled; a folder in front takes a set of the names."""
    number = 4000
    names, entries = RowNumbers(number), [f"{front}{i}" for i in range(number)]
    match(entries[:1], names[:1])  # what is imported then is no part of it
    tracemalloc.start()
    found = match(entries, names)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.entry_of == np.arange(number)).all()
    assert most / number < (500 if front == "images/" else 200), most / number


@pytest.mark.parametrize("entry", ["./cat/1.jpg", "cat\\1.jpg", "dog/../cat/1.jpg", " cat/1.jpg", "cat%2F1.jpg"])
def test_other_spellings_are_taken_for_rows_and_told(entry):
    found = match([entry, "cat/2.jpg"], ROWS)
    assert found.entry_of.tolist() == [0, 1, -1]
    assert found.notes == (f"1 paths are spelled differently from the rows: {entry!r} is matched to 'cat/1.jpg'",)


def test_a_folder_that_all_entries_begin_with_is_taken_off():
    found = match([f"data/train/{name}" for name in ROWS], ROWS)
    assert found.entry_of.tolist() == [0, 1, 2]
    assert found.notes[0].startswith("3 paths start with 'data/train/', but the rows do not: 'data/train/cat/1.jpg'")


def test_a_folder_that_all_rows_begin_with_is_put_before():
    found = match(ROWS, [f"/x/{name}" for name in ROWS])
    assert found.entry_of.tolist() == [0, 1, 2]
    assert found.notes[0].startswith("3 paths lack '/x/', the start of the rows: 'cat/1.jpg' is matched to")


def test_entries_with_a_folder_among_some_without_it_are_found():
    """198 of 200 with a prefix."""
    names = [f"{i}.jpg" for i in range(200)]
    entries = names[:2] + [f"images/{name}" for name in names[2:]]
    found = match(entries, names)
    assert found.entry_of.tolist() == [*range(200)] and found.notes[0].startswith("198 paths start with 'images/'")


def test_more_entries_than_rows_may_have_the_folder():
    found = match([f"images/{i}.jpg" for i in range(10)], ["1.jpg", "3.jpg"])
    assert found.entry_of.tolist() == [1, 3] and found.unmatched is None


@pytest.mark.parametrize(
    ("entries", "names"),
    [
        # Two folders would do.
        (["train/1.jpg", "test/1.jpg"], ["1.jpg"]),
        # One is left over on both sides.
        (["images/1.jpg", "images/2.jpg"], ["1.jpg", "3.jpg"]),
        # No folder is the same for all.
        (["a/1.jpg", "b/2.jpg"], ["1.jpg", "2.jpg"]),
    ],
)
def test_what_a_folder_does_not_explain_is_not_matched(entries, names):
    found = match(entries, names)
    assert not found.num_matched and found.unmatched == (entries[0], names[0])
    assert found.cause.startswith("the same files lie in other folders")


@pytest.mark.parametrize(
    ("entries", "names", "cause"),
    [
        (["A.JPG"], ["a.jpg"], "names differ in upper and lower case (1 of them)"),
        (["a.png", "b.png"], ["a.jpg", "c.jpg"], "names differ in their suffix (1 of them)"),
        (["a"], ["a.jpg"], "names differ in their suffix (1 of them)"),
        (["x"], ["y"], ""),
    ],
)
def test_a_likely_cause_is_told(entries, names, cause):
    assert match(entries, names).cause == cause


def test_entries_of_other_rows_are_no_fault_where_each_row_has_one():
    found = match([*ROWS, "eel/1.jpg"], ROWS)
    assert found.num_matched == 3 and found.unmatched is None
