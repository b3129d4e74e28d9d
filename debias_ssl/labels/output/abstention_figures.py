"""Figures of the rows with and without a label."""

from typing import Any

import numpy as np

from debias_ssl.formulas.metrics import wilson_interval
from debias_ssl.formulas.selective import area_under_risk
from debias_ssl.labels.debiasing.rows import Labeling


def abstention_figures(labeling: Labeling) -> dict[str, Any]:
    """The figures of `summary.json` about the reported rows that have no label; fractions in [0, 1].

    Where the truth is known, the accuracy of the labels that are left, and the area under the risk-coverage curve of
    all labels, plain and debiased, each by its own score.
    """
    abstention, reported, classes = labeling.abstention, labeling.reported, labeling.classes
    assert abstention is not None and labeling.abstained is not None
    assert labeling.score is not None and labeling.plain_score is not None
    abstained = labeling.abstained[reported]
    would_be = np.bincount(labeling.label[reported][abstained], minlength=len(classes))
    figures: dict[str, Any] = {
        "score": abstention.score,
        "threshold": abstention.threshold,
        "num_labeled": int((~abstained).sum()),
        "num_abstained": int(abstained.sum()),
        "coverage": 1 - float(abstained.mean()) if len(abstained) else None,
        "abstained": dict(zip(classes, would_be.tolist(), strict=True)),
    }
    if (tuned := abstention.tuned) is not None:
        figures["on_tuned"] = {
            "num": tuned.num,
            "num_labeled": tuned.num_labeled,
            "precision": tuned.precision,
            "interval": [*tuned.interval],
        }
    known = reported & (labeling.truth >= 0)
    if not known.any():
        return figures
    truth = labeling.truth[known]
    right = labeling.label[known] == truth
    left = right[~labeling.abstained[known]]
    if len(left):
        figures["accuracy"] = float(left.mean())
        figures["accuracy_interval"] = [*wilson_interval(int(left.sum()), len(left))]
    figures["area_under_risk"] = {
        "plain": area_under_risk(labeling.plain_score[known], labeling.plain[known] == truth),
        "debiased": area_under_risk(labeling.score[known], right),
    }
    return figures
