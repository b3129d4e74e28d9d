"""Reads run folders, makes their page and writes it to a file."""

from dataclasses import replace
from pathlib import Path

from debias_ssl import __version__
from debias_ssl.data.config import DataConfig
from debias_ssl.reporting.reading.comparison import holds_comparison, read_comparison, read_variants
from debias_ssl.reporting.reading.run import read_run
from debias_ssl.runs.comparison import comparison_outputs
from debias_ssl.runs.folder import RunFolder
from debias_ssl.system.files import write_aside
from debias_ssl.system.outputs import Outputs

NAME = "report.html"


def outputs_of(run: Path) -> Outputs:
    """The files that a report adds to the folder of a run or of a comparison."""
    return comparison_outputs(run) if holds_comparison(run) else RunFolder(run).outputs


def write_report(runs: list[Path], out: Path, data: DataConfig | None = None) -> None:
    """Writes the page of a run, of several runs, or of the folder of a comparison.

    Args:
        runs: the folders.
        out: the page.
        data: where the images are now, for a single run; None means where they were in training.

    Raises:
        InputError: a folder holds no finished run, or its files do not fit together.
        WriteError: the page cannot be written.
    """
    # The drawing code is slow to import, and not needed to find errors in the folders.
    from debias_ssl.reporting.comparison_page import comparison_page
    from debias_ssl.reporting.page import render
    from debias_ssl.reporting.run_page import run_page

    if len(runs) == 1 and holds_comparison(runs[0]):
        page = comparison_page(read_comparison(runs[0]), str(runs[0]))
    elif len(runs) == 1:
        run = read_run(runs[0])
        page = run_page(run if data is None else replace(run, config=replace(run.config, data=data)))
    else:
        page = comparison_page(read_variants(runs), f"{len(runs)} runs")
    text = render(page, __version__)
    if is_own_page(runs, out):
        outputs_of(runs[0]).claim(NAME)
    write_aside(out, text)


def is_own_page(runs: list[Path], out: Path) -> bool:
    """Whether the page is of a single run and lies in the folder of that run."""
    return len(runs) == 1 and out.resolve() == (runs[0] / NAME).resolve()
