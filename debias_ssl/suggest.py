"""`debias-ssl suggest`: lists the images that are most useful to label next."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from jsonargparse import Namespace

from debias_ssl.contract import Place
from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.distributed.device import chosen_device
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import num_launched
from debias_ssl.labels.annotation.candidates import Asked, Candidates, read_candidates
from debias_ssl.labels.annotation.suggestion import Suggestion, Suggestions, suggest_images
from debias_ssl.labels.tables.truth import read_label_names, read_labels, say
from debias_ssl.runs.tables import aligned
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import check_new_file, ends_told, replacing
from debias_ssl.system.locking import locked_file
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser

HEADER = ("path", "label", "suggested_label", "suggested_confidence", "why")
# Classes in the table on the terminal.
MOST_LINES = 20

HELP = JobHelp(
    arguments="--images IMAGES --out FILE [--SETTING VALUE]...",
    does=(
        "Lists the images that are worth most to label next: those that stand for many others, and of whose\n"
        "class the model is unsure. Writes a CSV file with a column to fill in."
    ),
    example="debias-ssl suggest --images photos --features features --num 40 --out next.csv",
    guide="suggest.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("suggest", HELP)
    parser.add_argument(
        "--labels", type=str, default=None, help="folder of labels, file of predict, or run folder; none at first"
    )
    parser.add_argument(
        "--images", type=str, default=None, help="folder of any depth, list, CSV of path, or tar files; else --labels'"
    )
    parser.add_argument("--root", type=str, default=None, help="what paths of a list are relative to; else its folder")
    parser.add_argument(
        "--features", type=str, nargs="+", default=[], help="folders of features of the images; else --labels'"
    )
    parser.add_argument(
        "--labeled", type=str, nargs="+", default=[], help="CSV files of path and label of what is labeled already"
    )
    parser.add_argument("--num", type=int, default=100, help="images to suggest")
    parser.add_argument("--per_class", type=int, default=1, help="images of each predicted class at least")
    parser.add_argument("--seed", type=int, default=0, help="by which candidates are drawn of many images")
    parser.add_argument("--batch_size", type=int, default=500, help="images of a batch, for a run")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode, for a run on pixels")
    parser.add_argument("--out", type=str, required=True, help="CSV file of the list")
    parser.add_argument("--overwrite", action="store_true", help="replace the file in --out")
    parsed = parser.parse_args(arguments)
    if num_launched() > 1:
        raise InputError("suggest runs in one process: run it without accelerate launch")
    for name, least in (("num", 1), ("per_class", 0), ("batch_size", 1), ("workers", 0)):
        if parsed[name] < least:
            raise InputError(f"--{name} is {parsed[name]}, must be at least {least}")
    out = Path(parsed.out)
    check_apart(out, "--out", {f"--{name}": parsed[name] for name in ("labels", "images", "features", "labeled")})
    with locked_file(out, "--out"), ends_told("run the same command again"):
        check_new_file(out, "--out", parsed.overwrite)
        _suggest(parsed, out)


def _suggest(parsed: Namespace, out: Path) -> None:
    asked = Asked(**{name: parsed[name] for name in Asked.__annotations__})
    images = read_candidates(asked, Place(device=chosen_device(None)))
    say(f"note: {note}" for note in images.notes)
    known = _labeled(parsed.labeled, images)
    found = suggest_images(images, known >= 0, num=parsed.num, per_class=parsed.per_class, seed=parsed.seed)
    if found.num_unreadable:
        say([f"note: left out {found.num_unreadable:,} images whose features are no numbers"])
    lines = [HEADER, *(_line(each, found, images) for each in found.chosen)]
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    with replacing(out) as aside:
        # Names of files need not be text.
        aside.write_bytes(text.getvalue().encode(errors="surrogateescape"))
    print(_told(found, images, known, out))


def _labeled(files: Sequence[str], images: Candidates) -> Int64[np.ndarray, " N"]:
    """Class numbers of the images that are labeled, negative for the others."""
    known = np.full(len(images.names), UNKNOWN)
    for file in map(Path, files):
        read = read_labels(file, images.names, images.classes or read_label_names(file))
        say(read.said)
        known = np.where(read.labels >= 0, read.labels, known)
    return known


def _line(each: Suggestion, found: Suggestions, images: Candidates) -> tuple[str, ...]:
    """Of the list. People fill in the label: one that is a guess must not be taken for theirs."""
    covers = f"stands for {each.covers:.2%} of"
    if found.seen is None:
        return images.names[each.row], "", "", "", f"{covers} all images"
    first, second = (images.classes[int(k)] for k in (found.seen.label[each.row], found.seen.second[each.row]))
    why = f"{first} or {second}: {covers} what is unsure"
    if each.of_class >= 0:
        low, high = (100 * ends[each.of_class] for ends in (found.seen.shares.low, found.seen.shares.high))
        why = f"one of {first}, whose share is {low:.2f} to {high:.2f} %: {covers} what is unsure"
    return images.names[each.row], "", first, f"{found.seen.confidence[each.row]:.6f}", why


def _told(found: Suggestions, images: Candidates, known: Int64[np.ndarray, " N"], out: Path) -> str:
    """What was done, for a terminal."""
    number = len(found.chosen)
    unsure = "all images" if found.seen is None else "what is unsure"
    lines = [
        f"{number:,} images of {len(images.names):,} suggested in {out}, chosen among {found.num_candidates:,}",
        f"they stand for {found.after - found.before:.1%} of {unsure}; those labeled before for {found.before:.1%}",
        f"fill in the column label; paths are relative to {images.root}",
    ]
    return "\n".join([*([] if found.seen is None else [_classes_table(found, images, known)]), *lines])


def _classes_table(found: Suggestions, images: Candidates, known: Int64[np.ndarray, " N"]) -> str:
    """Images of each class, classes with the most uncertain shares first."""
    assert found.seen is not None
    shares, number = found.seen.shares, len(images.classes)
    rows = [each.row for each in found.chosen]
    predicted, suggested = (np.bincount(of, minlength=number) for of in (found.seen.label, found.seen.label[rows]))
    labeled = np.bincount(known[known >= 0], minlength=number)
    cells = [["class", "share", "95 % interval", "predicted", "labeled", "suggested"]]
    for k in found.class_order[:MOST_LINES].tolist():
        low, mean, high = (100 * values[k] for values in (shares.low, shares.share, shares.high))
        counts = [f"{counts[k]:,}" for counts in (predicted, labeled, suggested)]
        cells.append([images.classes[k], f"{mean:.2f} %", f"{low:.2f} to {high:.2f} %", *counts])
    left = number - MOST_LINES
    return aligned(cells) + (f"\nand {left:,} classes whose shares are surer" if left > 0 else "")


if __name__ == "__main__":
    main()
