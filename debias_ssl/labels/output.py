"""The folder that `label` and `debias` write, and the figures that they say at their end."""

import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Int32, Int64
from torch import Tensor

from debias_ssl.data.sources.label_files import TOP5
from debias_ssl.formulas import metrics
from debias_ssl.formulas.calibration import expected_calibration_error
from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.labels.debiasing import (
    DebiasConfig,
    Labeling,
    Removal,
    RowLabels,
    Rows,
    label_rows,
    labeling_of,
)
from debias_ssl.labels.label_table import TABLES
from debias_ssl.labels.levels import levels_of, levels_table
from debias_ssl.labels.preference import FILE as PREFERENCE
from debias_ssl.labels.refinement import refined
from debias_ssl.labels.removal import find_removal
from debias_ssl.system.errors import InputError, only_warned
from debias_ssl.system.files import check_writable, write_aside, writing_parts
from debias_ssl.system.outputs import Outputs

# Rows of probabilities that are cut after the largest, and the numbers of their classes.
MOST = 5
# In the order in which they are removed.
NAMES = ("summary.json", "report.html", "labels.csv", "labels.parquet", "probs.npy", *TOP5)
NAMES += ("classes.json", "unreadable.json", PREFERENCE)

# From so many rows on, an accuracy is known to a percent, and its interval is in summary.json alone.
FEW_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """In which files labels are written.

    Args:
        probs: `full` is probs.npy, the probabilities of all classes; `top5` the five largest of each row, in
            top5_probs.npy, and the numbers of their classes, in top5_classes.npy; `none` is neither.
        table: `csv` is labels.csv, `parquet` is labels.parquet.
    """

    probs: Literal["full", "top5", "none"] = "full"
    table: Literal["csv", "parquet"] = "csv"

    @property
    def names(self) -> tuple[str, ...]:
        """Of these files."""
        return (f"labels.{self.table}", *{"full": ("probs.npy",), "top5": TOP5, "none": ()}[self.probs])


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
        lines.append(f"{'not clear':<10}whether there are any of: {', '.join(told)}{_more(absent, num_named)}")
    return lines


def _more(names: Sequence[str], num_named: int) -> str:
    return f", and {len(names) - num_named:,} more" if len(names) > num_named else ""


def refined_words(labeling: Labeling) -> str:
    """What the settings say where labels are not of the debiased probabilities themselves."""
    return f", refined by {labeling.config.refine}" if labeling.is_refined else ""


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
    files: OutputConfig = OutputConfig(),
) -> str:
    """Debiases rows, and writes labels, probabilities, classes.json, summary.json and report.html.

    Also preference.json, where a reference showed one, and unreadable.json.

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
    rows, removal = refined(rows, config, find_removal(rows, config))
    for note in removal.notes:
        print(f"note: {note}", file=sys.stderr)
    labeling = write_labels(rows, config, removal, out, files)
    if removal.preference is not None:
        outputs_in(out).claim(PREFERENCE)
        write_aside(out / PREFERENCE, removal.preference.text())
    if unreadable:
        outputs_in(out).claim("unreadable.json")
        write_aside(out / "unreadable.json", json.dumps(unreadable, indent=1))
    said = write_summary(labeling, out, further)
    with only_warned("no report.html"):
        write_aside(out / "report.html", page(labeling))
    outputs_in(out).complete()
    return said


def write_labels(
    rows: Rows,
    config: DebiasConfig,
    removal: Removal,
    out: Path,
    files: OutputConfig = OutputConfig(),
    *,
    is_quiet: bool = False,
) -> Labeling:
    """Writes the table of labels, the probabilities and classes.json in one pass over the rows.

    Raises:
        InputError: a number is not finite; nothing is written then.
    """
    outputs = outputs_in(out)
    with ExitStack() as opened:
        write_table, *write_probs = [opened.enter_context(writing_parts(out / name)) for name in files.names]

        def parts() -> Iterator[RowLabels]:
            for write, header in zip(write_probs, _headers(rows, files), strict=True):
                write(header)
            for part, probs in label_rows(rows, removal, floor=config.floor, is_quiet=is_quiet):
                if files.probs != "none":
                    kept = stored(probs, part.label)
                    for write, numbers in zip(
                        write_probs, (kept,) if files.probs == "full" else top5(kept), strict=True
                    ):
                        write(numbers.data)
                yield part

        labeling = labeling_of(rows, config, removal, parts())
        for text in TABLES[files.table](labeling):
            write_table(text)
        # Nothing was wrong with a row: now the labels that were there go, whole.
        outputs.begin_replacing()
        outputs.claim(*files.names, "classes.json", "report.html", "summary.json")
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
    is_tied = bits.scatter_(1, own, -1).amax(1, keepdim=True) == largest
    bits.scatter_(1, own, largest + is_tied.to(torch.int16))
    return rounded.numpy()


def top5(kept: Float16[np.ndarray, "n C"]) -> tuple[Float16[np.ndarray, "n K"], Int32[np.ndarray, "n K"]]:
    """The five largest probabilities of each row, the largest first, and their classes; all of fewer classes."""
    found = torch.from_numpy(kept).float().topk(min(MOST, kept.shape[1]))
    return found.values.half().numpy(), found.indices.int().numpy()


def _headers(rows: Rows, files: OutputConfig) -> list[bytes]:
    """Of the .npy files of probabilities."""
    num_rows, num_classes = len(rows.names), len(rows.classes)
    if files.probs == "top5":
        return [_npy_header(dtype, (num_rows, min(MOST, num_classes))) for dtype in (np.float16, np.int32)]
    return [_npy_header(np.float16, (num_rows, num_classes))] if files.probs == "full" else []


def _npy_header(dtype: type, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def write_summary(labeling: Labeling, out: Path, further: Mapping[str, Any]) -> str:
    """Writes summary.json, which says that the labels are whole; returns what was done, for a terminal."""
    summary = summary_of(labeling)
    write_aside(out / "summary.json", json.dumps(summary | dict(further), indent=1, ensure_ascii=False) + "\n")
    chosen = f", on {summary['num_tuned_on']} rows of {labeling.config.tune_on}" if labeling.config.tune_on else ""
    settings = (
        f"prior {labeling.config.estimate}, target {labeling.config.target_prior}, strength {labeling.strength:g}, "
        f"temperature {labeling.temperature:.4g}{chosen}{refined_words(labeling)}"
    )
    return f"{settings}\n{summary_table(summary)}\n{out}"
