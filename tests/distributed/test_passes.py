"""Two processes compute what one does, however the images of a step pass through the network, compiled or not."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launched import run_ranks
from test_distributed import STEPS, batch_of, learner_of, wrapped

from debias_ssl.contract import Place
from debias_ssl.training.optim import OptimConfig, make_optimizer

PASSES: dict[str, dict[str, Any]] = {
    "accumulation": {"accumulation": 2},
    "joint pass": {"joint_pass": True},
    "averaged model": {"target_model": "ema"},
    "all": {"accumulation": 2, "target_model": "ema"},
    "counted": {"counted": True},
    "all, counted": {"accumulation": 2, "target_model": "ema", "counted": True},
}
Found = dict[str, dict[str, Any]]


def trained(place: Place, *, compiled: bool) -> Found:
    """For each way, the state after a few steps, the gradient of the first and whether pseudo-labels passed."""
    found = {}
    for name, settings in PASSES.items():
        learner = learner_of("group", **settings)
        if compiled:
            learner.compile_networks()
        shared, optimizer = wrapped(learner, place), make_optimizer(learner, OptimConfig(lr=0.05))
        passed, gradients = 0.0, {}
        for k in range(STEPS):
            step = shared(batch_of(k, place), k / STEPS)
            torch.stack([*step.losses.values()]).sum().backward()
            passed += step.pseudo.weight.sum().item()
            if k == 0:
                gradients = {n: p.grad.clone() for n, p in learner.raw.named_parameters() if p.grad is not None}
            optimizer.step()
            optimizer.zero_grad()
            learner.after_step(k)
        found[name] = {"state": learner.state_dict(), "gradients": gradients, "passed": passed}
    return found


def work(rank: int, folder: Path, compiled: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(trained(Place(rank=rank, num_processes=2), compiled=compiled), folder / f"{rank}.pth")
    dist.destroy_process_group()


def of_two(folder: Path, *, compiled: bool) -> list[Found]:
    run_ranks(work, folder, compiled)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def one() -> Found:
    return trained(Place(), compiled=False)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return of_two(tmp_path_factory.mktemp("two"), compiled=False)


def agree(one: Found, two: list[Found], tolerance: float) -> None:
    for name in PASSES:
        assert 0 < sum(each[name]["passed"] for each in two) == one[name]["passed"] < STEPS * 16, name
        for each in two:
            torch.testing.assert_close(each[name]["gradients"], one[name]["gradients"], rtol=tolerance, atol=1e-6)
            torch.testing.assert_close(each[name]["state"], one[name]["state"], rtol=tolerance, atol=1e-5)
        first, second = (each[name]["state"] for each in two)
        assert all(torch.equal(first[key], second[key]) for key in first), name


def test_two_processes_do_what_one_does(one: Found, two: list[Found]):
    agree(one, two, 1e-4)


def test_the_ways_differ_where_they_should(one: Found):
    """Without that, the above would compare one way with itself."""
    states = {name: each["state"]["raw.model.net.fc.weight"] for name, each in one.items()}
    # Group norm mixes no images, so that parts and a joint pass change nothing but rounding.
    torch.testing.assert_close(states["accumulation"], states["joint pass"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(states["averaged model"], states["joint pass"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(states["all"], states["averaged model"], rtol=1e-4, atol=1e-5)
    # So do strong views that do not count, and do not pass.
    torch.testing.assert_close(states["counted"], states["joint pass"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states["all, counted"], states["all"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
def test_two_compiled_processes_do_what_one_does_that_is_not(one: Found, tmp_path: Path):
    agree(one, of_two(tmp_path, compiled=True), 1e-3)
