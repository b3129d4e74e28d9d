"""Strong views that do not count need not pass: the same losses and gradients, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from debias_ssl.contract import Batch, Step, Views
from debias_ssl.methods import (
    ABC,
    CCL,
    CDMAD,
    CSST,
    SCAD,
    UDA,
    DebiasPL,
    FixMatch,
    FlexMatch,
    FreeMatch,
    Method,
    Problem,
    PseudoLabels,
    SelfTraining,
    SimPro,
)
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.models import build
from debias_ssl.system.errors import InputError
from debias_ssl.training.choices import BASES, METHODS
from debias_ssl.training.learner import Learner
from debias_ssl.training.optim import OptimConfig, make_optimizer
from debias_ssl.training.strong_views import passes_counted, rounded_up, rows_to_pass


def freematch(problem: Problem) -> FreeMatch:
    return FreeMatch(problem, momentum=0.5, fairness_weight=1.0)


def abc(problem: Problem) -> ABC:
    """Its second head is surer than the network, so that it has images that count for it alone."""
    method = ABC(problem, threshold=0.6)
    with torch.no_grad():
        method.head.weight.mul_(5)
    return method


# Thresholds at which some of the images count from the first step on.
COUNTED: dict[str, Callable[[Problem], Method]] = {
    "FixMatch": lambda problem: FixMatch(problem, threshold=0.6),
    "aligned FixMatch": lambda problem: FixMatch(problem, threshold=0.6, prior=[0.4, 0.3, 0.2, 0.1]),
    "UDA": lambda problem: UDA(problem, threshold=0.55),
    "FlexMatch": lambda problem: FlexMatch(problem, threshold=0.6),
    "FreeMatch": freematch,
    "CDMAD": lambda problem: CDMAD(problem, threshold=0.6, warm_up=0.3),
    "SimPro": lambda problem: SimPro(problem, threshold=0.6, momentum=0.5),
    "CSST": lambda problem: CSST(problem, threshold=0.5),
    "ABC": abc,
    "CCL": lambda problem: CCL(problem, threshold=0.4, warm_up=0.0, window=0.5, negative_energy=1.0),
    "SCAD": lambda problem: SCAD(problem, threshold=0.6, superclasses=["a", "a", "b", "b"]),
    "SelfTraining": SelfTraining,
    "DebiasPL": lambda problem: DebiasPL(problem, threshold=0.6, momentum=0.5),
    "DebiasPL of two views": lambda problem: DebiasPL(problem, threshold=0.6, momentum=0.5, num_views=2),
    "assisted DebiasPL": lambda problem: DebiasPL(problem, threshold=0.65, momentum=0.5, assist_threshold=0.5),
    "DebiasPL over FreeMatch": lambda problem: DebiasPL(problem, momentum=0.5, base=freematch),
}
ALL = {"AdaMatch", "CPG", "DASO", "Distillation", "DyTrim", "EvenMatch", "FineSSL", "PseudoLabel", "SoftMatch"}
ALL |= {"Supervised"}
GROUP = {"norm": "group", "num_unlabeled": 24}
# No layer of these mixes images.
NETWORKS: dict[str, dict[str, Any]] = {
    "group norm": GROUP,
    "frozen": {"network": {"freeze": "backbone"}},
    "lora": {"network": {"adapter": "lora", "adapter_rank": 2}},
}
PASSES: dict[str, dict[str, Any]] = {
    "averaged": {"target_model": "ema"},
    "parts": {"accumulation": 2},
    "both": {"target_model": "ema", "accumulation": 2},
}


@pytest.fixture
def batch_of(make_batch) -> Callable[..., Batch]:
    """A batch of a step, with a teacher who says nothing of some images."""

    def make(step: int, method: Method, unlabeled: int = 24) -> Batch:
        needs = method.needs
        batch = make_batch(
            labeled=8, unlabeled=unlabeled, num_weak=needs.num_weak, num_strong=needs.num_strong, seed=step
        )
        if not needs.teacher_probs:
            return batch
        probs = (3 * torch.randn(unlabeled, 4, generator=torch.Generator().manual_seed(step))).softmax(-1)
        return replace(batch, teacher_probs=probs * (torch.arange(unlabeled) % 3 > 0).unsqueeze(1))

    return make


def seen(learner: Learner) -> list[int]:
    """The numbers of images of the passes of a learner's network, which go on to be added."""
    sizes: list[int] = []
    learner.raw.model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    return sizes


def take_step(learner: Learner, batch: Batch, step: int = 0, steps: int = 4) -> tuple[Step, list[Tensor]]:
    """A step forward and backward, with the random numbers that are its own, and the gradients."""
    torch.manual_seed(step)
    found = learner(batch, step / steps)
    torch.stack([*found.losses.values()]).sum().backward()
    gradients = [parameter.grad for parameter in learner.raw.parameters() if parameter.grad is not None]
    return found, gradients


def agree(whole: Learner, counted: Learner, batch_of: Callable[[int], Batch], steps: int = 4) -> list[float]:
    """Holds each step of two learners to one another; returns the shares of strong views that have passed."""
    optimizers = [make_optimizer(learner, OptimConfig(lr=0.05)) for learner in (whole, counted)]
    shares = []
    for step in range(steps):
        batch = batch_of(step)
        (expected, theirs), (found, ours) = (take_step(each, batch, step, steps) for each in (whole, counted))
        torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vars(found.pseudo), vars(expected.pseudo), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        shares.append(found.strong_share)
        for learner, optimizer in zip((whole, counted), optimizers, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            learner.after_step(step)
        torch.testing.assert_close(counted.state_dict(), whole.state_dict(), rtol=1e-3, atol=1e-5)
    return shares


# -- the same as with all


def test_every_method_says_which_strong_views_it_needs():
    problem = Problem(num_classes=4, num_features=8, labeled_counts=(1,) * 4, num_unlabeled=8)
    without = {name for name, method in METHODS.items() if method(problem).needs.all_strong is None}
    assert without == set(METHODS) - ALL
    assert without <= {type(make(problem)).__name__ for make in COUNTED.values()}


@pytest.mark.parametrize("name", COUNTED)
def test_losses_gradients_and_state_are_those_of_all_strong_views(name, make_learner, batch_of):
    whole, counted = (make_learner(COUNTED[name], counted=each, blank=(1.0,), **GROUP) for each in (False, True))
    shares = agree(whole, counted, lambda step: batch_of(step, whole.raw.method))
    # Otherwise one would be compared with itself.
    assert any(0 < share < 1 for share in shares), shares


@pytest.mark.parametrize("settings", [*NETWORKS.values(), *(GROUP | each for each in PASSES.values())], ids=str)
def test_networks_and_passes_that_mix_no_images_give_the_same(settings, make_learner, batch_of):
    whole, counted = (make_learner(COUNTED["DebiasPL"], counted=each, **settings) for each in (False, True))
    shares = agree(whole, counted, lambda step: batch_of(step, whole.raw.method))
    assert any(0 < share < 1 for share in shares), shares


@pytest.mark.parametrize("network", ["linear", "mlp_512"])
def test_classifiers_of_features_give_the_same(network, make_batch):
    problem = Problem(
        num_classes=4, num_features=512 if network == "mlp_512" else 64, labeled_counts=(1,) * 4, num_unlabeled=24
    )
    learners = []
    for counted in (False, True):
        torch.manual_seed(0)
        method = FixMatch(problem, threshold=0.4)
        learners.append(Learner(build(network, 4, in_chans=64), method, counted=counted).train())

    def batch(step: int) -> Batch:
        made = make_batch(labeled=8, unlabeled=24, seed=step)
        labeled, weak, strong = (each.reshape(-1, 64, 1, 1) for each in (made.labeled, *made.weak, *made.strong))
        return replace(made, labeled=labeled, weak=(weak,), strong=(strong,))

    shares = agree(learners[0], learners[1], batch)
    assert any(0 < share < 1 for share in shares), shares


def test_in_half_precision_the_network_alone_computes_in_it(make_learner, batch_of):
    """Losses are those of all views within its rounding, and in fp32 as the method's are."""
    found = {}
    for counted in (False, True):
        learner = make_learner(COUNTED["FixMatch"], counted=counted, **GROUP)
        kinds: set[torch.dtype] = set()
        learner.raw.model.net.stem.register_forward_hook(lambda *given, kinds=kinds: kinds.add(given[2].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            found[counted], _ = take_step(learner, batch_of(0, learner.raw.method))
        assert kinds == {torch.bfloat16}
    assert found[True].strong_share < 1
    torch.testing.assert_close(found[True].losses, found[False].losses, rtol=0.02, atol=0.01)
    assert {loss.dtype for loss in found[True].losses.values()} == {torch.float32}


# -- how many pass


class Chosen(FixMatch):
    """So many images count as it is told."""

    number = 0

    def pseudo_labels(self, logits: Tensor, views: Views) -> PseudoLabels:
        # Not those in front.
        weight = (torch.arange(len(logits)).flip(0) < self.number).float()
        return PseudoLabels(target=logits.argmax(-1), weight=weight)


@pytest.mark.parametrize(("number", "passed"), [(0, 0), (1, 2), (2, 2), (15, 16), (31, 32), (32, 32)])
def test_none_some_or_all_pass_rounded_up(number, passed, make_learner, batch_of):
    whole, counted = (make_learner(Chosen, counted=each, **GROUP) for each in (False, True))
    for learner in (whole, counted):
        learner.raw.method.number = number
    sizes = seen(counted)
    (expected, theirs), (found, ours) = (take_step(each, batch_of(0, each.raw.method, 32)) for each in (whole, counted))
    assert sizes == [32, 8 + passed] and found.strong_share == passed / 32
    torch.testing.assert_close(found.losses, expected.losses)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert len(ours) == len([*counted.raw.parameters()])
    if passed == 32:
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True)), (
            "the order of all is that without the setting"
        )


def test_sizes_are_few_and_the_next_above():
    assert [rounded_up(number, 448) for number in (0, 1, 28, 29, 420, 421, 448)] == [0, 28, 28, 56, 420, 448, 448]
    assert {rounded_up(number, 100) for number in range(101)} == {0, *range(7, 100, 7), 100}
    assert [rounded_up(number, 5) for number in range(6)] == [0, 1, 2, 3, 4, 5]


def test_those_that_count_pass_and_then_some_of_the_others():
    weight = torch.zeros(32)
    weight[[20, 7, 9]] = torch.tensor([0.5, 1.0, 1e-30])
    rows = rows_to_pass(weight)
    assert rows is not None and rows.tolist() == [7, 9, 20, 0]
    assert rows_to_pass(torch.ones(32)) is None
    # What is not a number counts, so that the loss says so.
    weight[3] = torch.nan
    rows = rows_to_pass(weight)
    assert rows is not None and rows.tolist() == [3, 7, 9, 20]


class Reads(TorchDispatchMode):
    """Counts how often a value of the device is asked for."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("nonzero", "masked_select", "unique", "_unique2", "equal"), name
        self.number += name in ("_local_scalar_dense", "item", "is_nonzero")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["FixMatch", "SimPro", "ABC", "assisted DebiasPL"])
def test_a_step_asks_its_device_for_one_number(name, make_learner, batch_of):
    learner = make_learner(COUNTED[name], counted=True, **GROUP)
    batch = batch_of(0, learner.raw.method)
    # The first step is watched.
    take_step(learner, batch)
    with Reads() as reads:
        take_step(learner, batch, 1)
    assert reads.number == 1


# -- what a method may not do


class Hasty(FixMatch):
    """Reads strong views before it says which count."""

    def pseudo_labels(self, logits: Tensor, views: Views) -> PseudoLabels:
        return super().pseudo_labels(logits + views.strong.logits, views)


class Greedy(FixMatch):
    """Has a loss of all strong views, though it says that it needs none."""

    def further_losses(self, logits: Tensor, pseudo: PseudoLabels) -> dict[str, Tensor]:
        return {"greedy": logits.square().mean() + (logits.sum(-1) - 1).square().mean()}


class GreedyForFeatures(FixMatch):
    def forward(self, views: Views) -> Step:
        views = views.counted(torch.zeros(len(views.index)))
        step = super().forward(views)
        return replace(step, losses=step.losses | {"greedy": (views.strong.features - 1).square().mean()})


def test_views_that_have_not_passed_cannot_be_read(make_learner, batch_of):
    learner = make_learner(Hasty, counted=True)
    with pytest.raises(InputError, match=r"reads logits of labeled or strong views before .* --strong_views all"):
        learner(batch_of(0, learner.raw.method), 0.0)
    learner = make_learner(Hasty)
    learner(batch_of(0, learner.raw.method), 0.0)


@pytest.mark.parametrize("method", [Greedy, GreedyForFeatures])
def test_a_loss_of_views_that_have_not_passed_is_told_at_the_first_step(method, make_learner, batch_of):
    learner = make_learner(method, counted=True, **GROUP)
    with pytest.raises(InputError, match=r"losses depend on strong views that do not count.* --strong_views all"):
        take_step(learner, batch_of(0, learner.raw.method))
    learner = make_learner(method, **GROUP)
    take_step(learner, batch_of(0, learner.raw.method))


# -- which setting is which


def problem_of(model: Any) -> Problem:
    return Problem(num_classes=4, num_features=model.num_features, labeled_counts=(1,) * 4, num_unlabeled=8)


def decided(
    setting: Any, method: Callable[[Problem], Method] = FixMatch, name: str = "wrn_10_1", **network: Any
) -> bool:
    model = build(name, 4, in_chans=1, **network)
    return passes_counted(setting, method(problem_of(model)), model, (8, 8, 1))


@pytest.mark.parametrize(
    ("network", "auto"),
    [
        ({}, False),
        ({"norm": "group"}, True),
        ({"freeze": "backbone"}, True),
        ({"adapter": "lora"}, True),
        ({"adapter": "lora", "adapter_norms": True}, False),
        ({"name": "small_vit.small_vit"}, True),
        ({"name": "test_resnet", "norm": "group"}, True),
        ({"name": "test_resnet", "norm": "group", "drop_rate": 0.5}, False),
    ],
    ids=str,
)
def test_auto_is_counted_where_the_network_mixes_no_images_and_draws_nothing(network, auto):
    assert decided("auto", **network) == auto
    assert decided("counted", **network)
    assert not decided("all", **network)


@pytest.mark.parametrize(("name", "auto"), [("linear", False), ("mlp_512", True)])
def test_auto_is_all_where_there_is_a_classifier_alone(name, auto):
    model = build(name, 4, in_chans=64)
    method = FixMatch(problem_of(model))
    assert passes_counted("auto", method, model, (1, 1, 64)) == auto
    assert passes_counted("counted", method, model, (1, 1, 64))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_methods_that_need_all_strong_views_say_why(name):
    if name not in ALL:
        assert decided("auto", METHODS[name], norm="group") and decided("counted", METHODS[name], norm="group")
        return
    assert not decided("auto", METHODS[name], norm="group")
    with pytest.raises(InputError, match=rf"strong_views is counted, but {name} \w.*: set --strong_views all, or auto"):
        decided("counted", METHODS[name], norm="group")


@pytest.mark.parametrize("name", sorted(BASES))
def test_debiaspl_follows_its_base(name):
    def over(problem: Problem) -> Method:
        return DebiasPL(problem, base=BASES[name])

    assert decided("auto", over, norm="group") == (name not in ALL)
    if name in ALL:
        with pytest.raises(InputError, match=name):
            decided("counted", over, norm="group")


class Own(PseudoLabeling):
    """A method of a user's own, which says nothing of it."""


def test_a_method_of_ones_own_passes_all_unless_it_says_otherwise():
    assert not decided("auto", Own, norm="group")
    with pytest.raises(InputError, match=r"Own does not say that it needs no others \(Needs.all_strong\)"):
        decided("counted", Own, norm="group")


class Centered(nn.Module):
    """A network that takes the mean of the images of a batch away."""

    def __init__(self, num_classes: int, in_chans: int):
        super().__init__()
        self.num_features = 64
        self.fc = nn.Linear(64, num_classes)
        self.register_buffer("passes", torch.zeros(()))

    def forward_features(self, images: Tensor) -> Tensor:
        self.passes += 1
        return (images - images.mean(0)).flatten(1)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        return maps if pre_logits else self.fc(maps)

    def get_classifier(self) -> nn.Module:
        return self.fc


def test_a_network_that_mixes_images_in_its_own_way_is_found():
    name = f"{__name__}.Centered"
    assert not decided("auto", name=name)
    with pytest.raises(InputError, match="the network's output for an image depends on the other images"):
        decided("counted", name=name)


def test_trying_a_network_leaves_it_and_random_numbers_as_they_were():
    torch.manual_seed(0)
    model = build(f"{__name__}.Centered", 4, in_chans=1).eval()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert not passes_counted("auto", FixMatch(problem_of(model)), model, (8, 8, 1))
    assert torch.rand(3).equal(expected)
    assert model.net.passes == 0 and not model.training
