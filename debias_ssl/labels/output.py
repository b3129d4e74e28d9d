"""The folder that `label` and `debias` write, and the figures that they say at their end."""

import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor

from debias_ssl.formulas import metrics
from debias_ssl.formulas.calibration import expected_calibration_error
from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.labels.abstention_figures import abstention_figures
from debias_ssl.labels.debiasing import (
    DebiasConfig,
    Labeling,
    Removal,
    Rows,
    label_rows,
    labeling_of,
    score_name,
)
from debias_ssl.labels.label_table import csv_parts
from debias_ssl.labels.removal import find_removal
from debias_ssl.labels.tuning import UNTUNED, is_tuned
from debias_ssl.system.errors import InputError, only_warned
from debias_ssl.system.files import check_writable, write_aside, writing_parts
from debias_ssl.system.outputs import Outputs

# In the order in which they are removed.
NAMES = ("summary.json", "report.html", "labels.csv", "probs.npy", "classes.json", "unreadable.json")

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
        "prior": labeling.config.prior,
        "strength": labeling.strength,
        "temperature": labeling.temperature,
        "supported": labeling.supported,
        "notes": list(labeling.notes),
        "target_prior": labeling.config.target_prior,
        "class_prior": dict(zip(classes, labeling.prior.tolist(), strict=True)),
        "counts": {key: dict(zip(classes, each.tolist(), strict=True)) for key, each in counts.items()},
        "count_entropy": {key: _entropy(each) for key, each in counts.items()},
    }
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
    plain, debiased = summary["counts"]["plain"], summary["counts"]["debiased"]
    by_change = sorted(plain, key=lambda name: plain[name] - debiased[name])
    for title, order, sign in (("risen", by_change, 1), ("fallen", by_change[::-1], -1)):
        moved = [name for name in order[:num_named] if sign * (debiased[name] - plain[name]) > 0]
        if moved:
            lines.append(f"{title:<10}" + ", ".join(f"{name} ({plain[name]} -> {debiased[name]})" for name in moved))
    if "abstention" in summary:
        lines.append(f"{'labeled':<10}{_labeled_text(summary['abstention'])}")
    changed = summary["num_changed"]
    lines.append(f"{changed} of {num} labels changed ({changed / max(num, 1):.2%})")
    return "\n".join(lines)


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


def outputs_in(out: Path) -> Outputs:
    """What `label` and `debias` write into a folder."""
    return Outputs(folder=out, kind="labels", names=NAMES)


def check_folder(out: Path, overwrite: bool) -> None:
    """Raises InputError where the folder cannot be written to, or holds what may not be replaced.

    What a job that was interrupted has left is replaced: the same command goes on.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"cannot write to --out {str(out)!r}: it is not a folder")
    check_writable(out, "--out")
    outputs = outputs_in(out)
    outputs.check_foreign()
    if not overwrite and not outputs.is_incomplete() and (held := outputs.held()):
        raise InputError(f"{str(out)!r} holds {held[0]}: choose another --out, or pass --overwrite to replace it")


def write_folder(
    rows: Rows,
    config: DebiasConfig,
    out: Path,
    page: Callable[[Labeling], str],
    further: Mapping[str, Any],
    unreadable: Mapping[str, str] | None = None,
) -> str:
    """Debiases rows, and writes labels.csv, probs.npy, classes.json, unreadable.json, summary.json and report.html.

    The page comes last: where it cannot be drawn or written, that is a warning.

    Args:
        rows: the logits.
        config: what is removed.
        out: the folder.
        page: draws the report, as HTML.
        further: entries of summary.json beside those of `summary_of`.
        unreadable: files that were left out, and why; without any there is no unreadable.json.

    Returns:
        What was done, for a terminal.

    Raises:
        InputError: a number is not finite, or the settings need what is not there; nothing is written then.
    """
    removal = find_removal(rows, config)
    for note in removal.notes:
        print(f"note: {note}", file=sys.stderr)
    labeling = write_labels(rows, config, removal, out)
    for note in labeling.notes[len(removal.notes) :]:
        print(f"note: {note}", file=sys.stderr)
    if unreadable:
        outputs_in(out).claim("unreadable.json")
        write_aside(out / "unreadable.json", json.dumps(unreadable, indent=1))
    said = write_summary(labeling, out, further)
    with only_warned("no report.html"):
        write_aside(out / "report.html", page(labeling))
    outputs_in(out).complete()
    return said


def write_labels(rows: Rows, config: DebiasConfig, removal: Removal, out: Path, *, is_quiet: bool = False) -> Labeling:
    """Writes labels.csv, probs.npy and classes.json in one pass over the rows.

    Raises:
        InputError: a number is not finite, or a precision is not reached; nothing is written then.
    """
    parts, outputs = [], outputs_in(out)
    with writing_parts(out / "labels.csv") as write_table, writing_parts(out / "probs.npy") as write_probs:
        write_probs(_npy_header((len(rows.names), len(rows.classes))))
        for part, probs in label_rows(rows, removal, score_name(rows, config), is_quiet=is_quiet):
            write_probs(stored(probs, part.label).tobytes())
            parts.append(part)
        labeling = labeling_of(rows, config, removal, parts)
        for text in csv_parts(labeling):
            write_table(text)
        # Nothing was wrong with a row: now the labels that were there go, whole.
        outputs.begin_replacing()
        outputs.claim("labels.csv", "probs.npy", "classes.json", "report.html", "summary.json")
    write_aside(out / "classes.json", json.dumps(rows.classes, ensure_ascii=False) + "\n")
    return labeling


def stored(probs: Float[Tensor, "n C"], label: Int64[np.ndarray, " n"]) -> Float16[np.ndarray, "n C"]:
    """Probabilities in fp16, as probs.npy holds them, in which the label alone is the largest of its row.

    Rounding makes close numbers equal. There the label's goes up to the next number of fp16, by 0.1 % at most, as
    labels are those of the exact numbers and readers may take the largest of the stored ones.

    Args:
        probs: the exact ones.
        label: of the rows, each the largest of its row.
    """
    rounded = probs.half().cpu()
    # Numbers of fp16 that are not negative have the order of their bits, and the next one is the next integer.
    bits, own = rounded.view(torch.int16), torch.from_numpy(label)[:, None]
    largest = bits.gather(1, own)
    is_tied = (bits == largest).sum(1, keepdim=True) > 1
    bits.scatter_(1, own, largest + is_tied.to(torch.int16))
    return rounded.numpy()


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Of a .npy file of float16."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(np.float16))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def write_summary(labeling: Labeling, out: Path, further: Mapping[str, Any]) -> str:
    """Writes summary.json, which says that the labels are whole; returns what was done, for a terminal."""
    summary = summary_of(labeling)
    write_aside(out / "summary.json", json.dumps(summary | dict(further), indent=1, ensure_ascii=False) + "\n")
    chosen = f", on {summary['num_tuned_on']} rows of {labeling.config.tune_on}" if labeling.config.tune_on else ""
    settings = (
        f"prior {labeling.config.prior}, target {labeling.config.target_prior}, strength {labeling.strength:g}, "
        f"temperature {labeling.temperature:.4g}{chosen}"
    )
    told = [settings, *([] if is_tuned(labeling.config) else [UNTUNED]), summary_table(summary), str(out)]
    return "\n".join(told)
