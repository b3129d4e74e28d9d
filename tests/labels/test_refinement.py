"""`--refine mixture` where users meet it: both jobs, both functions, what is said, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import refused, rows_of
from small_clip import paint_images, save_clip

import debias_ssl
from debias_ssl.debias import main as debias_main
from debias_ssl.label import main as label_main
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.refinement import refined
from debias_ssl.labels.debiasing.removal import find_removal
from debias_ssl.labels.debiasing.rows import Rows
from debias_ssl.labels.tables.truth import RowNumbers
from debias_ssl.system.errors import InputError

CLASSES, DIM, NUM = 5, 16, 300


class Made:
    """Features around the directions of five classes, anchors aside of them, and logits that are cosines to these."""

    def __init__(self) -> None:
        generator = np.random.default_rng(0)
        means = np.linalg.qr(generator.normal(size=(DIM, DIM)))[0][:CLASSES]
        self.truth = np.arange(NUM) % CLASSES
        self.features = (means[self.truth] + 0.25 * generator.normal(size=(NUM, DIM))).astype(np.float32)
        aside = generator.normal(size=means.shape)
        self.anchors = (means + 1.4 * aside / np.linalg.norm(aside, axis=1, keepdims=True)).astype(np.float32)
        self.logits = 4 * self.features @ self.anchors.T


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    for name in ("logits", "features", "anchors", "truth"):
        np.save(tmp_path / f"{name}.npy", getattr(made, name))
    return tmp_path


def flags(folder: Path, **changed: str | None) -> list[str]:
    given: dict[str, str | None] = {
        "predictions": str(folder / "logits.npy"),
        "features": str(folder / "features.npy"),
        "anchors": str(folder / "anchors.npy"),
        "truth": str(folder / "truth.npy"),
        "refine": "mixture",
        "out": str(folder / "out"),
    }
    return [text for name, value in (given | changed).items() if value is not None for text in (f"--{name}", value)]


def test_the_job_refines_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]):
    debias_main(flags(folder, refine=None, features=None, anchors=None, out=str(folder / "start")))
    start = json.loads((folder / "start" / "summary.json").read_text())
    assert start["refine"] == "none" and "refined" not in capsys.readouterr().out
    debias_main(flags(folder))
    said, page = capsys.readouterr(), (folder / "out" / "report.html").read_text()
    summary = json.loads((folder / "out" / "summary.json").read_text())
    assert summary["refine"] == "mixture" and "temperature 1, refined by mixture\n" in said.out
    assert "refined by mixture" in page and "also refined by the neighbors of the rows" in page
    assert re.search(r"note: refining needs \d+ MB of memory, and compares 300 rows", said.err)
    assert summary["plain"] == start["plain"] and summary["class_prior"] == start["class_prior"]
    assert summary["debiased"]["accuracy"] > start["debiased"]["accuracy"] + 0.04
    # Labels, confidences and gaps are all of the probabilities that are written.
    probs, rows = np.load(folder / "out" / "probs.npy").astype(float), rows_of(folder / "out")
    top = -np.sort(-probs, axis=1)
    assert [int(row["label"]) for row in rows] == probs.argmax(1).tolist()
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], top[:, 0], atol=2e-3)
    np.testing.assert_allclose([float(row["top2_gap"]) for row in rows], top[:, 0] - top[:, 1], atol=3e-3)


def test_the_function_does_what_the_job_does(made: Made, folder: Path):
    debias_main(flags(folder))
    # Of any length, and of any kind of array.
    found = debias_ssl.debias_matrix(
        made.logits, refine="mixture", features=torch.from_numpy(7 * made.features), anchors=made.anchors / 3
    )
    np.testing.assert_allclose(np.load(folder / "out" / "probs.npy"), found.probs, atol=1e-3)
    assert found.is_refined and found.summary()["refine"] == "mixture"


def test_half_precision_says_nearly_the_same(made: Made):
    arguments: dict[str, Any] = {"refine": "mixture", "anchors": made.anchors}
    exact = debias_ssl.debias_matrix(made.logits, features=made.features, **arguments)
    half = debias_ssl.debias_matrix(made.logits, features=made.features.astype(np.float16), **arguments)
    assert (exact.label == half.label).mean() > 0.99


@pytest.mark.parametrize("chunk", [1, 77, NUM])
def test_chunks_do_not_matter(chunk: int, made: Made):
    def posterior(size: int) -> np.ndarray:
        rows = Rows(
            chunks=torch.from_numpy(made.logits).split(NUM),
            names=RowNumbers(NUM),
            classes=tuple("abcde"),
            target=torch.full((CLASSES,), 0.2, dtype=torch.float64),
            features=lambda: torch.from_numpy(made.features).split(size),
            anchors=torch.from_numpy(made.anchors),
        )
        config = DebiasConfig(refine="mixture")
        found, _ = refined(rows, config, find_removal(rows, config, is_quiet=True), is_quiet=True)
        assert isinstance(found.posterior, np.ndarray)
        return found.posterior

    np.testing.assert_array_equal(posterior(chunk), posterior(NUM))


def test_features_that_are_all_the_same_leave_the_labels_and_are_told(made: Made):
    arguments: dict[str, Any] = {"features": np.ones((NUM, DIM)), "anchors": made.anchors}
    found = debias_ssl.debias_matrix(made.logits, refine="mixture", **arguments)
    start = debias_ssl.debias_matrix(made.logits)
    np.testing.assert_array_equal(found.probs, start.probs)
    assert not found.is_refined and "the features of all rows are equal" in found.notes[-1]
    assert found.summary()["refine"] == "none"


@pytest.mark.parametrize("num", [1, 2, 7, 50])
def test_few_rows_are_refined_a_little(num: int, made: Made):
    rows: dict[str, Any] = {"refine": "mixture", "features": made.features[:num], "anchors": made.anchors}
    found, start = debias_ssl.debias_matrix(made.logits[:num], **rows), debias_ssl.debias_matrix(made.logits[:num])
    assert np.isfinite(found.probs).all()
    if num == 1:
        np.testing.assert_allclose(found.probs, start.probs, atol=0.02)
    right = [(each.label == made.truth[:num]).sum() for each in (start, found)]
    assert right[1] >= right[0] - 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_images_are_refined_by_their_own_features(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    paint_images(tmp_path / "images", num=40)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    given = ["--images", str(tmp_path / "images"), "--classes", str(tmp_path / "classes.txt"), "--model", model]
    given += ["--precision", "fp32", "--workers", "0", "--refine", "mixture", "--out", str(tmp_path / "out")]
    label_main(given)
    assert "refined by mixture" in capsys.readouterr().out
    arguments: dict[str, Any] = {"model": model, "precision": "fp32"}
    found = debias_ssl.label_images(tmp_path / "images", ["ant", "bee"], refine="mixture", **arguments)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "probs.npy"), found.probs, atol=1e-3)
    start = debias_ssl.label_images(tmp_path / "images", ["ant", "bee"], **arguments)
    assert np.abs(found.probs - start.probs).max() > 1e-4 and found.is_refined and not start.is_refined


def saved(folder: Path, name: str, values: np.ndarray) -> str:
    np.save(folder / name, values)
    return str(folder / name)


def with_bad_row(made: Made) -> np.ndarray:
    values = made.features.copy()
    values[211, 3] = np.nan
    return values


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda m, f: {"features": None, "anchors": None}, r"--refine mixture needs --features.* and --anchors"),
        (lambda m, f: {"anchors": None}, r"--refine mixture needs --features"),
        (lambda m, f: {"refine": None}, r"--features has an effect only with --refine mixture"),
        (lambda m, f: {"refine": None, "features": None}, r"--anchors has an effect only"),
        (lambda m, f: {"refine": "mixtur"}, r"refine"),
        (lambda m, f: {"features": str(f / "no.npy")}, r"cannot read .*no\.npy.*numpy\.save"),
        (lambda m, f: {"features": saved(f, "x.npy", m.features[:-1])}, r"x\.npy has 299 vectors.* have 300 rows"),
        (lambda m, f: {"anchors": saved(f, "x.npy", m.anchors[:-1])}, r"x\.npy has 4 vectors.* have 5 classes"),
        (lambda m, f: {"anchors": saved(f, "x.npy", m.anchors[:, 1:])}, r"have 16 numbers, those of .*x\.npy 15"),
        (lambda m, f: {"features": saved(f, "x.npy", m.truth)}, r"int64 of shape \(300,\); a vector for each row"),
        (lambda m, f: {"features": saved(f, "x.npy", with_bad_row(m))}, r"features of row 211 .*not finite"),
        (lambda m, f: {"anchors": saved(f, "x.npy", 0 * m.anchors)}, r"row 0 .*class '0'.*not all 0"),
        (lambda m, f: {"anchors": saved(f, "x.npy", m.anchors * np.inf)}, r"row 0 .*must be finite"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(changed, words: str, made: Made, folder: Path, capsys):
    message = refused(debias_main, flags(folder, **changed(made, folder)), capsys)
    assert re.search(words, message), message
    assert not (folder / "out" / "labels.csv").exists()


def test_arguments_are_named_without_dashes(made: Made):
    with pytest.raises(InputError, match=r"^refine mixture needs features"):
        debias_ssl.debias_matrix(made.logits, refine="mixture")
    with pytest.raises(InputError, match=r"^features has 2 vectors, the predictions have 300 rows"):
        debias_ssl.debias_matrix(made.logits, refine="mixture", features=made.features[:2], anchors=made.anchors)


def test_the_example_of_the_guide_says_what_the_guide_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    guide = (Path(__file__).parents[2] / "docs" / "debias-labels.md").read_text()
    part = guide[guide.index("## Refined by neighbors") : guide.index("## Truth")]
    code, command, rows = (
        re.findall(pattern, part, re.DOTALL)[0]
        for pattern in (r"```python\n(.*?)```", r"`debias-ssl debias (.*?)` says", r"```\n(prior.*?)```")
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    debias_main(command.split())
    said = capsys.readouterr().out
    settings, _, *figures = rows.splitlines()
    assert settings in said.splitlines()
    for row in figures:
        # The last decimals are those of a machine.
        name, accuracy = row.split()[:2]
        found = re.search(rf"^{name} +(\S+) %", said, re.MULTILINE)
        assert found is not None and float(found[1]) == pytest.approx(float(accuracy), abs=0.2)
