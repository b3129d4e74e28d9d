"""The gallery of reports: short runs on digits, and the pages that jobs write of them."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

from debias_ssl import compare, evaluate, report
from debias_ssl.debias import main as debias

# Half the batch and fewer steps than configs/digits.yaml has.
SHORT = ["--steps", "80", "--eval_every", "20", "--batch_size", "16", "--data.validation_per_class", "20"]
MARK = re.compile(r"<!-- report: (\w+) -->")


def reports() -> dict[str, str]:
    """The pages of jobs, by their kind."""
    # Pages name the folders that they were made of.
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        run = "runs/compared/DebiasPL/seed-0"
        variants = ["--methods", "FixMatch,DebiasPL", "--seeds", "0,1"]
        compare.main(["--config", "digits", *SHORT, *variants, "--out", "runs/compared"])
        report.main([run])
        evaluate.main(["--run", run, "--calibrate", "--report", "calibration.html"])
        matrix = [f"--predictions={run}/predictions/test_ema.npy", f"--truth={run}/predictions/test_labels.npy"]
        debias([*matrix, "--out", "labels"])
        paths = {
            "run": f"{run}/report.html",
            "comparison": "runs/compared/report.html",
            "labels": "labels/report.html",
            "calibration": "calibration.html",
        }
        return {kind: Path(path).read_text(encoding="utf-8") for kind, path in paths.items()}


def files(page: Path) -> Iterator[tuple[str, str]]:
    """Path on the site and content of the reports, and of the gallery's page with the reports in it."""
    made = reports()
    for kind, html in made.items():
        yield f"reports/{kind}.html", html
    text = page.read_text(encoding="utf-8")
    if {*MARK.findall(text)} != {*made}:
        raise ValueError(f"{page.name} must have a mark for each of {', '.join(made)}")
    yield page.name, MARK.sub(_frame, text)


def _frame(mark: re.Match[str]) -> str:
    uri = f"reports/{mark[1]}.html"
    return (
        f'<iframe class="report" src="{uri}" title="Report: {mark[1]}" loading="lazy"></iframe>\n\n'
        f'<a href="{uri}">Open the page of its own</a>'
    )
