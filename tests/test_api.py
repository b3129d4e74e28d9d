"""The public API: its names, what importing the package costs, and that functions say what the jobs write."""

import ast
import csv
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import rows_of, run
from PIL import Image
from small_clip import paint_images, save_clip

import debias_ssl
from debias_ssl import methods
from debias_ssl.contract import Problem
from debias_ssl.debias import main as debias_main
from debias_ssl.formulas import logits as formulas
from debias_ssl.label import main as label_main
from debias_ssl.labels.output.folder import stored
from debias_ssl.predict import main as predict_main
from debias_ssl.system.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")

CLASSES = ["ant", "bee", "cat", "dog"]
NUM = 300
TRUTH = np.arange(NUM) % 4


def python(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=True)


# Names.


def test_importing_the_package_imports_nothing_heavy():
    listed = python("import debias_ssl", "-X", "importtime").stderr
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in listed.splitlines()}
    assert "debias_ssl" in imported and not imported & {"torch", "numpy", "timm", "jaxtyping", "open_clip"}


def test_every_name_is_there_and_explained():
    assert {"debias", "stationary", "DebiasPL", "build", "label_images", "load_run", "__version__"} <= {
        *debias_ssl.__all__
    }
    assert {*debias_ssl.__all__} <= {*dir(debias_ssl)}
    for name in debias_ssl.__all__:
        value = getattr(debias_ssl, name)
        assert name == "__version__" or (callable(value) and inspect.getdoc(value)), name
    assert debias_ssl.Problem is Problem
    exported = {name for name in methods.__all__ if isinstance(getattr(methods, name), type)}
    of_methods = {name for name in exported if issubclass(getattr(methods, name), methods.Method)}
    assert of_methods <= {*debias_ssl.__all__}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = debias_ssl.nothing  # pyright: ignore[reportAttributeAccessIssue]


def test_type_checkers_read_what_is_loaded():
    tree = ast.parse(Path(debias_ssl.__file__).read_text())
    shown = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("debias_ssl")
        for alias in node.names
    }
    assert shown == debias_ssl._MODULES


def test_types_are_shipped():
    assert (Path(debias_ssl.__file__).parent / "py.typed").is_file()


WAYS = (
    "import debias_ssl; debias_ssl.debias; import debias_ssl.debias",
    "import debias_ssl.debias",
    "from debias_ssl.debias import main; from debias_ssl import debias; assert debias is debias_ssl.debias",
    "import importlib; importlib.import_module('debias_ssl.debias')",
)
COMMANDS = (["debias_ssl.debias", "--help"], ["debias_ssl", "debias", "--help"])
# The package is imported anew each time, and what is slow to import once.
ANEW = """
import contextlib, io, json, runpy, sys, warnings

# timm has our networks from the time before.
warnings.filterwarnings("ignore", "Overwriting .* in registry")
ways, commands, found = *json.loads(sys.argv[1]), {"names": [], "said": []}


def forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "debias_ssl"]:
        del sys.modules[name]


for way in ways:
    forget()
    import debias_ssl

    exec(way, {"debias_ssl": debias_ssl})
    found["names"].append(debias_ssl.debias.__module__)
for module, *arguments in commands:
    forget()
    out, err, sys.argv[1:] = io.StringIO(), io.StringIO(), arguments
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        # As python -m does.
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    found["said"].append([out.getvalue(), err.getvalue()])
forget()
import debias_ssl

try:
    debias_ssl.debias_matrix([[1.0, 0.0], [0.0, 1.0]], prior="marginl")
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def anew() -> dict[str, Any]:
    """What a process says that has imported the package in several ways, without the suite's checks of types."""
    command = [sys.executable, "-c", ANEW, json.dumps([WAYS, COMMANDS])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode and not done.stderr, done.stderr
    return json.loads(done.stdout)


def test_debias_is_the_function_whatever_was_imported_before(anew: dict[str, Any]):
    assert anew["names"] == ["debias_ssl.formulas.logits"] * len(WAYS)


def test_debias_is_the_job_for_commands(anew: dict[str, Any]):
    for out, err in anew["said"]:
        assert "usage: debias-ssl debias" in out and not err
    assert len(anew["said"]) == len(COMMANDS) and debias_ssl.debias is formulas.debias


def test_a_wrong_prior_is_told_with_the_right_ones(anew: dict[str, Any]):
    assert anew["error"].startswith("InputError: prior is marginl, must be one of auto, none, marginal")


# Matrices.


@pytest.fixture
def logits() -> np.ndarray:
    """Logits of a classifier that prefers later classes."""
    generator = np.random.default_rng(0)
    return (generator.normal(size=(NUM, 4)) + 2 * np.eye(4)[TRUTH] + np.arange(4)).astype(np.float32)


def of_job(tmp_path: Path, values: np.ndarray, *flags: str) -> Path:
    np.save(tmp_path / "values.npy", values)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    out = tmp_path / "out"
    debias_main(["--predictions", str(tmp_path / "values.npy"), "--out", str(out), *flags])
    return out


def agree(found: Any, out: Path) -> None:
    """What a function has returned is what a job has written."""
    rows, summary = rows_of(out), json.loads((out / "summary.json").read_text())
    for name, numbers in (("label", found.label), ("plain_label", found.plain)):
        assert [row[name] for row in rows] == [found.classes[k] for k in numbers]
    for name in ("confidence", "plain_confidence", "top2_gap"):
        assert [row[name] for row in rows] == [f"{number:.6f}" for number in getattr(found, name)]
    assert found.probs.dtype == np.float32
    np.testing.assert_array_equal(np.load(out / "probs.npy"), stored(torch.from_numpy(found.probs), found.label))
    assert summary["class_prior"] == dict(zip(found.classes, found.prior.tolist(), strict=True))
    assert (summary["strength"], summary["temperature"]) == (found.strength, found.temperature)
    # Arrays have no name.
    figures = {name: value for name, value in found.summary().items() if name != "target_prior"}
    assert {name: summary[name] for name in figures} == figures


def test_a_matrix_has_the_labels_of_the_job(logits: np.ndarray, tmp_path: Path, capfd):
    np.save(tmp_path / "truth.npy", TRUTH)
    few = np.where(np.arange(NUM) < 50, TRUTH, -1)
    np.save(tmp_path / "few.npy", few)
    out = of_job(tmp_path, logits, "--truth", str(tmp_path / "truth.npy"), "--tune_on", str(tmp_path / "few.npy"))
    capfd.readouterr()
    before = {*tmp_path.iterdir()}
    found = debias_ssl.debias_matrix(logits, classes=CLASSES, truth=TRUTH.tolist(), tune_on=torch.from_numpy(few))
    agree(found, out)
    assert found.strength != 1 and found.summary()["debiased"]["accuracy"] > found.summary()["plain"]["accuracy"]
    left = logits / found.temperature - found.shift
    np.testing.assert_array_equal(found.label, left.argmax(1))
    by_file = debias_ssl.debias_matrix(logits, classes=CLASSES, truth=tmp_path / "truth.npy", tune_on=few)
    np.testing.assert_array_equal(by_file.probs, found.probs)
    assert capfd.readouterr() == ("", "")
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize("prior", ["none", "marginal", "fixed_point", "content_free"])
def test_priors_and_targets_are_those_of_the_job(prior: Any, logits: np.ndarray, tmp_path: Path):
    np.save(tmp_path / "blank.npy", logits[:3])
    (tmp_path / "target.json").write_text(json.dumps(dict(zip(CLASSES, [4, 3, 2, 1], strict=True))))
    flags = ["--prior", prior, "--strength", "0.7", "--temperature", "2", "--blank", str(tmp_path / "blank.npy")]
    out = of_job(tmp_path, logits, *flags, "--target_prior", str(tmp_path / "target.json"))
    found = debias_ssl.debias_matrix(
        torch.from_numpy(logits),
        classes=CLASSES,
        prior=prior,
        strength=0.7,
        temperature=2,
        blank=logits[:3],
        target_prior=[4, 3, 2, 1],
    )
    agree(found, out)


def test_probabilities_of_any_type_are_found(logits: np.ndarray, tmp_path: Path):
    probs = torch.from_numpy(logits).softmax(1)
    found = debias_ssl.debias_matrix(probs.bfloat16())
    agree(debias_ssl.debias_matrix(probs, classes=CLASSES), of_job(tmp_path, probs.numpy()))
    assert found.classes == ("0", "1", "2", "3") and found.names[7] == "7"
    assert (found.label == debias_ssl.debias_matrix(logits).label).mean() > 0.95
    named = debias_ssl.debias_matrix(logits, names=[f"{i}.png" for i in range(NUM)])
    assert named.names[7] == "7.png"
    as_logits = debias_ssl.debias_matrix(probs, kind="logits", prior="none")
    np.testing.assert_allclose(as_logits.probs, probs.softmax(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"logits": np.zeros(3)}, r"^logits holds float64 of shape \(3,\)"),
        ({"logits": np.zeros((0, 3))}, "^logits has 0 rows"),
        ({"logits": np.array([[1.0, np.nan]])}, "^logits: row 0 .* nan is not a finite number"),
        ({"logits": np.array([[True, False]])}, "^logits holds bool"),
        ({"kind": "probs"}, "^logits: .*pass kind logits"),
        ({"classes": ["a", "b"]}, "^classes names 2, but logits have 4"),
        ({"classes": ["a", "b", "b", "c"]}, "^classes: entries 2 and 3 are both 'b'"),
        ({"names": ["a"]}, "^names has 1"),
        ({"strength": -1}, "^strength is -1"),
        ({"temperature": 0}, "^temperature is 0"),
        ({"momentum": 1.0}, "^momentum is 1"),
        ({"prior": "content_free"}, "content_free.* blank"),
        ({"blank": np.ones((1, 3))}, "^blank has 3 classes"),
        ({"target_prior": "unifrom"}, "^target_prior is 'unifrom'"),
        ({"target_prior": [1, 2]}, "^target_prior is of shape"),
        ({"target_prior": [1, 2, 3, -1]}, "^target_prior must be weights"),
        ({"truth": [0, 1]}, "^truth is int64 of shape"),
        ({"truth": np.full(NUM, 4)}, "^truth: row 0 has class 4"),
        ({"truth": "nowhere.csv"}, "^truth: .*nowhere.csv"),
        ({"tune_on": np.full(NUM, -1)}, "^tune_on .*labels none"),
    ],
)
def test_wrong_arguments_are_named(settings: dict[str, Any], words: str, logits: np.ndarray):
    with pytest.raises(InputError, match=words):
        given: dict[str, Any] = {"logits": logits}
        debias_ssl.debias_matrix(**(given | settings))


# Images.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def label(tmp_path: Path, model: str) -> Callable[..., Any]:
    """`label_images` of ten painted images; further arguments by name."""
    paint_images(tmp_path / "images")

    def label(**settings: Any) -> Any:
        given = {"images": tmp_path / "images", "classes": ["ant", "bee"], "model": model, "precision": "fp32"}
        return debias_ssl.label_images(**(given | settings))

    return label


def labeled_by_job(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Path:
    monkeypatch.setattr("debias_ssl.label._page", lambda *_: "")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    given = {"images": tmp_path / "images", "classes": tmp_path / "classes.txt", "model": model}
    given |= {"precision": "fp32", "workers": 0, "out": tmp_path / "out"} | settings
    label_main([text for name, value in given.items() for text in (f"--{name}", str(value))])
    return tmp_path / "out"


def test_images_have_the_labels_of_the_job(label, model: str, tmp_path: Path, monkeypatch, capfd):
    before = {*tmp_path.iterdir()}
    found = label()
    # Vectors of prompts are in the user's cache.
    assert {*tmp_path.iterdir()} - {tmp_path / "cache"} == before and capfd.readouterr() == ("", "")
    out = labeled_by_job(tmp_path, model, monkeypatch)
    agree(found, out)
    assert found.names == [str(tmp_path / "images" / row["path"]) for row in rows_of(out)] and not found.unreadable
    kept = label(features=tmp_path / "kept", classes=tmp_path / "classes.txt")
    np.testing.assert_array_equal(kept.probs, found.probs)
    shard = (tmp_path / "kept" / "shard_00000.npy").read_bytes()
    assert shard == (out / "features" / "shard_00000.npy").read_bytes()
    paths = found.names[3:7]
    listed = label(images=paths, prior="none", templates=["a {}.", "the {} there"], truth=[0, 0, 1, -1])
    assert listed.names == paths and listed.truth.tolist() == [0, 0, 1, -1]


def test_images_that_cannot_be_read_are_told(label, model: str, tmp_path: Path, monkeypatch):
    (tmp_path / "images" / "ant" / "4.png").write_bytes(b"no image")
    broken = str(tmp_path / "images" / "ant" / "4.png")
    with pytest.raises(InputError, match=f"cannot read image '{broken}'.*on_error"):
        label()
    found = label(on_error="skip", truth=np.array([0] * 5 + [1] * 5))
    assert [*found.unreadable] == [broken] and len(found.names) == len(found.probs) == 9
    assert found.truth.tolist() == [0] * 4 + [1] * 5
    agree(found, labeled_by_job(tmp_path, model, monkeypatch, on_error="skip"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"images": "nowhere"}, "^images is 'nowhere'"),
        ({"images": ["nowhere.png"]}, "^images: there is no file 'nowhere.png'"),
        ({"images": []}, "^images lists no images"),
        ({"classes": ["ant"]}, "^classes names one class"),
        ({"classes": "nowhere"}, "^classes is 'nowhere'"),
        ({"classes": ["ant", " "]}, "^classes, entry 2"),
        ({"templates": ["a photo"]}, "^templates, sentence 1"),
        ({"model": "ViT-B32"}, "^model: open_clip has no model"),
        ({"batch_size": 0}, "^batch_size is 0"),
        ({"workers": -1}, "^workers is -1"),
        ({"truth": [1]}, "^truth is int64 of shape"),
        ({"target_prior": "x"}, "^target_prior is 'x'"),
        ({"precision": "fp16", "device": "cpu"}, "^precision fp16"),
    ],
)
def test_wrong_arguments_of_images_are_named(settings: dict[str, Any], words: str, label):
    with pytest.raises(InputError, match=words):
        label(**settings)


# Runs.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "a")


def test_a_loaded_run_predicts_what_the_job_writes(finished: Path, tmp_path: Path, capfd):
    from debias_ssl.data.config import DataConfig
    from debias_ssl.data.sources.load import load_data

    pixels = load_data(DataConfig()).test.pixels
    assert pixels is not None
    pixels = pixels[:12]
    larger = np.repeat(np.repeat(pixels, 3, axis=1), 4, axis=2)
    for folder, images in (("images", pixels), ("larger", larger)):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(tmp_path / folder / f"{i:02}.png")
    capfd.readouterr()
    trained = debias_ssl.load_run(finished)
    assert trained.classes == tuple("0123456789")
    expected = torch.from_numpy(np.load(finished / "predictions" / "test_ema.npy"))[:12].softmax(1)
    for folder, images in (("images", pixels), ("larger", larger)):
        out = tmp_path / f"{folder}.csv"
        predict_main(["--run", str(finished), "--images", str(tmp_path / folder), "--out", str(out), "--workers", "0"])
        rows = [*csv.DictReader(out.read_text().splitlines())]
        probs = trained.predict(tmp_path / folder)
        assert probs.shape == (12, 10) and probs.dtype == np.float32
        assert [[row[f"p_{k}"] for k in range(10)] for row in rows] == [[f"{p:.6g}" for p in row] for row in probs]
        np.testing.assert_array_equal(trained.predict(images), probs)
        reversed_ = trained.predict([tmp_path / folder / row["path"] for row in rows[::-1]])
        np.testing.assert_allclose(reversed_[::-1], probs, rtol=1e-5)
    np.testing.assert_allclose(trained.predict(pixels), expected, atol=1e-5)
    np.testing.assert_allclose(trained.predict(pixels, batch_size=5), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 8, 8), dtype=np.uint8), r"^images is uint8 of shape \(2, 8, 8\), must be uint8 of N x H x W x K"),
        (np.zeros((2, 8, 8, 1)), "^images is float64"),
        (np.zeros((2, 8, 8, 3), dtype=np.uint8), "^images is of shape .* N x H x W x 1"),
        (np.zeros((0, 8, 8, 1), dtype=np.uint8), "^images is of shape"),
        ("nowhere", "^images is 'nowhere'"),
        (["nowhere.png"], "^images: there is no file"),
    ],
)
def test_images_that_a_run_cannot_take_are_refused(images: Any, words: str, finished: Path):
    with pytest.raises(InputError, match=words):
        debias_ssl.load_run(finished, device="cpu").predict(images)


def test_features_and_sizes_of_a_run_are_checked(finished: Path, tmp_path: Path):
    trained = debias_ssl.load_run(str(finished))
    paint_images(tmp_path / "images", num=2)
    with pytest.raises(InputError, match=r"^the run was trained on pixels"):
        trained.predict(tmp_path / "images", features=tmp_path)
    with pytest.raises(InputError, match=r"^batch_size is 0"):
        trained.predict(tmp_path / "images", batch_size=0)
    with pytest.raises(InputError, match="holds no run"):
        debias_ssl.load_run(tmp_path)
