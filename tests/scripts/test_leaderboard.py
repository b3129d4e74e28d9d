"""The leaderboard is what its tables say, and takes runs of a suite and no others."""

import csv
import shutil
from pathlib import Path

import leaderboard as script
import pytest
import yaml
from jobs import refused
from launched import DIGITS

from debias_ssl import compare
from debias_ssl.system.errors import InputError
from debias_ssl.training.config import Config
from debias_ssl.training.parser import make_parser, resolve

SUITES = sorted(each.name for each in script.SUITES.iterdir())


def test_the_committed_page_is_what_the_tables_give():
    assert script.PAGE.read_text() == script.page(script.SUITES, script.TABLES)


@pytest.mark.parametrize("suite", SUITES)
def test_the_settings_and_methods_of_a_suite_exist(suite: str):
    folder, parser = script.SUITES / suite, make_parser("compare", Config)
    for own in yaml.safe_load((folder / "settings.yaml").read_text()).values():
        assert (
            script.protocol(folder, own)["data.labels_per_class"] is None or suite != "tiles" or "fraction" not in own
        )
    for own in yaml.safe_load((folder / "methods.yaml").read_text()).values():
        resolve(parser, parser.read_arguments(["--config", str(folder / "config.yaml"), *script.flags_of(own)]))
    assert script.header_of(folder / "config.yaml").count("\n") >= 1


@pytest.mark.parametrize("suite", ["features-lt", "cifar10-lt"])
def test_a_suite_has_all_orders_of_the_unlabeled_tail(suite: str):
    settings = yaml.safe_load((script.SUITES / suite / "settings.yaml").read_text())
    orders = [each["data"]["unlabeled_order"] for each in settings.values()]
    assert orders == 2 * ["same", "uniform", "reversed", "middle", "head_tail"]


# A suite of two settings, and a comparison of it.


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    suite = tmp_path_factory.mktemp("suites") / "short"
    suite.mkdir()
    text = DIGITS.read_text() + "\n"
    short = yaml.safe_load(text) | {"steps": 2, "batch_size": 8, "eval_every": 2, "log_every": 1, "checkpoint_every": 2}
    (suite / "config.yaml").write_text("# Two steps.\n#\n# not said\n" + yaml.safe_dump(short))
    (suite / "settings.yaml").write_text("many: {data: {labels_per_class: 8}}\nfew: {data: {labels_per_class: 4}}\n")
    return suite.parent


def compared(suites: Path, out: Path, *flags: str) -> Path:
    suite = suites / "short"
    own = ["--config", str(suite / "config.yaml"), "--settings", str(suite / "settings.yaml"), "--report", "false"]
    compare.main([*own, "--methods", "FixMatch", "--seeds", "0", "--out", str(out), *flags])
    return out


@pytest.fixture(scope="module")
def comparison(suites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compared(suites, tmp_path_factory.mktemp("runs") / "short")


def test_runs_of_a_suite_become_rows_and_later_ones_replace_them(suites: Path, comparison: Path, tmp_path: Path):
    table = script.take(comparison, suites, tmp_path)
    rows = script.read_table(table)
    names = [(row["setting"], row["method"]) for row in rows]
    assert names == [(setting, name) for setting in ("many", "few") for name in ("LabelsOnly", "FixMatch")]
    with (comparison / "compare.csv").open(newline="") as file:
        runs = {run["variant"]: run for run in csv.DictReader(file)}
    for row in rows:
        run = runs[f"{row['setting']}/{row['method']}"]
        assert float(row["accuracy"]) == pytest.approx(float(run["accuracy"]), abs=1e-6)
        assert all(row[name] == run[name] for name in ("commit", "versions", "machine")) and row["versions"]
    assert float(rows[1]["accuracy_gain"]) == pytest.approx(
        float(rows[1]["accuracy"]) - float(rows[0]["accuracy"]), abs=2e-6
    )
    before = table.read_text()
    table.write_text(before.replace(rows[1]["commit"] or "threads", "older").replace("many,FixMatch", "many,Other"))
    script.take(comparison, suites, tmp_path)
    kept = script.read_table(table)
    assert [row["method"] for row in kept] == ["LabelsOnly", "FixMatch", "Other", "LabelsOnly", "FixMatch"]
    assert "older" in "".join(kept[2].values()) and "older" not in "".join(kept[1].values())


def test_runs_of_another_budget_or_network_are_refused(suites: Path, comparison: Path, tmp_path: Path, capsys):
    for flags, words in ((["--steps", "1"], "steps is 1, there it is 2"), (["--model.name", "wrn_16_2"], "wrn_16_2")):
        out = tmp_path / words[:3] / "short"
        shutil.copytree(comparison, out)
        plan = yaml.safe_load((out / "compare.yaml").read_text())
        for settings in plan["variants"].values():
            *parents, name = flags[0].removeprefix("--").split(".")
            (settings[parents[0]] if parents else settings)[name] = yaml.safe_load(flags[1])
        (out / "compare.yaml").write_text(yaml.safe_dump(plan))
        with pytest.raises(InputError, match=words):
            script.take(out, suites, tmp_path)
    assert "there is no suite 'none', after which" in refused(script.main, [str(tmp_path / "none")], capsys)
    with pytest.raises(InputError, match="holds no comparison"):
        script.take(tmp_path / "short", suites, tmp_path)


def test_a_table_says_means_deviations_and_paired_intervals():
    def rows(method: str, accuracies: list[float], gains: list[float]) -> list[dict[str, str]]:
        same = {"setting": "a", "method": method, "mean_recall": "0.5", "min_recall": "", "seconds": "2.5"}
        made_by = {"commit": "c", "versions": "v", "machine": "m"}
        return [
            {**same, **made_by, "seed": str(seed), "accuracy": str(accuracy)}
            | dict.fromkeys(script.GAINS.values(), str(gains[seed]) if gains else "")
            for seed, accuracy in enumerate(accuracies)
        ]

    of_setting = [
        *rows("LabelsOnly", [0.5], []),
        *rows("B", [0.55, 0.56, 0.57], [0.05, 0.06, 0.07]),
        *rows("A", [0.6], []),
    ]
    lines = script.setting_table(of_setting, [("d", "v", "m"), ("c", "v", "m")]).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| LabelsOnly", "| A", "| B"]
    # Student's t of 0.975 with 2 degrees of freedom, 4.302653, times 0.01 by the root of 3: 2.48 points.
    interval = "+6.00 [+3.52, +8.48]"
    assert lines[4] == f"| B | 3 | 56.00 ± 1.00 | 50.00 ± 0.00 | - | {interval} | {interval} | {interval} | 2 | 2 |"
