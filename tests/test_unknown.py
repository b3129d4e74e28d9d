"""Images that are of no class: `label` and `label_images` with negatives, and training on labels of some rows alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from jobs import refused, rows_of
from small_clip import paint_images, save_clip

import debias_ssl
from debias_ssl import train
from debias_ssl.data.reading.decode import decode
from debias_ssl.label import main
from debias_ssl.models.clip import load_clip, zero_shot_weights

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return save_clip(tmp_path / "clip")


@pytest.fixture
def arguments(tmp_path: Path, model: str) -> Callable[..., list[str]]:
    paint_images(tmp_path / "images", num=24)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")

    def arguments(**settings: Any) -> list[str]:
        given = {"images": tmp_path / "images", "classes": tmp_path / "classes.txt", "model": model}
        given |= {"out": tmp_path / "out", "workers": 0, "precision": "fp32"} | settings
        return [text for name, value in given.items() for text in (f"--{name}", str(value))]

    return arguments


def test_a_score_against_negatives_is_a_probability_among_all_names(tmp_path, model, arguments, capsys):
    (tmp_path / "others.txt").write_text("# none of these\nstone\nsky\tcloudy sky\n")
    main(arguments(negatives=tmp_path / "others.txt", unknown="max_prob", prior="none", coverage=0.5, temperature=2))
    clip = load_clip(model, None, torch.device("cpu"))
    weights = zero_shot_weights(clip, ["ant", "bee", "stone", "cloudy sky"], open_clip.SIMPLE_IMAGENET_TEMPLATES)
    rows = rows_of(tmp_path / "out")
    files = [decode(str(tmp_path / "images" / row["path"])) for row in rows]
    features = clip.encode(torch.stack([clip.preprocess(file) for file in files])).half().float()
    expected = (clip.logit_scale / 2 * features @ weights).softmax(1)[:, :2].amax(1)
    np.testing.assert_allclose([float(row["score"]) for row in rows], expected, atol=2e-5)
    # Confidences and probabilities are of the classes alone.
    assert np.load(tmp_path / "out" / "probs.npy").shape == (24, 2)
    assert sum(row["label"] != "" for row in rows) == 12
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["negatives"] == str(tmp_path / "others.txt") and summary["abstention"]["score"] == "max_prob"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 names of" in page and "Least certain" in page
    found: Any = debias_ssl.label_images(
        tmp_path / "images",
        ["ant", "bee"],
        model=model,
        negatives=["stone", "cloudy sky"],
        prior="none",
        temperature=2.0,
        precision="fp32",
        unknown="max_prob",
        coverage=0.5,
    )
    np.testing.assert_allclose(found.score, expected, atol=2e-5)
    assert [bool(each) for each in found.abstained] == [row["abstained"] == "true" for row in rows]


@pytest.mark.usefixtures("no_label_page")
def test_negatives_alone_give_a_score_and_leave_labels(tmp_path, arguments):
    main(arguments())
    before = rows_of(tmp_path / "out")
    (tmp_path / "others.txt").write_text("stone\n")
    main([*arguments(negatives=tmp_path / "others.txt"), "--overwrite"])
    after = rows_of(tmp_path / "out")
    assert {row["abstained"] for row in after} == {"false"}
    assert [{name: row[name] for name in before[0]} for row in after] == before


@pytest.fixture
def no_label_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("debias_ssl.label._page", lambda *_: "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stone\nBee\n", "--negatives has 'Bee', which is also a class"),
        ("stone\nwasp\tant\n", "--negatives has 'ant', which is also a class"),
        ("stone\nstone\n", "lines 1 and 2 are both 'stone'"),
        ("# nothing\n", "has no class names"),
        (None, "there is no such file"),
    ],
)
def test_negatives_that_cannot_be_are_refused_before_images_are_read(text, words, tmp_path, arguments, capsys):
    if text is not None:
        (tmp_path / "others.txt").write_text(text)
    assert words in refused(main, arguments(negatives=tmp_path / "others.txt"), capsys)
    assert not (tmp_path / "out" / "features").exists()


@pytest.mark.usefixtures("no_label_page")
def test_training_takes_rows_without_a_label_as_unlabeled(tmp_path, arguments):
    main(arguments(coverage=0.5, prior="none"))
    labeled = [row for row in rows_of(tmp_path / "out") if row["label"]]
    assert len(labeled) == 12
    paint_images(tmp_path / "test", num=4)
    flags = [
        "--data.name",
        "folder",
        "--data.labeled",
        str(tmp_path / "out" / "labels.csv"),
        "--model.name",
        "wrn_10_1",
    ]
    flags += ["--data.root", str(tmp_path / "images"), "--data.test", str(tmp_path / "test"), "--steps", "2"]
    flags += ["--data.min_confidence", "0", "--data.unlabeled_includes_labeled", "false", "--batch_size", "4"]
    train.main([*flags, "--data.image_size", "16", "--eval_every", "2", "--out", str(tmp_path / "run")])
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert len(split["labeled"]) == 12 and len(split["unlabeled"]) == 12
