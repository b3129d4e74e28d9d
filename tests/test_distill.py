"""A student of a run: what it is taught, and that it is a run like all others."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jobs import refused, same, weights
from launched import DIGITS

import debias_ssl.runs.run as run_module
from debias_ssl import distill, train
from debias_ssl.contract import Batch
from debias_ssl.data.task import Place
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.teacher import TaughtStream
from debias_ssl.runs.trained import load_trained
from debias_ssl.training.journal import read_journal

SHORT = ["--steps", "6", "--log_every", "2", "--eval_every", "6", "--checkpoint_every", "2", "--batch_size", "8"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    # Its data are its own: not the config's labels_per_class, and a split that another seed would not draw.
    flags = ["--method", "Supervised", "--seed", "3", "--data.labels_per_class", "7"]
    train.main(["--config", str(DIGITS), *SHORT, *flags, "--out", str(out)])
    return out


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a student, which name a method and not the data."""
    path = tmp_path / "student.yaml"
    path.write_text(
        "method: {class_path: FixMatch}\nmodel: {name: wrn_10_1, batch_norm_momentum: .1}\nprecision: fp32\n"
    )
    return path


def learn(teacher: Path, config: Path, out: Path, *flags: str) -> Path:
    distill.main(["--teacher", str(teacher), "--config", str(config), *SHORT, "--out", str(out), *flags])
    return out


def seen_batches(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    batches, forward = [], run_module.Learner.forward

    def recording(self, batch, progress):
        batches.append(batch)
        return forward(self, batch, progress)

    monkeypatch.setattr(run_module.Learner, "forward", recording)
    return batches


def test_data_and_split_are_the_teachers_and_the_student_is_the_configs(teacher, config, tmp_path, capsys):
    out = learn(teacher, config, tmp_path / "s", "--method.temperature", "2", "--optim.lr", "0.01")
    assert "method Distillation instead of FixMatch" in capsys.readouterr().err
    ours, theirs = (json.loads((folder / "split.json").read_text()) for folder in (out, teacher))
    # Beside the split stand the hashes of what else a run reads, such as its teacher.
    assert "teacher" in str(ours.pop("inputs")) and theirs.pop("inputs") is not None
    assert ours == theirs
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["method"]["class_path"] == "Distillation" and saved["method"]["init_args"]["temperature"] == 2
    assert saved["data"]["labels_per_class"] == 7 and saved["data"]["augment"]["flip"] is False
    assert saved["teacher"] == str(teacher) and saved["model"]["name"] == "wrn_10_1" and saved["optim"]["lr"] == 0.01
    logs = [record for record in read_journal(out / "metrics.jsonl") if "loss" in record]
    assert [log["step"] for log in logs] == [2, 4, 6] and logs[0]["loss"].keys() == {"labeled", "soft"}
    # The config of the run repeats it, by train.
    train.main(["--config", str(out / "config.yaml"), "--out", str(tmp_path / "again")])
    assert same(weights(out, 6), weights(tmp_path / "again", 6))


@pytest.mark.parametrize("unlabeled", [True, False])
def test_the_teacher_sees_the_pixels_of_the_student(unlabeled, teacher, config, tmp_path, monkeypatch):
    batches = seen_batches(monkeypatch)
    learn(teacher, config, tmp_path / "s", "--method.unlabeled", json.dumps(unlabeled))
    predictor = load_trained(RunFolder(teacher), torch.device("cpu")).predictor
    for batch in batches:
        images, given, other = batch.weak[0], batch.teacher_probs, batch.labeled_teacher_probs
        if not unlabeled:
            images, given, other = batch.labeled, other, given
        assert other is None and given is not None
        with torch.no_grad():
            torch.testing.assert_close(given, predictor(images).softmax(-1))
    assert len(batches) == 6


def test_no_soft_weight_is_supervised_in_every_bit_of_a_run(teacher, config, tmp_path):
    student = learn(teacher, config, tmp_path / "s", "--method.soft_weight", "0")
    flags = ["--config", str(student / "config.yaml"), "--method", "Supervised", "--teacher", "null"]
    train.main([*flags, "--out", str(tmp_path / "supervised")])
    assert same(weights(student, 6), weights(tmp_path / "supervised", 6))


def test_resumed_student_ends_with_the_same_bits(teacher, config, tmp_path, monkeypatch, capsys):
    whole = learn(teacher, config, tmp_path / "a")
    with monkeypatch.context() as patch:
        after_step = run_module.Learner.after_step

        def dying(self, done):
            if done == 3:
                raise KeyboardInterrupt
            after_step(self, done)

        patch.setattr(run_module.Learner, "after_step", dying)
        with pytest.raises(SystemExit):
            learn(teacher, config, tmp_path / "b")
    assert not (tmp_path / "b" / "summary.json").exists()
    distill.main(["--out", str(tmp_path / "b"), "--resume"])
    assert "resumed at step 2" in capsys.readouterr().err
    assert same(weights(whole, 6), weights(tmp_path / "b", 6))
    with pytest.raises(SystemExit) as exit_:
        learn(teacher, config, tmp_path / "b", "--resume", "--method.temperature", "9")
    assert exit_.value.code == 2 and "method.init_args.temperature was 4.0, now it is 9.0" in capsys.readouterr().err


def test_two_processes_are_taught_the_halves_of_one(teacher, config, tmp_path, monkeypatch):
    batches = seen_batches(monkeypatch)
    learn(teacher, config, tmp_path / "one")
    run = load_trained(RunFolder(tmp_path / "one"), torch.device("cpu"))
    method, predictor = run.predictor.method, load_trained(RunFolder(teacher), torch.device("cpu")).predictor
    parts = []
    for rank in range(2):
        place = Place(rank=rank, num_processes=2)
        task = run_module.make_task(run.data, seed=0, place=place, split_file=tmp_path / "one" / "split.json")
        stream = task.training_stream(method, seed=0, batch_size=8, unlabeled_ratio=7, balanced=False, has_teacher=True)
        parts.append([*TaughtStream(stream=stream, predictor=predictor, needs=method.needs).batches(0, 6)])
    for whole, first, second in zip(batches, *parts, strict=True):
        assert first.teacher_probs is not None and second.teacher_probs is not None and whole.teacher_probs is not None
        torch.testing.assert_close(torch.cat([first.teacher_probs, second.teacher_probs]), whole.teacher_probs)
        assert torch.cat([first.index, second.index]).equal(whole.index)


def test_two_processes_train_a_student_like_one(teacher, config, tmp_path):
    """Of group norm, so that no layer mixes the images of a process."""
    flags = ["--model.norm", "group", "--unlabeled_ratio", "2"]
    one = learn(teacher, config, tmp_path / "one", *flags)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command += ["-m", "debias_ssl.distill", "--teacher", str(teacher), "--config", str(config), *SHORT, *flags]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stderr and done.stderr.count("method Distillation instead") == 1
    for key, value in weights(one, 6).items():
        torch.testing.assert_close(weights(tmp_path / "two", 6)[key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["no teacher", "--teacher"]),
        (["--teacher", "nowhere"], ["nowhere", "no such folder"]),
        (["--teacher", "UNFINISHED"], ["is not a finished run"]),
        (["--teacher", "TEACHER", "--data.mean", "[0.2]"], ["teacher", "mean"]),
        (["--teacher", "TEACHER", "--data.labels_per_class", "4", "--data.split", "nowhere.json"], ["nowhere.json"]),
        (["--teacher", "TEACHER", "--method.temperature", "0"], ["method.temperature"]),
        (["--teacher", "TEACHER", "--method.threshold", "0"], ["threshold"]),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(flags, words, teacher, config, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("config.yaml", "split.json"):
        (unfinished / name).write_text((teacher / name).read_text())
    places = {"TEACHER": str(teacher), "UNFINISHED": str(unfinished)}
    flags = [places.get(flag, flag) for flag in flags]
    with pytest.raises(SystemExit) as exit_:
        distill.main(["--config", str(config), *SHORT, "--out", str(tmp_path / "out"), *flags])
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert exit_.value.code == 2 and len(errors) == 1 and errors[0].startswith("error: ")
    assert all(word in errors[0] for word in words) and not (tmp_path / "out").exists()


def test_the_teachers_folder_is_not_overwritten(teacher, config, capsys):
    before = (teacher / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit) as exit_:
        learn(teacher, config, teacher, "--overwrite")
    assert exit_.value.code == 2 and "is --teacher itself: choose another --out" in capsys.readouterr().err
    assert (teacher / "model.safetensors").read_bytes() == before


def test_given_by_needs_to_be_the_only_one_who_says(tmp_path, teacher, capsys):
    flags = ["--data.name", "folder", "--data.probs", "x", "--teacher", str(teacher), "--out", str(tmp_path)]
    assert "exclude each other" in refused(train.main, flags, capsys)
