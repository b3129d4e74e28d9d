"""Runs in fp16: losses are scaled, steps that overflow are left out, and a resumed run goes on with the scale.

Accelerate computes in fp16 on GPUs only. torch itself does on a CPU too, autocast and scaler: here Accelerate is told
that it may.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jobs import refused, run, same, weights
from torch import Tensor

import debias_ssl.runs.run as run_module
from debias_ssl.training.journal import read_journal
from debias_ssl.training.optim import OptimConfig, make_optimizer

STEPS = 8
TINY = ["--batch_size", "8", "--unlabeled_ratio", "2", "--steps", str(STEPS), "--optim.clip", "1"]
TINY += [
    "--log_every",
    "1",
    "--eval_every",
    "10",
    "--checkpoint_every",
    "1",
    "--keep_checkpoints",
    "9",
    "--precision",
    "fp16",
]
# With this scale, gradients of some activations are above the largest number in fp16, 65,504.
TOO_LARGE = 2.0**18


@pytest.fixture(scope="module", autouse=True)
def in_fp16() -> Iterator[None]:
    make_accelerator = run_module.make_accelerator

    def on_cpu(precision: Any, *arguments: Any) -> Any:
        accelerator = make_accelerator("fp32", *arguments)
        if precision == "fp32":
            return accelerator
        accelerator.state._mixed_precision = "fp16"
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=TOO_LARGE, growth_interval=3)  # pyright: ignore[reportPrivateImportUsage]
        return accelerator

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_accelerator", on_cpu)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("half") / "a", *TINY)


def scaler_of(out: Path, step: int) -> dict[str, Any]:
    return json.loads((out / "checkpoints" / f"step_{step:08d}" / "state.json").read_text())["scaler"]


def parameters(out: Path, step: int) -> dict[str, Tensor]:
    """Of the trained network, without statistics."""
    found = weights(out, step).items()
    return {name: value for name, value in found if name.startswith("raw.model.net.") and name.endswith("weight")}


def test_the_network_computes_in_half_precision(whole: Path, tmp_path: Path, capfd):
    full = run(tmp_path / "a", *TINY, "--steps", "1", "--precision", "fp32")
    assert "1 x cpu, fp32\n" in capfd.readouterr().err
    half, full = (read_journal(out / "metrics.jsonl")[0]["loss"]["labeled"] for out in (whole, full))
    assert half != full and half == pytest.approx(full, rel=1e-3)


def test_steps_that_overflow_are_left_out_and_the_others_taken(whole: Path):
    scales = [TOO_LARGE, *(scaler_of(whole, step)["scale"] for step in range(1, STEPS + 1))]
    skipped = [after < before for before, after in itertools.pairwise(scales)]
    assert skipped[0] and not all(skipped)
    for step in range(2, STEPS + 1):
        before, after = parameters(whole, step - 1), parameters(whole, step)
        if skipped[step - 1]:
            assert same(before, after) and scales[step] == scales[step - 1] / 2
        else:
            moved = sum((after[name] - before[name]).square().sum().item() for name in after) ** 0.5
            # The gradient is clipped to 1 after its scale is taken out; with Nesterov's momentum of 0.9 a step is
            # below 0.03 (1 + 0.9 / (1 - 0.9)).
            assert 0.001 < moved < 0.3
    # After three steps without an overflow.
    assert any(after == 2 * before for before, after in itertools.pairwise(scales))


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_run_goes_on_bit_for_bit(step: int, whole: Path, tmp_path: Path):
    """After a step that was left out, when there is no momentum yet, and after others."""
    out = tmp_path / "a"
    shutil.copytree(whole, out)
    (out / "summary.json").unlink()
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(out / "checkpoints" / f"step_{later:08d}")
    run(out, *TINY, "--resume")
    assert same(weights(out, STEPS), weights(whole, STEPS)) and scaler_of(out, STEPS) == scaler_of(whole, STEPS)


def test_an_overflow_in_the_first_step_leaves_no_momentum():
    """torch's fused kernel begins its momentum with whatever is in memory then (LibreYOLO/libreyolo, pull 771)."""
    module = torch.nn.Linear(300, 300, bias=False)
    start = module.weight.detach().clone()
    optimizer = make_optimizer(module, OptimConfig(weight_decay=0.0), is_scaled=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # pyright: ignore[reportPrivateImportUsage]
    for gradient in (torch.inf, 1.0):
        scaler.scale(torch.zeros(1))
        module.weight.grad = torch.full_like(module.weight, gradient) * scaler.get_scale()
        # Memory that somebody had before, and gave back.
        for used in [torch.full((300, 300), 7e3) for _ in range(20)]:
            del used
        scaler.step(optimizer)
        scaler.update()
    # Nesterov: the gradient and 0.9 of it, at a rate of 0.03.
    torch.testing.assert_close(module.weight.detach(), start - 0.03 * 1.9)


def test_a_fused_sgd_is_refused(tmp_path: Path, capsys):
    flags = [*TINY, "--optim.args.fused", "true"]
    assert "optim.args.fused" in refused(lambda given: run(tmp_path / "a", *given), flags, capsys)
