"""What makes a step faster changes no result: the losses of fifty steps, beside those of torch's plain operations."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from debias_ssl.distributed.accelerator import make_accelerator
from debias_ssl.distributed.device import keep_freed_memory
from debias_ssl.methods import DebiasPL, Method, Problem
from debias_ssl.training.optim import OptimConfig, make_optimizer


def debiaspl(problem: Problem) -> Method:
    return DebiasPL(problem, threshold=0.4, momentum=0.9)


def losses(make_learner, make_batch, *, plain: bool = False, precision: str = "fp32") -> Tensor:
    """Losses of fifty steps, one row each; `plain` is torch's default layout, and its loop over parameters."""
    learner = make_learner(debiaspl)
    if not plain:
        learner.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(learner, OptimConfig())
    for group in optimizer.param_groups:
        group["fused"] = group["fused"] and not plain
    rows = []
    for step in range(50):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            found = learner(make_batch(labeled=8, unlabeled=24, seed=step % 5), step / 50).losses
        torch.stack([*found.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(step)
        rows.append(torch.stack([*found.values()]).detach())
    return torch.stack(rows)


def test_layout_and_fused_optimizer_change_losses_by_rounding_alone(make_learner, make_batch):
    plain, fast = losses(make_learner, make_batch, plain=True), losses(make_learner, make_batch)
    assert plain[0].sum() > 2 * plain[-1].sum(), "nothing was learned"
    assert plain[:, 1].count_nonzero() > 25, "unlabeled images did not count"
    # The first step sees another order of additions; fifty make at most this of it.
    torch.testing.assert_close(fast[0], plain[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


def test_half_precision_changes_losses_by_little(make_learner, make_batch):
    whole, half = losses(make_learner, make_batch), losses(make_learner, make_batch, precision="bf16")
    assert not torch.equal(whole, half)
    assert (whole[:, 0] - half[:, 0]).abs().max() < 0.1
    assert (whole.sum(1).mean() - half.sum(1).mean()).abs() < 0.05


def test_kept_memory_leaves_every_bit_alone(make_learner, make_batch):
    before = losses(make_learner, make_batch)
    keep_freed_memory()
    assert torch.equal(before, losses(make_learner, make_batch))


def test_an_environment_that_sets_the_allocator_is_obeyed(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not keep_freed_memory()
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    assert not keep_freed_memory()


def test_parameters_off_the_known_devices_get_the_plain_optimizer():
    module = torch.nn.Linear(2, 2, device="meta")
    for name in ("sgd", "adamw"):
        assert make_optimizer(module, OptimConfig(name=name)).param_groups[0]["fused"] is None
        assert make_optimizer(torch.nn.Linear(2, 2), OptimConfig(name=name)).param_groups[0]["fused"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "5"}, "5")],
)
def test_waiting_threads_spin_for_a_short_time_unless_the_environment_says_how_long(
    given: dict[str, str], expected: str
):
    code = "import debias_ssl, os, sys; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | given
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_is_bf16_where_the_processor_multiplies_in_it(has_bf16: bool, expected: str, monkeypatch):
    monkeypatch.setattr("debias_ssl.distributed.accelerator.computes_in_bf16", lambda device: has_bf16)
    assert make_accelerator("auto").mixed_precision == expected
    assert make_accelerator("fp32").mixed_precision == "no"
