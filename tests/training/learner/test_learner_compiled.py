"""The learner with a compiled network."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from debias_ssl.methods import DebiasPL, FixMatch, View


def test_compiling_names_nothing_anew(make_learner, tmp_path):
    learner = make_learner(DebiasPL)
    before = learner.state_dict().keys()
    learner.compile_networks()
    assert learner.state_dict().keys() == before


def test_evaluations_take_the_compiled_network(make_learner, make_batch, monkeypatch):
    passes = []

    def compiled(network):
        return lambda images: passes.append(network) or network(images)

    monkeypatch.setattr(torch, "compile", compiled)
    learner, images = make_learner(DebiasPL), make_batch().labeled
    learner.compile_networks()
    for predictor in (learner.ema, learner.raw):
        predictor.eval()(images)
    assert passes == [learner.ema.model, learner.raw.model]


@pytest.mark.parametrize("in_bf16", [True, False])
def test_predictions_take_the_network_alone_into_the_runs_precision(in_bf16, make_learner, make_batch):
    seen = {}

    class Telling(FixMatch):
        def predict(self, view: View, blank: View | None = None) -> Tensor:
            seen["method"] = torch.is_autocast_enabled("cpu")
            return super().predict(view, blank)

    predictor = make_learner(Telling).ema
    hook = predictor.model.register_forward_hook(lambda *_: seen.update(network=torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        logits = predictor(make_batch().labeled)
    hook.remove()
    assert seen == {"network": in_bf16, "method": False} and logits.dtype == torch.float32


# In a process of its own, because torch cannot trace the shape checks of the test run.
COMPILED = """
import torch
from torch import nn

from debias_ssl.contract import Batch, Problem
from debias_ssl.methods import DebiasPL
from debias_ssl.training.learner import Learner


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, images):
        features = torch.relu(self.norm(self.conv(images))).mean((2, 3))
        return self.fc(features), features


problem = Problem(num_classes=3, num_features=4, labeled_counts=(1, 1, 1), num_unlabeled=8)
results = []
for compiled in (False, True):
    torch.manual_seed(0)
    learner = Learner(Net(), DebiasPL(problem, threshold=0.35, momentum=0.5)).train()
    if compiled:
        learner.compile_networks()
    for step in range(2):
        images = torch.randn(20, 1, 8, 8)
        batch = Batch(
            labeled=images[:4],
            labels=torch.arange(4) % 3,
            weak=(images[4:12],),
            strong=(images[12:],),
            index=torch.arange(8),
            truth=torch.arange(8) % 3,
        )
        losses = learner(batch, 0.0).losses
        torch.stack([*losses.values()]).sum().backward()
        learner.after_step(step)
    results.append({**losses, **learner.state_dict(), **{k: p.grad for k, p in learner.raw.named_parameters()}})
assert losses["unlabeled"] > 0
torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
print("the same")
"""


# Any backend traces the same: this one needs no compiler.
SIZES = """
from functools import partial

import torch
from torch import nn

from debias_ssl.contract import Batch, Problem, PseudoLabels
from debias_ssl.methods import FixMatch
from debias_ssl.training.learner import Learner


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, images):
        features = torch.relu(self.conv(images)).mean((2, 3))
        return self.fc(features), features


class First(FixMatch):
    def pseudo_labels(self, logits, views):
        weight = (torch.arange(len(logits)) < views.progress * len(logits)).float()
        return PseudoLabels(target=logits.argmax(-1), weight=weight)


torch.compile = partial(torch.compile, backend="eager")
problem = Problem(num_classes=3, num_features=4, labeled_counts=(1, 1, 1), num_unlabeled=32)
learner = Learner(Net(), First(problem), counted=True).train()
learner.compile_networks()
graphs, shares = [], []
for step in range(33):
    images = torch.randn(68, 1, 8, 8)
    labels, index = torch.arange(4) % 3, torch.arange(32)
    batch = Batch(
        labeled=images[:4], labels=labels, weak=(images[4:36],), strong=(images[36:],), index=index, truth=index % 3
    )
    found = learner(batch, step / 32)
    torch.stack([*found.losses.values()]).sum().backward()
    graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    shares.append(found.strong_share)
print(len(set(shares)), graphs[-1])
"""


@pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler",
)
def test_compiled_networks_compute_the_same():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout == "the same\n", done.stderr


def test_a_network_is_not_compiled_for_each_number_of_strong_views():
    """Once for weak views, once for the first number of others, and once for any number."""
    done = subprocess.run([sys.executable, "-c", SIZES], capture_output=True, text=True)
    assert done.stdout == "17 3\n", done.stderr
