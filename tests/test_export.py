"""`debias-ssl export`: a file that says what the run says, without this package."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_folders import write_features
from jobs import refused, run
from PIL import Image

from debias_ssl import evaluate, export, load_run, predict, train
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.load import load_data
from debias_ssl.deployment import formats

onnx, onnxruntime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
pytest.importorskip("onnxscript")

# A function of the package has the name of this module.
debias = importlib.import_module("debias_ssl.debias")
GUIDE = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text()
(SCRIPT,) = re.findall(r"`classify\.py`.*?```python\n(.*?)```", GUIDE, re.DOTALL)
(BY_TORCH,) = re.findall(r"## One file: torch.*?```python\n(.*?)```", GUIDE, re.DOTALL)
FLAGS = {
    "wrn_10_1": ["--data.validation_per_class", "2"],
    "test_resnet": ["--model.name", "test_resnet", "--steps", "2"],
    "SCAD": ["--method", "SCAD", "--steps", "2"],
    "CDMAD": ["--method", "CDMAD", "--steps", "2"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("runs")
    return {name: run(place / name, *flags) for name, flags in FLAGS.items()}


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    found = load_data(DataConfig()).test.pixels
    assert found is not None
    return found[:100]


@pytest.fixture(scope="module")
def exported(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model.onnx"
    export.main(["--run", str(runs["wrn_10_1"]), "--out", str(out)])
    return out


def said_by(file: Path, images: np.ndarray) -> list[np.ndarray]:
    """Logits and probabilities of an ONNX file."""
    session = onnxruntime.InferenceSession(file)
    return session.run(["logits", "probabilities"], {session.get_inputs()[0].name: images})


def test_a_file_alone_classifies_a_folder_as_predict_does(
    runs: dict[str, Path], exported: Path, pixels: np.ndarray, tmp_path: Path
):
    (tmp_path / "images").mkdir()
    for number, image in enumerate(pixels):
        # Of another size and shape than the run's: the script crops and resizes.
        whole = Image.fromarray(image[..., 0]).resize((19, 16))
        whole.save(tmp_path / "images" / f"{number:03}.png")
    (tmp_path / "model.onnx").write_bytes(exported.read_bytes())
    lines = [line for line in SCRIPT.splitlines() if line]
    assert len(lines) == 15 and "debias_ssl" not in SCRIPT and "torch" not in SCRIPT
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True)
    found = [line.split(",") for line in done.stdout.splitlines()]
    out = tmp_path / "labels.csv"
    flags = ["--run", str(runs["wrn_10_1"]), "--images", str(tmp_path / "images"), "--out", str(out), "--workers", "0"]
    predict.main(flags)
    wanted = [line.split(",")[:3] for line in out.read_text().splitlines()[1:]]
    assert len(found) == 100 and [row[:2] for row in found] == [row[:2] for row in wanted]
    assert [float(row[2]) for row in found] == pytest.approx([float(row[2]) for row in wanted], abs=1e-4)


@pytest.mark.parametrize("name", FLAGS)
def test_probabilities_are_those_of_the_run(
    name: str, runs: dict[str, Path], exported: Path, pixels: np.ndarray, tmp_path: Path
):
    """Also where a method changes the logits of the network: SCAD by a second head, CDMAD by those of a blank image."""
    file = tmp_path / "model.onnx" if name != "wrn_10_1" else exported
    if file != exported:
        export.main(["--run", str(runs[name]), "--out", str(file)])
    wanted = load_run(runs[name], "cpu").predict(pixels)
    for number in (1, 7, 100):
        logits, probabilities = said_by(file, pixels[:number])
        np.testing.assert_allclose(probabilities, wanted[:number], atol=1e-5)
        np.testing.assert_allclose(torch.from_numpy(logits).softmax(-1).numpy(), probabilities, atol=1e-6)
    if name == "wrn_10_1":
        said = np.load(runs[name] / "predictions" / "test_ema.npy")[:100]
        np.testing.assert_allclose(logits, said, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["CDMAD"])
def test_a_program_of_torch_says_the_same(name: str, runs: dict[str, Path], pixels: np.ndarray, tmp_path: Path):
    export.main(["--run", str(runs[name]), "--format", "torch", "--out", str(tmp_path / "model.pt2")])
    code = BY_TORCH.replace("torch.zeros(2, 32, 32, 3, dtype=torch.uint8)", "torch.from_numpy(pixels)")
    assert code != BY_TORCH
    names = {"pixels": pixels}
    exec(code.replace('"model.pt2"', repr(str(tmp_path / "model.pt2"))), names)
    assert names["classes"] == [*"0123456789"]
    probabilities: torch.Tensor = names["probabilities"]  # pyright: ignore[reportAssignmentType]
    np.testing.assert_allclose(probabilities.numpy(), load_run(runs[name], "cpu").predict(pixels), atol=1e-5)


def test_a_run_on_features_takes_features(tmp_path: Path):
    names = [f"{part}/{label}/{number}.png" for part in ("train", "test") for label in "ab" for number in range(4)]
    values = np.random.default_rng(0).normal(3, 2, (len(names), 5)).astype(np.float16)
    folder, tree = write_features(tmp_path / "features", tmp_path / "images", names, values), tmp_path / "images"
    parts = ["--data.labeled", str(tree / "train"), "--data.test", str(tree / "test"), "--data.features", f"[{folder}]"]
    net = ["--model.name", "linear", "--method", "Supervised", "--batch_size", "4"]
    steps = ["--steps", "2", "--log_every", "1", "--eval_every", "2"]
    train.main(["--data.name", "folder", *parts, *net, *steps, "--out", str(tmp_path / "run")])
    export.main(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "model.onnx")])
    _, probabilities = said_by(tmp_path / "model.onnx", values.astype(np.float32))
    paths = [str(tree / name) for name in names]
    np.testing.assert_allclose(probabilities, load_run(tmp_path / "run").predict(paths, features=folder), atol=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_inputs()[0].name == session.get_modelmeta().custom_metadata_map["mode"] == "features"
    card = (tmp_path / "run" / "README.md").read_text()
    assert "takes 5 features" in card and "pipeline_tag" not in card


def test_the_file_says_what_it_is_and_names_nothing_of_this_machine(runs: dict[str, Path], exported: Path):
    about = onnxruntime.InferenceSession(exported).get_modelmeta().custom_metadata_map
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", GUIDE, re.MULTILINE))))
    assert {*about} <= listed
    assert json.loads(about["classes"]) == [*"0123456789"] and about["mode"] == "L" and about["method"] == "DebiasPL"
    summary = json.loads((runs["wrn_10_1"] / "summary.json").read_text())
    assert float(about["accuracy"]) == summary["ema"]["last"]["accuracy"]
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert max(each.version for each in model.opset_import if not each.domain) == formats.OPSET
    text = exported.read_bytes()
    assert b".py" not in text and str(Path(__file__).parents[1]).encode() not in text


def test_the_temperature_of_evaluate_is_in_the_file(
    runs: dict[str, Path], exported: Path, pixels: np.ndarray, tmp_path: Path
):
    flags = ["--calibrate", "--out", str(tmp_path / "figures.json")]
    evaluate.main(["--run", str(runs["wrn_10_1"]), *flags])
    temperature = json.loads((tmp_path / "figures.json").read_text())["calibration"]["temperature"]
    flags = ["--temperature", str(tmp_path / "figures.json"), "--out", str(tmp_path / "model.onnx")]
    export.main(["--run", str(runs["wrn_10_1"]), *flags])
    plain, _ = said_by(exported, pixels)
    logits, probabilities = said_by(tmp_path / "model.onnx", pixels)
    np.testing.assert_allclose(logits, plain / temperature, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(probabilities, torch.from_numpy(plain / temperature).softmax(-1).numpy(), atol=1e-5)


def test_what_debias_removes_is_in_the_file(runs: dict[str, Path], pixels: np.ndarray, tmp_path: Path, capsys):
    for number, image in enumerate(pixels):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(tmp_path / "images" / f"{number:03}.png")
    source, table, labels = str(runs["wrn_10_1"]), str(tmp_path / "p.csv"), tmp_path / "labels"
    predict.main(["--run", source, "--images", str(tmp_path / "images"), "--out", table, "--workers", "0"])
    debias.main(["--predictions", table, "--out", str(labels), "--temperature", "1.5"])
    flags = ["--debiased", str(labels), "--format", "torch", "--out", str(tmp_path / "model.pt2")]
    export.main(["--run", source, *flags])
    assert "temperature 1.5, a shift for each class" in capsys.readouterr().out
    _, probabilities = torch.export.load(tmp_path / "model.pt2").module()(torch.from_numpy(pixels))
    wanted = np.load(labels / "probs.npy")
    assert np.abs(wanted - load_run(source, "cpu").predict(pixels)).max() > 0.01
    # probs.npy is of 16 bits, made of a table of decimals.
    np.testing.assert_allclose(probabilities.numpy(), wanted, atol=1e-3)


def test_a_file_that_would_be_wrong_is_not_written(runs: dict[str, Path], tmp_path: Path, monkeypatch, capsys):
    forward = formats.Deployed.forward
    monkeypatch.setattr(
        formats.Deployed, "forward", lambda self, images: tuple(x + 0.01 for x in forward(self, images))
    )
    with pytest.raises(SystemExit) as ended:
        export.main(["--run", str(runs["wrn_10_1"]), "--format", "torch", "--out", str(tmp_path / "model.pt2")])
    assert ended.value.code == 1 and "differs from the run by" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_what_cannot_be_exported_is_told(runs: dict[str, Path], tmp_path: Path, monkeypatch, capsys):
    source, out = str(runs["wrn_10_1"]), str(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_text("mine")
    flags = ["--run", source, "--out", out]
    assert "exists: pass --overwrite" in refused(export.main, flags, capsys)
    flags.append("--overwrite")
    assert "must be above 0" in refused(export.main, [*flags, "--temperature", "0"], capsys)
    monkeypatch.setattr(formats, "MOST_BYTES", 1000)
    assert "larger than 2 GiB" in refused(export.main, flags, capsys)
    monkeypatch.setattr(formats, "PACKAGES", ("no_such_package",))
    assert "pip install 'debias-ssl[onnx]'" in refused(export.main, flags, capsys)
    assert (tmp_path / "model.onnx").read_text() == "mine"
