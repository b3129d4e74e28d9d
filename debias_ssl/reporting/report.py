"""From run folders to a file: reads them, makes their page and writes it."""

from dataclasses import replace
from pathlib import Path

from debias_ssl import __version__
from debias_ssl.data.config import DataConfig
from debias_ssl.reporting.comparison_page import comparison_page
from debias_ssl.reporting.page import render
from debias_ssl.reporting.reading.comparison import holds_comparison, read_comparison, read_variants
from debias_ssl.reporting.reading.run import read_run
from debias_ssl.reporting.run_page import run_page
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import write_aside


def write_report(runs: list[Path], out: Path, data: DataConfig | None = None) -> None:
    """Writes the page of a run, of several runs, or of the folder of a comparison.

    Args:
        runs: the folders.
        out: the page.
        data: where the images of the one run are; None is where they were.

    Raises:
        InputError: a folder holds no finished run, or its files do not fit together.
    """
    if len(runs) == 1 and holds_comparison(runs[0]):
        page = comparison_page(read_comparison(runs[0]), str(runs[0]))
    elif len(runs) == 1:
        run = read_run(runs[0])
        page = run_page(run if data is None else replace(run, config=replace(run.config, data=data)))
    else:
        page = comparison_page(read_variants(runs), f"{len(runs)} runs")
    try:
        write_aside(out, render(page, __version__))
    except OSError as error:
        raise InputError(f"cannot write {str(out)!r}: {error.strerror}") from error
