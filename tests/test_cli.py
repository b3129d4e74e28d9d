"""Commands: what is refused, how it is said, and that nothing is written then."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from jobs import refused
from launched import DIGITS

from debias_ssl import cli, evaluate, predict, report, train
from debias_ssl.data import __main__ as data

ROOT = Path(__file__).parent.parent
SHORT = ["--steps", "2", "--log_every", "1", "--eval_every", "2", "--checkpoint_every", "2"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nope", "3"], ["--nope"]),
        (["--optim.lr", "fast"], ["optim.lr", "float", "fast"]),
        (["--optim.lr", "-1"], ["optim.lr", "-1"]),
        (["--steps", "0"], ["steps", "at least 1"]),
        (["--steps", "1.5"], ["steps", "int"]),
        (["--method", "Nope"], ["Nope", "DebiasPL", "FixMatch"]),
        pytest.param(
            ["--method", "os.getcwd"],
            ["os.getcwd", "DebiasPL", "FixMatch"],
            # jsonargparse warns programmers that functions without a type are no longer callables of a type.
            marks=pytest.mark.filterwarnings("ignore:"),
        ),
        (["--method.strenth", "1"], ["strenth"]),
        (["--model.name", "resnet1"], ["resnet1", "resnet18"]),
        (["--model.weights", "nowhere.safetensors"], ["model.weights", "nowhere.safetensors"]),
        (["--data.name", "folder", "--data.labeled", "nowhere", "--data.test", "nowhere"], ["data.labeled", "nowhere"]),
        (["--data.name", "CIFAR10", "--data.root", "nowhere"], ["CIFAR10", "--data.download true"]),
        (["--data.labels_per_class", "1000"], ["115 images", "1000"]),
        (["--data.labeled_imbalance", "0.1"], ["data.labeled_imbalance", "0.1"]),
        (["--data.augment.shift", "2"], ["data.augment.shift"]),
        (["--data.split", "nowhere.json"], ["nowhere.json"]),
        (["--data.mean", "[0.1,0.2,0.3]"], ["data.mean", "1"]),
        (["--precision", "fp16"], ["fp16", "GPU"]),
        (["--model.norm", "sync"], ["model.norm", "GPUs"]),
        (["--accumulation", "64"], ["accumulation", "32"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (["--log_with", "[wandb]"], ["wandb", "debias-ssl[wandb]"]),
    ],
)
def test_bad_settings_are_refused_in_two_lines(flags: list[str], words: list[str], tmp_path: Path, capsys):
    out = tmp_path / "out"
    message = refused(train.main, ["--config", str(DIGITS), "--out", str(out), *SHORT, *flags], capsys)
    assert all(word in message for word in words), message
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3", ["stepz"]),
        ("steps: [3", ["bad.yaml", "line 1"]),
        ("optim: {lr: x}", ["optim.lr"]),
        ("3", ["bad.yaml"]),
    ],
)
def test_bad_files_are_refused_in_two_lines(text: str, words: list[str], tmp_path: Path, capsys):
    (tmp_path / "bad.yaml").write_text(text)
    message = refused(train.main, ["--config", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "out")], capsys)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_empty_class_folder_is_refused(tmp_path: Path, capsys):
    (tmp_path / "tree" / "cat").mkdir(parents=True)
    flags = ["--data.name=folder", f"--data.labeled={tmp_path / 'tree'}", f"--data.test={tmp_path / 'tree'}"]
    message = refused(train.main, [*flags, "--out", str(tmp_path / "out")], capsys)
    assert "cat" in message and not (tmp_path / "out").exists()


def test_a_run_is_not_overwritten(tmp_path: Path, capsys):
    arguments = ["--config", str(DIGITS), *SHORT, "--out", str(tmp_path / "a")]
    train.main(arguments)
    (tmp_path / "a" / "mine.txt").write_text("kept")
    before = (tmp_path / "a" / "metrics.jsonl").read_text()
    message = refused(train.main, arguments, capsys)
    assert "--resume" in message and "--overwrite" in message
    message = refused(train.main, [*arguments, "--resume", "--optim.lr", "0.01"], capsys)
    assert "optim.lr was 0.03, now it is 0.01" in message
    assert (tmp_path / "a" / "metrics.jsonl").read_text() == before
    train.main([*arguments, "--resume"])
    assert "is finished" in capsys.readouterr().out
    train.main([*arguments, "--overwrite", "--optim.lr", "0.01"])
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["optim"]["lr"] == 0.01
    assert (tmp_path / "a" / "mine.txt").read_text() == "kept"


def test_resume_refuses_other_data(tmp_path: Path, capsys):
    arguments = ["--config", str(DIGITS), *SHORT, "--out", str(tmp_path / "a")]
    train.main(arguments)
    (tmp_path / "a" / "summary.json").unlink()
    split = tmp_path / "a" / "split.json"
    split.write_text(re.sub(r'"fingerprint": "...', '"fingerprint": "xyz', split.read_text()))
    assert "fingerprint differs" in refused(train.main, [*arguments, "--resume"], capsys)


def test_a_flag_beats_the_file_and_the_file_the_default(tmp_path: Path):
    train.main(["--config", str(DIGITS), *SHORT, "--out", str(tmp_path / "a"), "--optim.lr", "0.01"])
    saved = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert saved["optim"]["lr"] == 0.01 and saved["batch_size"] == 32 and saved["optim"]["name"] == "sgd"
    assert saved["method"] == {
        "class_path": "DebiasPL",
        "init_args": {"threshold": 0.95, "strength": 0.5, "momentum": 0.99, "unlabeled_weight": 1.0, "num_views": 1}
        | {"assist_threshold": None, "base": None},
    }


def test_switching_the_method_tells_what_was_kept_and_dropped(tmp_path: Path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("method: {class_path: DebiasPL, init_args: {threshold: 0.8, strength: 0.3}}\n")
    arguments = ["--config", str(DIGITS), "--config", str(config), *SHORT, "--out", str(tmp_path / "a")]
    train.main([*arguments, "--method", "FixMatch"])
    note = next(line for line in capsys.readouterr().err.splitlines() if "c.yaml" in line)
    assert "kept threshold=0.8" in note and "dropped momentum, strength" in note
    saved = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["method"]
    alignment = {"prior": None, "prior_momentum": 0.99}
    assert saved == {"class_path": "FixMatch", "init_args": {"threshold": 0.8, "unlabeled_weight": 1.0, **alignment}}


def test_a_users_own_method_is_named_by_its_path(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from debias_ssl.methods import FixMatch\nclass Mine(FixMatch):\n    '''Same.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    train.main(["--config", str(DIGITS), *SHORT, "--out", str(tmp_path / "a"), "--method", "mine.Mine"])
    assert yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())["method"]["class_path"] == "mine.Mine"


def test_predict_refuses_an_unfinished_run_and_an_existing_file(tmp_path: Path, capsys):
    (tmp_path / "o.csv").write_text("mine")
    (tmp_path / "run").mkdir()
    arguments = ["--run", str(tmp_path / "run"), "--images", str(tmp_path / "run"), "--out", str(tmp_path / "o.csv")]
    assert "--overwrite" in refused(predict.main, arguments, capsys)
    assert "holds no run" in refused(predict.main, [*arguments, "--overwrite"], capsys)
    assert (tmp_path / "o.csv").read_text() == "mine"


def test_no_job_writes_over_a_folder(tmp_path: Path, capsys):
    (tmp_path / "keep").mkdir()
    out = ["--out", str(tmp_path / "keep"), "--overwrite"]
    for main, flags in (
        (predict.main, ["--run", "x", "--images", "x"]),
        (data.main, ["split", "--config", str(DIGITS)]),
        (report.main, [str(DIGITS.parent)]),
        (evaluate.main, ["--predictions", "x.npy", "--truth", "x.csv"]),
    ):
        assert "is a folder: name a file" in refused(main, [*flags, *out], capsys)
    assert [*tmp_path.iterdir()] == [tmp_path / "keep"]


def test_nothing_is_resumed_where_there_is_nothing(tmp_path: Path, capsys):
    message = refused(train.main, ["--resume", "--out", str(tmp_path / "typo")], capsys)
    assert "holds no run to resume" in message and not (tmp_path / "typo").exists()
    assert "--config FILE" in refused(train.main, [], capsys)


def test_a_package_is_a_command(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "debias_ssl", "--version"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout.strip()


def test_help_names_every_job_without_importing_torch():
    code = (
        "import sys, debias_ssl.cli as c; sys.argv = ['debias-ssl', '--help']; c.main(); print('torch' in sys.modules)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 10
    assert all(job in done.stdout for job in cli.JOBS) and done.stdout.endswith("False\n")


def test_an_unknown_job_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["debias-ssl", "trian"])
    assert "train" in refused(lambda _: cli.main(), [], capsys)


def test_accelerate_launch_works_as_the_readme_says(tmp_path: Path):
    command = ["accelerate.commands.launch", "--num_processes", "1", "--cpu", "-m", "debias_ssl.train"]
    flags = ["--config", str(DIGITS), *SHORT, "--optim.lr", "0.01"]
    done = subprocess.run([sys.executable, "-m", *command, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((tmp_path / "runs" / "digits" / "config.yaml").read_text())
    assert saved["optim"]["lr"] == 0.01 and (tmp_path / "runs" / "digits" / "summary.json").exists()


def test_a_reader_may_stop_reading_the_list_of_jobs():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "debias_ssl", "--help"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
