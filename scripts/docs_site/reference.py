"""Pages of the site that are made from the code: the API, and the help of each job as it prints it."""

import importlib
import io
import os
import re
from contextlib import redirect_stdout, suppress
from functools import cache

import debias_ssl
from debias_ssl.cli import JOBS
from debias_ssl.training.choices import LABELED_LOSSES, METHODS

# Titles by the module of the names in debias_ssl.__all__, in the order of the page list; others come after these.
API_TITLES = {
    "labels.in_memory": "Labels",
    "runs.trained": "Trained runs",
    "training.learner": "Learner",
    "contract": "Problem",
    "methods": "Methods",
    "models": "Networks",
    "formulas.priors": "Priors",
    "formulas.logits": "Logits",
    "formulas.calibration": "Calibration",
}
Pages = dict[str, tuple[str, str]]
"""Title and text by the path on the site."""


@cache
def api_pages() -> Pages:
    """A page for each module that `debias_ssl.__all__` takes names from."""
    modules: dict[str, list[str]] = {module: [] for module in API_TITLES}
    for name, module in debias_ssl._MODULES.items():
        modules.setdefault(module.removeprefix("debias_ssl."), []).append(name)
    pages = {}
    for module, names in modules.items():
        title = API_TITLES.get(module, module)
        told = "\n".join(f"::: debias_ssl.{module}.{name}\n" for name in names)
        imported = f"`from debias_ssl import {', '.join(names)}`"
        pages[f"api/{module}.md"] = (title, f"# {title}\n\n{imported}\n\n{told}")
    return pages


def said(job: str, *arguments: str) -> str:
    """What a job prints."""
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        importlib.import_module(JOBS[job][0]).main([*arguments])
    # A backspace takes back the character before it, as on a terminal.
    return re.sub(r".\x08", "", printed.getvalue()).rstrip()


@cache
def command_pages() -> Pages:
    """A page for each job, with its help; and one with the settings of methods and of losses."""
    os.environ["COLUMNS"] = "110"
    listed = "\n".join(f"| [`{job}`]({job}.md) | {purpose} |" for job, (_, purpose) in JOBS.items())
    pages = {
        "commands/index.md": (
            "All jobs",
            f"# Commands\n\n| `debias-ssl` | |\n|---|---|\n{listed}\n\n"
            "These pages are what `debias-ssl JOB --help` prints. Settings of a method or of a loss of labeled images "
            "are on [a page of their own](choices.md).\n",
        )
    }
    for job, (_, purpose) in JOBS.items():
        parts = [_block(said(job, "--help"))]
        if job == "data":
            parts += [f"## {part}\n\n{_block(said(job, part, '--help'))}" for part in ("check", "split")]
        pages[f"commands/{job}.md"] = (job, f"# debias-ssl {job}\n\n{purpose.capitalize()}.\n\n" + "\n\n".join(parts))
    choices = [
        f"## {name}\n\n{_block(said('train', f'--{setting}.help', name))}"
        for setting, names in (("method", METHODS), ("labeled_loss", LABELED_LOSSES))
        for name in names
    ]
    pages["commands/choices.md"] = ("Methods and losses", "# Settings of methods and losses\n\n" + "\n\n".join(choices))
    return pages


def _block(text: str) -> str:
    return f"```text\n{text}\n```"
