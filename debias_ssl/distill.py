"""`debias-ssl distill`: trains a student on the predictions of another run's model."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from debias_ssl import train
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import read_yaml
from debias_ssl.training.config import Config
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import make_parser
from debias_ssl.training.saved import completed, no_run_told

HELP = JobHelp(
    arguments="--teacher RUN [--config FILE]... [--SETTING VALUE]...",
    does=(
        "Trains a student on the predictions of a trained run, the teacher.\n"
        "Images and split are the teacher's. Writes a run folder, as train does."
    ),
    example="debias-ssl distill --teacher runs/digits --config digits --out runs/student",
    guide="methods.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = make_parser("distill", Config, HELP)
    train.add_folder_flags(parser, "runs/distill_")
    asked = parser.read_arguments(_with_method(arguments))
    files = [Path(str(file)) for file in asked.config or []]
    out = Path(asked.out or f"runs/distill_{files[-1].stem if files else 'train'}")
    if asked.resume and not files and RunFolder(out).holds_run():
        files = [out / "config.yaml"]
        arguments = ["--config", str(files[0]), *arguments]
        asked = parser.read_arguments(_with_method(arguments))
    if asked.teacher is None:
        raise InputError("there is no teacher: pass --teacher, the folder of a finished run")
    parsed = parser.read_arguments([*_data_of(RunFolder(Path(asked.teacher))), *_with_method(arguments)])
    # Distillation has no pseudo-labels, so a weak pass of the averaged model would be useless.
    parsed.target_model = Config.target_model
    train.train_parsed(parser, parsed, files, out)


def _data_of(teacher: RunFolder) -> list[str]:
    """The images and the split of a run, as flags."""
    if not teacher.holds_run():
        raise InputError(f"--teacher {no_run_told(teacher.path)}")
    data = completed(read_yaml(teacher.path / "config.yaml"))["data"]
    return [f"--data={json.dumps({**data, 'split': str(teacher.split)})}"]


def _with_method(arguments: Sequence[str]) -> list[str]:
    """The arguments with the method after the last file of settings, which it overrides, and before its own flags."""
    after = [i + 1 for i, argument in enumerate(arguments) if argument.startswith("--config=")]
    after += [i + 2 for i, (argument, _) in enumerate(pairwise(arguments)) if argument == "--config"]
    place = max(after, default=0)
    return [*arguments[:place], "--method=Distillation", *arguments[place:]]


if __name__ == "__main__":
    main()
