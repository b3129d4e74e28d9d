"""Differences, intervals, choices and tables of a comparison."""

import pytest
from short_comparisons import row

from debias_ssl.runs.results import aggregate, differences_between, paired_difference
from debias_ssl.runs.tables import table
from debias_ssl.runs.variants import flags_of, grid_of


def test_paired_difference_is_students():
    # Mean 0.03, standard deviation 0.01; t of 0.975 with 2 degrees of freedom is 4.302653.
    found = paired_difference([0.02, 0.03, 0.04])
    half = 4.302653 * 0.01 / 3**0.5
    assert found == pytest.approx({"num": 3, "mean": 0.03, "low": 0.03 - half, "high": 0.03 + half})
    # With 1 degree of freedom, t is 12.7062.
    assert paired_difference([0.0, 0.2])["high"] == pytest.approx(0.1 + 12.7062 * 0.2 / 2**0.5 / 2**0.5)
    assert paired_difference([0.02]) == {"num": 1, "mean": 0.02, "low": None, "high": None}
    assert paired_difference([]) == {"num": 0, "mean": None, "low": None, "high": None}


def test_aggregation_pairs_seeds_that_both_finished():
    runs = [
        row("a", 0, 0.5),
        row("b", 0, 0.6),
        row("a", 1, 0.7),
        row("b", 1, 0.0, "failed"),
        row("a", 2, 0.9),
        row("b", 2, 0.94),
        row("a", 3, 0.0, "pending"),
        row("b", 3, 0.2),
    ]
    a, b = aggregate(runs)
    assert (a["variant"], a["seeds"], b["variant"], b["seeds"]) == ("a", [0, 1, 2], "b", [0, 2, 3])
    assert a["accuracy"] == pytest.approx({"mean": 0.7, "std": 0.2})
    assert a["seconds"]["mean"] == 20 and a["ece"] == {"mean": None, "std": None}
    assert b["accuracy"]["mean"] == pytest.approx((0.6 + 0.94 + 0.2) / 3)
    assert a["difference_to_first"] is None
    # Differences 0.1 and 0.04 of seeds 0 and 2: mean 0.07, deviation 0.03 sqrt(2); sqrt(2) goes out with that of n.
    half = 12.7062 * 0.03
    expected = {"num": 2, "mean": 0.07, "low": 0.07 - half, "high": 0.07 + half}
    assert b["difference_to_first"]["accuracy"] == pytest.approx(expected, abs=1e-6)
    assert b["difference_to_first"]["min_recall"]["mean"] == pytest.approx(0.035)


def test_table_says_what_is_best_on_the_test_set_and_what_is_missing():
    lines = aggregate([row("a", 0, 0.5), row("b", 0, 0.625, best_test_accuracy=0.75), row("c", 0, 0.0, "failed")])
    text = table(lines)
    assert '"best (test)" is chosen on the test set' in text and "median acc." in text
    b, c = (next(line.split() for line in text.splitlines() if line.startswith(name)) for name in "bc")
    assert b[:4] == ["b", "1", "62.50", "-"] and "75.00" in b and c[1:] == ["0", *9 * "-"]
    assert "+12.50" in text and "[+" not in text and "chosen:" not in text


def test_choice_is_by_validation_among_those_with_most_seeds():
    figures = {"a": 0.9, "b": 0.6, "c": 0.7}
    runs = [row(name, seed, 0.5, validation_accuracy=value) for name, value in figures.items() for seed in (0, 1)]
    runs += [row("d", 0, 0.5, validation_accuracy=0.8), row("d", 1, 0.0, "failed")]
    lines = aggregate(runs, choose_among=["b", "c", "d"])
    assert [line["variant"] for line in lines if line["chosen"]] == ["c"]
    assert "c *" in table(lines) and "validation images" in table(lines)
    assert not any(line["chosen"] for line in aggregate(runs))


def test_differences_name_every_setting_that_is_not_shared():
    a = {"steps": 4, "method": {"class_path": "FixMatch", "init_args": {"threshold": 0.9}}}
    b = {"steps": 4, "method": {"class_path": "DebiasPL", "init_args": {"threshold": 0.9, "strength": 0.5}}}
    assert differences_between({"a": a, "b": b}) == {
        "method.class_path": {"a": "FixMatch", "b": "DebiasPL"},
        "method.init_args.strength": {"b": 0.5},
    }
    assert differences_between({"a": a, "same": a}) == {}


def test_overrides_become_flags_with_the_method_first():
    overrides = {"method": {"init_args": {"strength": 0.5}, "class_path": "DebiasPL"}, "data": {"root": None}}
    assert flags_of(overrides) == ["--method=DebiasPL", "--method.init_args.strength=0.5", "--data.root=null"]
    assert grid_of("method.strength=0,.25") == {
        "strength=0": {"method": {"strength": "0"}},
        "strength=0.25": {"method": {"strength": ".25"}},
    }
