"""`debias-ssl data check|split`: describes the images that data settings select, or writes their split."""

import sys
from pathlib import Path

from debias_ssl.data.checking import Findings, describe, doubles, examine, parts_of, scale_told
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.images import Data, fingerprint, left_out_notes
from debias_ssl.data.sources.left_out import explained
from debias_ssl.data.sources.load import check_classes, load_data
from debias_ssl.data.splits import class_counts, draw_split, save_split
from debias_ssl.data.task import readable_data
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import check_new_file, ends_told
from debias_ssl.system.locking import locked_file
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.config import Config
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import make_parser, resolve

SHOWN = 5


def check(config: DataConfig, seed: int) -> bool:
    """Describes the data set on stdout. Returns whether every image can be read."""
    data = load_data(config)
    check_classes(config, data.classes)
    print(f"{len(data.classes)} classes: {', '.join(data.classes[:20])}{' ...' if len(data.classes) > 20 else ''}")
    for note in [*left_out_notes(data.train, data.test), *data.notes]:
        print(f"note: {note}")
    _print_left_out(data)
    found = {}
    for name, images in parts_of(data).items():
        found[name] = examine(images, name, decoding=config.decoding)
        sizes = ", ".join(f"{number} of {size}" for size, number in found[name].sizes.most_common(3))
        more = len(found[name].sizes) - 3
        print(f"{name:<10} {describe(images, data.classes)}; {sizes}{f' and {more} other sizes' if more > 0 else ''}")
        told = scale_told(found[name])
        if told is not None:
            print(f"{'':<10} {told}")
    bad = {path: reason for findings in found.values() for path, reason in findings.unreadable.items()}
    print(f"unreadable {len(bad)} files")
    for path, reason in list(bad.items())[:SHOWN]:
        print(f"           {path}: {reason}")
    _print_doubles(data, found)
    _print_split(config, seed)
    return not bad


def _print_left_out(data: Data) -> None:
    """Prints, for each folder or tar file, how many entries are left out and the reasons."""
    for place in {(each.where, each.number): each for each in (*data.train.left_out, *data.test.left_out)}.values():
        print(f"left out   {sum(place.counts.values()):,} entries of {place.where}")
        for reason, number in sorted(place.counts.items(), key=lambda each: (-each[1], each[0])):
            print(f"{number:>19,} {explained(reason)}")


def _print_doubles(data: Data, found: dict[str, Findings]) -> None:
    """Prints the images with equal pixels, within one list and between two lists."""
    training = parts_of(data)["training"]
    pairs, contradicting = doubles(training, found["training"].hashes)
    if pairs:
        print(
            f"duplicates {len(pairs)} training images occur more than once, {contradicting} of them with different "
            "labels"
        )
        _print_pairs(pairs)
    for part, name in (("unlabeled", "training"), ("test", "training"), ("test", "unlabeled")):
        if part not in found or name not in found:
            continue
        known = {digest: image for image, digest in found[name].hashes.items()}
        shared = [(image, known[digest]) for image, digest in found[part].hashes.items() if digest in known]
        if shared or part == "test":
            print(f"duplicates {len(shared)} {part} images are also {name} images")
            _print_pairs(shared)


def _print_pairs(pairs: list[tuple[str, str]]) -> None:
    for image, twin in pairs[:SHOWN]:
        print(f"           {image} = {twin}")


def split(config: DataConfig, seed: int, out: Path, overwrite: bool) -> None:
    """Writes a split and prints its counts."""
    inputs = {f"data.{name}": getattr(config, name) for name in ("labeled", "unlabeled", "test", "probs", "split")}
    check_apart(out, "--out", inputs | {"data.features": config.features})
    with locked_file(out, "--out"), ends_told("run the same command again"):
        check_new_file(out, "--out", overwrite)
        data, drawn = _print_split(config, seed)
        save_split(out, drawn, data.classes, fingerprint(data.train, data.num_separate))
    print(out)


def _print_split(config: DataConfig, seed: int):
    data, _ = readable_data(config)
    numbers = {"num_separate": data.num_separate, "num_shared": data.num_shared}
    drawn = draw_split(data.train.labels, data.classes, config, seed=seed, **numbers)
    for part in ("labeled", "unlabeled", "validation"):
        index = getattr(drawn, part)
        counts = class_counts(data.train.labels[index], len(data.classes))
        unknown = len(index) - sum(counts)
        known = f" a class: {', '.join(map(str, counts[:20]))}" if sum(counts) else ""
        print(f"{part:<10} {len(index)} images{known}{f'; {unknown} of unknown class' if unknown else ''}")
    return data, drawn


USAGE = "usage: debias-ssl data check|split [--config FILE]... [--data.SETTING VALUE]... [--out FILE]"
CHECK = JobHelp(
    arguments="[--config FILE]... [--data.SETTING VALUE]...",
    does=(
        "Reads all images of a data setting, and prints what a run would have.\n"
        "That is: counts of each class, sizes, files that are left out and why, duplicates, and the split."
    ),
    example=(
        "debias-ssl data check --data.name folder --data.labeled labeled --data.unlabeled unlabeled \\\n"
        "      --data.test test --data.image_size 96"
    ),
    guide="add-a-data-set.md",
)
SPLIT = JobHelp(
    arguments="--out FILE [--config FILE]... [--data.SETTING VALUE]...",
    does="Draws the labeled, unlabeled and validation images of a run, and writes them to --out.",
    example="debias-ssl data split --config digits --out split.json",
    guide="add-a-data-set.md",
)
HELP = f"""{USAGE}

check  {CHECK.does.splitlines()[0]}
split  {SPLIT.does}

Example:
  {CHECK.example}

debias-ssl data check --help and debias-ssl data split --help list the settings.
Guide: docs/{CHECK.guide}"""


@entry_point
def main(arguments: list[str]) -> None:
    if arguments[:1] in (["-h"], ["--help"]):
        print(HELP)
        return
    if arguments[:1] not in (["check"], ["split"]):
        raise InputError(USAGE)
    parser = make_parser(f"data {arguments[0]}", Config, CHECK if arguments[0] == "check" else SPLIT)
    if arguments[0] == "split":
        parser.add_argument("--out", type=str, required=True, help="the split.json to write")
        parser.add_argument("--overwrite", action="store_true", help="replace the file in --out")
    parsed = parser.read_arguments(arguments[1:])
    config, _ = resolve(parser, parsed)
    if arguments[0] == "split":
        split(config.data, config.seed, Path(parsed.out), parsed.overwrite)
    elif not check(config.data, config.seed):
        if config.data.on_error == "stop":
            raise InputError("some files cannot be read: remove them, or pass --data.on_error skip, here and to train")
        print("note: the split and training leave out the unreadable files", file=sys.stderr)


if __name__ == "__main__":
    main()
