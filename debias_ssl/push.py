"""`debias-ssl push`: uploads a trained run to the Hugging Face hub."""

from pathlib import Path

import torch

from debias_ssl.deployment.hub import check_upload, files_to_upload, upload
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import is_first
from debias_ssl.models.timm_folder import FILE as TIMM_CONFIG
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import load_trained
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser

HELP = JobHelp(
    arguments="--run RUN --repo OWNER/NAME [--SETTING VALUE]...",
    does=(
        "Uploads a trained run to the Hugging Face hub: weights, settings and the model card.\n"
        "A repository that is made for it is private, unless you say --public."
    ),
    example="debias-ssl push --run runs/digits --repo owner/name",
    guide="deploy.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("push", HELP)
    parser.add_argument("--run", type=str, required=True, help="run folder")
    parser.add_argument("--repo", type=str, required=True, help="owner/name of the repository, which is made if needed")
    parser.add_argument("--public", action="store_true", help="everybody sees a repository that is made for it")
    parser.add_argument("--message", type=str, default="Upload a run of debias_ssl", help="message of the commit")
    parsed = parser.parse_args(arguments)
    if not is_first():
        return
    check_upload(parsed.repo)
    folder = RunFolder(Path(parsed.run))
    # Fails early if the run cannot be loaded.
    load_trained(folder, torch.device("cpu"))
    folder.read_summary()
    files = files_to_upload(folder.path)
    print(f"{', '.join(files)}\nof {folder.path} go to {parsed.repo}; config.yaml names paths of this machine")
    address = upload(folder.path, files, parsed.repo, is_public=parsed.public, message=parsed.message)
    by_timm = f'; timm.create_model("hf-hub:{parsed.repo}", pretrained=True) loads it' if TIMM_CONFIG in files else ""
    print(f"{address}{by_timm}")


if __name__ == "__main__":
    main()
