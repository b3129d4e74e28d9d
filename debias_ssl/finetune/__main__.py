"""`debias-ssl finetune`: changes the classifier of a trained run for an objective (stage two)."""

from pathlib import Path

import yaml

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.finetune.config import METHODS, FinetuneConfig
from debias_ssl.finetune.run import finetune_run
from debias_ssl.finetune.stage import StageTwo
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import Parser, make_parser, named_class
from debias_ssl.training.saved import parse_data

HELP = JobHelp(
    arguments="--run RUN --out RUN [--SETTING VALUE]...",
    does=(
        "Trains the classifier of a finished run for an objective, such as the recall of the weakest class.\n"
        "The network stays as it is. The run needs validation images (--data.validation_per_class of train).\n"
        "Writes a run folder."
    ),
    example="debias-ssl finetune --run runs/digits --objective min_recall --out runs/finetuned",
    guide="objectives.md",
)


def _parser() -> Parser:
    parser = make_parser("finetune", FinetuneConfig, HELP)
    parser.choices = {"method": (StageTwo, METHODS, ("method", "methods"))}
    parser.add_argument("--run", type=str, required=True, help="run folder of the first stage")
    parser.add_argument("--out", type=str, required=True, help="run folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    return parser


@entry_point
def main(arguments: list[str]) -> None:
    parser = _parser()
    parsed, data = parse_data(parser, arguments)
    plain = yaml.safe_load(parser.dump(parsed, skip_unset=False))
    chosen = named_class(parsed.method)
    assert chosen is not None
    if METHODS.get(chosen.__name__) is chosen:
        plain["method"]["class_path"] = chosen.__name__
    resolved = {name: plain[name] for name in ("method", "objective", "coverage", "seed")}
    settings = parser.instantiate(parsed)
    config = FinetuneConfig(**{name: settings[name] for name in resolved})
    finetune_run(config, {"run": parsed.run, **resolved}, Path(parsed.run), Path(parsed.out), parsed.overwrite, data)


if __name__ == "__main__":
    main()
