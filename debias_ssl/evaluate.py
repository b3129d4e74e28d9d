"""`debias-ssl evaluate`: the figures of a trained run."""

import json
from pathlib import Path

import numpy as np
import torch

from debias_ssl.config import Parser, parse_data
from debias_ssl.data.datasets import load_test
from debias_ssl.data.reading import make_reader
from debias_ssl.data.streams import EvaluationStream
from debias_ssl.data.task import make_task
from debias_ssl.errors import InputError
from debias_ssl.evaluation import evaluate_logits, predict_logits
from debias_ssl.files import write_aside
from debias_ssl.run_folder import RunFolder, load_run
from debias_ssl.runtime import entry_point, make_accelerator, place_of


@entry_point
def main(arguments: list[str]) -> None:
    parser = Parser(prog="debias-ssl evaluate", description="Figures of a trained run on test or validation images.")
    parser.add_argument("--run", type=str, required=True, help="run folder")
    parser.add_argument("--part", choices=["test", "validation"], default="test", help="which images")
    parser.add_argument("--batch_size", type=int, default=500, help="images of a batch in each process")
    parser.add_argument("--out", type=str, default=None, help="JSON file to write the figures to")
    parsed, data = parse_data(parser, arguments)
    accelerator = make_accelerator("fp32")
    place = place_of(accelerator)
    folder = RunFolder(Path(parsed.run))
    run = load_run(folder, place.device)
    with accelerator.local_main_process_first():
        if parsed.part == "test":
            images = load_test(data, run.classes)
            reader = make_reader(images, data, place.device, accelerator.is_local_main_process)
            index, labels = np.arange(len(images)), images.labels
        else:
            task = make_task(data, seed=run.config.seed, place=place, split_file=folder.split)
            if not len(task.split.validation):
                raise InputError("the run has no validation images: train with --data.validation_per_class")
            reader, index = task.readers["train"], task.split.validation
            labels = task.data.train.labels[index]
    stream = EvaluationStream(
        reader=reader,
        index=torch.from_numpy(index),
        mean=torch.tensor(run.mean, device=place.device),
        std=torch.tensor(run.std, device=place.device),
        batch_size=parsed.batch_size,
        place=place,
    )
    logits = predict_logits(run.predictor, stream, len(run.classes))
    figures = evaluate_logits(logits, torch.from_numpy(labels), torch.tensor(run.labeled_counts))
    if accelerator.is_main_process:
        for name, value in figures.items():
            if isinstance(value, float):
                print(f"{name:<14}{100 * value:>8.2f} %")
        recalls = sorted(
            (recall, name) for recall, name in zip(figures["recalls"], run.classes, strict=True) if recall is not None
        )
        print("lowest recall " + ", ".join(f"{name} {100 * recall:.1f} %" for recall, name in recalls[:3]))
        if parsed.out:
            write_aside(Path(parsed.out), json.dumps({"classes": run.classes, **figures}) + "\n")


if __name__ == "__main__":
    main()
