"""Labels of rows: which prior is removed, what is tuned, written and said, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import rows_of
from torch import Tensor

from debias_ssl.formulas import priors
from debias_ssl.formulas.calibration import expected_calibration_error
from debias_ssl.formulas.logits import debias
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.removal import find_removal
from debias_ssl.labels.debiasing.rows import Labeling, Rows
from debias_ssl.labels.output.folder import check_folder, outputs_in, write_labels, write_summary
from debias_ssl.labels.output.summary import summary_of, summary_table
from debias_ssl.labels.tables.truth import RowNumbers, read_labels, read_target
from debias_ssl.system.errors import InputError

CLASSES = ("ant", "bee", "cat", "dog")
NUM = 400


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return np.arange(NUM) % 4


@pytest.fixture(scope="module")
def logits(truth: np.ndarray) -> Tensor:
    """Rows of a classifier that prefers later classes."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(NUM, 4, generator=generator)
    return noise + 2 * torch.eye(4)[torch.from_numpy(truth)] + torch.tensor([0.0, 1.0, 2.0, 3.0])


def run(
    logits: Tensor, out: Path, *, chunk: int = 150, names: Any = None, further: Any = None, **settings: Any
) -> Labeling:
    names = RowNumbers(len(logits)) if names is None else names
    config = DebiasConfig(**settings)
    target = read_target(config.target_prior, CLASSES)
    rows = Rows(chunks=logits.split(chunk), names=names, classes=CLASSES, target=target, **(further or {}))
    return write_labels(rows, config, find_removal(rows, config, is_quiet=True), out, is_quiet=True)


def test_files_say_what_the_labeling_says(logits: Tensor, tmp_path: Path):
    labeling = run(logits, tmp_path, prior="marginal", strength=1.0)
    q = logits.softmax(-1).mean(0)
    expected = debias(logits, q, 1.0).softmax(-1)
    top = expected.topk(2).values
    torch.testing.assert_close(torch.from_numpy(labeling.prior).float(), q)
    np.testing.assert_array_equal(labeling.label, expected.argmax(-1))
    np.testing.assert_array_equal(labeling.plain, logits.argmax(-1))
    np.testing.assert_allclose(labeling.confidence, top[:, 0], rtol=1e-5)
    np.testing.assert_allclose(labeling.top2_gap, top[:, 0] - top[:, 1], atol=1e-6)
    np.testing.assert_allclose(labeling.plain_confidence, logits.softmax(-1).max(-1).values, rtol=1e-5)
    rows = rows_of(tmp_path)
    assert [*rows[0]] == ["row", "label", "confidence", "top2_gap", "plain_label", "plain_confidence"]
    assert [row["row"] for row in rows] == [str(i) for i in range(NUM)]
    assert [row["label"] for row in rows] == [CLASSES[k] for k in labeling.label]
    assert [row["plain_label"] for row in rows] == [CLASSES[k] for k in labeling.plain]
    assert all(len(row["confidence"]) == 8 for row in rows)
    assert json.loads((tmp_path / "classes.json").read_text()) == list(CLASSES)
    probs = np.load(tmp_path / "probs.npy", allow_pickle=False)
    assert probs.dtype == np.float16 and probs.shape == (NUM, 4)
    np.testing.assert_allclose(probs, expected, atol=1e-3)
    assert not [*tmp_path.glob(".*")]


def test_rows_have_names_where_there_are_some(logits: Tensor, tmp_path: Path):
    names = [f"a/{i}, ä.png" for i in range(NUM)]
    run(logits, tmp_path, names=names)
    assert [row["path"] for row in rows_of(tmp_path)] == names


@pytest.mark.parametrize(
    "settings", [{}, {"prior": "momentum"}, {"prior": "transport"}, {"prior": "stationary", "target_prior": "em"}]
)
def test_chunks_do_not_change_a_byte(settings: dict[str, Any], logits: Tensor, tmp_path: Path):
    for chunk in (NUM, 61):
        run(logits, tmp_path / str(chunk), chunk=chunk, **settings)
    for name in ("labels.csv", "probs.npy"):
        assert (tmp_path / "61" / name).read_bytes() == (tmp_path / str(NUM) / name).read_bytes()


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ("none", lambda f: torch.full((4,), 0.25)),
        ("marginal", lambda f: priors.mean_probs([f])),
        ("fixed_point", lambda f: priors.balancing([f], torch.full((4,), 0.25)).prior),
        ("momentum", lambda f: priors.running_mean([f], 0.9)),
        ("confidence", lambda f: priors.confidence_weighted([f])),
        ("stationary", lambda f: priors.stationary([f])),
        ("transport", lambda f: priors.transport([f], torch.full((4,), 0.25)).prior),
        ("centering", lambda f: priors.centering([f])),
        ("content_free", lambda f: priors.content_free(f[:2])),
    ],
)
def test_each_name_is_its_prior_at_its_temperature(prior, expected, logits: Tensor, tmp_path: Path):
    settings: dict[str, Any] = {"prior": prior, "momentum": 0.9, "temperature": 2.0, "strength": 0.5}
    labeling = run(logits, tmp_path, further={"blank": logits[:2]}, **settings)
    np.testing.assert_allclose(labeling.prior, expected(logits / 2), rtol=1e-6)
    removed = 0.5 * np.log(labeling.prior) if prior != "none" else np.zeros(4)
    np.testing.assert_allclose(labeling.shift, removed)
    left = logits / 2 - torch.from_numpy(labeling.shift)
    np.testing.assert_array_equal(labeling.label, left.argmax(-1))


def test_a_class_far_below_the_others_gets_its_share_too(logits: Tensor, tmp_path: Path):
    labeling = run(logits - torch.tensor([0.0, 0.0, 0.0, 60.0]), tmp_path, prior="fixed_point")
    assert labeling.counts("plain")[3] == 0 and labeling.counts("label").min() > 80


def test_nothing_is_removed_by_none_or_by_strength_zero(logits: Tensor, tmp_path: Path):
    for prior, strength in (("none", 1.0), ("marginal", 0.0), ("fixed_point", 0.0)):
        labeling = run(logits, tmp_path, prior=prior, strength=strength)
        np.testing.assert_array_equal(labeling.label, labeling.plain)
        np.testing.assert_array_equal(labeling.confidence, labeling.plain_confidence)


def test_the_preference_is_gone_and_labels_are_better(logits: Tensor, truth: np.ndarray, tmp_path: Path):
    summary = summary_of(run(logits, tmp_path, prior="fixed_point", further={"truth": truth}))
    assert summary["debiased"]["accuracy"] > summary["plain"]["accuracy"] + 0.1
    assert summary["count_entropy"]["debiased"] > 0.95 > summary["count_entropy"]["plain"]


def target_file(tmp_path: Path, weights: dict[str, int]) -> str:
    (tmp_path / "target.json").write_text(json.dumps(weights))
    return str(tmp_path / "target.json")


def test_probabilities_follow_a_target_of_a_file(logits: Tensor, tmp_path: Path):
    file = target_file(tmp_path, {"dog": 1, "cat": 2, "bee": 3, "ant": 4})
    run(logits, tmp_path / "out", prior="fixed_point", target_prior=file)
    mean = np.load(tmp_path / "out" / "probs.npy").astype(float).mean(0)
    np.testing.assert_allclose(mean, [0.4, 0.3, 0.2, 0.1], atol=1e-3)
    labeling = run(logits, tmp_path / "out", prior="transport", target_prior=file)
    np.testing.assert_allclose(labeling.counts("label"), [160, 120, 80, 40], atol=6)


def test_other_priors_give_way_to_the_target(logits: Tensor, tmp_path: Path):
    file = target_file(tmp_path, {"ant": 4, "bee": 3, "cat": 2, "dog": 1})
    labeling = run(logits, tmp_path, target_prior=file, strength=0.5)
    expected = 0.5 * (np.log(labeling.prior) - np.log([0.4, 0.3, 0.2, 0.1]))
    np.testing.assert_allclose(labeling.shift, expected)


def test_a_target_that_is_uniform_in_a_file_is_uniform(logits: Tensor, tmp_path: Path):
    file = target_file(tmp_path, dict.fromkeys(CLASSES, 3))
    labelings = [run(logits, tmp_path, target_prior=target) for target in ("uniform", file)]
    np.testing.assert_array_equal(labelings[0].label, labelings[1].label)
    np.testing.assert_allclose(labelings[0].confidence, labelings[1].confidence, rtol=1e-5)


def test_its_own_marginal_cannot_be_told_from_shares_that_are_estimated(logits: Tensor, tmp_path: Path):
    labeling = run(logits, tmp_path, prior="marginal", strength=1.0, target_prior="em")
    # But for half a row that each class is given.
    marginal = priors.mean_probs([logits])
    smoothed = (len(logits) * marginal + 0.5) / (len(logits) + 2)
    np.testing.assert_allclose(labeling.shift, (marginal / smoothed).log(), atol=1e-6)
    np.testing.assert_array_equal(labeling.label, labeling.plain)


def test_shares_are_estimated_for_what_the_prior_leaves(logits: Tensor, tmp_path: Path):
    labeling = run(logits, tmp_path, prior="content_free", target_prior="em", further={"blank": torch.zeros(1, 4)})
    shares = priors.expectation_maximization([logits], torch.full((4,), 0.25)).prior
    shares = (len(logits) * shares + 0.5) / (len(logits) + 2)
    np.testing.assert_allclose(labeling.shift - labeling.shift[0], -(shares.log() - shares[0].log()), atol=1e-5)
    run(logits, tmp_path, prior="fixed_point", target_prior="em")
    mean = np.load(tmp_path / "probs.npy").astype(float).mean(0)
    np.testing.assert_allclose(mean, shares, atol=1e-3)


def few(truth: np.ndarray, num: int = 80) -> np.ndarray:
    return np.where(np.arange(NUM) < num, truth, -1)


def test_what_is_given_is_not_tuned(logits: Tensor, truth: np.ndarray, tmp_path: Path):
    further = {"tuning": few(truth)}
    labeling = run(logits, tmp_path, strength=0.3, tune_on="x", further=further)
    assert labeling.strength == 0.3 and labeling.temperature != 1
    labeling = run(logits, tmp_path, temperature=3.0, tune_on="x", further=further)
    assert labeling.temperature == 3 and labeling.strength != 1


def test_rows_that_were_tuned_on_are_labeled_but_not_reported(logits: Tensor, truth: np.ndarray, tmp_path: Path):
    labeling = run(logits, tmp_path, tune_on="x", further={"tuning": few(truth, 100), "truth": truth})
    summary = summary_of(labeling)
    assert len(rows_of(tmp_path)) == NUM
    assert (summary["num"], summary["num_tuned_on"]) == (300, 100)
    assert sum(summary["counts"]["plain"].values()) == sum(summary["counts"]["debiased"].values()) == 300
    hits = (labeling.label == truth)[100:]
    assert summary["debiased"]["accuracy"] == pytest.approx(hits.mean())


def test_summary_of_a_worked_example():
    labeling = Labeling(
        classes=("a", "b"),
        names=RowNumbers(6),
        plain=np.array([0, 0, 0, 0, 1, 0]),
        plain_confidence=np.array([0.9, 0.8, 0.7, 0.6, 0.9, 0.9], dtype=np.float32),
        label=np.array([0, 0, 1, 1, 1, 0]),
        confidence=np.array([0.7, 0.6, 0.6, 0.7, 0.9, 0.9], dtype=np.float32),
        top2_gap=np.zeros(6, dtype=np.float32),
        truth=np.array([0, 0, 1, 0, 1, -1]),
        reported=np.array([True] * 6),
        prior=np.array([0.75, 0.25]),
        shift=np.log([0.75, 0.25]),
        config=DebiasConfig(),
        strength=1.0,
        temperature=2.0,
    )
    summary = summary_of(labeling)
    assert summary["num_changed"] == 2 and summary["class_prior"] == {"a": 0.75, "b": 0.25}
    assert summary["counts"] == {"plain": {"a": 5, "b": 1}, "debiased": {"a": 3, "b": 3}}
    assert summary["count_entropy"]["debiased"] == 1
    assert summary["count_entropy"]["plain"] == pytest.approx(0.65002, abs=1e-5)
    # Of the five rows whose truth is known.
    assert summary["plain"]["accuracy"] == 0.8 and summary["debiased"]["accuracy"] == 0.8
    assert summary["plain"]["min_recall"] == 0.5 and summary["debiased"]["min_recall"] == pytest.approx(2 / 3)
    correct = torch.tensor([True, True, False, True, True])
    ece = expected_calibration_error(torch.tensor([0.9, 0.8, 0.7, 0.6, 0.9]), correct).item()
    assert summary["plain"]["ece"] == pytest.approx(ece, abs=1e-6)
    text = summary_table(summary)
    assert (
        "risen     b (1 -> 3)" in text and "fallen    a (5 -> 3)" in text and "2 of 6 labels changed (33.33%)" in text
    )
    assert "80.00 %" in text and "65.00 %" in text


def test_summary_without_truth_has_no_accuracy(logits: Tensor, tmp_path: Path):
    summary = summary_of(run(logits, tmp_path))
    assert "plain" not in summary and "debiased" not in summary
    assert "accuracy" not in summary_table(summary)


def test_one_predicted_class_has_no_entropy(tmp_path: Path):
    labeling = run(torch.eye(4)[torch.zeros(5, dtype=torch.int64)], tmp_path, prior="none")
    assert summary_of(labeling)["count_entropy"] == {"plain": 0, "debiased": 0}


def test_the_summary_is_written_and_what_was_chosen_is_said(logits: Tensor, truth, tmp_path: Path):
    labeling = run(logits, tmp_path, tune_on="few.csv", further={"tuning": few(truth, 50), "truth": truth})
    said = write_summary(labeling, tmp_path, {"kind": "logits"})
    assert f"strength {labeling.strength:g}, temperature {labeling.temperature:.4g}, on 50 rows of few.csv" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["kind"] == "logits" and summary["prior"] == "stationary" and summary["target_prior"] == "auto"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_named_and_nothing_is_written(value: float, logits: Tensor, tmp_path: Path):
    bad = logits.clone()
    bad[301, 2] = bad[302, 1] = value
    with pytest.raises(InputError, match=r"row 301 .*class 'cat'"):
        run(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sum_that_overflows_is_no_bad_row(tmp_path: Path):
    logits = torch.full((4, 4), 3e38)
    logits[:, 0] = 0
    assert run(logits, tmp_path, prior="none").label.tolist() == [1] * 4


def test_content_free_needs_a_blank_image(logits: Tensor, tmp_path: Path):
    with pytest.raises(InputError, match="--blank"):
        run(logits, tmp_path / "out", prior="content_free")
    assert not (tmp_path / "out").exists()


def test_tuning_needs_a_label(logits: Tensor, tmp_path: Path):
    with pytest.raises(InputError, match=r"few\.csv"):
        run(logits, tmp_path / "out", tune_on="few.csv", further={"tuning": np.full(NUM, -1)})


@pytest.mark.parametrize(
    "settings",
    [
        {"strength": -1.0},
        {"strength": float("nan")},
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"momentum": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(settings))):
        DebiasConfig(**settings)


def test_labels_by_path_row_and_number(tmp_path: Path):
    names = ["x/a.png", "x/b.png", "c.png"]
    file = tmp_path / "truth.csv"
    file.write_text("path,label,note\nx/b.png,cat,1\nother.png,ant,2\nc.png,,3\n")
    assert read_labels(file, names, CLASSES).labels.tolist() == [-1, 2, -1]
    file.write_text("label,row\ndog,2\n0,0\n")
    assert read_labels(file, names, CLASSES).labels.tolist() == [0, -1, 3]
    # A class may be called like the number of another one.
    assert read_labels(file, names, ("dog", "0")).labels.tolist() == [1, -1, 0]
    np.save(tmp_path / "truth.npy", np.array([3, -7, 0], dtype=np.int32))
    assert read_labels(tmp_path / "truth.npy", names, CLASSES).labels.tolist() == [3, -1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label\nc.png,fox\n", "line 2: 'fox' is not a class; the classes are ant, bee, cat, dog"),
        ("path,label\nc.png,0\n", "'0' is not a class"),
        ("path,label\nc.png,ant\nc.png,bee\n", "lines 2 and 3 are both path 'c.png'"),
        ("path,label\nd.png,ant\n", "none of the rows: the first is 'd.png', and the first row without one 'a.png'"),
        ("thing,label\nc.png,ant\n", "path or row, and label"),
        ("path\nc.png\n", "path or row, and label"),
        ("row,label\n3,ant\n", "line 2: there is no row '3'; rows are 0 to 2"),
        ("row,label\n1,4\n", "'4' is not a class"),
        ("", "first line must name the columns"),
    ],
)
def test_labels_that_do_not_fit_are_refused(text: str, words: str, tmp_path: Path):
    (tmp_path / "truth.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_labels(tmp_path / "truth.csv", ["a.png", "b.png", "c.png"], CLASSES)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(4, dtype=int), "3 class numbers"),
        (np.zeros(3), "float64"),
        (np.array([0, 1, 4]), "row 2 has class 4"),
        (np.array([None, 1, 2]), "cannot read"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(array: np.ndarray, words: str, tmp_path: Path):
    np.save(tmp_path / "truth.npy", array, allow_pickle=True)
    with pytest.raises(InputError, match=words):
        read_labels(tmp_path / "truth.npy", ["a.png", "b.png", "c.png"], CLASSES)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    for name in ("truth.csv", "truth.npy"):
        with pytest.raises(InputError, match=name):
            read_labels(tmp_path / name, ["a"], CLASSES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.json", '{"dog": 1, "ant": 2, "bee": 0, "cat": 1.0}'),
        ("t.csv", "class,weight\ndog,1\nant,2\nbee,0\ncat,1\n"),
        ("t.txt", "ant,.5\nbee,0\n\ncat,.25\ndog,.25\n"),
        ("t.csv", "ant;0,5\nbee;0\ncat;0,25\ndog;,25\n"),
        ("t.tsv", "Class\tWeight\nant\t2\nbee\t0\ncat\t1\ndog\t1\n"),
    ],
)
def test_targets_of_files_are_shares(name: str, text: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    target = read_target(str(tmp_path / name), CLASSES)
    assert target is not None and target.tolist() == [0.5, 0, 0.25, 0.25]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "ant,1\nbee,1\ncat,1\n", "does not have the class 'dog'.*each of the 4 classes"),
        ("t.csv", "ant,1\nbee,1\ncat,1\ndog,1\nfox,1\n", "'fox', which is not a class"),
        ("t.csv", "ant,1\nant,1\nbee,1\ncat,1\ndog,1\n", "'ant' twice"),
        ("t.json", '{"ant": 1, "ant": 1, "bee": 1, "cat": 1, "dog": 1}', "'ant' twice"),
        ("t.csv", "ant,-1\nbee,1\ncat,1\ndog,1\n", "'ant' is -1"),
        ("t.csv", "ant,nan\nbee,1\ncat,1\ndog,1\n", "'ant' is nan"),
        ("t.csv", "ant,many\nbee,1\ncat,1\ndog,1\n", "'ant' is 'many'"),
        ("t.json", '{"ant": "1", "bee": 1, "cat": 1, "dog": 1}', "'ant' is '1'"),
        ("t.csv", "ant,0\nbee,0\ncat,0\ndog,0\n", "all weights are 0"),
        ("t.csv", "ant 1\n", "line 1: 'ant 1' is not class,weight"),
        ("t.json", "[1, 2]", "object of class and weight"),
        ("t.json", "{", "not JSON"),
        ("t.csv", "", "it is empty"),
    ],
)
def test_targets_that_do_not_fit_are_refused(name: str, text: str, words: str, tmp_path: Path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        read_target(str(tmp_path / name), CLASSES)


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match="'unifrom': neither auto, uniform, em nor present"):
        read_target("unifrom", CLASSES)


def test_row_numbers_are_a_list_of_texts():
    numbers = RowNumbers(5)
    assert [*numbers] == ["0", "1", "2", "3", "4"] and len(numbers) == 5
    assert numbers[-1] == "4" and numbers[3:9] == ["3", "4"] and "7" not in numbers


def test_a_folder_with_labels_is_not_written_to(tmp_path: Path):
    check_folder(tmp_path / "new" / "one", overwrite=False)
    (tmp_path / "mine.txt").write_text("")
    check_folder(tmp_path, overwrite=False)
    outputs_in(tmp_path).claim("labels.csv")
    (tmp_path / "labels.csv").write_text("")
    with pytest.raises(InputError, match=r"holds labels\.csv.*--overwrite"):
        check_folder(tmp_path, overwrite=False)
    check_folder(tmp_path, overwrite=True)
    (tmp_path / "probs.npy").write_text("of somebody else")
    with pytest.raises(InputError, match=r"holds probs\.npy, which is not listed in its .* as"):
        check_folder(tmp_path, overwrite=True)
    for out in (tmp_path / "mine.txt", tmp_path / "mine.txt" / "below"):
        with pytest.raises(InputError, match="not a folder"):
            check_folder(out, overwrite=True)
