"""`debias-ssl train`: trains a semi-supervised run, from settings to a run folder."""

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import is_first
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.run import train
from debias_ssl.system.errors import InputError
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.config import Config
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import Parser, make_parser, resolve
from debias_ssl.training.saved import switched_method

HELP = JobHelp(
    arguments="[--config FILE]... [--SETTING VALUE]...",
    does=(
        "Trains a classifier from few labeled and many unlabeled images.\n"
        "Writes a run folder: settings, checkpoints, the log, figures, predictions and the weights.\n"
        "The same command with --resume goes on with a run that was stopped."
    ),
    example="debias-ssl train --config digits --out runs/digits",
    guide="start.md",
)


def add_folder_flags(parser: Parser, default: str) -> None:
    parser.add_argument("--out", type=str, default=None, help=f"run folder; null is {default} and the config's name")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, if there is one")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")


def train_parsed(parser: Parser, parsed: Namespace, files: Sequence[Path], out: Path) -> None:
    """Trains with the settings of a command line, and prints a note if a flag switched the method of a file."""
    config, resolved = resolve(parser, parsed)
    if parsed.overwrite:
        # A config.yaml in --out would be removed with its run; other configs are not touched.
        check_apart(out, "--out", {"--config": [file for file in files if file.name == "config.yaml"]})
    note = switched_method(resolved, files)
    if note and is_first():
        print(f"note: {note}", file=sys.stderr)
    train(config, resolved, out, resume=parsed.resume, overwrite=parsed.overwrite)


@entry_point
def main(arguments: list[str]) -> None:
    if not arguments:
        raise InputError(
            "say what to train: --config FILE, or a name that debias-ssl configs lists, such as digits "
            "(--help lists the settings)"
        )
    parser = make_parser("train", Config, HELP)
    add_folder_flags(parser, "runs/")
    parsed = parser.read_arguments(arguments)
    files = [Path(str(file)) for file in parsed.config or []]
    out = Path(parsed.out or f"runs/{files[-1].stem if files else 'train'}")
    if parsed.resume and not files:
        if not RunFolder(out).holds_run():
            raise InputError(f"{str(out)!r} holds no run to resume: pass --config to start one")
        parsed = parser.read_arguments(["--config", str(out / "config.yaml"), *arguments])
    train_parsed(parser, parsed, files, out)


if __name__ == "__main__":
    main()
