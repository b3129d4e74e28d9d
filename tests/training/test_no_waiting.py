"""A step never waits for its device: what a GPU computes can be queued ahead, and then its processor has no pauses.

On torch's `meta` device tensors have no values, so that whatever asks for one fails. What a GPU would wait for beyond
that is caught by `NoWaiting`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from debias_ssl import methods
from debias_ssl.contract import Place
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.views import Normalization
from debias_ssl.data.reading.config import ReadingConfig
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.streams import MOST_AT_ONCE, Sampling, StreamConfig, TrainingImages, TrainingStream
from debias_ssl.methods import Method, Problem
from debias_ssl.models import build
from debias_ssl.training.choices import METHODS
from debias_ssl.training.journal import StepStatistics
from debias_ssl.training.learner import Learner
from debias_ssl.training.optim import OptimConfig, make_optimizer

META = torch.device("meta")
NUM, CLASSES, LABELED = 64, 4, 16


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU's queue would have to run empty before the processor goes on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name == "_to_copy":
            assert args[0].device == result.device or kwargs.get("non_blocking"), "a copy that waits"
        elif name == "copy_":
            assert args[0].device == args[1].device or (len(args) > 2 and args[2]), "a copy that waits"
        elif name == "lift_fresh":
            assert not result.is_meta, "numbers of Python's are copied, and waited for"
        else:
            devices = {tensor.device for tensor in inputs if tensor.ndim}
            assert len(devices) < 2, f"{name} moves some of its arguments, and waits"
        return result


def training_stream(method: Method) -> TrainingStream:
    images, labels = torch.arange(NUM), torch.arange(NUM) % CLASSES
    reader = Reader(
        pixels=torch.empty(NUM, 8, 8, 3, dtype=torch.uint8, device=META),
        files=(),
        config=ReadingConfig(),
    )
    return TrainingStream(
        reader=reader,
        images=TrainingImages(
            labels=labels,
            labeled=images[:LABELED],
            unlabeled=images,
            truth=labels,
            teacher_probs=torch.full((NUM, CLASSES), 1 / CLASSES),
        ),
        sampling=Sampling(seed=0, batch_size=8, unlabeled_batch_size=32),
        # So that each operation is drawn.
        config=StreamConfig(augment=AugmentConfig(num_ops=8, flip=True)),
        normalization=Normalization(mean=torch.zeros(3, device=META), std=torch.ones(3, device=META)),
        needs=method.needs,
        place=Place(device=META),
    )


def take_steps(make: Callable[..., Method], **settings: Any) -> None:
    model = build("wrn_10_1", CLASSES)
    counts = (LABELED // CLASSES,) * CLASSES
    method = make(Problem(num_classes=CLASSES, num_features=64, labeled_counts=counts, num_unlabeled=NUM))
    learner = Learner(model, method, blank=(1.0, 1.0, 1.0), **settings).to(META).train()
    optimizer = make_optimizer(learner, OptimConfig())
    sums = StepStatistics(CLASSES, META)
    batches = training_stream(method).batches(0, 2 * MOST_AT_ONCE)

    def step(number: int) -> None:
        batch = next(batches)
        result = learner(batch, number / 3)
        torch.stack([*result.losses.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(number)
        sums.add(result, batch.truth)

    # What is kept from then on may be waited for once.
    step(0)
    for _ in range(MOST_AT_ONCE - 1):
        next(batches)
    with NoWaiting():
        # This makes the next views, too.
        step(1)
        step(2)


@pytest.fixture(autouse=True)
def whole_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no other on the meta device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_step_does_not_wait(method: Callable[..., Method]):
    take_steps(method)


def test_other_ways_to_take_a_step_do_not_wait():
    take_steps(lambda problem: methods.DebiasPL(problem, base=methods.FreeMatch), target_model="ema")
    take_steps(lambda problem: methods.DebiasPL(problem, assist_threshold=0.3), accumulation=2)
    take_steps(lambda problem: methods.FlexMatch(problem, warm_up=False), joint_pass=True)
    take_steps(lambda problem: methods.Supervised(problem, mixup_alpha=0.5))


def test_what_waits_is_found():
    values = torch.empty(3, device=META)
    for wait in (
        lambda: torch.ones(3).to(META),
        lambda: values.copy_(torch.ones(3)),
        lambda: values[torch.tensor([1, 2])],
        lambda: values.new_tensor([1.0]),
    ):
        with NoWaiting(), pytest.raises(AssertionError):
            wait()
    for wait in (lambda: values.sum().item(), lambda: values[values > 0], lambda: values.nonzero()):
        with NoWaiting(), pytest.raises((RuntimeError, NotImplementedError)):
            wait()
    with NoWaiting():
        torch.ones(3).to(META, non_blocking=True)
        values[torch.ones(2, dtype=torch.int64).to(META, non_blocking=True)]
