"""Labels that a split gives to images, such as pseudo-labels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from debias_ssl.contract import Place
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.config import DataConfig
from debias_ssl.data.splits import save_split
from debias_ssl.data.task import make_task
from debias_ssl.methods import FixMatch, Problem


def test_given_labels_are_what_is_trained_on_and_truth_stays_what_it_is(tmp_path: Path):
    config = DataConfig(name="digits", labels_per_class=2)
    drawn = make_task(config, seed=0, place=Place(), progress=False)
    assert drawn.labeled_counts == (2,) * 10
    wrong = np.where(np.arange(20) < 3, 9, drawn.data.train.labels[drawn.split.labeled])
    path = tmp_path / "split.json"
    save_split(path, replace(drawn.split, labels=wrong), drawn.data.classes, drawn.fingerprint)

    task = make_task(replace(config, split=str(path)), seed=1, place=Place(), progress=False)
    assert task.labeled_counts == tuple(np.bincount(wrong, minlength=10))
    assert task.unlabeled_truth.tolist() == drawn.unlabeled_truth.tolist()
    assert task.data.train.labels.tolist() == drawn.data.train.labels.tolist()
    method = FixMatch(Problem(num_classes=10, num_features=1, labeled_counts=task.labeled_counts, num_unlabeled=1))
    streams = [
        each.training_stream(method, seed=0, batch_size=20, unlabeled_ratio=1, balanced=False) for each in (drawn, task)
    ]
    before, after = (next(iter(stream.batches(0, 1))) for stream in streams)
    assert before.labeled.equal(after.labeled)
    assert sorted(after.labels.tolist()) == sorted(wrong.tolist())
    assert (before.labels != after.labels).sum() == (wrong != drawn.data.train.labels[drawn.split.labeled]).sum()


@pytest.mark.parametrize(("flip", "expected"), [(None, False), (True, True), (False, False)])
def test_digits_are_mirrored_only_where_that_is_asked_for(flip, expected):
    config = DataConfig(labels_per_class=1, augment=AugmentConfig(flip=flip))
    task = make_task(config, seed=0, place=Place(), progress=False)
    stream = task.training_stream(FixMatch(task.problem(1)), seed=0, batch_size=4, unlabeled_ratio=1, balanced=False)
    assert stream.config.augment.flip is expected


@pytest.mark.parametrize(("bears", "expected"), [(True, True), (False, False)])
def test_a_data_set_says_whether_its_images_may_be_mirrored(bears, expected):
    task = make_task(DataConfig(labels_per_class=1), seed=0, place=Place(), progress=False)
    task = replace(task, data=replace(task.data, flips=bears))
    assert task.augment.flip is expected
