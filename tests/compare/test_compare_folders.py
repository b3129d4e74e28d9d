"""Folders of `debias-ssl compare`: what is written, repeated, resumed and shared among processes."""

import json
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jobs import refused
from short_comparisons import BASE, TWO, Trained, rows, run

import debias_ssl.runs.comparison as compare_module
import debias_ssl.runs.workers as workers_module
from debias_ssl import compare
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.results import differences_between
from debias_ssl.system.errors import InputError


def statuses(out: Path) -> list[str]:
    return [f"{row['variant']} {row['seed']} {row['status']}" for row in rows(out)]


def test_a_page_is_drawn_of_it(finished: Path):
    text = (finished / "report.html").read_text()
    assert "Difference to Supervised" in text and "2 variants, 2 seeds each" in text
    # The labels-only run is there already.
    assert "Did the unlabeled images pay?" in text and "LabelsOnly" not in text


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
