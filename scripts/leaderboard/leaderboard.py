"""Writes docs/leaderboard.md from the tables in docs/leaderboard/, and adds the rows of a comparison to them.

    python scripts/leaderboard/leaderboard.py                          # writes the page again
    python scripts/leaderboard/leaderboard.py runs/suites/digits-lt   # first takes the finished runs of that comparison

The name of the folder is the name of the suite. A run replaces the row of the same method, setting and seed. Runs on
other images, or with another network or budget than the suite's, are refused. Each run has recorded its own versions
and machine, so rows may be added later, and from other machines. The page depends only on the tables.
"""

import argparse
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.runs.comparison import PLAN_FILE
from debias_ssl.runs.folder import MOVABLE, MOVABLE_BY_HASH
from debias_ssl.runs.pairing import IMAGES, LABELS_ONLY, own_name
from debias_ssl.runs.results import GAINS, MADE_BY, PAIRED, paired_difference, spread
from debias_ssl.runs.tables import interval_text, spread_text
from debias_ssl.runs.variants import flags_of, read_plan
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import read_yaml, write_aside
from debias_ssl.training.config import Config
from debias_ssl.training.parser import make_parser, resolve
from debias_ssl.training.renamed import flat

ROOT = Path(__file__).parents[2]
SUITES, TABLES, PAGE = ROOT / "configs/suites", ROOT / "docs/leaderboard", ROOT / "docs/leaderboard.md"
COLUMNS = ("setting", "method", "seed", *PAIRED, *GAINS.values(), "seconds", *MADE_BY)
# Beside the images and labels: what has to be the same in every row of a setting.
BUDGET = {"steps", "batch_size", "unlabeled_ratio"}
Row = Mapping[str, str]


# ---- tables ----


def read_table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: Iterable[Row], settings: Sequence[str]) -> None:
    """Writes the rows by setting, method and seed; the labels-only runs of a setting come first."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: (settings.index(row["setting"]), *_place(row), int(row["seed"]))))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, text.getvalue())


def _place(row: Row) -> tuple[bool, str]:
    return not row["method"].startswith(LABELS_ONLY), row["method"]


def rows_of(comparison: Path) -> list[dict[str, str]]:
    """The finished runs of a comparison as rows; fractions are rounded to six decimals, seconds to one."""
    found = []
    for run in read_table(comparison / "compare.csv"):
        if run["status"] != "finished":
            continue
        figures = {name: run[name] and f"{float(run[name]):.6f}" for name in (*PAIRED, *GAINS.values())}
        rest = {name: run[name] for name in ("setting", "seed", *MADE_BY)}
        found.append({**rest, **figures, "method": own_name(run["variant"]), "seconds": f"{float(run['seconds']):.1f}"})
    return found


def take(comparison: Path, suites: Path, tables: Path) -> Path:
    """Puts the finished runs of a comparison into the table of its suite.

    Raises:
        InputError: it is no comparison of a suite, or its runs are not what the suite says.
    """
    suite = suites / comparison.name
    if not suite.is_dir():
        known = ", ".join(sorted(each.name for each in suites.iterdir()))
        raise InputError(f"there is no suite {comparison.name!r}, after which the folder is called: there are {known}")
    check_protocol(comparison, suite)
    path = tables / f"{comparison.name}.csv"
    rows = [*read_table(path), *rows_of(comparison)]
    write_table(path, {tuple(row[name] for name in COLUMNS[:3]): row for row in rows}.values(), settings_of(suite))
    return path


def settings_of(suite: Path) -> list[str]:
    return [str(name) for name in read_yaml(suite / "settings.yaml")]


def check_protocol(comparison: Path, suite: Path) -> None:
    """Raises InputError where runs of a comparison have other images, another network or budget than the suite's."""
    plan = read_plan(comparison / PLAN_FILE)
    if plan is None:
        raise InputError(f"{str(comparison)!r} holds no comparison: there is no {PLAN_FILE}")
    asked = {name: protocol(suite, own or {}) for name, own in read_yaml(suite / "settings.yaml").items()}
    for variant, resolved in plan.variants.items():
        setting = variant.rpartition("/")[0]
        if setting not in asked:
            raise InputError(f"{suite.name} has no setting {setting!r}, in which {str(comparison)!r} has a run")
        found = flat(resolved)
        for name, value in asked[setting].items():
            if found.get(name) != value:
                raise InputError(
                    f"{variant!r} is not of {suite.name}: {name} is {found.get(name)}, there it is {value}"
                )


def protocol(suite: Path, own: dict[str, Any]) -> dict[str, Any]:
    """The settings that every run in a setting of a suite must have; where files lie is not among them."""
    parser = make_parser("compare", Config)
    resolved = resolve(parser, parser.read_arguments(["--config", str(suite / "config.yaml"), *flags_of(own)]))[1]
    names = (IMAGES | BUDGET) - MOVABLE - MOVABLE_BY_HASH
    return {name: value for name, value in flat(resolved).items() if name in names or name.startswith("model.")}


# ---- page ----


def page(suites: Path, tables: Path) -> str:
    """The page of all suites that have a directory, and of the published figures."""
    names = sorted(each.name for each in suites.iterdir())
    parts = [(tables / "about.md").read_text().rstrip("\n")]
    parts += [suite_text(suites / name, read_table(tables / f"{name}.csv")) for name in names]
    parts.append(published_text(read_yaml(tables / "published.yaml")))
    return "\n\n".join(parts) + "\n"


def suite_text(suite: Path, rows: Sequence[Row]) -> str:
    """A section: what the suite is, a table of all settings, one of each, and what the rows were made by."""
    parts = [f"## {suite.name}", header_of(suite / "config.yaml")]
    if not rows:
        return "\n\n".join([*parts, "No rows yet."])
    makers = list(dict.fromkeys(_maker(row) for row in rows))
    settings = [name for name in settings_of(suite) if any(row["setting"] == name for row in rows)]
    parts.append("Accuracy / min recall:\n\n" + overview(rows, settings))
    for setting in settings:
        of_setting = [row for row in rows if row["setting"] == setting]
        parts.append(f"### {suite.name}: {setting}\n\n{setting_table(of_setting, makers)}")
    said = [f"{number}. {_maker_text(maker)}" for number, maker in enumerate(makers, start=1)]
    parts.append("The runs were made by:\n\n" + "\n".join(said))
    return "\n\n".join(parts)


def header_of(config: Path) -> str:
    """The comment that a suite's file begins with, up to its first line without words."""
    lines = takewhile(lambda line: line.startswith("# "), config.read_text().splitlines())
    return "\n".join(line.removeprefix("# ") for line in lines)


def by_method(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {method: list(each) for method, each in groupby(rows, lambda row: row["method"])}


def overview(rows: Sequence[Row], settings: Sequence[str]) -> str:
    """Means of each method in each setting."""
    cells = {}
    for setting in settings:
        for method, runs in by_method([row for row in rows if row["setting"] == setting]).items():
            means = [_spread(runs, name)["mean"] for name in ("accuracy", "min_recall")]
            text = " / ".join("-" if mean is None else f"{100 * mean:.1f}" for mean in means)
            cells.setdefault(method, {})[setting] = text
    lines = [[method, *(of_method.get(setting, "-") for setting in settings)] for method, of_method in cells.items()]
    return markdown([["method", *settings], *lines])


def setting_table(rows: Sequence[Row], makers: Sequence[tuple[str, ...]]) -> str:
    """A row for each method: labels alone first, then by accuracy."""
    title = ["method", "seeds", "accuracy", "mean recall", "min recall"]
    title += ["accuracy over labels alone", "mean recall over labels alone", "min recall over labels alone"]
    lines = []
    for method, runs in sorted(by_method(rows).items(), key=lambda item: _rank(*item)):
        gains = [[float(run[name]) for run in runs if run[name]] for name in GAINS.values()]
        seconds = _spread(runs, "seconds")["mean"]
        lines.append(
            [
                method,
                str(len(runs)),
                *(spread_text(_spread(runs, name)) for name in PAIRED),
                *(interval_text(paired_difference(each)) for each in gains),
                "-" if seconds is None else f"{seconds:.0f}",
                ", ".join(dict.fromkeys(str(1 + makers.index(_maker(run))) for run in runs)),
            ]
        )
    return markdown([[*title, "seconds", "made by"], *lines])


def _rank(method: str, runs: Sequence[Row]) -> tuple[bool, float]:
    return not method.startswith(LABELS_ONLY), -(_spread(runs, "accuracy")["mean"] or 0.0)


def _spread(runs: Sequence[Row], name: str) -> dict[str, float | None]:
    return spread([float(run[name]) for run in runs if run[name]])


def _maker(row: Row) -> tuple[str, ...]:
    return tuple(row[name] for name in MADE_BY)


def _maker_text(maker: tuple[str, ...]) -> str:
    commit, versions, machine = (part or "unknown" for part in maker)
    return f"commit {commit}; {versions}; on {machine}"


def published_text(papers: Mapping[str, Any]) -> str:
    """Figures of papers, each table with its protocol and its source."""
    parts = ["## Published figures", str(papers["about"]).strip()]
    for name, paper in papers["protocols"].items():
        rows = [[method, *(str(value) for value in values)] for method, values in paper["methods"].items()]
        table = markdown([["method", *paper["settings"]], *rows])
        parts.append(f"### {name}\n\n{paper['protocol'].strip()}\n\n{table}\n\nSource: {paper['source']}")
    return "\n\n".join(parts)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the title."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


@entry_point
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparisons", nargs="*", type=Path, help="folders of comparisons to take rows from")
    for comparison in parser.parse_args(arguments).comparisons:
        print(take(comparison, SUITES, TABLES))
    write_aside(PAGE, page(SUITES, TABLES))
    print(PAGE)


if __name__ == "__main__":
    main()
