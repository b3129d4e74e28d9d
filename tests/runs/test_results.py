"""What the figures of a comparison say of the unlabeled images, in numbers and in words."""

import csv
from pathlib import Path
from typing import Any

import pytest

from debias_ssl.runs.pairing import Block
from debias_ssl.runs.results import Result, aggregate, write_results
from debias_ssl.runs.tables import differences_text, payoff_summary, payoff_text, table, verdict_text


def row(variant: str, seed: int, accuracy: float | None, **further: Any) -> dict[str, Any]:
    known = {} if accuracy is None else {"accuracy": accuracy, "mean_recall": accuracy / 2, "min_recall": 0.0}
    return {"variant": variant, "seed": seed, "status": "pending" if accuracy is None else "finished"} | known | further


def compared(*accuracies: float | None, **further: Any) -> dict[str, Any]:
    """The line of a variant whose floor has an accuracy of one half in every seed."""
    rows = [
        row(name, seed, 0.5 if name == "floor" else each, **further)
        for seed, each in enumerate(accuracies)
        for name in ("floor", "a")
    ]
    return aggregate(rows, (), [Block(setting="", variants=("floor", "a"), floors={"a": "floor"})])[1]


@pytest.mark.parametrize(
    ("accuracies", "words"),
    [
        # Mean 0.06, deviation 0.01; t of 0.975 with 2 degrees of freedom is 4.302653, by the root of 3: 2.48 points.
        ((0.55, 0.56, 0.57), "a: paid: +6.0 points of accuracy (95 % interval +3.5 to +8.5)"),
        ((0.45, 0.44, 0.43), "a: cost: -6.0 points of accuracy (95 % interval -8.5 to -3.5)"),
        # Mean 0.02, deviation 0.01: the interval ends at -0.48.
        ((0.51, 0.52, 0.53), "a: not established with 3 seeds: +2.0 points of accuracy (95 % interval -0.5 to +4.5)"),
        ((0.49, 0.48, 0.47), "a: not established with 3 seeds: -2.0 points of accuracy (95 % interval -4.5 to +0.5)"),
        ((0.9,), "a: not established with 1 seed: +40.0 points of accuracy (one seed has no interval)"),
        ((0.9, None), "a: not established with 1 seed: +40.0 points of accuracy (one seed has no interval)"),
        ((None,), "a: not established, because no seed has finished both with and without unlabeled images"),
        # An interval that ends at 0 establishes nothing.
        ((0.5, 0.5), "a: not established with 2 seeds: +0.0 points of accuracy (95 % interval +0.0 to +0.0)"),
    ],
)
def test_a_sentence_says_whether_the_unlabeled_images_paid(accuracies, words):
    line = compared(*accuracies)
    assert payoff_text(line) == words
    verdict = next((each for each in ("paid", "cost") if f": {each}:" in words), None)
    known = line["difference_to_floor"]["accuracy"]["mean"] is not None
    assert line["unlabeled_images"] == (verdict or ("not established" if known else None))


def test_recalls_are_said_where_classes_are_uneven():
    text = payoff_text(compared(0.55, 0.56, 0.57, is_uneven=True))
    assert text.endswith("; mean recall +3.0 (+1.8 to +4.2), min recall +0.0 (+0.0 to +0.0)")
    assert payoff_text(compared(0.6, is_uneven=True)).endswith("; mean recall +5.0, min recall +0.0")


BLOCKS = [
    Block(
        setting="few",
        variants=("few/LabelsOnly", "few/a", "few/b"),
        floors=dict.fromkeys(("few/a", "few/b"), "few/LabelsOnly"),
    ),
    Block(
        setting="many",
        variants=("many/LabelsOnly", "many/a", "many/b"),
        floors=dict.fromkeys(("many/a", "many/b"), "many/LabelsOnly"),
    ),
]
# Differences to labels alone: 0.1 and 0.2 with few, -0.1 and 0 with many labels.
ACCURACIES = {"LabelsOnly": 0.5, "a": 0.6, "b": 0.7}
ROWS = [
    row(f"{setting}/{name}", seed, accuracy if setting == "few" else {"LabelsOnly": 0.9, "a": 0.8, "b": 0.9}[name])
    for seed in (0, 1)
    for setting in ("many", "few")
    for name, accuracy in ACCURACIES.items()
]


def test_variants_are_paired_inside_their_setting():
    lines = aggregate(ROWS, (), BLOCKS)
    assert [line["variant"] for line in lines] == [name for block in BLOCKS for name in block.variants]
    to_floor = [line["difference_to_floor"] and line["difference_to_floor"]["accuracy"]["mean"] for line in lines]
    assert to_floor == [None, pytest.approx(0.1), pytest.approx(0.2), None, pytest.approx(-0.1), pytest.approx(0)]
    to_first = [line["difference_to_first"] and line["difference_to_first"]["accuracy"]["mean"] for line in lines]
    assert to_first == [None, None, pytest.approx(0.1), None, None, pytest.approx(0.1)]
    assert [line["unlabeled_images"] for line in lines] == [None, "paid", "paid", None, "cost", "not established"]


def test_the_terminal_has_a_block_for_each_setting():
    said = table(aggregate(ROWS, (), BLOCKS)).splitlines()
    start, other = said.index("few:"), said.index("many:")
    assert [line.split()[0] for line in said[start + 1 : start + 4]] == ["LabelsOnly", "a", "b"]
    assert [line.split()[0] for line in said[other + 1 : other + 4]] == ["LabelsOnly", "a", "b"]
    titles = ("few: difference to LabelsOnly", "few: difference to a", "many: difference to LabelsOnly")
    assert all(any(line.startswith(title) for line in said) for title in titles)
    judged = said[said.index("did the unlabeled images pay?") + 1 :]
    assert [line.split(":")[:2] for line in judged] == [
        ["few, a", " paid"],
        ["few, b", " paid"],
        ["many, a", " cost"],
        ["many, b", " not established with 2 seeds"],
    ]


def test_a_setting_is_summed_up_in_a_sentence_and_a_variant_in_a_cell():
    few, many = aggregate(ROWS, (), BLOCKS)[1:3], aggregate(ROWS, (), BLOCKS)[4:]
    assert payoff_summary("few", few) == "few: paid in a, b"
    assert payoff_summary("many", many) == "many: cost in a; not established in b"
    assert verdict_text(few[0]) == "paid: +10.0 [+10.0 to +10.0]" and verdict_text(compared(0.9)) == "+40.0"
    assert verdict_text(compared(None)) == "-"


def test_a_first_variant_that_is_the_floor_is_compared_with_once():
    rows = [row(name, seed, accuracy) for seed in (0, 1) for name, accuracy in (("own", 0.5), ("a", 0.6))]
    said = table(aggregate(rows, (), [Block(setting="", variants=("own", "a"), floors={"a": "own"})]))
    assert said.count("difference to own") == 1


def test_what_is_chosen_is_chosen_in_each_setting():
    known = [each | {"validation_accuracy": each["accuracy"]} for each in ROWS]
    lines = aggregate(known, [f"{setting}/{name}" for setting in ("few", "many") for name in "ab"], BLOCKS[::-1])
    assert [line["variant"] for line in lines if line["chosen"]] == ["many/b", "few/b"]


def test_settings_are_told_once_and_variants_where_they_are_not_the_same():
    differences = {
        "steps": {f"few/{name}": 3 for name in ACCURACIES} | {f"many/{name}": 5 for name in ACCURACIES},
        "method": {f"{setting}/{name}": name for setting in ("few", "many") for name in ACCURACIES},
        "loss": {f"few/{name}": "CE" for name in ACCURACIES}
        | {"many/LabelsOnly": "LA", "many/a": "CE", "many/b": "CE"},
    }
    said = differences_text(differences, BLOCKS).split("\n\n")
    assert [[line.split() for line in text.splitlines()] for text in said] == [
        [["settings", "few", "many"], ["steps", "3", "5"]],
        [["what", "differs", "in", "few", "LabelsOnly", "a", "b"], ["method", "LabelsOnly", "a", "b"]],
        [
            ["what", "differs", "in", "many,", "beside", "the", "above", "LabelsOnly", "a", "b"],
            ["loss", "LA", "CE", "CE"],
        ],
    ]


def test_the_table_of_runs_has_what_each_gained(tmp_path: Path):
    def result(name: str, seed: int, accuracy: float) -> Result:
        figures = {"accuracy": accuracy, "mean_recall": accuracy, "min_recall": accuracy / 2}
        summary = {"ema": {"last": figures, "median": {}, "best": {}}, "seconds": 1.0}
        return Result(variant=name, seed=seed, folder="", status="finished", summary=summary)

    results = [result("few/LabelsOnly", 0, 0.5), result("few/a", 0, 0.75), result("few/a", 1, 0.75)]
    results += [
        Result(variant="few/LabelsOnly", seed=1, folder="", status="failed"),
        Result(variant="few/b", seed=0, folder=""),
    ]
    write_results(tmp_path, results, {}, [], BLOCKS[:1])
    with (tmp_path / "compare.csv").open(newline="") as file:
        found = {(each["variant"], each["seed"]): each for each in csv.DictReader(file)}
    gains = ("accuracy_gain", "mean_recall_gain", "min_recall_gain")
    assert [found["few/a", "0"][name] for name in gains] == ["0.25", "0.25", "0.125"]
    assert (found["few/a", "0"]["setting"], found["few/a", "0"]["floor"]) == ("few", "few/LabelsOnly")
    for without in (("few/a", "1"), ("few/b", "0"), ("few/LabelsOnly", "0")):
        assert [found[without][name] for name in gains] == ["", "", ""]
