"""The images of a step are those that the settings ask for."""

import pytest
import torch
from jobs import run
from safetensors.torch import load_file
from watched_runs import STILL, TINY, WATCH

from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.load import load_data
from debias_ssl.models import build


def test_strong_views_are_augmented_strongly(made, alone):
    batch, data = made("--data.split", alone, *STILL).batches[0], load_data(DataConfig())
    # Cutout paints a square of four by four pixels, of which at least a quarter is inside of the image.
    gray = (127 / 255 - data.mean[0]) / data.std[0]
    painted, others = ((views[0] - gray).abs().lt(1e-4).sum((1, 2, 3)) for views in (batch.strong, batch.weak))
    assert painted.min() >= 4 > others.min()


def test_a_step_has_as_many_images_as_asked_for(made):
    watch = made(*WATCH)
    assert {(len(views.labels), len(views.index)) for views in watch.given} == {(8, 16)}
    assert len(made(*WATCH, "--unlabeled_ratio", "3", "--steps", "1").given[0].index) == 24
    # From all unlabeled images.
    assert {int(i) for views in watch.given for i in views.index} <= set(range(len(watch.split()["unlabeled"])))


def test_classes_are_drawn_equally_often_where_that_is_asked_for(made):
    tail = ["--data.labels_per_class", "20", "--data.labeled_imbalance", "20", "--batch_size", "10"]
    plain, balanced = made(*WATCH, *tail), made(*WATCH, *tail, "--class_balanced", "true")
    assert all(sorted(views.labels.tolist()) == [*range(10)] for views in balanced.given)
    assert not all(sorted(views.labels.tolist()) == [*range(10)] for views in plain.given)


def test_probabilities_are_those_of_the_teachers_averaged_model(made):
    teacher = made()
    taught = made("--method", "watched_runs.Taught", "--teacher", str(teacher.out))
    averaged = build("wrn_10_1", 10, in_chans=1)
    averaged.net.load_state_dict(load_file(teacher.out / "model.safetensors"))
    for views, batch in zip(taught.given, taught.batches, strict=True):
        for given, images in ((views.teacher_probs, batch.weak[0]), (views.labeled_teacher_probs, batch.labeled)):
            with torch.no_grad():
                expected = averaged.eval()(images)[0].softmax(-1)
            torch.testing.assert_close(given, expected)


def test_a_method_that_needs_a_teacher_is_refused_without_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "a", *TINY, "--method", "watched_runs.Taught")
    assert exit_.value.code == 2 and "set data.probs or teacher" in capsys.readouterr().err
