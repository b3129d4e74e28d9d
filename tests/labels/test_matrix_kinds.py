"""What the numbers of a matrix are taken for: logits, or probabilities however they were rounded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import refused

from debias_ssl import debias_matrix, evaluate
from debias_ssl.debias import main as debias
from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.system.errors import InputError


def probabilities(num_classes: int, num: int = 60, scale: float = 2.0) -> np.ndarray:
    logits = np.random.default_rng(num_classes).normal(0, scale, (num, num_classes))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def saved(array: np.ndarray, folder: Path) -> Path:
    np.save(folder / "p.npy", array)
    return folder / "p.npy"


def check_probs(values: np.ndarray, folder: Path) -> str:
    """That they are read as probabilities of rows divided by their sums; what is said of them."""
    found = read_predictions(saved(values, folder))
    assert found.kind == "probs", found.told()
    shares = values.astype(np.float64) / values.astype(np.float64).sum(1, keepdims=True)
    np.testing.assert_allclose(torch.cat([*found]).softmax(1), shares, rtol=1e-4, atol=1e-6)
    return found.told()


def test_two_decimals_are_probabilities_and_calibrated_as_such(tmp_path: Path, capsys):
    """As logits, their calibration error was 48 % instead of 2."""
    probs = probabilities(10, num=3000)
    generator = torch.Generator().manual_seed(0)
    truth = torch.multinomial(torch.from_numpy(probs), 1, generator=generator).squeeze(1)
    np.save(tmp_path / "truth.npy", truth.numpy())
    figures = []
    for values in (probs, probs.round(2)):
        out = tmp_path / "f.json"
        arguments = ["--predictions", str(saved(values, tmp_path)), "--truth", str(tmp_path / "truth.npy")]
        evaluate.main([*arguments, "--out", str(out), "--overwrite"])
        figures.append(json.loads(out.read_text()))
    assert figures[0]["ece"] < 0.03 and figures[1]["ece"] == pytest.approx(figures[0]["ece"], abs=0.01)
    said = capsys.readouterr().out
    assert "3000 x 10 probabilities (all rows are in [0, 1] and sum to 1)" in said
    assert "off, row" in said and "of numbers with 2 decimals: rows are divided by their sums)" in said


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("decimals", [1, 2, 3, 4])
def test_decimals_that_are_rounded_or_cut_off(num_classes: int, decimals: int, tmp_path: Path):
    probs = probabilities(num_classes, scale=4)
    for values in (probs.round(decimals), np.floor(probs * 10**decimals) / 10**decimals):
        # What says nothing any more is refused as before.
        values = values[values.sum(1) > 0.6]
        for dtype in (np.float64, np.float32):
            check_probs(values.astype(dtype), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_short_floats(dtype, num_classes: int, tmp_path: Path):
    for scale in (0.1, 1.0, 4.0):
        values = torch.from_numpy(probabilities(num_classes, scale=scale)).to(dtype).float().numpy()
        check_probs(values, tmp_path)
        check_probs(values.astype(np.float16), tmp_path)


@pytest.mark.parametrize("off", [0.994, 1.006, 0.97])
def test_one_row_that_is_a_little_off_does_not_flip_the_matrix(off: float, tmp_path: Path):
    values = probabilities(5)
    values[17] *= off
    said = check_probs(values, tmp_path)
    assert f"up to {abs(1 - off):.2g} off, row 17 (from 0) to {off:g}: rows are divided by their sums" in said


@pytest.mark.parametrize("off", [0.5, 0.93, 1.07, 1.6])
def test_one_row_that_is_far_off_is_refused(off: float, tmp_path: Path, capsys):
    values = probabilities(5)
    values[17] = values[17] * 0 + off / 5
    arguments = ["--predictions", str(saved(values, tmp_path)), "--out", str(tmp_path / "out")]
    message = refused(debias, arguments, capsys)
    assert f"row 17 (from 0) to {off:g}: fix or remove the row" in message and "--kind probs" in message
    for kind in ("probs", "logits"):
        assert read_predictions(tmp_path / "p.npy", kind).kind == kind


@pytest.mark.parametrize("decimals", [None, 2, 1, 0])
def test_percent_is_read_as_percent(decimals: int | None, tmp_path: Path):
    values = 100 * probabilities(4)
    values = values if decimals is None else values.round(decimals)
    assert "sum to 100" in (said := check_probs(values, tmp_path)) and "read as percent" in said
    shares = torch.cat([*read_predictions(tmp_path / "p.npy")]).exp().sum(1)
    torch.testing.assert_close(shares, torch.ones_like(shares), rtol=0.03, atol=0)
    assert read_predictions(tmp_path / "p.npy", "probs").kind == "probs"
    assert read_predictions(tmp_path / "p.npy", "logits").kind == "logits"


def test_arithmetic_may_leave_a_little_less_than_0(tmp_path: Path):
    values = probabilities(4)
    values[3] = [1.0 + 1e-9, -1e-9, 0, 0]
    assert "-1e-09 taken for 0" in check_probs(values, tmp_path)


@pytest.mark.parametrize("name", ["sigmoids", "cosines", "log-probabilities", "logits"])
def test_others_are_logits_and_it_is_said_how_to_change_it(name: str, tmp_path: Path):
    random = np.random.default_rng(0)
    values = {
        "sigmoids": 1 / (1 + np.exp(-random.normal(0, 2, (50, 6)))),
        "cosines": random.uniform(0.15, 0.35, (50, 10)),
        "log-probabilities": np.log(probabilities(6)),
        "logits": random.normal(0, 2, (50, 6)),
    }[name]
    for array in (values, values.round(2)):
        found = read_predictions(saved(array, tmp_path))
        assert found.kind == "logits", found.told()
        assert ("--kind probs" in found.told()) == (name in ("sigmoids", "cosines"))
        np.testing.assert_allclose(torch.cat([*found]), array, rtol=1e-6)


def test_votes_are_refused_unless_there_are_a_hundred(tmp_path: Path):
    random = np.random.default_rng(0)
    with pytest.raises(InputError, match="all sum to 7"):
        read_predictions(saved(random.multinomial(7, [0.5, 0.3, 0.2], 40), tmp_path))
    check_probs(random.multinomial(100, [0.5, 0.3, 0.2], 40), tmp_path)


def test_arrays_in_memory_are_taken_for_the_same():
    probs = probabilities(4)
    whole, rounded, percent = (debias_matrix(each) for each in (probs, probs.round(2), 100 * probs))
    np.testing.assert_allclose(percent.probs, whole.probs, rtol=1e-4)
    np.testing.assert_allclose(rounded.probs, whole.probs, atol=0.02)
    values = probs.copy()
    values[17] /= 2
    with pytest.raises(
        InputError, match=r"^logits: the matrix has rows that sum to 1, .*row 17 .*, or pass kind probs"
    ):
        debias_matrix(values)
    with pytest.raises(InputError, match=r"has probabilities .*, logits has logits"):
        debias_matrix(np.log(probs), blank=probs[:1], prior="content_free")
