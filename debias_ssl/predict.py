"""`debias-ssl predict`: labels images with a trained run, and writes a CSV file."""

import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jsonargparse import Namespace

from debias_ssl.contract import Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.cache import without_unreadable
from debias_ssl.data.reading.features import feature_notes, hash_of_model
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.reading.workers import dead_workers_told
from debias_ssl.data.sources.folder import find_files, folder_of
from debias_ssl.data.sources.images import Images, fingerprint, left_out_notes
from debias_ssl.data.splits import saved_inputs
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.distributed.agreement import check_agreement
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import is_first
from debias_ssl.distributed.start_up import first_of_each_host_first
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.label_table import LabelTable, check_table, key_of
from debias_ssl.runs.trained import TrainedRun, load_trained
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import ends_told, remove_unfinished, writes
from debias_ssl.system.locking import locked_file
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.checkpoint import machine
from debias_ssl.training.evaluation import predict_batches
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser
from debias_ssl.training.saved import parse_data

if TYPE_CHECKING:
    import accelerate

HELP = JobHelp(
    arguments="--run RUN --images IMAGES --out FILE [--SETTING VALUE]...",
    does=(
        "Labels images with a trained run.\n"
        "Writes a CSV file: path, label, confidence and the probability of each class."
    ),
    example="debias-ssl predict --run runs/mine --images photos --out labels.csv",
    guide="start.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("predict", HELP)
    parser.add_argument("--run", type=str, required=True, help="run folder")
    parser.add_argument(
        "--images", type=str, required=True, help="folder of any depth, list, CSV of path, tar files, or hf:PATH"
    )
    parser.add_argument("--root", type=str, default=None, help="what paths of a list are relative to; else its folder")
    parser.add_argument(
        "--out", type=str, required=True, help="CSV file: path below --images, label, confidence, p_CLASS ..."
    )
    parser.add_argument("--features", type=str, default=None, help="for a run on features: the folder that has them")
    parser.add_argument("--on_error", choices=["stop", "skip"], default="stop", help="at an image that cannot be read")
    parser.add_argument("--batch_size", type=int, default=500, help="images of a batch in each process")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode, for each process")
    parser.add_argument("--overwrite", action="store_true", help="replace the file in --out")
    parser.add_argument("--max_pixels", type=int, default=None, help="most pixels of an image; null is the run's limit")
    goes_on = "the same command goes on with what was labeled so far"
    with ExitStack() as held, dead_workers_told("--workers", goes_on), ends_told(goes_on):

        def run_of(parsed: Namespace) -> str:
            """Loads the run, after the check that the output may be written."""
            out = Path(parsed.out)
            check_apart(out, "--out", {f"--{name}": parsed[name] for name in ("run", "images", "features")})
            if is_first():
                held.enter_context(locked_file(out, "--out"))
                check_table(out, parsed.overwrite)
            return parsed.run

        parsed, data = parse_data(parser, arguments, run_of)
        if parsed.max_pixels is not None:
            data = replace(data, max_pixels=parsed.max_pixels)
        if parsed.batch_size < 1:
            raise InputError(f"--batch_size is {parsed.batch_size}, must be at least 1")
        _predict(parsed, data, Path(parsed.out))


def _predict(parsed: Namespace, data: DataConfig, out: Path) -> None:
    accelerator = make_accelerator("fp32")
    folder = RunFolder(Path(parsed.run))
    run = replace(load_trained(folder, accelerator.device), data=data)
    run.check_features(bool(parsed.features))
    images, is_main = _listed(parsed, run, accelerator), accelerator.is_main_process
    check_agreement(lambda: {"the hash of --run": folder.hash_of_model(), "the hash of --images": fingerprint(images)})
    reader = run.file_reader(images, place_of(accelerator), features=parsed.features or None, workers=parsed.workers)
    features = parsed.features and Path(parsed.features).resolve()
    root = parsed.root and Path(parsed.root).resolve()
    settings = [parsed.batch_size, features, root, data.decoding.of_pixels, data.crop, machine()]
    from accelerate.utils import broadcast_object_list

    # One process reads the properties of the files, which may be many, and sends the result to the others.
    key = broadcast_object_list([key_of(folder.path, images.names, *settings) if is_main else ""])[0]
    table = LabelTable(out=out, key=key, place=place_of(accelerator))
    if is_main:
        with writes(table.folder):
            table.folder.mkdir(exist_ok=True)
        remove_unfinished(table.folder)
    accelerator.wait_for_everyone()
    try:
        _label(run, reader, images, table, parsed, accelerator)
    finally:
        if is_main:
            with suppress(OSError):
                table.folder.rmdir()
    if is_main:
        print(f"{len(images)} images labeled: {out}")


def _listed(parsed: Namespace, run: TrainedRun, accelerator: "accelerate.Accelerator") -> Images:
    """The images to label, without those that cannot be read if they are to be left out."""
    with first_of_each_host_first(accelerator):
        images, bad = find_files(parsed.images, "--images", parsed.root), {}
        notes = images.notes
        if parsed.on_error == "skip" and not parsed.features:
            images, bad = without_unreadable(images, run.reading(parsed.workers), accelerator.is_local_main_process)
    notes = [*left_out_notes(images), *notes]
    if parsed.features:
        notes += feature_notes([parsed.features])
        trained_on = (saved_inputs(RunFolder(Path(parsed.run)).split) or {}).get("data.features")
        if trained_on not in (None, hash_of_model(parsed.features)):
            notes.append(
                f"the features in {parsed.features} come from another model, precision or settings than the "
                "features that the run was trained on"
            )
    for note in notes if accelerator.is_main_process else ():
        print(f"note: {note}", file=sys.stderr)
    if bad and accelerator.is_main_process:
        print(f"note: left out {len(bad)} files that cannot be read, such as {next(iter(bad))!r}", file=sys.stderr)
    return images


def _label(
    run: TrainedRun,
    reader: Reader,
    images: Images,
    table: LabelTable,
    parsed: Namespace,
    accelerator: "accelerate.Accelerator",
) -> None:
    """Writes the missing rows of the images; each process takes one contiguous part of the list."""
    place, is_main, root = table.place, accelerator.is_main_process, folder_of(parsed.images, images, parsed.root)
    if is_main and (before := table.all_rows_done()):
        print(f"note: {before} of {len(images)} images were labeled before", file=sys.stderr)
    accelerator.wait_for_everyone()
    mine, done = np.array_split(np.arange(len(images)), place.num_processes)[place.rank], table.rows_done()
    alone = Place(device=place.device)
    stream = run.stream(reader, mine[done:], alone, batch_size=parsed.batch_size, progress=is_main)
    for _, logits in predict_batches(run.predictor, stream):
        rows = mine[done : done + len(logits)]
        done += len(rows)
        table.add([images.names[int(i)] for i in rows], root, run.classes, logits.softmax(-1), done)
    accelerator.wait_for_everyone()
    if is_main:
        table.join(run.classes, len(images))


if __name__ == "__main__":
    main()
