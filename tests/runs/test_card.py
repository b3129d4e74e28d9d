"""A finished run is a model folder of timm, and has a model card."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from jobs import refused, run
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

import debias_ssl.models.timm_models  # noqa: F401
from debias_ssl import load_run, predict, train
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.load import load_data
from debias_ssl.finetune.__main__ import main as finetune
from debias_ssl.runs.card import model_card

FLAGS = {
    "wrn_10_1": [],
    "test_resnet": ["--model.name", "test_resnet", "--steps", "3"],
    "lora": ["--model.name", "test_resnet", "--model.adapter", "lora", "--steps", "3"],
    "CDMAD": ["--method", "CDMAD", "--steps", "3"],
    "group": ["--model.norm", "group", "--steps", "3"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    return {name: run(place / name, "--data.validation_per_class", "2", *flags) for name, flags in FLAGS.items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    pixels = load_data(DataConfig()).test.pixels
    assert pixels is not None
    for number, image in enumerate(pixels[:30]):
        Image.fromarray(image[..., 0]).save(folder / f"{number:03}.png")
    return folder


def logits_by_timm(folder: Path, images: Path) -> torch.Tensor:
    """What timm alone says of images, with the preprocessing of the folder."""
    network: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_model_data_config(network))
    with torch.no_grad():
        return network(torch.stack([transform(Image.open(file)) for file in sorted(images.iterdir())]))


@pytest.mark.parametrize("name", ["wrn_10_1", "test_resnet", "lora"])
def test_timm_says_what_predict_says(name: str, runs: dict[str, Path], images: Path, tmp_path: Path):
    out = tmp_path / "labels.csv"
    predict.main(["--run", str(runs[name]), "--images", str(images), "--out", str(out), "--workers", "0"])
    header, *rows = [line.split(",") for line in out.read_text().splitlines()]
    logits = logits_by_timm(runs[name], images)
    expected = np.array([[float(value) for value in row[3:]] for row in rows])
    np.testing.assert_allclose(logits.softmax(-1).numpy(), expected, atol=1e-5)
    said = np.load(runs[name] / "predictions" / "test_ema.npy")[: len(rows)]
    np.testing.assert_allclose(logits.numpy(), said, atol=1e-5, rtol=1e-5)
    network: Any = timm.create_model(f"local-dir:{runs[name]}", pretrained=True)
    assert [f"p_{each}" for each in network.pretrained_cfg["label_names"]] == header[3:]


def test_the_card_says_where_the_plain_network_is_not_the_whole(runs: dict[str, Path], images: Path):
    plain, whole = logits_by_timm(runs["CDMAD"], images).softmax(-1).numpy(), load_run(runs["CDMAD"]).predict(images)
    assert np.abs(plain - whole).max() > 1e-3
    cards = {name: (out / "README.md").read_text() for name, out in runs.items()}
    assert {name for name, card in cards.items() if "The plain network differs" in card} == {"CDMAD"}


def test_a_network_that_timm_cannot_create_is_said_to_be_ones_own(runs: dict[str, Path]):
    assert not (runs["group"] / "config.json").exists()
    card = (runs["group"] / "README.md").read_text()
    assert "timm does not know" in card and "timm.create_model" not in card
    assert ModelCard.load(runs["group"] / "README.md").data.to_dict()["library_name"] == "debias_ssl"


def test_hubs_read_what_the_card_begins_with(runs: dict[str, Path]):
    data = ModelCard.load(runs["wrn_10_1"] / "README.md").data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("timm", "image-classification") and "license" not in data
    assert {"timm", "debias_ssl", "DebiasPL"} <= {*data["tags"]}


def test_figures_are_those_of_the_summary(runs: dict[str, Path]):
    out = runs["wrn_10_1"]
    card, last = (out / "README.md").read_text(), json.loads((out / "summary.json").read_text())["ema"]["last"]
    assert f"| accuracy | {100 * last['accuracy']:.2f} % |" in card
    labels, logits = (np.load(out / "predictions" / f"test_{name}.npy") for name in ("labels", "ema"))
    recalls = [(logits[labels == k].argmax(1) == k).mean() for k in range(10)]
    said = re.findall(r"^\| (\d) \| 4 \| ([\d.]+) % \|$", card, re.MULTILINE)
    assert [(int(name), float(value)) for name, value in said] == [
        (k, round(100 * r, 2)) for k, r in enumerate(recalls)
    ]
    assert f"on {len(labels)} test images" in card and "4 of each class" in card and "seed 0" in card
    assert json.loads((out / "split.json").read_text())["fingerprint"] in card


def test_the_command_of_the_card_repeats_the_run(runs: dict[str, Path], tmp_path: Path, monkeypatch):
    out = runs["CDMAD"]
    (command,) = re.findall(r"^debias-ssl train (.*)$", (out / "README.md").read_text(), re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_bytes((out / "config.yaml").read_bytes())
    train.main(command.split())
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "runs/again" / name).read_bytes() == (out / name).read_bytes(), name


def test_a_fine_tuned_run_has_a_config_and_a_card_of_its_own(runs: dict[str, Path], images: Path, tmp_path: Path):
    out = tmp_path / "tuned"
    finetune(["--run", str(runs["wrn_10_1"]), "--method", "BiasSearch", "--out", str(out)])
    probabilities = load_run(out).predict(images)
    np.testing.assert_allclose(logits_by_timm(out, images).softmax(-1).numpy(), probabilities, atol=1e-5)
    assert np.abs(probabilities - load_run(runs["wrn_10_1"]).predict(images)).max() > 1e-3
    card = (out / "README.md").read_text()
    assert "# wrn_10_1, trained by DebiasPL\n" in card and "fine-tuned by `BiasSearch`" in card


def test_a_readme_that_somebody_wrote_is_not_replaced(tmp_path: Path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("mine")
    message = refused(train.main, ["--config", "configs/digits.yaml", "--out", str(tmp_path / "run")], capsys)
    assert "holds README.md" in message and (tmp_path / "run" / "README.md").read_text() == "mine"


def test_names_of_classes_are_text_and_no_markup(runs: dict[str, Path], tmp_path: Path):
    out = runs["wrn_10_1"]
    for path in out.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.json").unlink()
    model = json.loads((out / "model.json").read_text())
    names = ["<b>bold</b>", "a|b", "two\nlines", "`code`", *"456789"]
    counts = [0, *model["labeled_counts"][1:]]
    (tmp_path / "model.json").write_text(json.dumps(model | {"classes": names, "labeled_counts": counts}))
    summary = json.loads((out / "summary.json").read_text())
    # Older versions did not write down what made a run.
    del summary["made_by"]
    card = model_card(tmp_path, summary, is_plain=True)
    assert "versions: unknown" in card
    assert "| &lt;b&gt;bold&lt;/b&gt; | 0 |" in card and "| a\\|b | 4 |" in card and "| two lines | 4 |" in card
    assert "1 classes had no labeled image" in card
