"""What `label` and `debias` leave behind beside the labels, and say at their end: figures of a labeling."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from debias_ssl.formulas import metrics
from debias_ssl.formulas.calibration import expected_calibration_error
from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.labels.debiasing import Labeling
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import write_aside


def summary_of(labeling: Labeling) -> dict[str, Any]:
    """The figures of `summary.json`, of the reported rows: fractions in [0, 1]."""
    reported, classes = labeling.reported, labeling.classes
    counts = {"plain": labeling.counts("plain"), "debiased": labeling.counts("label")}
    summary = {
        "num": int(reported.sum()),
        "num_tuned_on": int((~reported).sum()),
        "num_changed": int((labeling.plain != labeling.label)[reported].sum()),
        "prior": labeling.config.prior,
        "strength": labeling.strength,
        "temperature": labeling.temperature,
        "target_prior": labeling.config.target_prior,
        "class_prior": dict(zip(classes, labeling.prior.tolist(), strict=True)),
        "counts": {key: dict(zip(classes, each.tolist(), strict=True)) for key, each in counts.items()},
        "count_entropy": {key: _entropy(each) for key, each in counts.items()},
    }
    known = reported & (labeling.truth >= 0)
    if known.any():
        truth = torch.from_numpy(labeling.truth[known])
        for key, label, confidence in (
            ("plain", labeling.plain, labeling.plain_confidence),
            ("debiased", labeling.label, labeling.confidence),
        ):
            predicted = torch.from_numpy(label[known])
            summary[key] = metrics.summarize(confusion_matrix(truth, predicted, len(classes))) | {
                "ece": expected_calibration_error(torch.from_numpy(confidence[known]), predicted == truth).item()
            }
    return summary


def _entropy(counts: Int64[np.ndarray, " C"]) -> float:
    """Entropy of shares as a fraction of the largest one; 1 where all classes have the same."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum() / math.log(len(counts))) + 0.0


def summary_table(summary: Mapping[str, Any], num_named: int = 5) -> str:
    """What `summary.json` says, for a terminal."""
    figures = {"accuracy": "accuracy", "mean_recall": "mean recall", "min_recall": "min recall", "h_mean": "h mean"}
    figures = figures | {"ece": "ece"} if "plain" in summary else {}
    lines = [f"{'':<10}" + "".join(f"{title:>15}" for title in [*figures.values(), "count entropy"])]
    for key in ("plain", "debiased"):
        cells = [summary[key][figure] for figure in figures] + [summary["count_entropy"][key]]
        lines.append(f"{key:<10}" + "".join(f"{100 * value:>13.2f} %" for value in cells))
    plain, debiased = summary["counts"]["plain"], summary["counts"]["debiased"]
    by_change = sorted(plain, key=lambda name: plain[name] - debiased[name])
    for title, order, sign in (("risen", by_change, 1), ("fallen", by_change[::-1], -1)):
        moved = [name for name in order[:num_named] if sign * (debiased[name] - plain[name]) > 0]
        if moved:
            lines.append(f"{title:<10}" + ", ".join(f"{name} ({plain[name]} -> {debiased[name]})" for name in moved))
    changed, num = summary["num_changed"], summary["num"]
    lines.append(f"{changed} of {num} labels changed ({changed / max(num, 1):.2%})")
    return "\n".join(lines)


def check_folder(out: Path, overwrite: bool) -> None:
    """Raises InputError where the folder holds labels that may not be replaced."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"cannot write to --out {str(out)!r}: {str(nearest)!r} is not a folder that can be written to")
    held = next((name for name in ("labels.csv", "summary.json") if (out / name).exists()), None)
    if held and not overwrite:
        raise InputError(f"{str(out)!r} holds {held}: choose another --out, or pass --overwrite to replace it")


def finish(labeling: Labeling, out: Path, page: str, further: Mapping[str, Any]) -> None:
    """Writes summary.json and report.html beside the labels, and says on stdout what was done.

    Args:
        labeling: what is told of.
        out: the folder.
        page: the report, as HTML.
        further: entries of summary.json beside those of `summary_of`.
    """
    summary = summary_of(labeling)
    write_aside(out / "report.html", page)
    write_aside(out / "summary.json", json.dumps(summary | dict(further), indent=1, ensure_ascii=False) + "\n")
    chosen = f", on {summary['num_tuned_on']} rows of {labeling.config.tune_on}" if labeling.config.tune_on else ""
    print(
        f"prior {labeling.config.prior}, target {labeling.config.target_prior}, strength {labeling.strength:g}, "
        f"temperature {labeling.temperature:.4g}{chosen}"
    )
    print(summary_table(summary))
    print(out)
