"""Rows are found by the names that a file has for them."""

import pytest

from debias_ssl.labels.row_names import match

ROWS = ["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]


def test_rows_are_found_by_their_names_in_any_order():
    found = match(["dog/1.jpg", "cat/1.jpg"], ROWS)
    assert (found.rows, found.notes, found.unmatched) == ({0: [2], 1: [0]}, (), None)


def test_a_name_that_rows_have_twice_means_both():
    assert match(["a"], ["a", "b", "a"]).rows == {0: [0, 2]}


@pytest.mark.parametrize("entry", ["./cat/1.jpg", "cat\\1.jpg", "dog/../cat/1.jpg", " cat/1.jpg", "cat%2F1.jpg"])
def test_other_spellings_are_taken_for_rows_and_told(entry):
    found = match([entry, "cat/2.jpg"], ROWS)
    assert found.rows == {0: [0], 1: [1]}
    assert found.notes == (f"1 paths are spelled otherwise than the rows: {entry!r} is taken for 'cat/1.jpg'",)


def test_a_folder_that_all_entries_begin_with_is_taken_off():
    found = match([f"data/train/{name}" for name in ROWS], ROWS)
    assert found.rows == {0: [0], 1: [1], 2: [2]}
    assert found.notes[0].startswith("3 paths begin with 'data/train/', which the rows do not: 'data/train/cat/1.jpg'")


def test_a_folder_that_all_rows_begin_with_is_put_before():
    found = match(ROWS, [f"/x/{name}" for name in ROWS])
    assert found.rows == {0: [0], 1: [1], 2: [2]}
    assert found.notes[0].startswith("3 paths lack '/x/', with which the rows begin: 'cat/1.jpg' is taken for")


def test_entries_with_a_folder_among_some_without_it_are_found():
    """198 of 200 with a prefix."""
    names = [f"{i}.jpg" for i in range(200)]
    entries = names[:2] + [f"images/{name}" for name in names[2:]]
    found = match(entries, names)
    assert found.rows == {i: [i] for i in range(200)} and found.notes[0].startswith("198 paths begin with 'images/'")


def test_more_entries_than_rows_may_have_the_folder():
    found = match([f"images/{i}.jpg" for i in range(10)], ["1.jpg", "3.jpg"])
    assert found.rows == {1: [0], 3: [1]} and found.unmatched is None


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
    assert not found.rows and found.unmatched == (entries[0], names[0])
    assert found.cause.startswith("the same files lie in other folders")


@pytest.mark.parametrize(
    ("entries", "names", "cause"),
    [
        (["A.JPG"], ["a.jpg"], "names differ by upper and lower case (1 of them)"),
        (["a.png", "b.png"], ["a.jpg", "c.jpg"], "names differ by what comes after the last dot (1 of them)"),
        (["a"], ["a.jpg"], "names differ by what comes after the last dot (1 of them)"),
        (["x"], ["y"], ""),
    ],
)
def test_a_likely_cause_is_told(entries, names, cause):
    assert match(entries, names).cause == cause


def test_entries_of_other_rows_are_no_fault_where_each_row_has_one():
    found = match([*ROWS, "eel/1.jpg"], ROWS)
    assert len(found.rows) == 3 and found.unmatched is None
