"""Comparisons in several settings: labels alone, teachers, and the page."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from jobs import refused
from pages import check_self_contained
from short_comparisons import BASE, TWO, Trained, run

import debias_ssl.runs.comparison as compare_module
from debias_ssl import compare
from debias_ssl.runs.workers import FINISHED
from debias_ssl.system.errors import InputError

SETTINGS = "few: {data: {labels_per_class: 4}}\nlong tail: {data: {labels_per_class: 12, labeled_imbalance: 4}}\n"
VARIANTS = "DebiasPL over SoftMatch: {method: {class_path: DebiasPL, init_args: {base: SoftMatch}}}\n"
VARIANTS += 'taught: {method: Distillation, teacher: "variant:LabelsOnly"}\n'


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants in two settings, one seed, with a page."""
    place = tmp_path_factory.mktemp("crossed")
    (place / "settings.yaml").write_text(SETTINGS)
    (place / "variants.yaml").write_text(VARIANTS)
    files = ["--settings", str(place / "settings.yaml"), "--variants", str(place / "variants.yaml")]
    return run(place / "a", *files, "--report=true")


def test_each_setting_has_a_folder_with_its_labels_only_run_first(crossed: Path):
    names = ["LabelsOnly", "DebiasPL over SoftMatch", "taught"]
    whole = json.loads((crossed / "compare.json").read_text())
    assert whole["variants"] == [f"{setting}/{name}" for setting in ("few", "long tail") for name in names]
    for line in whole["table"]:
        setting, _, name = line["variant"].partition("/")
        assert line["setting"] == setting and line["seeds"] == [0]
        assert line["floor"] == (None if name == "LabelsOnly" else f"{setting}/LabelsOnly")
        assert (crossed / line["variant"] / "seed-0" / "summary.json").exists()
        # With one seed there is a difference and no interval.
        if name != "LabelsOnly":
            accuracies = {each["variant"]: each["accuracy"]["mean"] for each in whole["table"]}
            gained = accuracies[line["variant"]] - accuracies[f"{setting}/LabelsOnly"]
            found = line["difference_to_floor"]["accuracy"]
            assert found == {"num": 1, "mean": pytest.approx(gained), "low": None, "high": None}
            assert line["unlabeled_images"] == "not established"


def test_a_labels_only_run_is_the_same_but_for_unlabeled_images(crossed: Path):
    for setting, loss in (("few", "CrossEntropy"), ("long tail", "LogitAdjusted")):
        floor, other = (
            yaml.safe_load((crossed / setting / name / "seed-0" / "config.yaml").read_text())
            for name in ("LabelsOnly", "DebiasPL over SoftMatch")
        )
        assert floor["method"]["class_path"] == "Supervised" and floor["labeled_loss"]["class_path"] == loss
        assert {name for name in other if floor[name] != other[name]} - {"method", "labeled_loss"} == set()
        splits = {(crossed / setting / name / "seed-0" / "split.json").read_text() for name in ("LabelsOnly", "taught")}
        assert len({json.dumps(json.loads(split)["labeled"]) for split in splits}) == 1


def test_a_variant_is_taught_by_the_run_of_the_same_setting_and_seed(crossed: Path):
    for setting in ("few", "long tail"):
        config = yaml.safe_load((crossed / setting / "taught" / "seed-0" / "config.yaml").read_text())
        assert config["teacher"] == str(crossed / setting / "LabelsOnly" / "seed-0")
        inputs = json.loads((crossed / setting / "taught" / "seed-0" / "split.json").read_text())["inputs"]
        weights = (crossed / setting / "LabelsOnly" / "seed-0" / "model.safetensors").read_bytes()
        assert inputs["teacher"] == hashlib.sha256(weights).hexdigest()[:32]
    saved = yaml.safe_load((crossed / "compare.yaml").read_text())
    assert saved["variants"]["few/taught"]["teacher"] == "variant:LabelsOnly"


def test_the_page_of_several_settings_begins_with_what_paid(crossed: Path):
    text = (crossed / "report.html").read_text()
    assert text.index("Did the unlabeled images pay?") < text.index("<h2>Figures")
    assert "<li>few: not established in DebiasPL over SoftMatch, taught</li>" in text
    assert re.search(r'<tr><th scope="row">taught</th><td>[+-][\d.]+</td><td>[+-][\d.]+</td></tr>', text)
    assert "3 variants in 2 settings, 1 seed each" in text
    for title in ("few: difference to LabelsOnly", "Learning: long tail", "Recall of each class: few"):
        assert f">{title}<" in text, title
    check_self_contained(text, min_figures=12)


def test_finished_runs_of_settings_are_gone_on_with_and_removed(crossed: Path, tmp_path: Path, monkeypatch, capsys):
    shutil.copytree(crossed, tmp_path / "a")
    trained = Trained(monkeypatch, {"DebiasPL over SoftMatch 1": InputError("not now")})
    with pytest.raises(SystemExit):
        compare.main(["--out", str(tmp_path / "a"), "--resume", "--seeds", "1", "--report=false"])
    assert trained.runs == [f"{name} 1" for name in ("LabelsOnly", "DebiasPL over SoftMatch", "taught")] * 2
    said = capsys.readouterr().out
    assert "few, taught: not established with 2 seeds" in said
    (tmp_path / "a" / "few" / "mine.txt").write_text("kept")
    trained = Trained(monkeypatch, {"FixMatch 0": InputError("not now"), "Supervised 0": InputError("not now")})
    with pytest.raises(SystemExit):
        run(tmp_path / "a", *TWO, "--overwrite")
    assert sorted(path.name for path in (tmp_path / "a").iterdir() if path.is_dir()) == ["few"]
    assert [path.name for path in (tmp_path / "a" / "few").iterdir()] == ["mine.txt"]


def test_a_grid_of_a_method_has_one_labels_only_run_and_of_an_optimizer_one_for_each_value(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "train", lambda *_, **__: (_ for _ in ()).throw(InputError("not now")))
    for grid, floors in (
        ("method.strength=0,1", ["LabelsOnly"]),
        ("optim.lr=0.1,0.3", ["LabelsOnly-lr=0.1", "LabelsOnly-lr=0.3"]),
    ):
        out = tmp_path / grid
        with pytest.raises(SystemExit):
            run(out, "--grid", grid)
        saved = yaml.safe_load((out / "compare.yaml").read_text())
        assert [name for name in saved["variants"] if name.startswith("LabelsOnly")] == floors
        for name, floor in saved["floors"].items():
            assert saved["variants"][name]["optim"] == saved["variants"][floor]["optim"]


def test_labels_alone_are_left_out_where_asked_and_added_on_resume(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(compare_module, "train", lambda *_, **__: (_ for _ in ()).throw(InputError("not now")))

    def variants(*flags: str) -> list[str]:
        with pytest.raises(SystemExit):
            run(tmp_path / "a", "--methods", "FixMatch", *flags)
        return [*yaml.safe_load((tmp_path / "a" / "compare.yaml").read_text())["variants"]]

    assert variants("--floor", "false") == ["FixMatch"]
    assert variants("--resume", "--floor", "false") == ["FixMatch"]
    assert variants("--resume") == ["LabelsOnly", "FixMatch"]
    assert variants("--resume", "--floor", "false") == ["LabelsOnly", "FixMatch"]


def test_a_student_waits_for_its_teacher_in_another_process(tmp_path: Path, monkeypatch):
    started: list[str] = []
    finished: set[str] = set()

    class Worker:
        """Takes one look for each run to finish but the first, which takes three."""

        def __init__(self, aside: Path, environment: dict[str, str]):
            self.name, self.left = "", 0

        def begin(self, resolved: dict[str, Any], out: Path) -> None:
            self.name = out.parent.name
            self.left = 3 if self.name == "a" else 1
            started.append(self.name)
            assert self.name != "b" or "a" in finished

        def said_of_run(self) -> str | None:
            self.left -= 1
            finished.update([self.name] if self.left <= 0 else [])
            return FINISHED if self.left <= 0 else None

        def hints(self) -> list[str]:
            return []

        def has_ended(self) -> bool:
            return False

        def leave(self) -> None: ...

        def wait(self) -> None: ...

    monkeypatch.setattr(compare_module, "Worker", Worker)
    paths = {name: tmp_path / name / "seed-0" for name in "abc"}
    runs = [
        compare_module.PlannedRun(
            title=name, variant=name, seed=0, resolved={}, path=path, teacher=paths["a"] if name == "b" else None
        )
        for name, path in paths.items()
    ]
    assert [run.variant for run, _ in compare_module.train_in_processes(runs, 2)] == ["c", "a", "b"]
    assert started == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ('a: {teacher: "variant:b"}\nb: {teacher: "variant:a"}', ["in a circle", "a <- b <- a"]),
        ('a: {teacher: "variant:a"}', ["in a circle", "a <- a"]),
        ('a: {teacher: "variant:Labels"}\nb: {method: FixMatch}', ["'a'", "'variant:Labels'", "LabelsOnly, b"]),
        ("LabelsOnly: {method: FixMatch}", ["'LabelsOnly'", "rename it", "--floor false"]),
    ],
)
def test_bad_teachers_and_names_are_refused(variants: str, words: list[str], tmp_path: Path, capsys):
    (tmp_path / "v.yaml").write_text(variants)
    flags = ["--out", str(tmp_path / "out"), "--variants", str(tmp_path / "v.yaml")]
    message = refused(compare.main, [*BASE, *flags], capsys)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("few: {data: {labels_per_clas: 4}}", ["setting 'few'", "labels_per_clas"]),
        ("few: {seed: 4}", ["setting 'few' sets seed", "--seeds"]),
        ("a/b: {steps: 4}", ["setting 'a/b'", "folder"]),
        ("few: 4", ["setting 'few'", "not a mapping"]),
    ],
)
def test_bad_settings_are_refused(settings: str, words: list[str], tmp_path: Path, capsys):
    (tmp_path / "s.yaml").write_text(settings)
    flags = ["--out", str(tmp_path / "out"), "--settings", str(tmp_path / "s.yaml")]
    message = refused(compare.main, [*BASE, *TWO, *flags], capsys)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()
    (tmp_path / "s.yaml").write_text("few: null")
    assert "nothing to compare" in refused(compare.main, [*BASE, *flags], capsys)
