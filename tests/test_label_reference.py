"""`debias-ssl label --reference`: a preference that other images show, from a folder, a file or an earlier job."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from jobs import refused, rows_of
from launched import run_ranks
from small_clip import paint_images, save_clip

from debias_ssl import debias_matrix, label, label_images
from debias_ssl.data.reading.decode import decode
from debias_ssl.features import embedding
from debias_ssl.label import main
from debias_ssl.models.clip import Clip, load_clip, zero_shot_weights

NAMES = ["ant", "bumble bee"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six images to label, and thirty others."""
    monkeypatch.setattr(label, "_page", lambda *_: "")
    images = paint_images(tmp_path / "all", num=36)
    for i, path in enumerate(images):
        target = tmp_path / ("images" if i < 6 else "others") / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    shutil.rmtree(tmp_path / "all")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    return tmp_path


@pytest.fixture
def run(tmp_path: Path, model: str) -> Callable[..., dict[str, Any]]:
    """Runs the job, further settings by name; gives its summary."""

    def run(out: str, **settings: Any) -> dict[str, Any]:
        main(arguments(tmp_path, model, out, **settings))
        return json.loads((tmp_path / out / "summary.json").read_text())

    return run


def arguments(folder: Path, model: str, out: str, **settings: Any) -> list[str]:
    given = {"images": folder / "images", "classes": folder / "classes.txt", "model": model, "out": folder / out}
    given |= {"workers": 0, "precision": "fp32"} | settings
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


def logits_of(folder: Path, model: str) -> np.ndarray:
    clip = load_clip(model, None, torch.device("cpu"))
    weights = zero_shot_weights(clip, NAMES, open_clip.SIMPLE_IMAGENET_TEMPLATES)
    images = torch.stack([clip.preprocess(decode(str(path))) for path in sorted(folder.iterdir())])
    return (clip.logit_scale * clip.encode(images).half().float() @ weights).numpy()


def test_images_of_a_reference_are_the_rows_that_the_preference_is_of(tmp_path: Path, model: str, run):
    summary = run("out", reference=tmp_path / "others")
    expected = debias_matrix(logits_of(tmp_path / "images", model), reference=logits_of(tmp_path / "others", model))
    rows = rows_of(tmp_path / "out")
    assert [row["label"] for row in rows] == [NAMES[k] for k in expected.label]
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], expected.confidence, atol=1e-3)
    assert summary["prior"] == "fixed_point" and summary["reference"] == str(tmp_path / "others")
    again = label_images(tmp_path / "images", NAMES, model=model, precision="fp32", reference=tmp_path / "others")
    assert [row["label"] for row in rows] == [NAMES[k] for k in again.label]
    paths = sorted((tmp_path / "others").iterdir())
    listed = label_images(tmp_path / "images", NAMES, model=model, precision="fp32", reference=paths)
    np.testing.assert_array_equal(listed.probs, again.probs)


def test_features_of_a_reference_are_made_once(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch):
    run("first", reference=tmp_path / "others")
    run("alone", images=tmp_path / "others")

    encoded: list[int] = []
    encode = Clip.encode
    monkeypatch.setattr(Clip, "encode", lambda clip, batch: encoded.append(len(batch)) or encode(clip, batch))
    # A preference has no images, and an earlier folder has features of its images.
    for name, reference in (("second", tmp_path / "first" / "preference.json"), ("third", tmp_path / "alone")):
        run(name, reference=reference, features=tmp_path / "first" / "features")
        assert rows_of(tmp_path / name) == rows_of(tmp_path / "first")
    # The blank image of the content-free prior, and no other.
    assert {*encoded} == {1}


def test_a_preference_of_other_prompts_or_another_model_is_refused(
    tmp_path: Path, model: str, run, capsys: pytest.CaptureFixture[str]
):
    run("first", reference=tmp_path / "others")
    preference = tmp_path / "first" / "preference.json"
    (tmp_path / "templates.txt").write_text("a {}.")
    other = arguments(tmp_path, model, "out", reference=preference, templates=tmp_path / "templates.txt")
    assert "was made with other prompts" in refused(main, other, capsys)
    second = save_clip(tmp_path / "second", seed=1)
    assert "was made with other weights of the model" in refused(
        main, arguments(tmp_path, second, "other", reference=preference), capsys
    )
    # No image was read for that.
    assert not (tmp_path / "other" / "features").exists()
    (tmp_path / "classes.txt").write_text("ant\nbug")
    assert "has other classes (bug, bumble bee)" in refused(
        main, arguments(tmp_path, model, "out", reference=preference), capsys
    )


def test_references_without_images_are_refused(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "empty").mkdir()
    said = refused(main, arguments(tmp_path, model, "out", reference=tmp_path / "empty"), capsys)
    assert "--reference" in said and "empty" in said and "--images" not in said
    (tmp_path / "empty" / "summary.json").write_text("{}")
    said = refused(main, arguments(tmp_path, model, "out", reference=tmp_path / "empty"), capsys)
    assert "is not a folder of label" in said


def work(rank: int, port: int, command: list[str]) -> None:
    """What torchrun starts."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    embedding.SHARD_SIZE = 4
    label._page = lambda *_: ""
    main(command)


def test_two_processes_measure_what_one_does(tmp_path: Path, model: str, run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding, "SHARD_SIZE", 4)
    run("alone", reference=tmp_path / "others")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_ranks(work, port, arguments(tmp_path, model, "together", reference=tmp_path / "others"))
    for name in ("labels.csv", "probs.npy", "preference.json"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()
