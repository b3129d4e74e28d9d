"""Files of strangers: nothing in them is executed, no path leaves its root, no name becomes HTML."""

import io
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from harmful import Harmful
from jobs import refused, run
from launched import DIGITS, SHORT
from small_clip import paint_images, save_clip

from debias_ssl import evaluate, label, predict, report, train
from debias_ssl.data.sources.label_files import read_label_file, read_list
from debias_ssl.debias import main as debias_main
from debias_ssl.finetune.__main__ import main as finetune
from debias_ssl.system.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "a", "--data.validation_per_class", "2")


def payloads(trace: Path) -> dict[str, bytes]:
    """A harmful object as pickle, torch, NumPy and NumPy's archives write it."""
    harmful = Harmful(trace)
    by_torch, by_numpy, by_archive, by_zip = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(harmful, by_torch)
    np.save(by_numpy, np.array([harmful], dtype=object), allow_pickle=True)
    np.savez(by_archive, logits=np.array([harmful], dtype=object))
    with zipfile.ZipFile(by_zip, "w") as archive:
        archive.writestr("logits.npy", by_numpy.getvalue())
    return {
        "pickle": pickle.dumps(harmful),
        "torch": by_torch.getvalue(),
        "numpy": by_numpy.getvalue(),
        "archive": by_archive.getvalue(),
        "zip": by_zip.getvalue(),
    }


def attempt(job: Callable, arguments: list[str]) -> None:
    """A job may refuse, or do without the file; a traceback it may not have."""
    try:
        job(arguments)
    except SystemExit as exit_:
        assert exit_.code in (0, 1, 2)


def test_the_payload_would_run(tmp_path: Path):
    """Else nothing here says anything."""
    pickle.loads(payloads(tmp_path / "trace")["pickle"])
    assert (tmp_path / "trace").exists()


RUN_FILES = (
    "config.yaml",
    "split.json",
    "model.json",
    "model.safetensors",
    "method.safetensors",
    "summary.json",
    "metrics.jsonl",
)
RUN_FILES += ("predictions/test_ema.npy", "predictions/test_labels.npy", "predictions/validation_ema.npy")


@pytest.mark.parametrize("name", RUN_FILES)
def test_code_in_a_run_folder_is_not_executed(name, finished, tmp_path):
    trace = tmp_path / "trace"
    for kind, content in payloads(trace).items():
        folder = tmp_path / kind
        shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("checkpoints"))
        (folder / name).write_bytes(content)
        attempt(evaluate.main, ["--run", str(folder), "--out", str(tmp_path / f"{kind}.json")])
        attempt(report.main, [str(folder)])
        attempt(finetune, ["--run", str(folder), "--out", str(tmp_path / f"{kind}-tuned")])
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "parquet", "pkl"])
def test_code_in_predictions_is_not_executed(suffix, tmp_path, capsys):
    trace = tmp_path / "trace"
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(4, 2)))
    for kind, content in payloads(trace).items():
        path = tmp_path / f"{kind}.{suffix}"
        path.write_bytes(content)
        for flag in ("--predictions", "--classes", "--truth", "--target_prior"):
            given = {
                "--predictions": str(tmp_path / "good.npy"),
                "--out": str(tmp_path / f"{kind}{flag}"),
                flag: str(path),
            }
            refused(debias_main, [text for pair in given.items() for text in pair], capsys)
    assert not trace.exists()


# jsonargparse warns programmers that functions without a type are no longer callables of a type.
@pytest.mark.filterwarnings("ignore:")
def test_code_in_settings_is_not_executed(tmp_path, capsys):
    trace = tmp_path / "trace"
    texts = [
        f"method: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trace}']]\n",
        f"steps: !!python/object/apply:os.system ['touch {trace}']\n",
        f"method: {{class_path: os.system, init_args: {{command: 'touch {trace}'}}}}\n",
        f"method: {{class_path: subprocess.Popen, init_args: {{args: ['touch', '{trace}']}}}}\n",
        f"labeled_loss: {{class_path: subprocess.check_output, init_args: {{args: ['touch', '{trace}']}}}}\n",
    ]
    for text in texts:
        (tmp_path / "bad.yaml").write_text(text)
        refused(train.main, ["--config", str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "a")], capsys)
    assert not trace.exists()


def test_code_in_weights_that_users_bring_is_not_executed(tmp_path, capsys):
    trace = tmp_path / "trace"
    for kind, content in payloads(trace).items():
        for suffix in ("pth", "safetensors", "pt", "npz"):
            path = tmp_path / f"{kind}.{suffix}"
            path.write_bytes(content)
            arguments = ["--config", str(DIGITS), *SHORT, "--model.weights", str(path), "--out", str(tmp_path / "a")]
            refused(train.main, arguments, capsys)
    assert not trace.exists()


def test_code_in_caches_and_in_clips_weights_is_not_executed(tmp_path, monkeypatch):
    monkeypatch.setattr(label, "_page", lambda *_: "")
    trace = tmp_path / "trace"
    paint_images(tmp_path / "images", num=4)
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    model = save_clip(tmp_path / "clip")
    flags = ["--images", str(tmp_path / "images"), "--classes", str(tmp_path / "classes.txt"), "--workers", "0"]
    flags += ["--precision", "fp32", "--out", str(tmp_path / "out"), "--overwrite", "--model", model]
    label.main(flags)
    first = (tmp_path / "out" / "labels.csv").read_text()
    for content in payloads(trace).values():
        for name in ("shard_00000.npy", "manifest.json"):
            path = tmp_path / "out" / "features" / name
            before = path.read_bytes()
            path.write_bytes(content)
            attempt(label.main, flags)
            path.write_bytes(before)
        weights = tmp_path / "clip" / "open_clip_model.safetensors"
        before = weights.read_bytes()
        weights.write_bytes(content)
        attempt(label.main, [*flags, "--features", str(tmp_path / "others")])
        weights.write_bytes(before)
        bin_file = tmp_path / "weights.bin"
        bin_file.write_bytes(content)
        attempt(label.main, [*flags, "--pretrained", str(bin_file), "--features", str(tmp_path / "others")])
    assert not trace.exists()
    label.main(flags)
    assert (tmp_path / "out" / "labels.csv").read_text() == first


EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">'


def test_reports_escape_every_name(finished, tmp_path):
    folder = tmp_path / EVIL.replace("/", "_")
    shutil.copytree(finished, folder)
    for name in ("model.json", "split.json"):
        content = json.loads((folder / name).read_text())
        content["classes"] = [f"{EVIL}{k}" for k in range(10)]
        (folder / name).write_text(json.dumps(content))
    report.main([str(folder), "--out", str(tmp_path / "run.html")])
    second = tmp_path / "second"
    shutil.copytree(folder, second)
    settings = (second / "config.yaml").read_text()
    (second / "config.yaml").write_text(re.sub("(?m)^seed: .*", "seed: 7", settings))
    report.main([str(folder), str(second), "--out", str(tmp_path / "two.html")])
    np.save(tmp_path / "p.npy", np.random.default_rng(0).normal(size=(20, 2)))
    (tmp_path / "classes.json").write_text(json.dumps([f"{EVIL}0", f"{EVIL}1"]))
    debias_main(["--predictions", str(tmp_path / "p.npy"), "--out", str(tmp_path / "labels")])
    for page in ("run.html", "two.html", "labels/report.html"):
        html = (tmp_path / page).read_text()
        assert "alert(" in html, page
        assert "<script>alert" not in html and not re.search(r"<img[^>]*onerror", html), page


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/passwd",
        "a/../../secret.png",
        "a/../../images/../secret.png",
        # Other spellings of such names.
        "..\\secret.png",
        "%2e%2e/secret.png",
        "a%2F..%2F..%2Fsecret.png",
        "file:///etc/passwd",
        " ../secret.png",
        "%252e%252e/secret.png",
    ],
)
def test_paths_in_label_files_and_lists_stay_below_their_root(name, tmp_path):
    folder = tmp_path / "images"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "secret.png").touch()
    (folder / "labels.csv").write_text(f"path,label\n{name},x\n")
    (folder / "list.txt").write_text(f"{name}\n")
    for root in (None, folder):
        with pytest.raises(InputError, match=r"lies outside|there is no file"):
            read_label_file(folder / "labels.csv", root)
        with pytest.raises(InputError, match=r"lies outside|there is no file"):
            read_list(folder / "list.txt", root)
    # Nor does a list lead to where it lies itself, if the root is another folder.
    (tmp_path / "list.txt").write_text("secret.png\n")
    with pytest.raises(InputError, match="there is no file"):
        read_list(tmp_path / "list.txt", folder)


def test_nothing_goes_to_the_network_unless_asked(tmp_path, monkeypatch):
    """A run and labels of local files, with every connection refused."""
    import socket

    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments[1:])
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(label, "_page", lambda *_: "")
    train.main(["--config", str(DIGITS), *SHORT, "--steps", "2", "--out", str(tmp_path / "a")])
    paint_images(tmp_path / "images", num=4)
    images = ["--images", str(tmp_path / "images"), "--workers", "0"]
    predict.main(["--run", str(tmp_path / "a"), *images, "--out", str(tmp_path / "p.csv")])
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    flags = [*images, "--classes", str(tmp_path / "classes.txt"), "--precision", "fp32"]
    label.main([*flags, "--model", save_clip(tmp_path / "clip"), "--out", str(tmp_path / "out")])
    assert not tried
