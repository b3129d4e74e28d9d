"""Processes of whose images different numbers count, or none, take the same steps as one with all strong views."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launched import run_ranks
from test_distributed import batch_of, learner_of, wrapped
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.methods import FreeMatch, Problem, PseudoLabels, Views
from debias_ssl.training.optim import OptimConfig, make_optimizer

# Of 16 images, of which the first process has the first eight: how many of the first count in each step.
NUM_COUNTED = (8, 3, 0, 16, 11)
# What passes of two images each: of one process, and of two.
SHARES = [[8 / 16, 3 / 16, 0, 1, 11 / 16], [1, 3 / 8, 0, 1, 1], [0, 0, 0, 1, 3 / 8]]


class FirstCount(FreeMatch):
    """FreeMatch, whose fairness is of the views of all processes; images count by their places."""

    def __init__(self, problem: Problem):
        super().__init__(problem, momentum=0.5, fairness_weight=1.0)
        self.number = 0

    def pseudo_labels(self, logits: Tensor, views: Views) -> PseudoLabels:
        target = super().pseudo_labels(logits, views).target
        return PseudoLabels(target=target, weight=(views.index < self.number).float())


def trained(place: Place, **settings: Any) -> dict[str, Any]:
    """The shares of strong views that passed, losses and gradients of all steps, and the state after them."""
    learner = learner_of("group", FirstCount, **settings)
    shared, optimizer = wrapped(learner, place), make_optimizer(learner, OptimConfig(lr=0.05))
    shares, losses, gradients = [], [], []
    for k, number in enumerate(NUM_COUNTED):
        assert isinstance(learner.raw.method, FirstCount)
        learner.raw.method.number = number
        step = shared(batch_of(k, place), k / len(NUM_COUNTED))
        torch.stack([*step.losses.values()]).sum().backward()
        shares.append(step.strong_share)
        losses.append({name: loss.detach() for name, loss in step.losses.items()})
        gradients.append({n: p.grad.clone() for n, p in learner.raw.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(k)
    return {"shares": shares, "losses": losses, "gradients": gradients, "state": learner.state_dict()}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(trained(Place(rank=rank, num_processes=2), counted=True), folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of one process with all strong views, of one with those that count, and of each of two."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(work, folder)
    two = [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]
    return [trained(Place()), trained(Place(), counted=True), *two]


def test_each_process_passes_what_counts_of_its_own(found: list[dict[str, Any]]):
    assert [each["shares"] for each in found] == [[1.0] * 5, *SHARES]


def test_gradients_and_state_are_those_of_one_process_with_all_strong_views(found: list[dict[str, Any]]):
    whole, *others = found
    for each in others:
        torch.testing.assert_close(each["gradients"], whole["gradients"], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(each["state"], whole["state"], rtol=1e-3, atol=1e-5)
    first, second = (each["state"] for each in others[1:])
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_losses_are_the_means_of_those_of_two_processes(found: list[dict[str, Any]]):
    whole, _, *two = found
    for k, losses in enumerate(whole["losses"]):
        for name, loss in losses.items():
            mean = sum(each["losses"][k][name] for each in two) / 2
            torch.testing.assert_close(mean, loss, rtol=1e-4, atol=1e-5)
