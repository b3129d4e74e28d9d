"""Which variants are set side by side, and the labels-only run of each."""

from typing import Any

import pytest
from jobs import settings_of

from debias_ssl.runs.pairing import blocks_of, find_floors, floors_among, labels_only
from debias_ssl.system.errors import InputError
from debias_ssl.training.renamed import flat

CROSS_ENTROPY = {"": {"class_path": "CrossEntropy", "init_args": {}}}


def resolved(*flags: str) -> dict[str, Any]:
    return {name: value for name, value in settings_of(*flags)[1].items() if name != "seed"}


def fixmatch(*flags: str) -> dict[str, Any]:
    return resolved("--method", "FixMatch", "--data.labels_per_class", "4", *flags)


def supervised(*flags: str) -> dict[str, Any]:
    return resolved("--method", "Supervised", "--data.labels_per_class", "4", *flags)


TAIL = ("--data.labeled_imbalance", "2")


@pytest.mark.parametrize(
    ("flags", "loss"),
    [
        (["--data.labels_per_class", "4"], "CrossEntropy"),
        (["--data.labels_per_class", "4", *TAIL], "LogitAdjusted"),
        (["--data.labels_per_class", "4", "--data.split", "split.json"], "LogitAdjusted"),
        (["--data.labeled_fraction", "0.1"], "LogitAdjusted"),
        ([], "LogitAdjusted"),
    ],
)
def test_logits_are_adjusted_where_classes_may_have_unequal_numbers_of_labels(flags, loss):
    found = labels_only(resolved("--method", "DebiasPL", *flags), CROSS_ENTROPY[""])
    assert found["method"] == {"class_path": "Supervised", "init_args": {"mixup_alpha": 0.0}}
    assert found["labeled_loss"]["class_path"] == loss


def test_a_loss_that_somebody_chose_stays_and_nothing_else_changes():
    other = resolved("--data.labeled_fraction", "0.1", "--target_model", "ema", "--teacher", "runs/a", "--steps", "7")
    balanced = {"class_path": "Balanced", "init_args": {}}
    found = labels_only(other, balanced)
    assert found["labeled_loss"]["class_path"] == "Balanced"
    before, after = flat(other), flat(found)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert {name for name in changed if not name.startswith(("method.", "labeled_loss."))} == {
        "teacher",
        "target_model",
    }


def test_a_labels_only_run_that_is_there_is_taken():
    variants = {"FixMatch": fixmatch(), "mine": supervised()}
    found, floors = find_floors(variants, CROSS_ENTROPY, add=True)
    assert [*found] == ["FixMatch", "mine"] and floors == {"FixMatch": "mine"}


@pytest.mark.parametrize("other", [supervised(*TAIL), supervised("--method.mixup_alpha", "1", *TAIL)])
def test_another_run_without_unlabeled_images_is_not_the_floor_and_is_not_judged(other):
    """On a long tail the floor adjusts logits, and it never mixes images."""
    found, floors = find_floors({"FixMatch": fixmatch(*TAIL), "Supervised": other}, CROSS_ENTROPY, add=True)
    assert [*found] == ["LabelsOnly", "FixMatch", "Supervised"] and floors == {"FixMatch": "LabelsOnly"}


def test_where_nothing_uses_unlabeled_images_nothing_is_added():
    found, floors = find_floors({"a": supervised(), "b": supervised("--steps", "3")}, CROSS_ENTROPY, add=True)
    assert [*found] == ["a", "b"] and floors == {}


def test_settings_of_the_unlabeled_images_share_one_floor_and_others_have_their_own():
    same = {"a": fixmatch(), "b": fixmatch("--unlabeled_ratio", "1"), "c": fixmatch("--target_model", "ema")}
    assert set(find_floors(same, CROSS_ENTROPY, add=True)[1].values()) == {"LabelsOnly"}
    for flags in (["--steps", "3"], ["--model.name", "wrn_10_1"], ["--optim.lr", "1"], TAIL):
        found, floors = find_floors({"a": fixmatch(), "b": fixmatch(*flags)}, CROSS_ENTROPY, add=True)
        assert [*found] == ["LabelsOnly-a", "LabelsOnly-b", "a", "b"]
        assert floors == {"a": "LabelsOnly-a", "b": "LabelsOnly-b"}


def test_a_second_call_adds_nothing_and_without_leave_nothing_is_added():
    once, floors = find_floors({"a": fixmatch(), "b": fixmatch("--steps", "3")}, CROSS_ENTROPY, add=True)
    assert find_floors(once, CROSS_ENTROPY, add=True) == (once, floors)
    assert find_floors(once, CROSS_ENTROPY, add=False) == (once, floors)
    assert find_floors({"a": fixmatch()}, CROSS_ENTROPY, add=False) == ({"a": fixmatch()}, {})


def test_each_setting_has_its_own_floor_from_its_own_loss():
    balanced = {"class_path": "Balanced", "init_args": {}}
    variants = {"few/a": fixmatch(), "tail/a": fixmatch(*TAIL, "--labeled_loss", "Balanced")}
    found, floors = find_floors(variants, {**CROSS_ENTROPY, "tail": balanced}, add=True)
    assert [*found] == ["few/LabelsOnly", "few/a", "tail/LabelsOnly", "tail/a"]
    assert floors == {"few/a": "few/LabelsOnly", "tail/a": "tail/LabelsOnly"}
    assert found["tail/LabelsOnly"]["labeled_loss"]["class_path"] == "Balanced"


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(InputError, match=r"LabelsOnly.*--floor false"):
        find_floors({"LabelsOnly": fixmatch()}, CROSS_ENTROPY, add=True)


def test_variants_on_other_images_or_labels_are_in_other_blocks():
    variants = {"a": fixmatch(), "b": fixmatch("--data.labels_per_class", "5"), "c": fixmatch("--steps", "3")}
    first, second = blocks_of(variants, {})
    assert (first.setting, first.variants) == ("labels_per_class=4", ("a", "c"))
    assert (second.setting, second.variants) == ("labels_per_class=5", ("b",))
    # Other networks, other augmentation and other places of the files are no other images.
    for flags in (["--model.name", "wrn_10_1"], ["--data.augment.flip", "true"], ["--data.root", "x"], ["--seed", "1"]):
        (block,) = blocks_of({"a": fixmatch(), "b": fixmatch(*flags)}, {})
        assert (block.setting, block.variants, block.first) == ("", ("a", "b"), "a")


def test_a_block_begins_with_what_was_added_and_compares_with_what_was_asked_for_first():
    other = fixmatch("--data.labeled_imbalance", "2")
    found, floors = find_floors({"few/a": fixmatch(), "few/b": other}, CROSS_ENTROPY, add=True)
    (block,) = blocks_of(found, floors)
    assert block.setting == "few" and block.first == "few/a" and block.asked == ("few/a", "few/b")
    assert block.variants == ("few/LabelsOnly-a", "few/LabelsOnly-b", "few/a", "few/b")
    # Added later, as by --resume, it comes first all the same.
    (block,) = blocks_of({"a": fixmatch(), "LabelsOnly": supervised()}, {"a": "LabelsOnly"})
    assert block.variants == ("LabelsOnly", "a")


def test_of_runs_without_a_plan_the_first_one_on_labels_alone_is_the_floor():
    runs = {"a": fixmatch(), "plain": supervised(), "other": supervised("--steps", "3")}
    assert floors_among(runs) == {"a": "plain"}
