"""What the scripts about label smoothing measure, on points and samples of which it is known; and their pages."""

import math
from pathlib import Path

import pytest
import smoothing_calibration
import smoothing_distillation
import smoothing_information
import smoothing_projection
import torch
from jobs import refused
from smoothing_distillation import equivalent_smoothing
from smoothing_information import information
from smoothing_projection import looseness, plane, projected

SCRIPTS = (smoothing_projection, smoothing_calibration, smoothing_distillation, smoothing_information)


def test_the_plane_goes_through_the_templates_and_keeps_distances_in_it():
    templates = torch.tensor([[1.0, 0.0, 0.0, 5.0], [1.0, 3.0, 0.0, 5.0], [1.0, 0.0, 4.0, 5.0]])
    basis = plane(templates)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2))
    # The first and last axis do not belong to the plane: what happens along them is not seen.
    torch.testing.assert_close(basis[:, [0, 3]], torch.zeros(2, 2))
    away = templates + torch.tensor([7.0, 0.0, 0.0, -2.0])
    flat = projected(away, templates)
    torch.testing.assert_close(torch.pdist(flat), torch.tensor([3.0, 4.0, 5.0]))
    torch.testing.assert_close(flat.mean(0), torch.zeros(2), atol=1e-6, rtol=0)


def test_looseness_of_known_clusters():
    # Centers at the corners of a triangle with sides 3, 4 and 5; each group is its center +- (1, 0).
    centers = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    points = torch.cat([centers + torch.tensor([1.0, 0.0]), centers - torch.tensor([1.0, 0.0])])
    groups = torch.tensor([0, 1, 2, 0, 1, 2])
    assert looseness(points, groups) == (pytest.approx(1 / 4), pytest.approx(5 / 3))
    scaled, unequal = looseness(10 * points, groups)
    assert scaled == pytest.approx(1 / 4) and unequal == pytest.approx(5 / 3)
    # Numbers of classes need not be 0, 1, 2.
    assert looseness(points, 3 * groups + 1) == looseness(points, groups)


def test_information_of_two_clusters_is_log_2_and_of_as_many_as_images_its_log():
    noise = torch.tensor([-0.1, 0.1, -0.1, 0.1])
    two = torch.cat([noise.expand(5, 4) - 9, noise.expand(5, 4) + 9])
    assert information(two) == pytest.approx(math.log(2))
    assert information(noise + 100 * torch.arange(10.0)[:, None]) == pytest.approx(math.log(10))
    assert information(noise.expand(7, 4)) == pytest.approx(0)
    # Nothing random at all: every image is known by its value.
    assert information(torch.arange(4.0)[:, None].expand(4, 3)) == pytest.approx(math.log(4))


def test_information_does_not_depend_on_scale_and_place_and_agrees_with_a_sum_by_hand():
    samples = torch.tensor([[0.0, 2.0], [1.0, 3.0]])  # means 1 and 2, variance 1
    expected = 0.0
    for own, row in enumerate(samples.tolist()):
        for f in row:
            density = [math.exp(-((f - mean) ** 2) / 2) for mean in (1, 2)]
            expected += math.log(density[own] / (sum(density) / 2)) / 4
    assert information(samples) == pytest.approx(expected)
    assert information(5 * samples - 40) == pytest.approx(expected)


def test_targets_of_label_smoothing_amount_to_their_strength():
    labels = torch.tensor([0, 2, 1])
    probs = 0.8 * torch.eye(4)[labels] + 0.2 / 4
    assert equivalent_smoothing(probs, labels) == pytest.approx(0.2)
    assert equivalent_smoothing(torch.eye(4)[labels], labels) == 0


FLAGS = {
    smoothing_distillation: [
        "--smoothing",
        "0.2",
        "--temperatures",
        "2",
        "--teacher_model",
        "wrn_10_1",
        "--teacher_labels",
        "30",
    ],
    smoothing_information: ["--labels_per_class", "10", "--views", "2"],
}
FOUND = {
    smoothing_projection: ["two alike, validation", "smoothing 0.1"],
    smoothing_calibration: ["smoothing 0.1, fitted temperature", "ECE against the temperature"],
    smoothing_distillation: ["student of the smoothed teacher", "T = 2"],
    smoothing_information: ["log 20 = 3.00", "step 4"],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoothing")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_each_script_writes_one_page_and_its_tables(script, out, capsys):
    arguments = ["--out", str(out), "--seeds", "1", "--steps", "4", *FLAGS.get(script, [])]
    script.main(arguments)
    name = script.__name__.removeprefix("smoothing_")
    page, text = ((out / f"{name}.{kind}").read_text() for kind in ("html", "txt"))
    assert text in capsys.readouterr().out and "<svg" in page and "http-equiv" not in page
    assert all(words in page for words in FOUND[script])
    # Runs that are there are not run again.
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/model.safetensors")}
    script.main(arguments)
    assert before == {path: path.stat().st_mtime_ns for path in (out / "runs").glob("*/model.safetensors")}
    assert (out / f"{name}.txt").read_text() == text


@pytest.mark.parametrize(
    ("script", "flags", "words"),
    [
        (smoothing_projection, ["--seeds", "0"], "--seeds"),
        (smoothing_projection, ["--alike", "3,9,x"], "3,9,x"),
        (smoothing_information, ["--classes", "3,3"], "3,3"),
        (smoothing_distillation, ["--temperatures", "warm"], "warm"),
        (smoothing_calibration, ["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_does_not_fit_is_told(script, flags, words, out, capsys):
    arguments = ["--out", str(out), "--seeds", "1", "--steps", "4", *FLAGS.get(script, []), *flags]
    assert words in refused(script.main, arguments, capsys).splitlines()[-1]
