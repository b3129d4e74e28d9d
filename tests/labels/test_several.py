"""Several labels of a row by sigmoids: worked numbers, and the table and the figures that come of them."""

import csv
import io
import json

import pytest
import torch

from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.removal import find_removal
from debias_ssl.labels.debiasing.rows import Labeling, Rows, label_rows, labeling_of
from debias_ssl.labels.debiasing.several import several_labels
from debias_ssl.labels.output.label_table import csv_parts
from debias_ssl.labels.output.summary import summary_of, summary_table

# Sigmoids of logit - 1: 0.5, 0.731; 0.119, 0.018; 0.881, 0.953.
LOGITS = torch.tensor([[1.0, 2.0, -4.0], [-1.0, -3.0, -9.0], [3.0, -5.0, 4.0]])
CLASSES = ("cat, big", 'the "dog"', "élan")


def labeling(threshold: float | None = 0.5, **settings) -> Labeling:
    rows = Rows(
        chunks=[LOGITS[:2], LOGITS[2:]],
        names=["a.png", "b.png", "c.png"],
        classes=CLASSES,
        target=torch.full((3,), 1 / 3, dtype=torch.float64),
        logit_bias=-1.0,
        multi_label=threshold,
    )
    config = DebiasConfig(**settings)
    removal = find_removal(rows, config, is_quiet=True)
    return labeling_of(rows, config, removal, [part for part, _ in label_rows(rows, removal, is_quiet=True)])


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.5, [[1, 0], [], [2, 0]]),
        (0.1, [[1, 0], [0], [2, 0]]),
        (0.9, [[], [], [2]]),
        (0.001, [[1, 0, 2], [0, 1], [2, 0, 1]]),
    ],
)
def test_labels_are_the_classes_whose_sigmoid_is_high_enough_the_surest_first(threshold, expected):
    found = several_labels([LOGITS[:2], LOGITS[2:]], -1.0, threshold)
    assert found is not None
    assert [found.of_row(row).tolist() for row in range(3)] == expected
    sigmoids = (LOGITS - 1).sigmoid()
    assert [set(each) for each in expected] == [set((row >= threshold).nonzero()[:, 0].tolist()) for row in sigmoids]


def test_where_none_are_asked_for_there_are_none():
    assert several_labels([LOGITS], -1.0, None) is None and labeling(None).several is None
    assert "labels" not in next(csv_parts(labeling(None))).decode()
    assert "multi_label" not in summary_of(labeling(None))


def test_neither_what_is_removed_nor_the_temperature_changes_them():
    plain = labeling(prior="none")
    for settings in ({"prior": "marginal", "strength": 1.0}, {"temperature": 3.0}):
        other = labeling(**settings)
        assert plain.several is not None and other.several is not None
        assert other.several.classes.tolist() == plain.several.classes.tolist()
        assert other.several.starts.tolist() == plain.several.starts.tolist()
    assert labeling(prior="marginal", strength=5.0).label.tolist() != plain.label.tolist()


def test_the_table_has_them_as_json_and_every_reader_of_csv_gives_them_back():
    text = b"".join(csv_parts(labeling())).decode()
    rows = [*csv.DictReader(io.StringIO(text))]
    assert [json.loads(row["labels"]) for row in rows] == [['the "dog"', "cat, big"], [], ["élan", "cat, big"]]
    assert "élan" in text


def test_figures_count_them():
    summary = summary_of(labeling())
    assert summary["multi_label"] == {
        "threshold": 0.5,
        "counts": {"cat, big": 2, 'the "dog"': 1, "élan": 1},
        "mean": 4 / 3,
        "num_none": 1,
    }
    assert "several   1.33 labels a row from a sigmoid of 0.5; 1 of 3 rows have none" in summary_table(summary)
