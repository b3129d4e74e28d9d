"""`debias-ssl export`: exports a trained run to one file that other programs run, from pixels to classes."""

from pathlib import Path

import torch
from jsonargparse import Namespace

from debias_ssl.deployment.adjustment import read_adjustment
from debias_ssl.deployment.formats import check_packages, content_of
from debias_ssl.deployment.network import facts_of
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import is_first
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import load_trained
from debias_ssl.system.files import check_new_file, ends_told, replacing
from debias_ssl.system.locking import locked_file
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser

HELP = JobHelp(
    arguments="--run RUN --out FILE [--SETTING VALUE]...",
    does=(
        "Writes a trained run as one file for other programs: ONNX, or torch.export's .pt2.\n"
        "Preprocessing and class names are inside."
    ),
    example="debias-ssl export --run runs/digits --out model.onnx",
    guide="deploy.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("export", HELP)
    parser.add_argument("--run", type=str, required=True, help="run folder")
    parser.add_argument("--format", choices=["onnx", "torch"], default="onnx", help="ONNX, or torch.export's .pt2")
    parser.add_argument("--out", type=str, required=True, help="the file, such as model.onnx or model.pt2")
    parser.add_argument(
        "--temperature", type=str, default=None, help="a number, or the file of evaluate --calibrate --out"
    )
    parser.add_argument(
        "--debiased", type=str, default=None, help="the folder of debias: what it removed is in the file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file in --out")
    parsed = parser.parse_args(arguments)
    # One process does the work, because processes could share nothing.
    if not is_first():
        return
    out = Path(parsed.out)
    check_apart(out, "--out", {f"--{name}": parsed[name] for name in ("run", "temperature", "debiased")})
    with locked_file(out, "--out"), ends_told("run the same command again"):
        check_new_file(out, "--out", parsed.overwrite)
        _export(parsed, out)


def _export(parsed: Namespace, out: Path) -> None:
    check_packages(parsed.format)
    folder = RunFolder(Path(parsed.run))
    run = load_trained(folder, torch.device("cpu"))
    adjustment = read_adjustment(parsed.temperature, parsed.debiased, run.classes)
    facts = facts_of(run, folder, adjustment)
    content, difference = content_of(run, adjustment, facts, parsed.format)
    with replacing(out) as aside:
        aside.write_bytes(content)
    takes = "features: float32 N" if run.data.features else f"images: uint8 N x {run.size} x {run.size}"
    print(
        f"{takes} x {len(run.mean)} -> logits, probabilities: float32 N x {len(run.classes)}\n"
        f"temperature {adjustment.temperature:.4g}, {'a shift for each class' if adjustment.shift else 'no shift'}; "
        f"differs from the run by {difference:.1e} at most\n{out}"
    )


if __name__ == "__main__":
    main()
