import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from debias_ssl.data.splits import (
    Split,
    SplitConfig,
    UnlabeledOrder,
    class_counts,
    draw_split,
    load_split,
    long_tailed_counts,
    raised_classes,
    save_split,
    unlabeled_counts,
)
from debias_ssl.system.errors import InputError

DIGITS = tuple("0123456789")


def labels_of(*counts: int) -> np.ndarray:
    """Classes of so many images of each class, mixed."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def parts(split: Split) -> tuple[set[int], set[int], set[int]]:
    labeled, unlabeled, validation = (getattr(split, part).tolist() for part in ("labeled", "unlabeled", "validation"))
    for part in (labeled, unlabeled, validation):
        assert all(a < b for a, b in pairwise(part)), "each image once, in ascending order"
    return set(labeled), set(unlabeled), set(validation)


@pytest.mark.parametrize(
    ("largest", "imbalance", "counts", "total"),
    [
        (1500, 100.0, [1500, 899, 539, 323, 193, 116, 69, 41, 25, 15], 3720),
        (3000, 100.0, [3000, 1798, 1078, 646, 387, 232, 139, 83, 50, 30], 7443),
        (500, 100.0, [500, 299, 179, 107, 64, 38, 23, 13, 8, 5], 1236),
        (4000, 100.0, [4000, 2397, 1437, 861, 516, 309, 185, 111, 66, 40], 9922),
        (500, 150.0, [500, 286, 164, 94, 53, 30, 17, 10, 5, 3], 1162),
        (4000, 150.0, [4000, 2292, 1313, 752, 431, 247, 141, 81, 46, 26], 9329),
    ],
)
def test_long_tails_are_the_published_lists(largest: int, imbalance: float, counts: list[int], total: int):
    assert long_tailed_counts(largest, imbalance, 10) == counts
    assert sum(counts) == total


@pytest.mark.parametrize(
    ("largest", "imbalance", "num_classes", "total"),
    [
        *[(1500, 150.0, 10, 3496), (3000, 150.0, 10, 6996)],
        # STL-10
        *[(150, 10.0, 10, 609), (150, 20.0, 10, 507), (450, 10.0, 10, 1835), (450, 20.0, 10, 1528)],
        # CIFAR-100
        *[(150, 10.0, 100, 5835), (300, 10.0, 100, 11720), (150, 20.0, 100, 4741), (300, 20.0, 100, 9527)],
        *[(150, 15.0, 100, 5153), (300, 15.0, 100, 10352)],
        *[(50, 10.0, 100, 1911), (400, 10.0, 100, 15651), (50, 20.0, 100, 1545), (400, 20.0, 100, 12719)],
        # CIFAR-10-LT
        *[(5000, 100.0, 10, 12406), (5000, 200.0, 10, 11203), (5000, 50.0, 10, 13996), (5000, 150.0, 10, 11665)],
    ],
)
def test_long_tails_have_the_published_sums(largest: int, imbalance: float, num_classes: int, total: int):
    assert sum(long_tailed_counts(largest, imbalance, num_classes)) == total


def test_last_class_is_divided_not_multiplied():
    # 50 / 20 is 2.5; the tail of CIFAR-100 with 50 labels has 2.
    assert long_tailed_counts(50, 20.0, 100)[-1] == 2
    # (1 / 3)^(1/9) to the ninth power is .33333333333333337 or .3333333333333333; 9 / 3 is 3.
    assert long_tailed_counts(9, 3.0, 10)[-1] == 3


def test_counts_without_imbalance_are_all_the_largest():
    assert long_tailed_counts(7, 1.0, 4) == [7, 7, 7, 7]
    assert long_tailed_counts(7, 100.0, 1) == [7]
    assert long_tailed_counts(0, 1.0, 3) == [0, 0, 0]


def test_a_class_whose_share_is_below_one_gets_one():
    # Shares 10, 10/10^.5 = 3.16, 1, .316, .1
    assert long_tailed_counts(10, 100.0, 5) == [10, 3, 1, 1, 1]
    config = SplitConfig(labels_per_class=10, labeled_imbalance=100.0)
    assert raised_classes(config, 5) == 2


@pytest.mark.parametrize(
    "config",
    [
        # A share of exactly 1, and no long tail at all.
        SplitConfig(labels_per_class=100, labeled_imbalance=100.0),
        SplitConfig(labels_per_class=1),
        SplitConfig(),
        SplitConfig(labeled_fraction=0.1, train_imbalance=100.0),
    ],
)
def test_no_class_is_raised_where_shares_suffice(config: SplitConfig):
    assert raised_classes(config, 10) == 0


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("same", [4000, 2292, 1313, 752, 431, 247, 141, 81, 46, 26]),
        ("uniform", [4000] * 10),
        ("reversed", [26, 46, 81, 141, 247, 431, 752, 1313, 2292, 4000]),
        ("middle", [46, 141, 431, 1313, 4000, 2292, 752, 247, 81, 26]),
        ("head_tail", [2292, 752, 247, 81, 26, 46, 141, 431, 1313, 4000]),
    ],
)
def test_unlabeled_orders_are_the_worked_example(order: UnlabeledOrder, expected: list[int]):
    assert unlabeled_counts(4000, 150.0, order, 10) == expected


@pytest.mark.parametrize("num_classes", [1, 2, 7, 100])
@pytest.mark.parametrize("order", ["same", "reversed", "middle", "head_tail"])
def test_orders_only_permute_the_counts(order: UnlabeledOrder, num_classes: int):
    assert sorted(unlabeled_counts(500, 50.0, order, num_classes)) == sorted(long_tailed_counts(500, 50.0, num_classes))


@pytest.mark.parametrize(
    ("imbalance", "fraction", "counts", "num_unlabeled"),
    [
        (100.0, 0.1, (500, 300, 180, 108, 65, 39, 24, 14, 9, 5), 12406 - 1244),
        (100.0, 0.3, (1500, 900, 539, 324, 194, 117, 70, 42, 25, 15), 12406 - 3726),
        (200.0, 0.1, (500, 278, 154, 86, 48, 27, 15, 9, 5, 3), 11203 - 1125),
        (200.0, 0.3, (1500, 833, 462, 257, 143, 79, 44, 25, 14, 8), 11203 - 3365),
    ],
)
def test_crest_protocol_labels_a_fraction_of_a_long_tailed_set(
    imbalance: float, fraction: float, counts: tuple[int, ...], num_unlabeled: int
):
    config = SplitConfig(train_imbalance=imbalance, labeled_fraction=fraction, unlabeled_includes_labeled=False)
    labels = labels_of(*[5000] * 10)
    split = draw_split(labels, DIGITS, config, seed=0)
    assert class_counts(labels[split.labeled], 10) == counts
    assert len(split.unlabeled) == num_unlabeled
    everything = np.concatenate([split.labeled, split.unlabeled])
    assert class_counts(labels[everything], 10) == tuple(long_tailed_counts(5000, imbalance, 10))
    parts(split)


@pytest.mark.parametrize(("fraction", "count", "expected"), [(0.1, 70, 7), (0.07, 100, 7), (0.1, 71, 8), (0.3, 1, 1)])
def test_a_fraction_is_rounded_up_but_not_for_the_sake_of_floating_point(fraction: float, count: int, expected: int):
    split = draw_split(labels_of(count, count), ("a", "b"), SplitConfig(labeled_fraction=fraction), seed=0)
    assert len(split.labeled) == 2 * expected


def test_a_long_tailed_set_starts_from_the_smallest_class():
    config = SplitConfig(train_imbalance=4.0)
    labels = labels_of(50, 20, 30)
    assert class_counts(labels[draw_split(labels, ("a", "b", "c"), config, seed=0).labeled], 3) == (20, 10, 5)


def test_labels_per_class_are_balanced():
    labels = labels_of(30, 11, 17)
    split = draw_split(labels, ("a", "b", "c"), SplitConfig(labels_per_class=4), seed=0)
    assert class_counts(labels[split.labeled], 3) == (4, 4, 4)


def test_labels_and_unlabeled_images_have_their_own_long_tails():
    config = SplitConfig(
        labels_per_class=10,
        labeled_imbalance=10.0,
        unlabeled_per_class=20,
        unlabeled_imbalance=4.0,
        unlabeled_order="reversed",
        unlabeled_includes_labeled=False,
    )
    labels = labels_of(60, 60, 60)
    split = draw_split(labels, ("a", "b", "c"), config, seed=0)
    assert class_counts(labels[split.labeled], 3) == (10, 3, 1)
    assert class_counts(labels[split.unlabeled], 3) == (5, 10, 20)
    assert not set(split.labeled) & set(split.unlabeled)


def test_unlabeled_images_include_the_labeled_or_exclude_them():
    labels, config = labels_of(20, 20), SplitConfig(labels_per_class=3, validation_per_class=2)
    labeled, unlabeled, validation = parts(draw_split(labels, ("a", "b"), config, seed=0))
    assert labeled < unlabeled and unlabeled | validation == set(range(40))
    exclusive = replace(config, unlabeled_includes_labeled=False)
    also_labeled, others, _ = parts(draw_split(labels, ("a", "b"), exclusive, seed=0))
    assert also_labeled == labeled and others == unlabeled - labeled


@pytest.mark.parametrize("inclusive", [True, False])
def test_unlabeled_per_class_counts_images_beside_the_labeled(inclusive: bool):
    config = SplitConfig(labels_per_class=3, unlabeled_per_class=5, unlabeled_includes_labeled=inclusive)
    split = draw_split(labels_of(20, 20), ("a", "b"), config, seed=0)
    assert len(split.unlabeled) == (16 if inclusive else 10)


@pytest.mark.parametrize(
    "config",
    [
        SplitConfig(validation_per_class=4),
        SplitConfig(validation_per_class=4, labels_per_class=5),
        SplitConfig(validation_per_class=4, labels_per_class=5, unlabeled_per_class=6),
        SplitConfig(validation_per_class=4, labeled_fraction=0.5, train_imbalance=4.0),
    ],
)
def test_validation_images_are_balanced_and_in_no_other_part(config: SplitConfig):
    labels = labels_of(20, 50, 30)
    split = draw_split(labels, ("a", "b", "c"), config, seed=0)
    labeled, unlabeled, validation = parts(split)
    assert class_counts(labels[split.validation], 3) == (4, 4, 4)
    assert not validation & (labeled | unlabeled)


def test_validation_images_do_not_depend_on_how_the_others_are_split():
    labels = labels_of(20, 20)
    config = SplitConfig(validation_per_class=5)
    configs = (config, replace(config, labels_per_class=2), replace(config, train_imbalance=3.0))
    drawn = [draw_split(labels, ("a", "b"), config, seed=4) for config in configs]
    assert len({tuple(split.validation) for split in drawn}) == 1


def test_more_labels_keep_the_labels_of_fewer():
    labels = labels_of(20, 20)
    few, many = (draw_split(labels, ("a", "b"), SplitConfig(labels_per_class=n), seed=1).labeled for n in (3, 9))
    assert set(few) < set(many)


def test_seed_alone_decides_the_draw_and_split_seed_beats_it():
    labels, config = labels_of(50, 50), SplitConfig(labels_per_class=5)

    def labeled(config: SplitConfig, seed: int) -> list[int]:
        return draw_split(labels, ("a", "b"), config, seed=seed).labeled.tolist()

    assert labeled(config, 0) == labeled(config, 0)
    assert labeled(config, 0) != labeled(config, 1)
    assert labeled(replace(config, split_seed=1), 0) == labeled(config, 1)
    assert labeled(replace(config, split_seed=0), 1) == labeled(config, 0)


def test_every_image_is_equally_likely_to_be_labeled():
    counts, config = np.zeros(10), SplitConfig(labels_per_class=3)
    for seed in range(400):
        counts[draw_split(np.zeros(10, dtype=np.int64), ("a",), config, seed=seed).labeled] += 1
    # 120 are expected, with a standard deviation of 9.
    assert counts.min() > 80 and counts.max() < 160


def test_without_settings_every_image_is_labeled_and_unlabeled():
    split = draw_split(labels_of(3, 4), ("a", "b"), SplitConfig(), seed=0)
    assert split.labeled.tolist() == split.unlabeled.tolist() == list(range(7))
    assert len(split.validation) == 0


def test_an_unlabeled_set_of_its_own_is_taken_whole_and_gives_no_labels():
    labels = np.concatenate([labels_of(10, 10), np.full(8, -1)])
    config = SplitConfig(labels_per_class=3, validation_per_class=2, unlabeled_includes_labeled=False)
    labeled, unlabeled, validation = parts(draw_split(labels, ("a", "b"), config, seed=0, num_separate=8))
    assert unlabeled == set(range(20, 28))
    assert len(labeled) == 6 and len(validation) == 4 and max(labeled | validation) < 20
    inclusive = replace(config, unlabeled_includes_labeled=True)
    assert parts(draw_split(labels, ("a", "b"), inclusive, seed=0, num_separate=8))[1] == unlabeled | labeled


def test_a_long_tail_is_drawn_from_an_unlabeled_set_of_known_classes():
    labels = np.concatenate([labels_of(10, 10, 10), labels_of(40, 40, 40)])
    config = SplitConfig(
        labels_per_class=2,
        unlabeled_per_class=16,
        unlabeled_imbalance=4.0,
        unlabeled_order="reversed",
        unlabeled_includes_labeled=False,
    )
    split = draw_split(labels, ("a", "b", "c"), config, seed=0, num_separate=120)
    assert split.unlabeled.min() >= 30
    assert class_counts(labels[split.unlabeled], 3) == (4, 8, 16)
    assert class_counts(labels[split.labeled], 3) == (2, 2, 2) and split.labeled.max() < 30


def test_an_unlabeled_set_of_its_own_is_drawn_independently_of_the_labels():
    config = SplitConfig(labels_per_class=10, unlabeled_per_class=10, unlabeled_includes_labeled=False)
    split = draw_split(np.zeros(60, dtype=np.int64), ("a",), config, seed=0, num_separate=30)
    assert (split.unlabeled - 30).tolist() != split.labeled.tolist()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            SplitConfig(labels_per_class=6),
            "class 'b' has 5 images left, but 6 are requested: lower data.labels_per_class",
        ),
        (SplitConfig(validation_per_class=7), "class 'b' has 5 images left, but 7 .* data.validation_per_class"),
        (
            SplitConfig(labels_per_class=3, validation_per_class=3),
            "class 'b' has 2 images left, but 3 .* data.labels_per_class",
        ),
        (
            SplitConfig(labels_per_class=2, unlabeled_per_class=4),
            "'b' has 3 images left, but 4 .* data.unlabeled_per_class",
        ),
    ],
)
def test_asking_for_more_than_a_class_has_names_class_and_setting(config: SplitConfig, message: str):
    with pytest.raises(InputError, match=message):
        draw_split(labels_of(9, 5), ("a", "b"), config, seed=0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"labels_per_class": 0}, "data.labels_per_class is 0"),
        ({"unlabeled_per_class": 0}, "data.unlabeled_per_class is 0"),
        ({"validation_per_class": -1}, "data.validation_per_class is -1"),
        ({"split_seed": -1}, "data.split_seed is -1"),
        ({"labels_per_class": 5, "labeled_imbalance": 0.5}, "data.labeled_imbalance is 0.5"),
        ({"unlabeled_per_class": 5, "unlabeled_imbalance": 0.0}, "data.unlabeled_imbalance is 0.0"),
        ({"train_imbalance": float("nan")}, "data.train_imbalance is nan"),
        ({"train_imbalance": float("inf")}, "data.train_imbalance is inf"),
        ({"labeled_fraction": 0.0}, "data.labeled_fraction is 0.0"),
        ({"labeled_fraction": 1.1}, "data.labeled_fraction is 1.1"),
        ({"labeled_fraction": 0.1, "labels_per_class": 4}, "exclude each other"),
        # They would have no effect.
        ({"labeled_imbalance": 10.0}, "needs data.labels_per_class"),
        ({"unlabeled_imbalance": 10.0}, "need data.unlabeled_per_class"),
        ({"unlabeled_order": "uniform"}, "need data.unlabeled_per_class"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict, named: str):
    with pytest.raises(InputError, match=named):
        SplitConfig(**settings)


def test_class_counts_leave_out_unknown_classes_and_keep_empty_ones():
    assert class_counts(np.array([2, -1, 0, 2, -1]), 4) == (1, 0, 2, 0)
    assert class_counts(np.array([], dtype=np.int64), 2) == (0, 0)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "split.json"
    config = SplitConfig(labels_per_class=2, validation_per_class=1, unlabeled_includes_labeled=False)
    save_split(path, draw_split(labels_of(5, 5), ("a", "b"), config, seed=0), ("a", "b"), "0123")
    return path


def test_a_split_is_loaded_as_it_was_saved(tmp_path: Path):
    split = draw_split(labels_of(5, 5), ("ä", "b"), SplitConfig(labels_per_class=2), seed=0)
    save_split(tmp_path / "split.json", split, ("ä", "b"), "0123")
    loaded = load_split(tmp_path / "split.json", ("ä", "b"), "0123", 10)
    for part in ("labeled", "unlabeled", "validation"):
        assert getattr(loaded, part).dtype == np.int64
        assert getattr(loaded, part).tolist() == getattr(split, part).tolist()


def test_given_labels_are_loaded_as_they_were_saved_and_are_not_there_without(tmp_path: Path):
    split = draw_split(labels_of(5, 5), ("a", "b"), SplitConfig(labels_per_class=2), seed=0)
    path = tmp_path / "split.json"
    save_split(path, split, ("a", "b"), "0123")
    assert "labels" not in json.loads(path.read_text())
    assert load_split(path, ("a", "b"), "0123", 10).labels is None
    save_split(path, replace(split, labels=np.array([1, 1, 0, 1])), ("a", "b"), "0123")
    labels = load_split(path, ("a", "b"), "0123", 10).labels
    assert labels is not None and labels.dtype == np.int64 and labels.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("labels", [[0, 1, 1], [0, 1, 1, 2], [0, 1, 1, -1]])
def test_given_labels_that_do_not_fit_are_refused(saved: Path, labels: list):
    content = json.loads(saved.read_text())
    saved.write_text(json.dumps(content | {"labels": labels}))
    assert_refused(saved, "'labels' must have a class from 0 to 1 for each labeled image")


def assert_refused(path: Path, message: str, classes: tuple[str, ...] = ("a", "b"), mark: str = "0123", num: int = 10):
    with pytest.raises(InputError, match=message) as caught:
        load_split(path, classes, mark, num)
    assert str(path) in str(caught.value)


def test_a_split_of_other_data_is_refused_by_what_differs(saved: Path):
    assert_refused(saved, "its fingerprint differs", mark="4567")
    assert_refused(saved, "its classes differs", classes=("a", "c"))
    assert_refused(saved, "its classes differs", classes=("b", "a"))
    # Ten images are positions 0..9, all of which the split has.
    assert_refused(saved, "outside the 9 training images", num=9)


@pytest.mark.parametrize("part", ["labeled", "unlabeled", "validation"])
def test_positions_before_the_first_image_are_refused(saved: Path, part: str):
    content = json.loads(saved.read_text())
    saved.write_text(json.dumps(content | {part: [-1, *content[part]]}))
    assert_refused(saved, f"{part!r} has positions outside")


@pytest.mark.parametrize("part", ["labeled", "unlabeled", "validation"])
def test_an_image_that_is_listed_twice_is_refused(saved: Path, part: str):
    content = json.loads(saved.read_text())
    saved.write_text(json.dumps(content | {part: [*content[part], content[part][0]]}))
    assert_refused(saved, f"{part!r} has an image twice")


@pytest.mark.parametrize("part", ["labeled", "unlabeled"])
def test_validation_images_that_are_trained_on_are_refused(saved: Path, part: str):
    content = json.loads(saved.read_text())
    saved.write_text(json.dumps(content | {part: [*content[part], content["validation"][0]]}))
    assert_refused(saved, "'validation' has images that are trained on too")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"labeled"', '"labelled"'),
        lambda text: re.sub(r'"labeled": \[', '"labeled": ["x", ', text),
        lambda text: re.sub(r'"labeled": \[', '"labeled": [1e30, ', text).replace("1e30", str(10**30)),
        lambda text: re.sub(r'"classes": \[[^]]*\]', '"classes": null', text),
    ],
)
def test_a_file_that_is_no_split_is_refused_by_name(saved: Path, change):
    saved.write_text(change(saved.read_text()))
    assert_refused(saved, "is not a split.json")


def test_a_split_that_is_not_there_is_named(tmp_path: Path):
    assert_refused(tmp_path / "none.json", "cannot read .*none.json: No such file")
