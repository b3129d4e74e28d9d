"""A method that records what it is given, for tests of the learner."""

import torch
from torch import Tensor, nn

from debias_ssl.contract import Batch
from debias_ssl.methods import DebiasPL, Method, Problem, PseudoLabels, Step, View, Views
from debias_ssl.models import batch_norms
from debias_ssl.training.learner import Learner


class Recorder(Method):
    """Keeps the views it was given; its loss takes all of them that have a gradient."""

    def forward(self, views: Views) -> Step:
        self.views = views
        labeled = nn.functional.cross_entropy(views.labeled.logits, views.labels)
        strong = torch.stack([view.logits.square().mean() for view in (views.strong, *views.further_strong)]).sum()
        weight = torch.ones(len(views.index))
        pseudo = PseudoLabels(target=views.weak.logits.argmax(-1), weight=weight)
        return Step(losses={"labeled": labeled, "strong": strong}, pseudo=pseudo)

    def predict(self, view: View, blank: View | None = None) -> Tensor:
        return 2 * view.logits


def recorded(learner: Learner, batch: Batch) -> Views:
    learner(batch, 0.0)
    assert isinstance(learner.raw.method, Recorder)
    return learner.raw.method.views


def backward(step: Step) -> None:
    torch.stack([*step.losses.values()]).sum().backward()


def gradients(learner: Learner) -> list[Tensor]:
    return [parameter.grad for parameter in learner.raw.parameters() if parameter.grad is not None]


def running(learner: Learner) -> list[Tensor]:
    return [buffer.clone() for norm in batch_norms(learner.raw.model) for buffer in norm.buffers()]


def debiaspl(problem: Problem) -> DebiasPL:
    return DebiasPL(problem, threshold=0.4, momentum=0.5)
