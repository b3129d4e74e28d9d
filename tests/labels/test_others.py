"""Predictions as scikit-learn, cleanlab and timm leave them, by these libraries themselves where they are installed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from jobs import refused, rows_of
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.svm import LinearSVC

from debias_ssl import evaluate
from debias_ssl.debias import main as debias
from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.system.errors import InputError

NAMES = np.array(["ant", "bee", "cat", "dog", "eel"])


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images of five digits, whose names are text."""
    images, labels = load_digits(n_class=5, return_X_y=True)
    return np.asarray(images) / 16, NAMES[labels]


def test_scikit_learn(digits, tmp_path: Path):
    images, labels = digits
    classifiers = {
        "predict_proba": LogisticRegression(C=0.01),
        "decision_function": LinearSVC(),
        # Of a forest of 100 trees all numbers have two decimals.
        "forest": RandomForestClassifier(100, random_state=0),
    }
    for name, classifier in classifiers.items():
        classifier.fit(images[:300], labels[:300])
        method = "decision_function" if name == "decision_function" else "predict_proba"
        values = getattr(classifier, method)(images[300:])
        np.save(tmp_path / "p.npy", values)
        np.save(tmp_path / "classes.npy", classifier.classes_)
        pd.DataFrame(values, columns=classifier.classes_).to_csv(tmp_path / "p.csv")
        truth = pd.DataFrame({"row": range(len(labels) - 300), "label": labels[300:]})
        truth.to_csv(tmp_path / "truth.csv", index=False)
        for file, flags in (("p.npy", ["--classes", str(tmp_path / "classes.npy")]), ("p.csv", [])):
            out, arguments = tmp_path / "f.json", ["--predictions", str(tmp_path / file), *flags, "--overwrite"]
            evaluate.main([*arguments, "--truth", str(tmp_path / "truth.csv"), "--out", str(out)])
            figures = json.loads(out.read_text())
            assert figures["classes"] == [*NAMES]
            assert figures["accuracy"] == pytest.approx(classifier.score(images[300:], labels[300:]))
            debias([*arguments, "--prior", "none", "--out", str(tmp_path / "labels")])
            assert [row["label"] for row in rows_of(tmp_path / "labels")] == [*classifier.predict(images[300:])]
        assert read_predictions(tmp_path / "p.npy").kind == ("logits" if method == "decision_function" else "probs")


def test_scores_of_two_classes_are_a_line_and_it_is_said_how_to_make_a_matrix(digits, tmp_path: Path):
    images, labels = digits
    two = np.isin(labels, NAMES[:2])
    scores = LinearSVC().fit(images[two], labels[two]).decision_function(images[two])
    np.save(tmp_path / "p.npy", scores)
    with pytest.raises(InputError, match=r"np\.stack\(\[0 \* f, f\], 1\)"):
        read_predictions(tmp_path / "p.npy")
    np.save(tmp_path / "p.npy", np.stack([0 * scores, scores], 1))
    (values,) = read_predictions(tmp_path / "p.npy")
    assert (NAMES[values.argmax(1)] == labels[two]).mean() > 0.95


def test_cleanlab(digits, tmp_path: Path, capsys):
    """Its guides take probabilities of `cross_val_predict`; what it finds is a mask, an order or a table."""
    filters = pytest.importorskip("cleanlab.filter")
    rank = pytest.importorskip("cleanlab.rank")
    images, labels = digits
    number = np.searchsorted(NAMES, labels)
    probs = np.asarray(cross_val_predict(LogisticRegression(C=0.01), images, labels, cv=3, method="predict_proba"))
    np.save(tmp_path / "pred_probs.npy", probs)
    assert read_predictions(tmp_path / "pred_probs.npy").kind == "probs"
    mask = filters.find_label_issues(number, probs)
    order = filters.find_label_issues(number, probs, return_indices_ranked_by="self_confidence")
    scores = rank.get_label_quality_scores(number, probs)
    table = pd.DataFrame(
        {"is_label_issue": mask, "label_score": scores, "is_outlier_issue": mask, "outlier_score": scores}
    )
    table.to_csv(tmp_path / "issues.csv", index=False)
    for name, array in (("mask", mask), ("order", order), ("scores", scores)):
        np.save(tmp_path / f"{name}.npy", array)
        flags = ["--predictions", str(tmp_path / f"{name}.npy"), "--out", str(tmp_path / "out")]
        assert "a matrix of numbers is needed" in refused(debias, flags, capsys)
    flags = ["--predictions", str(tmp_path / "issues.csv"), "--out", str(tmp_path / "out")]
    assert "pass the pred_probs" in refused(debias, flags, capsys)


def test_cleanlab_saves_its_issues_so(digits, tmp_path: Path):
    """The file of `Datalab.save`, which needs `datasets`."""
    pytest.importorskip("datasets")
    from cleanlab import Datalab

    images, labels = digits
    probs = np.asarray(cross_val_predict(LogisticRegression(C=0.01), images, labels, cv=3, method="predict_proba"))
    lab = Datalab({"X": images, "y": labels}, label_name="y", verbosity=0)
    lab.find_issues(pred_probs=probs)
    lab.save(str(tmp_path / "lab"))
    with pytest.raises(InputError, match="pass the pred_probs"):
        read_predictions(tmp_path / "lab" / "issues.csv")
    with pytest.raises(InputError):
        read_predictions(tmp_path / "lab" / "summary.csv")


# timm's inference.py is a script of its repository, and in no package: these are the tables that it made, at its commit
# aa4b5850, of a model with five classes.
NUM, FILES = 8, [f"{name}/{name}{i}.png" for name in ("ant", "bee") for i in range(4)]
LOGITS = torch.randn(NUM, 5, generator=torch.Generator().manual_seed(3)).mul(3)
FORMATS = (".csv", ".json", ".split.json", ".parquet")


def timm_table(topk: int, *, is_separate: bool, has_index: bool, has_labels: bool, output: str) -> pd.DataFrame:
    values = LOGITS if output == "logit" else LOGITS.softmax(1)
    columns: dict[str, np.ndarray] = {}
    if topk:
        values, index = values.topk(topk)
        columns |= {"index": index.numpy()} if has_index else {}
        columns |= {"label": NAMES[index].astype(object)} if has_labels else {}
    columns[output] = values.numpy()
    table: dict[str, Any] = {"filename": FILES}
    for name, array in columns.items():
        if is_separate and array.shape[1] > 1:
            table |= {f"{name}_{k}": array[:, k] for k in range(array.shape[1])}
        else:
            table[name] = array[:, 0] if array.shape[1] == 1 else [*array]
    return pd.DataFrame(table)


def timm_file(table: pd.DataFrame, path: Path) -> Path:
    if path.name.endswith(".split.json"):
        table.to_json(path, indent=4, orient="split", index=False)
    elif path.suffix == ".json":
        table.set_index("filename").to_json(path, indent=4, orient="index")
    elif path.suffix == ".parquet":
        table.set_index("filename").to_parquet(path)
    else:
        table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("output", ["prob", "logit"])
@pytest.mark.parametrize("is_separate", [False, True])
@pytest.mark.parametrize(
    ("topk", "has_index", "has_labels"), [(0, False, False), (5, True, False), (5, True, True), (5, False, True)]
)
def test_timm_with_all_classes(topk, has_index, has_labels, is_separate, output, suffix, tmp_path: Path):
    table = timm_table(topk, is_separate=is_separate, has_index=has_index, has_labels=has_labels, output=output)
    path = timm_file(table, tmp_path / f"p{suffix}")
    if suffix == ".csv" and not is_separate:
        with pytest.raises(InputError, match=r"has lists as text; .*--topk 0 --results-separate-col"):
            read_predictions(path)
        return
    found = read_predictions(path)
    assert [*found.names] == FILES and found.kind == ("probs" if output == "prob" else "logits")
    torch.testing.assert_close(torch.cat([*found]).softmax(1), LOGITS.softmax(1), rtol=1e-5, atol=1e-7)
    assert not has_labels or [*found.classes] == [*NAMES]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("is_separate", [False, True])
@pytest.mark.parametrize("topk", [1, 2, 3])
@pytest.mark.parametrize(("has_index", "has_labels"), [(True, False), (False, True), (False, False)])
def test_timm_with_the_best_classes_alone(topk, has_index, has_labels, is_separate, suffix, tmp_path: Path):
    table = timm_table(topk, is_separate=is_separate, has_index=has_index, has_labels=has_labels, output="prob")
    with pytest.raises(InputError, match="--topk 0 --results-separate-col") as refusal:
        read_predictions(timm_file(table, tmp_path / f"p{suffix}"))
    assert len(str(refusal.value).splitlines()) <= 2


def test_lists_of_a_data_set_are_a_matrix(tmp_path: Path):
    """As `datasets` and others keep probabilities: a column of lists."""
    probs = LOGITS.softmax(1).numpy()
    pd.DataFrame({"image": FILES, "pred_probs": [*probs], "width": 640}).to_parquet(tmp_path / "p.parquet")
    (tmp_path / "classes.json").write_text(json.dumps([*NAMES]))
    found = read_predictions(tmp_path / "p.parquet")
    assert [*found.classes] == [*NAMES] and [*found.names] == FILES
    np.testing.assert_array_equal(found.values, probs)
    pd.DataFrame({"pred_probs": [[0.5, 0.5], [1.0]]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(InputError, match=r"row 1 .* has 1 entries, row 0 has 2"):
        read_predictions(tmp_path / "p.parquet")
