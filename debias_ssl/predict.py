"""`debias-ssl predict`: a trained run's labels for images, as a CSV file."""

import csv
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from debias_ssl.data.reading.cache import without_unreadable
from debias_ssl.data.reading.reader import Reader, feature_reader
from debias_ssl.data.sources.folder import find_files, folder_of
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import load_run
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import check_new_file, replacing
from debias_ssl.training.evaluation import predict_logits
from debias_ssl.training.parser import Parser


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
    parsed = parser.parse_args(arguments)
    out = Path(parsed.out)
    check_new_file(out, "--out", parsed.overwrite)
    accelerator = make_accelerator("fp32")
    place = place_of(accelerator)
    run = load_run(RunFolder(Path(parsed.run)), place.device)
    if run.data.features and not parsed.features:
        raise InputError(f"{parsed.run!r} was trained on features: pass --features, a folder of debias-ssl label's")
    if parsed.features and not run.data.features:
        raise InputError(f"{parsed.run!r} was trained on pixels: leave out --features")
    config = replace(run.data, image_size=run.size, workers=parsed.workers, input="streaming")
    images = find_files(parsed.images, "--images")
    if parsed.on_error == "skip" and not parsed.features:
        images, bad = without_unreadable(images, config, accelerator.is_local_main_process)
        if bad and accelerator.is_main_process:
            print(f"note: left out {len(bad)} files that cannot be read, such as {next(iter(bad))!r}", file=sys.stderr)
    if parsed.features:
        reader = feature_reader(images, replace(config, features=(parsed.features,)), place.device)
    else:
        reader = Reader(pixels=None, files=images.names, config=config, channels=len(run.mean))
    progress = accelerator.is_main_process
    stream = run.stream(reader, np.arange(len(images)), place, batch_size=parsed.batch_size, progress=progress)
    probs = predict_logits(run.predictor, stream, len(run.classes)).softmax(-1)
    if not accelerator.is_main_process:
        return
    confidence, label = probs.max(-1)
    with replacing(out) as aside, aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "confidence", *(f"p_{name}" for name in run.classes)])
        root = folder_of(parsed.images, images)
        for path, k, top, row in zip(images.names, label.tolist(), confidence.tolist(), probs.tolist(), strict=True):
            rows.writerow([os.path.relpath(path, root), run.classes[k], f"{top:.6f}", *(f"{p:.6g}" for p in row)])
    print(f"{len(images)} images labeled: {out}")


if __name__ == "__main__":
    main()
