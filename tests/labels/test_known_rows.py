"""Rows that are read a chunk at a time give what they give at once, and are not kept in memory."""

import pytest
import torch
from torch import Tensor

from debias_ssl.formulas.calibration import calibration_figures, calibration_of, fit_temperature, fit_temperature_to
from debias_ssl.labels.matrix import known_rows
from debias_ssl.labels.matrix.known_rows import KnownRows, LogitFile
from debias_ssl.labels.matrix.temperature import rescale, rescale_in_folds
from debias_ssl.training.evaluation import evaluate_logits, evaluate_rows


def made(num: int, num_classes: int = 5) -> tuple[Tensor, Tensor]:
    """Overconfident logits and their labels, of which every seventh is unknown."""
    generator = torch.Generator().manual_seed(num)
    logits = 3 * torch.randn(num, num_classes, generator=generator)
    labels = torch.multinomial((logits / 2).softmax(1), 1, generator=generator).squeeze(1)
    labels[::7] = -1
    return logits, labels


def rows_of(logits: Tensor, labels: Tensor, size: int) -> KnownRows:
    return KnownRows(matrix=logits.split(size), labels=labels)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_figures_in_chunks_are_those_of_all_rows(size: int):
    logits, labels = made(300)
    rows, known = rows_of(logits, labels, size), labels >= 0
    counts = torch.tensor([9, 7, 5, 3, 1])
    # Of five classes, of which some chunk has no row.
    whole = evaluate_logits(logits, labels, counts)
    found = evaluate_rows(rows, counts)
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        assert found[name] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value)
    expected = calibration_figures(logits[known], labels[known])
    assert calibration_of(rows, len(rows)).figures() == pytest.approx(expected, rel=1e-12)
    assert fit_temperature_to(rows) == pytest.approx(fit_temperature(logits[known], labels[known]), rel=1e-11)


def test_a_part_has_the_rows_that_are_asked_for():
    logits, labels = made(50)
    rows, known = rows_of(logits, labels, 8), (labels >= 0).nonzero().squeeze(1)
    inside = torch.arange(len(known)) % 3 != 0
    part = rows.part(inside)
    assert len(part) == int(inside.sum()) and part.known.equal(labels[known[inside]])
    assert torch.cat([each for each, _ in part]).equal(logits[known[inside]])


def test_a_temperature_divides_all_rows():
    logits, labels = made(200)
    rescaled = rescale(rows_of(logits, labels, 33), rows_of(*made(90), 40), "others")
    known = labels >= 0
    expected = calibration_figures(logits[known].double() / rescaled.temperature, labels[known])
    assert rescaled.figures["after"] == pytest.approx(expected, rel=1e-12)
    assert rescaled.summary()["num"] == int(known.sum())


def test_folds_are_blind_to_their_own_labels():
    logits, labels = made(90)
    known = labels >= 0
    logits, labels = logits[known], labels[known]
    folds = torch.arange(len(labels)) % 3
    rescaled = rescale_in_folds(rows_of(logits, labels, 20), folds, "rows")
    for fold in range(3):
        inside = folds == fold
        expected = fit_temperature(logits[~inside], labels[~inside])
        assert rescaled.fold_temperatures[fold] == pytest.approx(expected, rel=1e-11)
        assert (rescaled.temperatures[inside] == rescaled.fold_temperatures[fold]).all()
    assert rescaled.temperature == pytest.approx(fit_temperature(logits, labels), rel=1e-11)
    others = torch.where(folds == 0, (labels + 1) % 5, labels)
    again = rescale_in_folds(rows_of(logits, others, 20), folds, "rows")
    assert again.fold_temperatures[0] == rescaled.fold_temperatures[0]
    assert again.fold_temperatures[1:] != rescaled.fold_temperatures[1:]


def test_a_file_has_the_rows_that_were_written_in_whatever_order(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_rows, "rows_of_chunk", lambda num_classes: 4)
    logits = torch.randn(10, 3)
    file = LogitFile(3)
    for first, stop in ((6, 10), (0, 2), (2, 6)):
        file.write(first, logits[first:stop])
    assert [len(chunk) for chunk in file] == [4, 4, 2]
    assert torch.cat([*file]).equal(logits)
    # Two readers take turns.
    assert [a.equal(b) for a, b in zip(file, file, strict=True)] == [True] * 3
    assert [*LogitFile(3)] == []
