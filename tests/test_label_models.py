"""`debias-ssl label` with SigLIP, with several labels, with mirror images, and with vectors of prompts kept."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import refused, rows_of
from open_clip import SIMPLE_IMAGENET_TEMPLATES
from small_clip import paint_images, save_clip, save_siglip

import debias_ssl
from debias_ssl import label
from debias_ssl.data.reading.decode import decode
from debias_ssl.data.sources.label_files import read_label_file
from debias_ssl.label import main
from debias_ssl.models import clip as models
from debias_ssl.models.clip import load_clip, zero_shot_weights
from debias_ssl.system.errors import InputError

CLASSES = ["ant", "bee", "cow"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_siglip(tmp_path_factory.mktemp("siglip"), scale=6)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return paint_images(tmp_path / "images")


@pytest.fixture
def arguments(tmp_path: Path, model: str, images: list[Path], monkeypatch) -> Callable[..., list[str]]:
    """A command line; further settings by name. The page is not drawn."""
    monkeypatch.setattr(label, "_page", lambda *_: "")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))

    def arguments(**settings: Any) -> list[str]:
        given = {"images": tmp_path / "images", "classes": tmp_path / "classes.txt", "model": model}
        given |= {"out": tmp_path / "out", "workers": 0, "precision": "fp32", **settings}
        return [text for name, value in given.items() for text in (f"--{name}", str(value))]

    return arguments


def logits(model: str, images: list[Path]) -> torch.Tensor:
    """Without the bias."""
    clip = load_clip(model, None, CPU)
    features = clip.encode(torch.stack([clip.preprocess(decode(str(path))) for path in images])).half().float()
    return clip.logit_scale * features @ zero_shot_weights(clip, CLASSES, SIMPLE_IMAGENET_TEMPLATES)


def test_siglip_gives_one_label_by_a_softmax_and_several_by_sigmoids(tmp_path, model, images, arguments, capsys):
    main(arguments(multi_label=0.3, prior="none"))
    expected = logits(model, images)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "probs.npy"), expected.softmax(-1), atol=2e-3)
    fits, rows = (expected - 1).sigmoid() >= 0.3, rows_of(tmp_path / "out")
    found = [json.loads(row["labels"]) for row in rows]
    assert [{*each} for each in found] == [
        {name for name, is_ in zip(CLASSES, row, strict=True) if is_} for row in fits
    ]
    assert 0 < fits.sum() < fits.numel()
    assert all(each[0] == row["label"] for each, row in zip(found, rows, strict=True) if each)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [*summary["multi_label"]["counts"].values()] == fits.sum(0).tolist()
    assert f"{int((fits.sum(1) == 0).sum())} of 10 rows have none" in capsys.readouterr().out
    # They are of the model's own logits: a prior that is removed changes the label alone.
    main([*arguments(multi_label=0.3, prior="marginal", strength=3), "--overwrite"])
    again = rows_of(tmp_path / "out")
    assert [row["labels"] for row in again] == [row["labels"] for row in rows]
    assert [row["label"] for row in again] != [row["label"] for row in rows]
    # Whoever trains on the table finds the one label, as before.
    found = read_label_file(tmp_path / "out" / "labels.csv", tmp_path / "images")
    assert found.labels == [row["label"] for row in again]


def test_several_labels_of_a_model_without_sigmoids_are_refused_with_the_reason(tmp_path, arguments, capsys):
    clip = save_clip(tmp_path / "clip")
    message = refused(main, arguments(multi_label=0.5, model=clip), capsys)
    assert "--multi_label needs a model that was trained with sigmoids and has a logit bias, such as SigLIP" in message
    for threshold in (0, 1, 50, -0.1):
        assert "must be above 0 and below 1" in refused(main, arguments(multi_label=threshold), capsys)
    assert not (tmp_path / "out" / "labels.csv").exists()
    with pytest.raises(InputError, match=r"^multi_label needs a model"):
        debias_ssl.label_images(tmp_path / "images", CLASSES, model=clip, multi_label=0.5)


def test_programs_have_several_labels_too(tmp_path, model, images):
    found = debias_ssl.label_images(tmp_path / "images", CLASSES, model=model, multi_label=0.3, precision="fp32")
    fits = (logits(model, images) - 1).sigmoid() >= 0.3
    assert found.several is not None
    assert [{*found.several.of_row(row).tolist()} for row in range(10)] == [
        {*row.nonzero()[:, 0].tolist()} for row in fits
    ]


def test_flips_are_features_of_their_own(tmp_path, images, arguments, capsys):
    clip = save_clip(tmp_path / "clip")
    main(arguments(model=clip, flip="true", prior="none"))
    loaded = load_clip(clip, None, CPU)
    pixels = torch.stack([loaded.preprocess(decode(str(path))) for path in images])
    both = torch.nn.functional.normalize(loaded.encode(pixels) + loaded.encode(pixels.flip(2)), dim=-1)
    shard = np.load(tmp_path / "out" / "features" / "shard_00000.npy")
    np.testing.assert_allclose(shard, both, atol=1e-3)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["flip"] is True
    without = {"model": clip, "out": tmp_path / "without", "features": tmp_path / "out" / "features"}
    assert "features of another model (flip differ)" in refused(main, arguments(**without), capsys)
    main(arguments(**(without | {"features": tmp_path / "own"})))
    probs = [np.load(tmp_path / out / "probs.npy") for out in ("out", "without")]
    assert not np.array_equal(*probs)
    found = debias_ssl.label_images(tmp_path / "images", CLASSES, model=clip, flip=True, prior="none", precision="fp32")
    np.testing.assert_allclose(found.probs, probs[0], atol=1e-3)


def test_the_second_time_no_prompt_is_encoded_and_nothing_changes(tmp_path, arguments, cache, monkeypatch, capsys):
    main(arguments())
    assert [*cache.rglob("*.f32")]
    with monkeypatch.context() as patch:
        patch.setattr(models, "_mean_vectors", None)
        main(arguments(out=tmp_path / "again"))
    for name in ("labels.csv", "probs.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    # Without a cache too, which is told.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "classes.txt"))
    capsys.readouterr()
    main(arguments(out=tmp_path / "third"))
    assert (tmp_path / "third" / "labels.csv").read_bytes() == (tmp_path / "out" / "labels.csv").read_bytes()
    said = capsys.readouterr().err
    assert "note: the vectors of the prompts could not be cached: cannot make the folder" in said
    assert "vectors of the prompts" in str(json.loads((tmp_path / "third" / "summary.json").read_text())["notes"])


def test_prompts_that_siglip_cuts_are_told(tmp_path, arguments, capsys):
    (tmp_path / "classes.txt").write_text("ant\nbee\t" + "big " * 20 + "bee\n")
    main(arguments())
    assert "7 of 14 prompts are cut, because the model reads only 16 tokens" in capsys.readouterr().err


GUIDE = (Path(__file__).parent.parent / "docs" / "label-images.md").read_text()
# A command with several labels, and after it the code that reads them.
EXAMPLE = re.search(r"```\ndebias-ssl label ([^\n]*--multi_label [^\n]*)\n```.*?```python\n(.*?)```", GUIDE, re.DOTALL)


def test_the_example_of_the_guide_runs(tmp_path, images, arguments, monkeypatch):
    assert EXAMPLE
    command, code = EXAMPLE.groups()
    save_siglip(tmp_path / "models" / "siglip", scale=6)
    arguments()  # writes the names of the classes
    monkeypatch.chdir(tmp_path)
    main([*command.split(), "--workers", "0"])
    names: dict[str, Any] = {}
    exec(code, names)
    assert len(names["labels"]) == 10 and {name for each in names["labels"].values() for name in each} == {*CLASSES}
    counts = json.loads(Path("runs/several/summary.json").read_text())["multi_label"]["counts"]
    assert sum(counts.values()) == sum(map(len, names["labels"].values()))
