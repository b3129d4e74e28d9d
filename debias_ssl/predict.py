"""`debias-ssl predict`: a trained run's labels for images, as a CSV file."""

import sys
from dataclasses import replace
from pathlib import Path

from jsonargparse import Namespace

from debias_ssl.data.reading.cache import without_unreadable
from debias_ssl.data.sources.folder import find_files, folder_of
from debias_ssl.data.sources.images import fingerprint
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.distributed.agreement import check_agreement
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.start_up import first_of_each_host_first
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.label_table import write_label_table
from debias_ssl.runs.trained import load_trained
from debias_ssl.system.files import check_new_file
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.parser import Parser
from debias_ssl.training.saved import parse_data


@entry_point
def main(arguments: list[str]) -> None:
    parser = Parser(prog="debias-ssl predict", description="Labels images with a trained run.")
    parser.add_argument("--run", type=str, required=True, help="run folder")
    parser.add_argument(
        "--images", type=str, required=True, help="folder of any depth, list, CSV of path, or tar files"
    )
    parser.add_argument(
        "--out", type=str, required=True, help="CSV file: path below --images, label, confidence, p_CLASS ..."
    )
    parser.add_argument("--features", type=str, default=None, help="for a run on features: the folder that has them")
    parser.add_argument("--on_error", choices=["stop", "skip"], default="stop", help="at an image that cannot be read")
    parser.add_argument("--batch_size", type=int, default=500, help="images of a batch in each process")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode, for each process")
    parser.add_argument("--overwrite", action="store_true", help="replace the file in --out")
    parser.add_argument("--max_pixels", type=int, default=None, help="most pixels of an image; null is the run's limit")
    parsed, data = parse_data(parser, arguments, _writable)
    if parsed.max_pixels is not None:
        data = replace(data, max_pixels=parsed.max_pixels)
    out = Path(parsed.out)
    accelerator = make_accelerator("fp32")
    place = place_of(accelerator)
    folder = RunFolder(Path(parsed.run))
    run = replace(load_trained(folder, place.device), data=data)
    run.check_features(bool(parsed.features))
    is_main = accelerator.is_main_process
    with first_of_each_host_first(accelerator):
        images, bad = find_files(parsed.images, "--images"), {}
        if parsed.on_error == "skip" and not parsed.features:
            images, bad = without_unreadable(images, run.reading(parsed.workers), accelerator.is_local_main_process)
    if bad and is_main:
        print(f"note: left out {len(bad)} files that cannot be read, such as {next(iter(bad))!r}", file=sys.stderr)
    check_agreement(lambda: {"the hash of --run": folder.hash_of_model(), "the hash of --images": fingerprint(images)})
    reader = run.file_reader(images, place, features=parsed.features or None, workers=parsed.workers)
    probs = run.probabilities(reader, len(images), place, batch_size=parsed.batch_size, progress=is_main)
    if is_main:
        write_label_table(out, images.names, folder_of(parsed.images, images), run.classes, probs)
        print(f"{len(images)} images labeled: {out}")


def _writable(parsed: Namespace) -> str:
    """The run, once it is known that what is asked for may be written."""
    check_apart(Path(parsed.out), "--out", {f"--{name}": parsed[name] for name in ("run", "images", "features")})
    check_new_file(Path(parsed.out), "--out", parsed.overwrite)
    return parsed.run


if __name__ == "__main__":
    main()
