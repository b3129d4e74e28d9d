"""The figures that `label` and `debias` print at the end and write to summary.json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from debias_ssl.formulas import metrics
from debias_ssl.formulas.calibration import expected_calibration_error
from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.labels.debiasing.rows import (
    Labeling,
)
from debias_ssl.labels.output.abstention_figures import abstention_figures
from debias_ssl.labels.output.levels import levels_of, levels_table

# From so many rows on, an accuracy is known to a percent, and its interval is in summary.json alone.
FEW_ROWS = 10_000


def summary_of(labeling: Labeling) -> dict[str, Any]:
    """The figures of `summary.json`, of the reported rows: fractions in [0, 1]."""
    reported, classes = labeling.reported, labeling.classes
    counts = {"plain": labeling.counts("plain"), "debiased": labeling.counts("label")}
    summary = {
        "num": int(reported.sum()),
        "num_known": int((reported & (labeling.truth >= 0)).sum()),
        "num_tuned_on": int((~reported).sum()),
        "num_changed": int((labeling.plain != labeling.label)[reported].sum()),
        "prior": labeling.config.estimate,
        "strength": labeling.strength,
        "temperature": labeling.temperature,
        "supported": labeling.supported,
        "notes": list(labeling.notes),
        "target_prior": labeling.config.target_prior,
        "refine": labeling.config.refine if labeling.is_refined else "none",
        "class_prior": dict(zip(classes, labeling.prior.tolist(), strict=True)),
        "shift": dict(zip(classes, labeling.shift.tolist(), strict=True)),
        "counts": {key: dict(zip(classes, each.tolist(), strict=True)) for key, each in counts.items()},
        "count_entropy": {key: _entropy(each) for key, each in counts.items()},
        "reference": labeling.config.reference,
        **levels_of(labeling),
    }
    if (shares := labeling.shares) is not None:
        each = zip(classes, shares.share.tolist(), shares.low.tolist(), shares.high.tolist(), strict=True)
        here = shares.is_present.tolist()
        summary["shares"] = {
            name: {"share": share, "interval": [low, high], "present": present}
            for (name, share, low, high), present in zip(each, here, strict=True)
        }
    if labeling.presence is not None:
        summary["presence"] = {"spread": labeling.presence.spread, "removed": labeling.presence.removed}
    if labeling.several:
        summary["multi_label"] = labeling.several.summary(classes, reported)
    if labeling.abstention is not None:
        summary["abstention"] = abstention_figures(labeling)
    known = reported & (labeling.truth >= 0)
    if known.any():
        truth = torch.from_numpy(labeling.truth[known])
        for key, label, confidence in (
            ("plain", labeling.plain, labeling.plain_confidence),
            ("debiased", labeling.label, labeling.confidence),
        ):
            predicted = torch.from_numpy(label[known])
            confusion = confusion_matrix(truth, predicted, len(classes))
            recalls = (confusion.diagonal() / confusion.sum(1)).tolist()
            summary[key] = metrics.summarize(confusion) | {
                "ece": expected_calibration_error(torch.from_numpy(confidence[known]), predicted == truth).item(),
                "accuracy_interval": [*metrics.accuracy_interval(confusion)],
                "recalls": {
                    name: {"recall": recall, "interval": [*interval]}
                    for name, recall, interval in zip(
                        classes, recalls, metrics.recall_intervals(confusion), strict=True
                    )
                    if interval is not None
                },
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
    num, known = summary["num"], summary["num_known"]
    lines = [f"{'':<10}" + "".join(f"{title:>15}" for title in [*figures.values(), "count entropy"])]
    for key in ("plain", "debiased"):
        cells = [summary[key][figure] for figure in figures] + [summary["count_entropy"][key]]
        lines.append(f"{key:<10}" + "".join(f"{100 * value:>13.2f} %" for value in cells))
    if known:
        told = f"{known} of {num} rows"
        if known < FEW_ROWS:
            intervals = [interval_text(summary[key]["accuracy_interval"]) for key in ("plain", "debiased")]
            told += "; accuracy, 95 % interval: plain {}, debiased {}".format(*intervals)
        lines.append(f"{'known':<10}{told}")
    lines.extend(_lines_of_shares(summary.get("shares", {}), num_named))
    plain, debiased = summary["counts"]["plain"], summary["counts"]["debiased"]
    by_change = sorted(plain, key=lambda name: plain[name] - debiased[name])
    for title, order, sign in (("risen", by_change, 1), ("fallen", by_change[::-1], -1)):
        moved = [name for name in order[:num_named] if sign * (debiased[name] - plain[name]) > 0]
        if moved:
            lines.append(f"{title:<10}" + ", ".join(f"{name} ({plain[name]} -> {debiased[name]})" for name in moved))
    if levels := levels_table(summary):
        lines.append(levels)
    if "multi_label" in summary:
        several = summary["multi_label"]
        lines.append(
            f"{'several':<10}{several['mean']:.2f} labels a row from a sigmoid of {several['threshold']:g}; "
            f"{several['num_none']} of {num} rows have none"
        )
    if "abstention" in summary:
        lines.append(f"{'labeled':<10}{_labeled_text(summary['abstention'])}")
    changed = summary["num_changed"]
    lines.append(f"{changed} of {num} labels changed ({changed / max(num, 1):.2%})")
    return "\n".join(lines)


def _lines_of_shares(shares: Mapping[str, Any], num_named: int) -> list[str]:
    """Which classes are among the rows: the largest shares, and the classes without clear evidence."""
    if not shares:
        return []
    here = sorted((name for name in shares if shares[name]["present"]), key=lambda name: -shares[name]["share"])
    absent = sorted((name for name in shares if not shares[name]["present"]), key=lambda name: -shares[name]["share"])
    of = f"{len(here):,} of {len(shares):,} classes"
    told = [f"{name} {interval_text(shares[name]['interval'])}" for name in here[:num_named]]
    lines = [f"{'here':<10}{of}, 95 % intervals of shares: {', '.join(told)}{_more(here, num_named)}"]
    if absent:
        told = [f"{name} (at most {100 * shares[name]['interval'][1]:.2f} %)" for name in absent[:num_named]]
        lines.append(f"{'absent?':<10}no clear evidence for: {', '.join(told)}{_more(absent, num_named)}")
    return lines


def _more(names: Sequence[str], num_named: int) -> str:
    return f", and {len(names) - num_named:,} more" if len(names) > num_named else ""


def refined_words(labeling: Labeling) -> str:
    """What the settings say where labels are not of the debiased probabilities themselves."""
    return f", refined by {labeling.config.refine}" if labeling.is_refined else ""


def _labeled_text(figures: Mapping[str, Any]) -> str:
    """Which rows have a label, in a line."""
    labeled, num = figures["num_labeled"], figures["num_labeled"] + figures["num_abstained"]
    limit = "" if figures["threshold"] is None else f" of at least {figures['threshold']:.4g}"
    parts = [f"{labeled} of {num} rows ({labeled / max(num, 1):.2%}), by {figures['score']}{limit}"]
    if "on_tuned" in figures:
        tuned = figures["on_tuned"]
        parts.append(
            f"right on {tuned['num_labeled']} of {tuned['num']} rows of tune_on: {100 * tuned['precision']:.2f} % "
            f"({interval_text(tuned['interval'])})"
        )
    if "accuracy" in figures:
        parts.append(
            f"right where known: {100 * figures['accuracy']:.2f} % ({interval_text(figures['accuracy_interval'])})"
        )
    return "; ".join(parts)


def interval_text(interval: Sequence[float]) -> str:
    return "{:.2f} to {:.2f} %".format(*(100 * end for end in interval))
