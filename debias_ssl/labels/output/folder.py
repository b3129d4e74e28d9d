"""Writes the folder of `label` and `debias`: labels, probabilities, classes.json, summary.json and report.html."""

import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Int32, Int64
from torch import Tensor

from debias_ssl.data.sources.label_files import TOP5
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.debiasing.preference import FILE as PREFERENCE
from debias_ssl.labels.debiasing.refinement import refined
from debias_ssl.labels.debiasing.removal import find_removal
from debias_ssl.labels.debiasing.rows import Labeling, Removal, RowLabels, Rows, label_rows, labeling_of, score_name
from debias_ssl.labels.debiasing.tuning import UNTUNED, is_tuned
from debias_ssl.labels.output.label_table import TABLES
from debias_ssl.labels.output.summary import refined_words, summary_of, summary_table
from debias_ssl.system.errors import InputError, only_warned
from debias_ssl.system.files import check_writable, write_aside, writing_parts
from debias_ssl.system.outputs import Outputs

# With `top5`, this many of the largest probabilities of each row are kept, with their class numbers.
MOST = 5
# In the order in which they are removed.
NAMES = ("summary.json", "report.html", "labels.csv", "labels.parquet", "probs.npy", *TOP5)
NAMES += ("classes.json", "unreadable.json", PREFERENCE)


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """The files that labels are written to.

    Args:
        probs: `full` is probs.npy, the probabilities of all classes; `top5` the five largest of each row, in
            top5_probs.npy, and the numbers of their classes, in top5_classes.npy; `none` writes neither.
        table: `csv` is labels.csv, `parquet` is labels.parquet.
    """

    probs: Literal["full", "top5", "none"] = "full"
    table: Literal["csv", "parquet"] = "csv"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of these files."""
        return (f"labels.{self.table}", *{"full": ("probs.npy",), "top5": TOP5, "none": ()}[self.probs])


def outputs_in(out: Path) -> Outputs:
    """The files that `label` and `debias` write into a folder."""
    return Outputs(folder=out, kind="labels", names=NAMES)


def check_folder(out: Path, overwrite: bool) -> None:
    """Raises InputError if the folder cannot be written to, or has files that may not be replaced.

    Files of an interrupted job may be replaced, so the same command can be repeated.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"cannot write to --out {str(out)!r}: this is not a folder")
    check_writable(out, "--out")
    outputs_in(out).check_replaceable(overwrite)


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

    Also writes preference.json if there is a reference, and unreadable.json if files were left out. The page is written
    last; if it cannot be drawn or written, there is only a warning.

    Args:
        rows: the logits.
        config: the settings of the removal.
        out: the folder.
        page: a function that draws the report as HTML.
        further: entries of summary.json in addition to those of `summary_of`.
        unreadable: files that were left out, with the reasons.
        files: the files to write.

    Returns:
        The result as a text for a terminal.

    Raises:
        InputError: a number is not finite, or an input that the settings need is missing; nothing is written then.
    """
    rows, removal = refined(rows, config, find_removal(rows, config))
    return write_removed(rows, config, removal, out, page, further, unreadable, files)


def write_removed(
    rows: Rows,
    config: DebiasConfig,
    removal: Removal,
    out: Path,
    page: Callable[[Labeling], str],
    further: Mapping[str, Any],
    unreadable: Mapping[str, str] | None = None,
    files: OutputConfig = OutputConfig(),
) -> str:
    """Like `write_folder`, for a given removal."""
    for note in removal.notes:
        print(f"note: {note}", file=sys.stderr)
    labeling = write_labels(rows, config, removal, out, files)
    if removal.preference is not None:
        outputs_in(out).claim(PREFERENCE)
        write_aside(out / PREFERENCE, removal.preference.text())
    for note in labeling.notes[len(removal.notes) :]:
        print(f"note: {note}", file=sys.stderr)
    if unreadable:
        outputs_in(out).claim("unreadable.json")
        write_aside(out / "unreadable.json", json.dumps(unreadable, indent=1))
    said = write_summary(labeling, out, further)
    with only_warned("no report.html"):
        write_aside(out / "report.html", page(labeling))
    outputs_in(out).complete()
    return f"{said}\n{whereabouts(out)}"


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
        InputError: a number is not finite, or the required precision is not reached; nothing is written then.
    """
    outputs = outputs_in(out)
    with ExitStack() as opened:
        write_table, *write_probs = [opened.enter_context(writing_parts(out / name)) for name in files.names]

        def parts() -> Iterator[RowLabels]:
            for write, header in zip(write_probs, _headers(rows, files), strict=True):
                write(header)
            for part, probs in label_rows(
                rows, removal, score_name(rows, config), floor=config.floor, is_quiet=is_quiet
            ):
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
        for write in (write_table, *write_probs):
            write.wait()
        # All rows were computed and written: now the earlier files are removed together.
        outputs.begin_replacing()
        outputs.claim(*files.names, "classes.json", "report.html", "summary.json")
    write_aside(out / "classes.json", json.dumps(rows.classes, ensure_ascii=False) + "\n")
    return labeling


def stored(probs: Float[Tensor, "n C"], label: Int64[np.ndarray, " n"]) -> Float16[np.ndarray, "n C"]:
    """Probabilities in fp16 for probs.npy, in which only the label has the largest number of its row.

    Rounding makes close numbers equal. The number of the label is then raised to the next number of fp16, by at most
    0.1 %. Labels come from the exact numbers, and readers may use the largest of the stored ones.

    Args:
        probs: the exact probabilities.
        label: the class with the largest probability of each row.
    """
    rounded = probs.half().cpu()
    # The bits of numbers of fp16 that are not negative, read as integers, have the same order and no gaps.
    bits, own = rounded.view(torch.int16), torch.from_numpy(label)[:, None]
    largest = bits.gather(1, own)
    is_tied = bits.scatter_(1, own, -1).amax(1, keepdim=True) == largest
    bits.scatter_(1, own, largest + is_tied.to(torch.int16))
    return rounded.numpy()


def top5(kept: Float16[np.ndarray, "n C"]) -> tuple[Float16[np.ndarray, "n K"], Int32[np.ndarray, "n K"]]:
    """The five largest probabilities of each row, the largest first, and their classes; all if there are fewer."""
    found = torch.from_numpy(kept).float().topk(min(MOST, kept.shape[1]))
    return found.values.half().numpy(), found.indices.int().numpy()


def _headers(rows: Rows, files: OutputConfig) -> list[bytes]:
    """The headers of the .npy files of probabilities."""
    num_rows, num_classes = len(rows.names), len(rows.classes)
    if files.probs == "top5":
        return [_npy_header(dtype, (num_rows, min(MOST, num_classes))) for dtype in (np.float16, np.int32)]
    return [_npy_header(np.float16, (num_rows, num_classes))] if files.probs == "full" else []


def _npy_header(dtype: type, shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


def whereabouts(out: Path) -> str:
    """The last line of a job: the folder of the labels, and their page if it could be drawn."""
    page = out / "report.html"
    return f"{out}; its page: {page}" if page.exists() else f"{out}"


def write_summary(labeling: Labeling, out: Path, further: Mapping[str, Any]) -> str:
    """Writes summary.json, which marks the labels as complete; returns the result as a text for a terminal."""
    summary = summary_of(labeling)
    write_aside(out / "summary.json", json.dumps(summary | dict(further), indent=1, ensure_ascii=False) + "\n")
    chosen = f", on {summary['num_tuned_on']} rows of {labeling.config.tune_on}" if labeling.config.tune_on else ""
    settings = (
        f"prior {labeling.config.estimate}, target {labeling.config.target_prior}, strength {labeling.strength:g}, "
        f"temperature {labeling.temperature:.4g}{chosen}{refined_words(labeling)}"
    )
    told = [settings, *([] if is_tuned(labeling.config) else [UNTUNED]), summary_table(summary)]
    return "\n".join(told)
