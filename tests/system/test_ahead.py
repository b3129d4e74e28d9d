"""Work ahead of its use: results in order, at most two parts at a time, errors where they belong."""

import threading

import pytest

from debias_ssl.system.ahead import ahead


def test_results_come_in_the_order_of_the_parts():
    gate = threading.Event()

    def slow_first(part: int) -> int:
        if part == 0:
            gate.wait(10)
        else:
            gate.set()
        return part * part

    assert [*ahead(slow_first, range(6))] == [0, 1, 4, 9, 16, 25]


def test_parts_are_read_as_they_are_needed():
    read: list[int] = []

    def parts():
        for part in range(10):
            read.append(part)
            yield part

    results = ahead(lambda part: part, parts())
    assert next(results) == 0 and len(read) == 2
    assert next(results) == 1 and len(read) == 3


def test_an_error_of_a_part_is_that_of_its_result():
    def fails(part: int) -> int:
        if part == 2:
            raise ValueError("two")
        return part

    results = ahead(fails, range(5))
    assert next(results) == 0 and next(results) == 1
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_of_no_parts_there_are_no_results():
    assert [*ahead(lambda part: part, [])] == []
