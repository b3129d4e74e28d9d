"""What somebody new does wrong: a message names what was meant, and a stopped job says how to go on."""

import importlib
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from jobs import refused
from safetensors.torch import load_file
from small_clip import paint_images, save_clip

from debias_ssl import cli, compare, configs, label, predict, report, train


@pytest.fixture
def flags(tmp_path: Path) -> dict[str, str]:
    """Those of `label`, without a model."""
    paint_images(tmp_path / "images")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    names = {"images": "images", "classes": "classes.txt", "out": "out"}
    return {name: str(tmp_path / place) for name, place in names.items()} | {"workers": "0", "precision": "fp32"}


def line(flags: dict[str, str], **changed: str) -> list[str]:
    return [f"--{name}={value}" for name, value in {**flags, **changed}.items()]


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (train.main, "--config digits --stpes 3", "--stpes 3; near it: --steps"),
        (train.main, "--config digits --stpes=3", "--stpes=3; near it: --steps"),
        (train.main, "--config digits --data.labled a", "near it: --data.labeled"),
        (train.main, "--config digits steps 3", "near it: --steps"),
        (train.main, "--config digits --method.strenth 1", "'strenth' is not accepted; near it: strength (--method.h"),
        (train.main, "--config digits --method FixMach", "no method 'FixMach'; near it: FixMatch"),
        (train.main, "--config digts", "no config of this name comes with the package; near it: digits"),
        (configs.main, "--copy digts", "near it: digits"),
        (compare.main, "--config digits --methds FixMatch", "near it: --methods"),
        (compare.main, "--config digits --method FixMatch,UDA", "for several, pass --methods FixMatch,UDA\n"),
        (label.main, "--images a --clases b --model c --out d", "near it: --classes"),
        (
            label.main,
            "--images a --classes b --model c --out d --prior stationry",
            "expected one of 'auto', 'none', 'marginal', 'fixed_point', 'momentum', 'confidence', 'stationary', "
            "'transport', 'centering', 'content_free', got 'stationry'",
        ),
    ],
)
def test_a_message_about_an_unknown_name_shows_those_near_it(main, arguments: str, words: str, capsys):
    message = refused(main, arguments.split(), capsys)
    assert words in message and message.count("near it") <= 1, message


@pytest.mark.parametrize(("text", "name"), [("stepz: 3", "steps"), ("data: {labled: a}", "data.labeled")])
def test_so_does_one_about_a_file(text: str, name: str, tmp_path: Path, capsys):
    (tmp_path / "bad.yaml").write_text(text)
    assert f"near it: {name}" in refused(train.main, ["--config", str(tmp_path / "bad.yaml")], capsys)


def test_so_does_one_about_a_job(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["debias-ssl", "labl"])
    assert "no job 'labl'; near it: label" in refused(lambda _: cli.main(), [], capsys)


def test_so_does_one_about_a_path(tmp_path: Path, flags: dict[str, str], capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text("{}")
    said = "holds no run: there is no such folder; near it: mine"
    assert refused(report.main, [str(tmp_path / "mime")], capsys).count(said) == 1
    assert not (tmp_path / "mime").exists()
    run = ["--run", str(tmp_path / "mime"), "--images", "a", "--out", "b"]
    assert refused(predict.main, run, capsys).count(said) == 1
    model = "local-dir:nowhere"
    there = line(flags, model=model, images=str(tmp_path / "imags" / "ant"))
    assert "there is no such folder or file; near it: images\n" in refused(label.main, there, capsys)
    there = line(flags, model=model, classes=str(tmp_path / "clases.txt"))
    assert "there is no such file; near it: classes.txt; a file" in refused(label.main, there, capsys)


def test_a_folder_of_other_files_is_told_with_their_kinds(tmp_path: Path, flags: dict[str, str], capsys):
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt", "c.csv"):
        (tmp_path / "texts" / name).write_text("x")
    there = line(flags, images=str(tmp_path / "texts"), model="local-dir:nowhere")
    assert "it has no images (left out: 2 .txt, 1 .csv)\n" in refused(label.main, there, capsys)


def test_a_folder_as_the_model_is_told_how_to_pass_it(tmp_path: Path, flags: dict[str, str], capsys):
    folder = tmp_path / "clip"
    folder.mkdir()
    there = line(flags, model=str(folder))
    assert f"{folder} is a folder: pass --model local-dir:{folder}\n" in refused(label.main, there, capsys)


@pytest.fixture
def silent_hub(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A hub that takes connections and never answers; gives its cache, which is empty."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        yield tmp_path / "hub"


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("hf-hub:somebody/clip", "hf-hub:somebody/clip"),
        ("ViT-B-32-quickgelu --pretrained=openai", "ViT-B-32-quickgelu --pretrained openai"),
    ],
)
def test_without_a_network_label_says_at_once_what_to_do(model: str, named: str, flags, silent_hub: Path, capsys):
    started = time.perf_counter()
    message = refused(label.main, [*line(flags), *f"--model={model}".split()], capsys)
    assert f"--model {named} cannot be loaded: it is not in the cache, and {constants.ENDPOINT} cannot be r" in message
    assert "without a network, pass --model local-dir:FOLDER" in message
    # The package of the hub alone takes half a minute for each of several files.
    assert time.perf_counter() - started < 20
    assert not constants.HF_HUB_OFFLINE


def test_where_the_hub_may_not_be_asked_the_message_says_so(flags, monkeypatch, silent_hub: Path, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refused(label.main, line(flags, model="hf-hub:somebody/clip"), capsys)
    assert "it is not in the cache, and HF_HUB_OFFLINE is set; without a network" in message


def test_without_a_network_weights_in_the_cache_are_used(flags, tmp_path: Path, monkeypatch, silent_hub: Path, capsys):
    monkeypatch.setattr(label, "_page", lambda *_: "")
    save_clip(tmp_path / "clip")
    snapshot = silent_hub / "models--somebody--clip" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    shutil.copy(tmp_path / "clip" / "open_clip_config.json", snapshot)
    # Before this name, open_clip asks the hub for another one, which is not there.
    torch.save(load_file(tmp_path / "clip" / "open_clip_model.safetensors"), snapshot / "open_clip_pytorch_model.bin")
    started = time.perf_counter()
    label.main(line(flags, model="hf-hub:somebody/clip"))
    assert time.perf_counter() - started < 20
    out = Path(flags["out"])
    assert (out / "labels.csv").is_file()
    assert capsys.readouterr().out.endswith(f"\n{out}; its page: {out / 'report.html'}\n")


def interrupted(start: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> str:
    """What a job says that ends after Ctrl-C."""
    with pytest.raises(SystemExit) as exit_:
        start()
    assert exit_.value.code == 128 + signal.SIGINT
    return capsys.readouterr().err


def ctrl_c(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_label_says_after_ctrl_c_how_to_go_on(flags, monkeypatch, capsys):
    monkeypatch.setattr(label, "load_clip", ctrl_c)
    said = interrupted(lambda: label.main(line(flags, model="local-dir:nowhere")), capsys)
    assert said.endswith("SIGINT: stopped; the same command goes on\n")


def test_ctrl_c_during_the_imports_shows_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(importlib, "import_module", ctrl_c)
    monkeypatch.setattr(sys, "argv", ["debias-ssl", "train"])
    assert interrupted(cli.main, capsys) == "SIGINT: stopped\n"
