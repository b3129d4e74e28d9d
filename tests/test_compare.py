"""Comparisons: their arithmetic, their folder, what stops them and what does not."""

import csv
import hashlib
import json
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jobs import refused
from launched import DIGITS
from pages import check_self_contained

import debias_ssl.runs.comparison as compare_module
import debias_ssl.runs.workers as workers_module
from debias_ssl import compare
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.results import aggregate, differences_between, paired_difference
from debias_ssl.runs.tables import table
from debias_ssl.runs.variants import flags_of, grid_of
from debias_ssl.runs.workers import FINISHED
from debias_ssl.system.errors import InputError
from debias_ssl.training.learner import Learner

SHORT = ["--steps", "4", "--log_every", "2", "--eval_every", "2", "--checkpoint_every", "2", "--batch_size", "8"]
BASE = ["--config", str(DIGITS), *SHORT, "--report=false"]
TWO = ["--methods", "Supervised,FixMatch"]


def run(out: Path, *flags: str) -> Path:
    compare.main([*BASE, "--out", str(out), *flags])
    return out


def rows(out: Path) -> list[dict[str, str]]:
    """`compare.csv` but for the clock, and for what depends on other runs."""
    with (out / "compare.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "seconds" and not key.endswith("_gain")}
            for row in csv.DictReader(file)
        ]


def statuses(out: Path) -> list[str]:
    return [f"{row['variant']} {row['seed']} {row['status']}" for row in rows(out)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("compare") / "a", *TWO, "--seeds", "0,1", "--report=true")


def test_a_page_is_drawn_of_it(finished: Path):
    text = (finished / "report.html").read_text()
    assert "Difference to Supervised" in text and "2 variants, 2 seeds each" in text
    # The labels-only run is there already.
    assert "Did the unlabeled images pay?" in text and "LabelsOnly" not in text


class Trained:
    """Stands for `train` and counts its calls; some runs fail, or are interrupted after their checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, endings: dict[str, BaseException] | None = None):
        self.runs: list[str] = []
        self.endings = endings or {}
        self.train, self.monkeypatch = compare_module.train, monkeypatch
        monkeypatch.setattr(compare_module, "train", self)

    def __call__(self, config, resolved, out, **flags) -> None:
        name = f"{out.parent.name} {config.seed}"
        self.runs.append(name)
        ending = self.endings.get(name)
        if isinstance(ending, KeyboardInterrupt):
            self._interrupt_after(2)
        elif ending is not None:
            raise ending
        self.train(config, resolved, out, **flags)

    def _interrupt_after(self, steps: int) -> None:
        after_step = Learner.after_step

        def interrupted(learner: Learner, step: int) -> None:
            if step == steps:
                raise KeyboardInterrupt
            after_step(learner, step)

        self.monkeypatch.setattr(Learner, "after_step", interrupted)


# Arithmetic.


def row(variant: str, seed: int, accuracy: float, status: str = "finished", **figures: float) -> dict:
    known = {"accuracy": accuracy, "min_recall": accuracy / 2, "seconds": 10.0 * (seed + 1)} if accuracy else {}
    return {"variant": variant, "seed": seed, "status": status, **known, **figures}


def test_paired_difference_is_students():
    # Mean 0.03, standard deviation 0.01; t of 0.975 with 2 degrees of freedom is 4.302653.
    found = paired_difference([0.02, 0.03, 0.04])
    half = 4.302653 * 0.01 / 3**0.5
    assert found == pytest.approx({"num": 3, "mean": 0.03, "low": 0.03 - half, "high": 0.03 + half})
    # With 1 degree of freedom, t is 12.7062.
    assert paired_difference([0.0, 0.2])["high"] == pytest.approx(0.1 + 12.7062 * 0.2 / 2**0.5 / 2**0.5)
    assert paired_difference([0.02]) == {"num": 1, "mean": 0.02, "low": None, "high": None}
    assert paired_difference([]) == {"num": 0, "mean": None, "low": None, "high": None}


def test_aggregation_pairs_seeds_that_both_finished():
    runs = [
        row("a", 0, 0.5),
        row("b", 0, 0.6),
        row("a", 1, 0.7),
        row("b", 1, 0.0, "failed"),
        row("a", 2, 0.9),
        row("b", 2, 0.94),
        row("a", 3, 0.0, "pending"),
        row("b", 3, 0.2),
    ]
    a, b = aggregate(runs)
    assert (a["variant"], a["seeds"], b["variant"], b["seeds"]) == ("a", [0, 1, 2], "b", [0, 2, 3])
    assert a["accuracy"] == pytest.approx({"mean": 0.7, "std": 0.2})
    assert a["seconds"]["mean"] == 20 and a["ece"] == {"mean": None, "std": None}
    assert b["accuracy"]["mean"] == pytest.approx((0.6 + 0.94 + 0.2) / 3)
    assert a["difference_to_first"] is None
    # Differences 0.1 and 0.04 of seeds 0 and 2: mean 0.07, deviation 0.03 sqrt(2); sqrt(2) goes out with that of n.
    half = 12.7062 * 0.03
    expected = {"num": 2, "mean": 0.07, "low": 0.07 - half, "high": 0.07 + half}
    assert b["difference_to_first"]["accuracy"] == pytest.approx(expected, abs=1e-6)
    assert b["difference_to_first"]["min_recall"]["mean"] == pytest.approx(0.035)


def test_table_says_what_is_best_on_the_test_set_and_what_is_missing():
    lines = aggregate([row("a", 0, 0.5), row("b", 0, 0.625, best_test_accuracy=0.75), row("c", 0, 0.0, "failed")])
    text = table(lines)
    assert '"best (test)" is chosen on the test set' in text and "median acc." in text
    b, c = (next(line.split() for line in text.splitlines() if line.startswith(name)) for name in "bc")
    assert b[:4] == ["b", "1", "62.50", "-"] and "75.00" in b and c[1:] == ["0", *9 * "-"]
    assert "+12.50" in text and "[+" not in text and "chosen:" not in text


def test_choice_is_by_validation_among_those_with_most_seeds():
    figures = {"a": 0.9, "b": 0.6, "c": 0.7}
    runs = [row(name, seed, 0.5, validation_accuracy=value) for name, value in figures.items() for seed in (0, 1)]
    runs += [row("d", 0, 0.5, validation_accuracy=0.8), row("d", 1, 0.0, "failed")]
    lines = aggregate(runs, choose_among=["b", "c", "d"])
    assert [line["variant"] for line in lines if line["chosen"]] == ["c"]
    assert "c *" in table(lines) and "validation images" in table(lines)
    assert not any(line["chosen"] for line in aggregate(runs))


def test_differences_name_every_setting_that_is_not_shared():
    a = {"steps": 4, "method": {"class_path": "FixMatch", "init_args": {"threshold": 0.9}}}
    b = {"steps": 4, "method": {"class_path": "DebiasPL", "init_args": {"threshold": 0.9, "strength": 0.5}}}
    assert differences_between({"a": a, "b": b}) == {
        "method.class_path": {"a": "FixMatch", "b": "DebiasPL"},
        "method.init_args.strength": {"b": 0.5},
    }
    assert differences_between({"a": a, "same": a}) == {}


def test_overrides_become_flags_with_the_method_first():
    overrides = {"method": {"init_args": {"strength": 0.5}, "class_path": "DebiasPL"}, "data": {"root": None}}
    assert flags_of(overrides) == ["--method=DebiasPL", "--method.init_args.strength=0.5", "--data.root=null"]
    assert grid_of("method.strength=0,.25") == {
        "strength=0": {"method": {"strength": "0"}},
        "strength=0.25": {"method": {"strength": ".25"}},
    }


# Folders.


def test_files_of_a_comparison_say_what_its_runs_say(finished: Path):
    assert statuses(finished) == [f"{name} {seed} finished" for seed in (0, 1) for name in ("Supervised", "FixMatch")]
    names = ["variant", "seed", "status", "accuracy", "mean_recall", "min_recall", "h_mean", "ece", "seconds"]
    further = ["setting", "floor", "accuracy_gain", "mean_recall_gain", "min_recall_gain"]
    further += ["commit", "versions", "machine"]
    assert (finished / "compare.csv").read_text().splitlines()[0].split(",") == [*names, *further]
    whole = json.loads((finished / "compare.json").read_text())
    assert whole["variants"] == ["Supervised", "FixMatch"] and whole["seeds"] == [0, 1]
    for each, entry in zip(rows(finished), whole["runs"], strict=True):
        summary = json.loads((finished / entry["folder"] / "summary.json").read_text())
        assert entry["summary"] == summary and entry["error"] is None
        assert {name: each[name] for name in ("commit", "versions", "machine")} == summary["made_by"]
        assert f"torch {torch.__version__}" in each["versions"] and platform.node() not in each["machine"]
        assert all(float(each[name]) == summary["ema"]["last"][name] for name in names[3:-1])
    supervised, fixmatch = ([float(each["accuracy"]) for each in rows(finished)[start::2]] for start in (0, 1))
    assert whole["table"][1]["accuracy"]["mean"] == pytest.approx(sum(fixmatch) / 2)
    mean = whole["table"][1]["difference_to_first"]["accuracy"]["mean"]
    assert mean == pytest.approx((sum(fixmatch) - sum(supervised)) / 2)


def test_variants_of_a_seed_share_their_split_and_differ_in_what_is_said(finished: Path):
    for seed in (0, 1):
        splits = [(finished / name / f"seed-{seed}" / "split.json").read_text() for name in ("Supervised", "FixMatch")]
        assert splits[0] == splits[1]
        configs = {
            name: yaml.safe_load((finished / name / f"seed-{seed}" / "config.yaml").read_text())
            for name in ("Supervised", "FixMatch")
        }
        assert all(config["seed"] == seed for config in configs.values())
        assert differences_between(configs) == json.loads((finished / "compare.json").read_text())["differences"]
    other = (finished / "FixMatch" / "seed-0" / "split.json").read_text()
    assert other != (finished / "FixMatch" / "seed-1" / "split.json").read_text()


def test_differences_are_said_before_the_first_step(tmp_path: Path, monkeypatch, capsys):
    Trained(monkeypatch, {"Supervised 0": KeyboardInterrupt()})
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "a", *TWO)
    assert exit_.value.code == 130
    said = capsys.readouterr()
    assert "method.class_path" in said.out and "0.95" in said.out
    assert "note: variant 'FixMatch': method FixMatch instead of DebiasPL" in said.err


def test_stopped_comparison_repeats_no_finished_run(finished: Path, tmp_path: Path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        trained = Trained(patch, {"Supervised 1": KeyboardInterrupt()})
        with pytest.raises(SystemExit):
            run(tmp_path / "a", *TWO, "--seeds", "0,1")
        assert trained.runs == ["Supervised 0", "FixMatch 0", "Supervised 1"]
    assert [status.split()[-1] for status in statuses(tmp_path / "a")] == ["finished", "finished", "pending", "pending"]
    capsys.readouterr()
    trained = Trained(monkeypatch)
    compare.main(["--out", str(tmp_path / "a"), "--resume"])
    assert trained.runs == ["Supervised 1", "FixMatch 1"]
    assert rows(tmp_path / "a") == rows(finished)
    said = capsys.readouterr()
    assert "resumed at step 2" in said.err and "[1/4] Supervised seed 0: accuracy" in said.err


def test_failed_run_is_shown_and_the_others_go_on(finished: Path, tmp_path: Path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        endings: dict[str, BaseException] = {
            "Supervised 0": InputError("no such\nimage"),
            "FixMatch 1": OSError("full"),
        }
        Trained(patch, endings)
        with pytest.raises(SystemExit) as exit_:
            run(tmp_path / "a", *TWO, "--seeds", "0,1")
        assert exit_.value.code == 1
    said = capsys.readouterr()
    assert "[1/4] Supervised seed 0 failed: no such image" in said.out and "2 of 4 runs failed" in said.err
    assert [status.split()[-1] for status in statuses(tmp_path / "a")] == ["failed", "finished", "finished", "failed"]
    assert rows(tmp_path / "a")[0]["accuracy"] == "" and rows(tmp_path / "a")[1] == rows(finished)[1]
    entries = json.loads((tmp_path / "a" / "compare.json").read_text())["runs"]
    assert [entry["error"] for entry in entries] == ["no such image", None, None, "OSError: full"]
    run(tmp_path / "a", *TWO, "--resume")
    assert rows(tmp_path / "a") == rows(finished)


def test_processes_give_the_same_and_say_what_failed(finished: Path, tmp_path: Path, capsys):
    variants = tmp_path / "v.yaml"
    variants.write_text("FixMatch: {method: FixMatch}\nbad: {model: {name: resnet1}}\n")
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "a", "--variants", str(variants), "--jobs", "2", "--floor", "false")
    assert exit_.value.code == 1
    # A busy machine may compute with fewer threads, and then sums differ in their last bits.
    ours, theirs = rows(tmp_path / "a")[0], rows(finished)[1]
    texts = ("variant", "seed", "status", "setting", "floor", "commit", "versions", "machine")
    assert [ours[key] for key in texts[:3]] == [theirs[key] for key in texts[:3]]
    figures = [[float(row[key]) for key in row if key not in texts] for row in (ours, theirs)]
    assert len(figures[0]) > 3 and figures[0] == pytest.approx(figures[1], rel=1e-6)
    entries = json.loads((tmp_path / "a" / "compare.json").read_text())["runs"]
    assert "resnet1" in entries[1]["error"] and "[2/2] bad seed 0 failed: " in capsys.readouterr().out


def test_interrupt_stops_the_processes(tmp_path: Path, monkeypatch):
    popen, processes = subprocess.Popen, []

    def start(command, *, env, **streams):
        processes.append(popen([sys.executable, "-c", "import time; time.sleep(600)"], **streams))
        return processes[-1]

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers_module.subprocess, "Popen", start)
    monkeypatch.setattr(compare_module.time, "sleep", interrupted)
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path / "a", *TWO, "--jobs", "2")
    assert exit_.value.code == 130
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2


def test_processes_share_the_cores_unless_somebody_said_how_many_threads(tmp_path: Path, monkeypatch):
    popen, seen = subprocess.Popen, []

    def start(command, *, env, **streams):
        seen.append(env.get("OMP_NUM_THREADS"))
        return popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **streams)

    monkeypatch.setattr(workers_module.subprocess, "Popen", start)
    monkeypatch.setattr(workers_module.torch, "get_num_threads", lambda: 7)
    for asked in (None, "5"):
        with monkeypatch.context() as patch:
            if asked is None:
                patch.delenv("OMP_NUM_THREADS", raising=False)
            else:
                patch.setenv("OMP_NUM_THREADS", asked)
            with pytest.raises(SystemExit):
                run(tmp_path / str(asked), *TWO, "--jobs", "3", "--seeds", "0,1")
    assert seen == ["2"] * 4 + ["5"] * 4


def test_each_process_has_a_gpu_where_there_are_several(tmp_path: Path, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(workers_module.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")

    popen = subprocess.Popen

    def start(command, *, env, **streams):
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        return popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **streams)

    monkeypatch.setattr(workers_module.subprocess, "Popen", start)
    with pytest.raises(SystemExit):
        run(tmp_path / "a", *TWO, "--jobs", "2")
    assert seen == ["5", "7"]
    entries = json.loads((tmp_path / "a" / "compare.json").read_text())["runs"]
    assert [entry["error"] for entry in entries] == [f"killed by signal {signal.SIGKILL.value}"] * 2


def test_seeds_and_variants_are_added_on_resume(finished: Path, tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "a"
    run(out, "--methods", "Supervised", "--seeds", "0")
    flags = ["--methods", "Supervised", "--resume", "--optim.lr", "0.01"]
    message = refused(compare.main, [*BASE, "--out", str(out), *flags], capsys)
    assert "in the base, optim.lr was 0.03, now it is 0.01" in message
    other = tmp_path / "v.yaml"
    other.write_text("Supervised: {method: Supervised, optim: {lr: 0.2}}")
    message = refused(compare.main, [*BASE, "--out", str(out), "--variants", str(other), "--resume"], capsys)
    assert "in variant 'Supervised', optim.lr was 0.03, now it is 0.2" in message
    trained = Trained(monkeypatch)
    run(out, *TWO, "--seeds", "1", "--resume")
    assert trained.runs == ["FixMatch 0", "Supervised 1", "FixMatch 1"] and rows(out) == rows(finished)
    saved = yaml.safe_load((out / "compare.yaml").read_text())
    assert saved["seeds"] == [0, 1] and [*saved["variants"]] == ["Supervised", "FixMatch"]


def test_a_comparison_is_not_overwritten_unless_asked(finished: Path, tmp_path: Path, monkeypatch, capsys):
    Trained(monkeypatch, {"Supervised 0": InputError("not now"), "FixMatch 0": InputError("not now")})
    arguments = [*BASE, *TWO, "--out", str(tmp_path / "a")]
    with pytest.raises(SystemExit):
        compare.main(arguments)
    before = (tmp_path / "a" / "compare.csv").read_text()
    message = refused(compare.main, arguments, capsys)
    assert "--resume" in message and "--overwrite" in message
    assert (tmp_path / "a" / "compare.csv").read_text() == before
    old, mine = tmp_path / "a" / "old" / "seed-0", tmp_path / "a" / "mine.txt"
    mine.write_text("kept")
    RunFolder(old).write_config({"steps": 1})
    saved = yaml.safe_load((tmp_path / "a" / "compare.yaml").read_text())
    saved["variants"]["old"] = saved["variants"]["FixMatch"]
    (tmp_path / "a" / "compare.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(SystemExit):
        compare.main([*arguments, "--overwrite", "--seeds", "0"])
    assert mine.read_text() == "kept" and not old.parent.exists()
    run_folder = finished / "FixMatch" / "seed-0"
    assert "holds a run, not a comparison" in refused(compare.main, [*BASE, *TWO, "--out", str(run_folder)], capsys)


def test_a_folder_with_another_run_is_not_taken_for_a_variants(tmp_path: Path, monkeypatch, capsys):
    there = tmp_path / "a" / "FixMatch" / "seed-0"
    there.mkdir(parents=True)
    (there / "config.yaml").write_text("steps: 1")
    (there / "summary.json").write_text("{}")
    assert "FixMatch/seed-0' holds summary.json, config.yaml, which" in refused(
        compare.main, [*BASE, *TWO, "--out", str(tmp_path / "a")], capsys
    )
    trained = Trained(monkeypatch, {"Supervised 0": InputError("not now")})
    with pytest.raises(SystemExit):
        run(tmp_path / "a", *TWO, "--resume")
    assert trained.runs == ["Supervised 0"] and statuses(tmp_path / "a")[1] == "FixMatch 0 failed"


# What is asked for.


def test_grid_marks_the_value_chosen_on_validation_images(tmp_path: Path, capsys):
    variants = tmp_path / "v.yaml"
    variants.write_text("base: null\nlonger: {optim: {lr: 0.06}}\n")
    flags = ["--variants", str(variants), "--grid", "optim.lr=0.03,.3", "--choose_on", "validation"]
    flags += ["--floor", "false"]
    run(tmp_path / "a", *flags, "--data.validation_per_class", "5", "--data.split_seed", "3")
    said = capsys.readouterr()
    assert "data.split_seed is 3: all seeds share one split" in said.err
    whole = json.loads((tmp_path / "a" / "compare.json").read_text())
    assert whole["variants"] == ["base", "longer", "lr=0.03", "lr=0.3"]
    assert whole["differences"] == {"optim.lr": {"base": 0.03, "longer": 0.06, "lr=0.03": 0.03, "lr=0.3": 0.3}}
    accuracies = {entry["variant"]: entry["validation"]["accuracy"] for entry in whole["runs"]}
    (chosen,) = [line["variant"] for line in whole["table"] if line["chosen"]]
    assert chosen == max(["lr=0.03", "lr=0.3"], key=lambda name: accuracies[name]) and f"{chosen} *" in said.out
    assert rows(tmp_path / "a")[0] | {"variant": ""} == rows(tmp_path / "a")[2] | {"variant": ""}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["--methods", "--variants", "--grid"]),
        (["--methods", "FixMatch,Nope"], ["variant 'Nope'", "no method 'Nope'", "DebiasPL", "FixMatch"]),
        (["--methods", "FixMatch,FixMatch"], ["two variants", "FixMatch"]),
        ([*TWO, "--stepz", "3"], ["--stepz 3; near it: --steps"]),
        ([*TWO, "--optim.lr", "fast"], ["optim.lr", "fast"]),
        ([*TWO, "--seeds", "0,x"], ["--seeds", "0,x"]),
        ([*TWO, "--seeds", "0,0"], ["--seeds", "0,0"]),
        ([*TWO, "--jobs", "0"], ["--jobs", "0"]),
        ([*TWO, "--choose_on", "validation"], ["--choose_on", "--grid"]),
        (["--grid", "method.strength"], ["method.strength", "method.strength=0,0.25,0.5,1"]),
        (["--grid", "method.strength=0,,1"], ["method.strength=0,,1"]),
        (["--grid", "method.strength=0,0.0"], ["0.0 twice"]),
        (["--grid", "method.strenth=0,1"], ["strenth=0", "strenth", "DebiasPL", "FixMatch"]),
        (["--grid", "seed=0,1"], ["--seeds"]),
        (["--grid", "jobs=1,2"], ["no setting 'jobs'"]),
        (["--grid", "optim.lr=0.1,fast"], ["variant 'lr=fast'", "optim.lr", "fast"]),
        (["--grid", "optim.lr=0.1", "--choose_on", "validation"], ["--data.validation_per_class"]),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(flags: list[str], words: list[str], tmp_path: Path, capsys):
    message = refused(compare.main, [*BASE, "--out", str(tmp_path / "out"), *flags], capsys)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: {method: Supervised}\nb: {stepz: 3}", ["variant 'b'", "no setting 'stepz'", "steps"]),
        ("a: {optim: {lrr: 3}}", ["variant 'a'", "optim.lrr", "near it: ", "optim.lr"]),
        ("a: {method: {class_path: Nope}}", ["variant 'a'", "Nope", "DebiasPL", "FixMatch"]),
        ("a: {method: {help: FixMatch}}", ["method.help"]),
        ("a: {seed: 3}", ["variant 'a'", "--seeds"]),
        ("a: 3", ["variant 'a'", "3"]),
        ("../a: {steps: 2}", ["../a", "folder"]),
        ("[a, b]", ["v.yaml"]),
        ("a: {steps: [", ["v.yaml"]),
    ],
)
def test_bad_variants_are_refused_before_anything_is_written(text: str, words: list[str], tmp_path: Path, capsys):
    (tmp_path / "v.yaml").write_text(text)
    flags = ["--out", str(tmp_path / "out"), "--variants", str(tmp_path / "v.yaml")]
    message = refused(compare.main, [*BASE, *flags], capsys)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_several_processes_of_a_comparison_are_refused(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--jobs" in refused(compare.main, [*BASE, *TWO, "--out", str(tmp_path / "out")], capsys)


def test_unknown_key_in_the_base_stops_with_those_near_it(tmp_path: Path, capsys):
    (tmp_path / "c.yaml").write_text("stepz: 3")
    flags = ["--config", str(tmp_path / "c.yaml"), *TWO, "--out", str(tmp_path / "out")]
    message = refused(compare.main, flags, capsys)
    assert "'stepz' is not accepted; near it: steps" in message and not (tmp_path / "out").exists()


def test_a_record_from_before_a_setting_was_there_is_resumed(finished: Path, tmp_path: Path):
    shutil.copytree(finished, tmp_path / "a")
    record = yaml.safe_load((finished / "compare.yaml").read_text())
    for settings in (record["base"], *record["variants"].values()):
        del settings["labeled_loss"]
    (tmp_path / "a" / "compare.yaml").write_text(yaml.safe_dump(record))
    run(tmp_path / "a", *TWO, "--seeds", "0,1", "--resume")
    ours, theirs = (sorted(map(str, rows(out))) for out in (tmp_path / "a", finished))
    assert ours == theirs


# Labels alone, several settings, teachers.

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
