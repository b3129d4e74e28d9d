"""A preference that is measured on other rows: what is removed, which classes are found, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import refused, rows_of
from scipy.stats import binomtest

from debias_ssl import debias_matrix
from debias_ssl.debias import main
from debias_ssl.formulas import priors
from debias_ssl.labels.arguments import DebiasSettings
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.preference import Preference
from debias_ssl.system.errors import InputError

CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox"]
PREFERENCE = np.array([0, 0.5, 1, 1.5, 2, 2.5])


def made(truth: np.ndarray, seed: int) -> np.ndarray:
    """Logits of Gaussian classes, exact but for a preference."""
    means = 2 * np.eye(6)
    values = means[truth] + np.random.default_rng(seed).normal(size=(len(truth), 6))
    return (values @ means + PREFERENCE).astype(np.float32)


# A folder of two classes of six, and other rows of all.
TRUTH = np.arange(600) % 2
LOGITS, OTHERS = made(TRUTH, 0), made(np.arange(1800) % 6, 1)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    np.save(tmp_path / "logits.npy", LOGITS)
    np.save(tmp_path / "others.npy", OTHERS)
    np.save(tmp_path / "truth.npy", TRUTH)
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    return tmp_path


def run(folder: Path, out: str, *flags: str) -> dict[str, Any]:
    main(["--predictions", str(folder / "logits.npy"), "--out", str(folder / out), *flags])
    return json.loads((folder / out / "summary.json").read_text())


def accuracy(**settings: Any) -> float:
    return float((debias_matrix(LOGITS, **settings).label == TRUTH).mean())


def test_the_preference_that_was_put_in_is_found():
    labels = debias_matrix(LOGITS, reference=OTHERS, target_prior="uniform")
    np.testing.assert_allclose(labels.shift - labels.shift.mean(), PREFERENCE - PREFERENCE.mean(), atol=0.2)


def test_few_classes_of_many_are_labeled_better_by_each_step():
    plain = float((LOGITS.argmax(1) == TRUTH).mean())
    uniform, present = (accuracy(reference=OTHERS, target_prior=target) for target in ("uniform", "present"))
    best = accuracy(reference=OTHERS)
    assert plain < uniform - 0.2 and uniform < present - 0.05 and present < best + 0.01 and best > 0.92
    assert accuracy(reference=OTHERS, target_prior="em") == best


def test_without_a_reference_the_labels_are_hardly_worse_than_plain_ones_and_it_is_told():
    # Two classes that the classifier prefers: without them among the rows, nothing would be seen.
    truth = 4 + TRUTH
    logits = made(truth, 2)
    labels = debias_matrix(logits)
    assert labels.presence is not None and labels.presence.removed < 0.5
    assert "so some classes may be missing" in labels.notes[0] and "reference" in labels.notes[0]
    plain = float((logits.argmax(1) == truth).mean())
    assert float((labels.label == truth).mean()) > plain - 0.02
    # Who says that all classes are there is believed, to the labels' harm here.
    told = debias_matrix(logits, target_prior="uniform")
    assert told.presence is None and not told.notes
    assert float((told.label == truth).mean()) < plain - 0.05


def test_all_classes_are_as_before_where_all_are_there():
    told, found = (debias_matrix(OTHERS, target_prior=target) for target in ("uniform", "auto"))
    np.testing.assert_array_equal(told.probs, found.probs)
    assert found.presence is not None and found.presence.removed == 1 and not found.notes


@pytest.mark.parametrize("settings", [{"strength": 1.0}, {"tune_on": np.where(np.arange(600) < 200, TRUTH, -1)}])
def test_a_strength_that_is_given_or_tuned_is_obeyed(settings: dict[str, Any]):
    assert debias_matrix(LOGITS, **settings).presence is None


def test_which_classes_are_here_is_told_and_written(files: Path, capsys: pytest.CaptureFixture[str]):
    summary = run(files, "out", "--reference", str(files / "others.npy"), "--truth", str(files / "truth.npy"))
    said = capsys.readouterr().out
    assert (
        "here      2 of 6 classes, 95 % intervals of shares: " in said and "absent?   no clear evidence for: " in said
    )
    assert "others.npy: 1800 x 6 logits" in said
    shares = summary["shares"]
    assert [name for name in CLASSES if shares[name]["present"]] == ["ant", "bee"]
    for name, true in zip(CLASSES, [0.5, 0.5, 0, 0, 0, 0], strict=True):
        low, high = shares[name]["interval"]
        assert low <= true <= high and low <= shares[name]["share"] <= high
        # The upper end of Clopper and Pearson's interval of no rows of 600.
        assert high >= binomtest(0, 600).proportion_ci(method="exact").high - 1e-9
    page = (files / "out" / "report.html").read_text()
    assert "There is clear evidence for 2 of the 6 classes. There is no clear evidence for: " in page
    labels = debias_matrix(LOGITS, reference=OTHERS, classes=CLASSES)
    assert [row["label"] for row in rows_of(files / "out")] == [CLASSES[k] for k in labels.label]


def test_a_preference_is_passed_on(files: Path):
    first = run(files, "first", "--reference", str(files / "others.npy"))
    preference = str(files / "first" / "preference.json")
    second = run(files, "second", "--reference", preference)
    assert (files / "first" / "labels.csv").read_bytes() == (files / "second" / "labels.csv").read_bytes()
    assert (files / "first" / "preference.json").read_text() == (files / "second" / "preference.json").read_text()
    # The draws are rounded in the file.
    for name in CLASSES:
        np.testing.assert_allclose(first["shares"][name]["interval"], second["shares"][name]["interval"], atol=1e-3)
    labels = debias_matrix(LOGITS, classes=CLASSES, reference=preference)
    assert [row["label"] for row in rows_of(files / "second")] == [CLASSES[k] for k in labels.label]


def test_the_folder_of_an_earlier_job_is_a_reference(files: Path):
    main(["--predictions", str(files / "others.npy"), "--out", str(files / "earlier")])
    run(files, "of_rows", "--reference", str(files / "others.npy"))
    run(files, "of_folder", "--reference", str(files / "earlier"))
    assert (files / "of_rows" / "labels.csv").read_bytes() == (files / "of_folder" / "labels.csv").read_bytes()


def test_classes_of_a_reference_may_have_another_order(files: Path):
    labels = debias_matrix(LOGITS, classes=CLASSES, reference=OTHERS)
    order = [3, 1, 0, 2, 5, 4]
    columns = [CLASSES[k] for k in order]
    table = "\n".join([",".join(columns), *(",".join(map(str, row)) for row in OTHERS[:, order].tolist())])
    (files / "others.csv").write_text(table + "\n")
    run(files, "out", "--reference", str(files / "others.csv"))
    assert [row["label"] for row in rows_of(files / "out")] == [CLASSES[k] for k in labels.label]
    first = json.loads((files / "out" / "preference.json").read_text())
    assert [*first["class_prior"]] == CLASSES


def test_a_preference_follows_the_order_of_the_classes():
    numbers = torch.arange(4, dtype=torch.float64)
    preference = Preference(
        classes=("a", "b", "c", "d"),
        made_with={},
        estimate="fixed_point",
        temperature=1.0,
        num_rows=100,
        log_prior=numbers,
        draws=numbers[None] + torch.tensor([[0.0], [10.0]]),
    )
    found = preference.checked(("d", "a", "c", "b"), {}, "it")
    assert found.log_prior.tolist() == [3, 0, 2, 1] and found.draws.tolist() == [[3, 0, 2, 1], [13, 10, 12, 11]]


def test_a_preference_of_another_estimate_or_temperature_is_refused(files: Path, capsys: pytest.CaptureFixture[str]):
    run(files, "first", "--reference", str(files / "others.npy"))
    preference = ["--reference", str(files / "first" / "preference.json")]
    arguments = ["--predictions", str(files / "logits.npy"), "--out", str(files / "out"), *preference]
    said = refused(main, [*arguments, "--prior", "marginal"], capsys)
    assert "measured as fixed_point, not as marginal" in said
    assert "measured at temperature 1, not 2: pass --temperature 1" in refused(
        main, [*arguments, "--temperature", "2"], capsys
    )
    assert not (files / "out" / "labels.csv").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_prior": {"ant": 0.5, "bug": 0.5}, "log_prior": [0, 0], "draws": []}, "has other classes (bee, bug"),
        ({"made_with": {"kinds of numbers": "probs"}}, "was made with other kinds of numbers"),
        ({"version": 2}, "its version is 2, not 1"),
        ({"log_prior": [0.0]}, "does not have a finite number for each class"),
        ({"draws": [[0.0]]}, "is not a preference.json"),
    ],
)
def test_a_preference_that_does_not_fit_is_refused(
    change: dict[str, Any], words: str, files: Path, capsys: pytest.CaptureFixture[str]
):
    run(files, "first", "--reference", str(files / "others.npy"))
    path = files / "first" / "preference.json"
    entries = json.loads(path.read_text())
    (files / "changed.json").write_text(json.dumps(entries | change))
    arguments = ["--predictions", str(files / "logits.npy"), "--out", str(files / "out")]
    assert words in refused(main, [*arguments, "--reference", str(files / "changed.json")], capsys)


def test_references_that_are_none_are_refused(files: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--predictions", str(files / "logits.npy"), "--out", str(files / "out"), "--reference"]
    (files / "folder").mkdir()
    assert "is not a folder of debias" in refused(main, [*arguments, str(files / "folder")], capsys)
    np.save(files / "folder" / "five.npy", OTHERS[:, :5])
    five = str(files / "folder" / "five.npy")
    assert "--reference has 5 classes, --predictions has 6" in refused(main, [*arguments, five], capsys)
    said = refused(main, [*arguments, str(files / "others.npy"), "--prior", "content_free"], capsys)
    assert "content_free" in said and "--reference" in said
    with pytest.raises(InputError, match="reference holds float64 of shape"):
        debias_matrix(LOGITS, reference=np.zeros(3))


def test_a_small_reference_is_made_use_of_in_part():
    labels = debias_matrix(LOGITS, reference=OTHERS[:12])
    assert any("the reference has 12 rows, which are few for 6 classes" in note for note in labels.notes)
    few = debias_matrix(LOGITS, reference=OTHERS[:12], target_prior="uniform")
    uniform = torch.full((6,), 1 / 6, dtype=torch.float64)
    prior = priors.balancing([torch.from_numpy(OTHERS[:12])], uniform).prior.log().numpy()
    expected = priors.supported_share(12, 6) * (prior - prior.mean())
    np.testing.assert_allclose(few.shift - few.shift.mean(), expected, atol=1e-6)


def test_a_temperature_and_a_strength_are_tuned_with_a_reference():
    tuned = np.where(np.arange(600) % 3 == 0, TRUTH, -1)
    labels = debias_matrix(3 * LOGITS, reference=3 * OTHERS, tune_on=tuned)
    assert 2 < labels.temperature < 4.5
    assert float((labels.label == TRUTH)[labels.reported].mean()) > 0.92


def test_arguments_are_the_settings_of_the_job():
    assert {*DebiasSettings.__annotations__} == {*DebiasConfig.__dataclass_fields__}
    with pytest.raises(InputError, match="there is no argument 'priors'"):
        debias_matrix(LOGITS, **{"priors": "marginal"})  # pyright: ignore[reportArgumentType]
