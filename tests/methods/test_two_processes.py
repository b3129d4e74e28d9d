"""State of methods: two processes hold what one does, on parts of a batch of unequal contents."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launched import run_ranks
from torch import Tensor

from debias_ssl.methods import (
    CCL,
    CPG,
    DASO,
    SCAD,
    AdaMatch,
    DyTrim,
    EvenMatch,
    FineSSL,
    FixMatch,
    FlexMatch,
    FreeMatch,
    Problem,
    SimPro,
    SoftMatch,
    View,
    Views,
)

STEPS = 3


def views_of(step: int, rank: int, num_processes: int) -> Views:
    """This process's part of a batch in which classes are sorted, so that the first part has others than the second."""
    generator = torch.Generator().manual_seed(step)

    def view(classes: Tensor) -> View:
        logits = torch.randn(len(classes), 4, generator=generator) + 3 * torch.eye(4)[classes]
        features = torch.randn(len(classes), 2, generator=generator)
        # A leaf, for its gradient.
        logits = logits.chunk(num_processes)[rank].clone().requires_grad_()
        return View(logits=logits, features=features.chunk(num_processes)[rank])

    labels, truth = torch.arange(8) // 3, torch.arange(24) // 10
    labeled, weak = view(labels), view(truth)
    return Views(
        labeled=labeled,
        labels=labels.chunk(num_processes)[rank],
        weak=replace(weak, logits=weak.logits.detach()),
        strong=view(truth),
        index=torch.arange(24).chunk(num_processes)[rank],
        progress=step / STEPS,
        strong_labeled=view(labels),
        draws=torch.rand(24, generator=generator).chunk(num_processes)[rank],
    )


def trained(rank: int = 0, num_processes: int = 1) -> dict[str, Any]:
    problem = Problem(num_classes=4, num_features=2, labeled_counts=(3, 3, 2, 1), num_unlabeled=24)
    # Of parameters that methods have of their own.
    torch.manual_seed(0)
    found = {}
    for method in (
        SimPro(problem, threshold=0.6, momentum=0.5),
        DASO(problem, threshold=0.6, momentum=0.5),
        FlexMatch(problem, threshold=0.8),
        FreeMatch(problem, momentum=0.5),
        SoftMatch(problem, momentum=0.5),
        AdaMatch(problem, momentum=0.5),
        EvenMatch(problem, momentum=0.5),
        FineSSL(problem),
        CCL(problem, threshold=0.6, negative_energy=3.0, warm_up=0.0, window=0.3),
        CPG(problem, threshold=0.5, warm_up=0.0, window=0.3),
        SCAD(problem, superclasses=["a", "a", "b", "b"], threshold=0.6),
        # Two images of the first class are left out, both in the first part.
        DyTrim(replace(problem, labeled_counts=(6, 1, 1, 1)), base=partial(FixMatch, threshold=0.6), blank=None),
    ):
        views = [views_of(k, rank, num_processes) for k in range(STEPS)]
        steps = [method(each) for each in views]
        losses = {name: torch.stack([step.losses[name] for step in steps]) for name in steps[0].losses}
        last = torch.stack([*steps[-1].losses.values()]).sum()
        (gradient,) = torch.autograd.grad(last, views[-1].labeled.logits)
        losses = {name: loss.detach() for name, loss in losses.items()}
        found[type(method).__name__] = {"state": method.state_dict(), "losses": losses, "gradient": gradient}
    return found


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(trained(rank, 2), folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(work, folder)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


METHODS = "SimPro DASO FlexMatch FreeMatch SoftMatch AdaMatch EvenMatch FineSSL CCL CPG SCAD DyTrim"


@pytest.mark.parametrize("name", METHODS.split())
def test_two_processes_agree_with_one(name, two):
    expected = trained()[name]
    first, second = (each[name] for each in two)
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)
    torch.testing.assert_close(first["state"], expected["state"])
    # Of a mean over half of the images, the gradient of each is twice that of the mean over all.
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]) / 2, expected["gradient"])
    # The loss of the labeled images is the mean over parts of equal size, like that of the others.
    for key, loss in expected["losses"].items():
        torch.testing.assert_close((first["losses"][key] + second["losses"][key]) / 2, loss)
        # Of the global batch's fairness, every process has the whole.
        assert key in ("align", "fairness") or not first["losses"][key].allclose(second["losses"][key])
