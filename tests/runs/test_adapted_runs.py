"""Runs of adapters, from a file of weights to the jobs that read them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import refused, run, same, settings_of, weights
from safetensors.torch import load_file, save_file
from small_vit import small_vit
from torch import Tensor

import debias_ssl.runs.run as run_module
from debias_ssl import evaluate, load_run, train
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.load import load_data
from debias_ssl.finetune.__main__ import main as finetune

# Shifted by a pixel, digits of four patches look different to a network of two blocks.
BASE = ["--model.name", "small_vit.small_vit", "--data.augment.shift", "0", "--method", "Supervised"]
BASE += ["--data.labels_per_class", "75", "--data.validation_per_class", "5", "--batch_size", "64"]
BASE += ["--optim.name", "adamw", "--optim.lr", "0.01", "--ema_decay", "0.9", "--eval_every", "500"]
BASE += ["--model.batch_norm_momentum", "null"]
KINDS = ["lora", "adaptformer"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights, without a classifier of digits."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file({k: v for k, v in small_vit(10, 1).state_dict().items() if not k.startswith("head.")}, path)
    return path


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind of adapter."""
    folder, beside = tmp_path_factory.mktemp("runs"), ["--model.weights", str(base), "--checkpoint_every", "150"]
    return {kind: run(folder / kind, *BASE, *beside, "--model.adapter", kind, "--steps", "150") for kind in KINDS}


def exported(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def pixels_of_test() -> np.ndarray:
    pixels = load_data(DataConfig()).test.pixels
    assert pixels is not None
    return pixels


@each_kind
def test_a_small_vit_learns_digits_by_its_adapters(runs: dict[str, Path], kind: str):
    """A linear classifier on its features, which are random, gets 63 %."""
    assert json.loads((runs[kind] / "summary.json").read_text())["ema"]["last"]["accuracy"] > 0.75


@each_kind
def test_base_weights_are_those_of_the_file_after_training(runs: dict[str, Path], base: Path, kind: str):
    before, after = load_file(base), exported(runs[kind])
    with_lora = {f"blocks.{i}.{n}.weight" for i in range(2) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    for name, value in before.items():
        assert after[name].equal(value) != (kind == "lora" and name in with_lora), name
        if kind == "lora" and name in with_lora:
            values = torch.linalg.svdvals(after[name] - value)
            assert values[7] > 1e-3 and values[8] < 1e-5  # of rank 8
    added = {name for name in after if name not in before}
    adapters = {f"blocks.{i}.mlp.adapter.{n}.{p}" for i in range(2) for n in ("down", "up") for p in ("weight", "bias")}
    assert added == {"head.weight", "head.bias", *(adapters if kind == "adaptformer" else ())}


@each_kind
def test_checkpoints_hold_what_is_trained_alone(runs: dict[str, Path], kind: str):
    names = {name.split(".net.")[-1] for name in weights(runs[kind], 150)}
    assert {name for name in names if ".adapter." not in name} == {"head.weight", "head.bias", "marginal.value"}
    assert any(".adapter." in name for name in names)


@each_kind
def test_the_file_of_a_run_predicts_what_the_run_predicted(runs: dict[str, Path], kind: str, capsys):
    out, summary = runs[kind], json.loads((runs[kind] / "summary.json").read_text())
    probs = load_run(out).predict(pixels_of_test())
    logits = torch.from_numpy(np.load(out / "predictions" / "test_ema.npy"))
    torch.testing.assert_close(torch.from_numpy(probs), logits.softmax(-1), rtol=1e-5, atol=1e-5)
    evaluate.main(["--run", str(out)])
    assert f"accuracy      {100 * summary['ema']['last']['accuracy']:>8.2f} %" in capsys.readouterr().out


def test_a_run_of_lora_exports_a_plain_network(runs: dict[str, Path], tmp_path: Path):
    net = small_vit(10, 1)
    net.load_state_dict(exported(runs["lora"]))
    # Another run begins with it, without an adapter.
    file = ["--model.weights", str(runs["lora"] / "model.safetensors")]
    again = run(tmp_path / "b", *BASE, *file, "--optim.lr", "1e-9", "--steps", "1")
    torch.testing.assert_close(exported(again), exported(runs["lora"]), rtol=0, atol=1e-6)


def test_weights_with_adaptformer_begin_a_run_of_it_and_no_other(runs: dict[str, Path], tmp_path: Path, capsys):
    file = ["--model.weights", str(runs["adaptformer"] / "model.safetensors")]
    again = run(tmp_path / "b", *BASE, *file, "--model.adapter", "adaptformer", "--optim.lr", "1e-9", "--steps", "1")
    torch.testing.assert_close(exported(again), exported(runs["adaptformer"]), rtol=0, atol=1e-6)
    message = refused(train.main, [*BASE, *file, "--out", str(tmp_path / "c")], capsys)
    assert "set model.adapter to adaptformer and model.adapter_rank to 64" in message


@each_kind
def test_stage_two_changes_the_classifier_alone(runs: dict[str, Path], kind: str, tmp_path: Path):
    finetune(["--run", str(runs[kind]), "--method", "BiasSearch", "--out", str(tmp_path / "b")])
    before, after = exported(runs[kind]), exported(tmp_path / "b")
    assert {name for name in before if not before[name].equal(after[name])} <= {"head.weight", "head.bias"}
    assert before.keys() == after.keys()
    assert load_run(tmp_path / "b").predict(pixels_of_test()).shape == (599, 10)


@pytest.fixture
def killed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    """A run of 12 steps with checkpoints at 4 and 8 that died in its seventh, and its flags."""
    (tmp_path / "mine").mkdir()
    shutil.copy(base, tmp_path / "mine" / "model.safetensors")
    flags = [*BASE, "--model.weights", str(tmp_path / "mine" / "model.safetensors"), "--target_model", "ema"]
    flags += ["--method", "ABC", "--model.adapter", "lora", "--model.adapter_norms", "true"]
    after_step = run_module.Learner.after_step

    def dying(self, done: int) -> None:
        if done == 6:
            raise KeyboardInterrupt
        after_step(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Learner, "after_step", dying)
        with pytest.raises(SystemExit):
            run(tmp_path / "killed", *flags)
    return tmp_path / "killed", flags


def test_a_killed_run_ends_with_the_bits_of_an_unbroken_one(killed: tuple[Path, list[str]], tmp_path: Path):
    out, flags = killed
    whole = run(tmp_path / "whole", *flags)
    run(out, *flags, "--resume")
    assert same(weights(whole), weights(out)) and same(exported(whole), exported(out))


def test_a_run_that_finds_other_weights_in_its_file_is_told(killed: tuple[Path, list[str]], base: Path, capsys):
    out, flags = killed
    file = flags[flags.index("--model.weights") + 1]
    changed = load_file(file)
    changed["blocks.0.attn.proj.weight"] += 1e-6
    save_file(changed, file)
    message = refused(train.main, ["--out", str(out), "--resume"], capsys)
    assert "belongs to other frozen weights: pass the file that the run started with as --model.weights" in message
    # The file may be elsewhere.
    train.main(["--out", str(out), "--resume", "--model.weights", str(base)])
    assert (out / "summary.json").exists()


def test_the_first_lines_of_a_run_say_how_many_parameters_are_trained(tmp_path: Path, capsys):
    run(tmp_path / "a", *BASE, "--model.adapter", "lora", "--model.adapter_rank", "4", "--steps", "1")
    said = capsys.readouterr().err
    # r (in + out) of four layers in two blocks, and a classifier of ten classes.
    assert f"{2 * 4 * (128 + 64 + 160 + 160) + 330:,} of them trained" in said


@pytest.mark.parametrize("flags", [["--model.adapter", "lora"], ["--model.freeze", "backbone"]])
def test_frozen_weights_that_are_random_are_told(flags: list[str], tmp_path: Path, capsys):
    told = "the frozen weights are random"
    run(tmp_path / "a", *flags, "--steps", "1")
    assert told in capsys.readouterr().err
    run(tmp_path / "b", *flags, "--steps", "1", "--model.weights", str(tmp_path / "a" / "model.safetensors"))
    assert told not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.adapter_rank", "4"], "model.adapter_rank is 4, but there is no adapter"),
        (["--model.adapter", "lora", "--model.freeze", "backbone"], "set one of them to null"),
        (["--model.adapter", "lora", "--model.adapter_rank", "0"], "model.adapter_rank is 0, must be at least 1"),
        (["--model.adapter", "lore"], "model.adapter"),
        (
            ["--model.adapter", "adaptformer", "--model.name", "wrn_10_1"],
            "model.adapter adaptformer: the network has no",
        ),
    ],
)
def test_wrong_settings_of_adapters_are_told(flags: list[str], words: str, tmp_path: Path, capsys):
    message = refused(train.main, [*BASE, *flags, "--out", str(tmp_path / "a")], capsys)
    assert words in message and not (tmp_path / "a").exists()


def test_layer_decay_goes_by_the_blocks_of_adapters():
    config, _ = settings_of(*BASE, "--model.adapter", "lora", "--optim.layer_decay", "0.5")
    model = run_module.build(num_classes=10, in_chans=1, **vars(config.model))
    optimizer = run_module.make_optimizer(model, config.optim, model.net)
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    named = {name: scales[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert named["net.head.weight"] == 1
    assert {v for k, v in named.items() if "blocks.1." in k} == {0.5}
    assert {v for k, v in named.items() if "blocks.0." in k} == {0.25}
