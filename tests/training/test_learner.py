import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from debias_ssl.contract import Batch
from debias_ssl.methods import (
    ABC,
    DebiasPL,
    FixMatch,
    Method,
    Needs,
    Problem,
    PseudoLabels,
    Step,
    Supervised,
    View,
    Views,
)
from debias_ssl.models import batch_norms, build
from debias_ssl.training.learner import Learner, blank_pixel, frozen_averages
from debias_ssl.training.optim import OptimConfig, make_optimizer


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


# -- what the method is given


def test_views_are_the_networks_outputs_of_the_images_in_their_order(make_learner, make_batch):
    learner, batch = make_learner(Recorder, norm="group"), make_batch(num_weak=2, num_strong=2)
    views = recorded(learner, batch)
    for images, view in zip(
        (batch.labeled, *batch.weak, *batch.strong),
        (views.labeled, views.weak, *views.further_weak, views.strong, *views.further_strong),
        strict=True,
    ):
        logits, features = learner.raw.model(images)
        torch.testing.assert_close(view.logits, logits)
        torch.testing.assert_close(view.features, features)
    assert views.labels.equal(batch.labels)
    assert views.index.equal(batch.index)


def test_progress_reaches_the_method(make_learner, make_batch):
    learner = make_learner(Recorder)
    learner(make_batch(), 0.25)
    assert learner.raw.method.views.progress == 0.25


def test_weak_views_have_no_gradient_and_the_others_have(make_learner, make_batch):
    for joint_pass in (False, True):
        views = recorded(make_learner(Recorder, joint_pass=joint_pass), make_batch(num_weak=2))
        weak = [tensor for view in (views.weak, *views.further_weak) for tensor in vars(view).values()]
        assert not any(tensor.requires_grad for tensor in weak)
        assert views.labeled.logits.requires_grad
        assert views.strong.features.requires_grad


@pytest.mark.parametrize("joint_pass", [False, True])
def test_a_method_without_strong_views_gets_an_empty_one(make_learner, make_batch, joint_pass):
    views = recorded(make_learner(Recorder, joint_pass=joint_pass), make_batch(num_strong=0))
    assert views.strong.logits.shape == (0, 4)
    assert views.weak.logits.shape == (8, 4)


def test_the_logged_marginal_is_the_mean_of_weak_predictions_whatever_the_method(make_learner, make_batch):
    learner = make_learner(Recorder)
    views = recorded(learner, make_batch(num_weak=2))
    expected = 0.99 * 0.25 + 0.01 * views.weak.logits.softmax(-1).mean(0)
    torch.testing.assert_close(learner.marginal.value, expected)
    assert (learner.marginal.value - 0.25).abs().max() > 1e-5


@pytest.mark.parametrize("joint_pass", [False, True])
def test_strong_labeled_and_given_reach_the_method(make_learner, make_batch, joint_pass):
    learner, batch = make_learner(Recorder, norm="group", joint_pass=joint_pass), make_batch()
    batch = replace(
        batch, strong_labeled=batch.labeled + 1, teacher_probs=torch.rand(8, 4), labeled_teacher_probs=torch.rand(4, 4)
    )
    views = recorded(learner, batch)
    assert batch.strong_labeled is not None and views.strong_labeled is not None and views.teacher_probs is not None
    logits, _ = learner.raw.model(batch.strong_labeled)
    torch.testing.assert_close(views.strong_labeled.logits, logits)
    assert views.strong_labeled.logits.requires_grad
    torch.testing.assert_close(views.strong.logits, learner.raw.model(batch.strong[0])[0])
    assert batch.teacher_probs is not None and views.teacher_probs.equal(batch.teacher_probs)
    assert views.labeled_teacher_probs is batch.labeled_teacher_probs is not None


def test_partners_and_share_of_mixed_images_reach_the_method(make_learner, make_batch):
    learner, batch = make_learner(Recorder), make_batch()
    assert recorded(learner, batch).partner_labels is None
    views = recorded(learner, replace(batch, partner_labels=batch.labels.flip(0), mixup_lambda=0.3))
    assert views.partner_labels is not None and views.partner_labels.tolist() == [3, 2, 1, 0]
    assert views.mixup_lambda == 0.3


class Blank(Recorder):
    """Subtracts the logits of a blank image."""

    needs = Needs(blank="white")

    def predict(self, view: View, blank: View | None = None) -> Tensor:
        assert blank is not None
        return view.logits - blank.logits


def test_a_method_may_ask_for_a_blank_image(make_learner, make_batch):
    learner, batch = make_learner(Blank, blank=(1.5,)), make_batch()
    before = running(learner)
    blank = learner.raw.blank(batch.labeled)
    # With averaged statistics, which it leaves alone, and without gradient.
    assert all(ours.equal(same) for ours, same in zip(running(learner), before, strict=True))
    assert learner.raw.model.training and not blank.logits.requires_grad
    predictor = learner.ema
    of_blank = predictor.model(torch.full((1, 1, 8, 8), 1.5))[0]
    torch.testing.assert_close(predictor(batch.labeled), predictor.model(batch.labeled)[0] - of_blank)
    given = recorded(learner, batch).blank
    assert given is not None and given.logits.shape == (1, 4)
    assert recorded(make_learner(Recorder), batch).blank is None


def test_the_blank_image_is_seen_by_whoever_makes_the_pseudo_labels(make_learner, make_batch):
    for target_model in ("raw", "ema"):
        learner = make_learner(Blank, blank=(1.5,), target_model=target_model)
        with torch.no_grad():
            for weight in learner.ema.parameters():
                weight.mul_(1.1)
        given, teaches = recorded(learner, make_batch()).blank, learner.ema if target_model == "ema" else learner.raw
        assert given is not None
        torch.testing.assert_close(given.logits, teaches.blank(make_batch().labeled).logits)


def test_a_blank_pixel_is_white_and_normalized_like_the_images_or_ones_as_the_network_takes_them():
    assert blank_pixel("white", (0.5, 0.2), (0.25, 0.4)) == (2.0, 2.0)
    assert blank_pixel("ones", (0.5, 0.2), (0.25, 0.4)) == (1.0, 1.0)
    assert blank_pixel(None, (0.5, 0.2), (0.25, 0.4)) == ()


# -- batch statistics


def test_only_the_pass_with_gradient_moves_running_averages(make_learner, make_batch):
    learner, same, batch = make_learner(FixMatch), make_learner(FixMatch), make_batch()
    learner(batch, 0.0)
    same.raw.model(torch.cat([batch.labeled, *batch.strong]))
    for ours, expected in zip(running(learner), running(same), strict=True):
        assert ours.equal(expected)
    assert not running(learner)[0].equal(torch.zeros(16))


def test_the_student_labels_with_the_statistics_of_its_weak_views(make_learner, make_batch):
    learner, batch = make_learner(Recorder), make_batch()
    views = recorded(learner, batch)
    assert views.weak.logits.equal(learner.raw.model(batch.weak[0])[0])
    assert (views.weak.logits - learner.raw.model.eval()(batch.weak[0])[0]).abs().max() > 1e-2


def test_a_joint_pass_has_the_statistics_of_all_images(make_learner, make_batch):
    learner, same = make_learner(Recorder, joint_pass=True), make_learner(Recorder)
    batch = make_batch(num_weak=2)
    views = recorded(learner, batch)
    logits, _ = same.raw.model(torch.cat([batch.labeled, *batch.strong, *batch.weak]))
    ours = [views.labeled, views.strong, views.weak, *views.further_weak]
    assert torch.cat([view.logits for view in ours]).equal(logits)
    for buffer, expected in zip(running(learner), running(same), strict=True):
        assert buffer.equal(expected)


def test_frozen_averages_are_thawed_when_something_fails(make_learner, make_batch):
    model = make_learner(FixMatch).raw.model
    norms = batch_norms(model)
    with pytest.raises(ZeroDivisionError), frozen_averages(norms):
        _ = 1 / 0
    assert all(norm.track_running_stats for norm in norms)


# -- the teacher


def perturb(tensors) -> None:
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("joint_pass", [False, True])
def test_the_averaged_model_labels_with_averaged_statistics(make_learner, make_batch, joint_pass):
    learner, batch = make_learner(Recorder, target_model="ema", joint_pass=joint_pass), make_batch()
    learner(batch, 0.0)
    learner.after_step(5)
    expected = learner.ema.model(batch.weak[0])[0]
    assert recorded(learner, batch).weak.logits.equal(expected)
    perturb(learner.raw.model.parameters())
    perturb(learner.raw.model.buffers())
    assert recorded(learner, batch).weak.logits.equal(expected)
    perturb(learner.ema.model.buffers())
    changed = recorded(learner, batch).weak.logits
    assert not changed.equal(expected)
    perturb(learner.ema.model.parameters())
    assert not recorded(learner, batch).weak.logits.equal(changed)


def test_the_averaged_models_own_statistics_never_move_in_a_pass(make_learner, make_batch):
    learner = make_learner(FixMatch, target_model="ema")
    before = [buffer.clone() for buffer in learner.ema.buffers()]
    learner(make_batch(), 0.0)
    assert all(a.equal(b) for a, b in zip(before, learner.ema.buffers(), strict=True))


def test_the_student_labels_without_the_averaged_model(make_learner, make_batch):
    learner, batch = make_learner(Recorder), make_batch()
    expected = recorded(learner, batch).weak.logits
    perturb(learner.ema.parameters())
    perturb(learner.ema.buffers())
    assert recorded(learner, batch).weak.logits.equal(expected)


# -- a frozen backbone


LORA = {"adapter": "lora", "adapter_rank": 2}


@pytest.mark.parametrize("network", [{"freeze": "backbone"}, LORA], ids=["frozen", "lora"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"target_model": "ema"}, {"joint_pass": True}, {"accumulation": 2}],
    ids=lambda settings: str(settings),
)
def test_only_what_is_trained_of_a_frozen_network_moves(make_batch, settings, network):
    torch.manual_seed(0)
    model = build("wrn_10_1", 4, in_chans=1, batch_norm_momentum=0.1, **network)
    problem = Problem(num_classes=4, num_features=64, labeled_counts=(1,) * 4, num_unlabeled=8)
    learner = Learner(model, ABC(problem, threshold=0.0), **settings).train()
    optimizer = make_optimizer(learner, OptimConfig(lr=0.5), model.net)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    for k in range(3):
        backward(learner(make_batch(seed=k), k / 3))
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step(k)
    moved = {name for name, value in learner.state_dict().items() if not value.equal(before[name])}
    parts = [f"{part}.{end}" for part in ("model.net.fc", "method.head") for end in ("weight", "bias")]
    parts += [f"model.{name}" for name, _ in model.named_parameters() if ".adapter." in name]
    assert len(parts) == (4 if "freeze" in network else 4 + 2 * 8)
    assert moved == {"marginal.value", *(f"{which}.{part}" for which in ("raw", "ema") for part in parts)}


def test_parts_of_a_step_have_the_gradients_of_the_whole(make_learner, make_batch):
    """Batch norms beside adapters mix no images, so that a step in two parts is the same."""
    found = []
    for accumulation in (1, 2):
        learner = make_learner(debiaspl, network=LORA, accumulation=accumulation)
        backward(learner(make_batch(), 0.0))
        found.append(gradients(learner))
    assert len(found[0]) == 2 * 8 + 2
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("network", [{"freeze": "backbone"}, LORA], ids=["frozen", "lora"])
def test_both_models_have_what_is_not_trained_in_common(make_learner, network):
    """Also on another device, or in another type as here."""
    learner = make_learner(FixMatch, network=network).to(torch.float64)
    ours, averaged = dict(learner.raw.named_parameters()), dict(learner.ema.named_parameters())
    for name, weight in ours.items():
        assert (averaged[name] is weight) == (not weight.requires_grad)
    assert {f"model.{name}" for name in learner.frozen} == {name for name, p in ours.items() if not p.requires_grad}
    assert all(weight is ours[f"model.{name}"] for name, weight in learner.frozen.items())


# -- the average


@pytest.mark.parametrize(("step", "decay", "weight"), [(0, 0.999, 0.9), (1, 0.999, 9 / 11), (5, 0.3, 0.7)])
def test_weights_and_statistics_are_averaged_and_the_rest_is_copied(make_learner, step, decay, weight):
    learner = make_learner(DebiasPL, decay=decay)
    norm, averaged_norm = (batch_norms(model)[0] for model in (learner.raw.model, learner.ema.model))
    before = [parameter.clone() for parameter in learner.ema.parameters()]
    with torch.no_grad():
        for parameter in learner.raw.parameters():
            parameter.add_(1.0)
        norm.running_mean.fill_(5.0)
        norm.running_var.fill_(3.0)
        norm.num_batches_tracked.fill_(7)
        learner.raw.method.marginal.value.copy_(torch.tensor([0.7, 0.1, 0.1, 0.1]))
    learner.after_step(step)
    for old, new in zip(before, learner.ema.parameters(), strict=True):
        torch.testing.assert_close(new, old + weight)
    torch.testing.assert_close(averaged_norm.running_mean, torch.full((16,), 5 * weight))
    torch.testing.assert_close(averaged_norm.running_var, torch.full((16,), 1 + 2 * weight))
    assert averaged_norm.num_batches_tracked == 7
    assert learner.ema.method.marginal.value.equal(learner.raw.method.marginal.value)


def test_parameters_of_a_method_are_averaged_too(make_learner):
    class WithHead(FixMatch):
        def __init__(self, problem: Problem):
            super().__init__(problem)
            self.head = nn.Parameter(torch.zeros(2))

    learner = make_learner(WithHead)
    with torch.no_grad():
        learner.raw.method.head.fill_(1.0)
    learner.after_step(0)
    assert learner.ema.method.head.tolist() == pytest.approx([0.9, 0.9])


def test_the_average_starts_as_the_model_and_stays_without_gradient_and_in_evaluation(make_learner, make_batch):
    learner = make_learner(FixMatch)
    assert all(a.equal(b) for a, b in zip(learner.raw.parameters(), learner.ema.parameters(), strict=True))
    assert not {id(p) for p in learner.raw.parameters()} & {id(p) for p in learner.ema.parameters()}
    for mode in (True, False, True):
        learner.train(mode)
        assert learner.raw.model.training == mode
        assert not any(module.training for module in learner.ema.modules())
    backward(learner(make_batch(), 0.0))
    learner.after_step(0)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in learner.ema.parameters())


def test_the_predictor_answers_with_the_methods_logits(make_learner, make_batch):
    learner, batch = make_learner(Recorder).eval(), make_batch()
    for predictor in (learner.raw, learner.ema):
        assert predictor(batch.labeled).equal(2 * predictor.model(batch.labeled)[0])


# -- the step


@pytest.mark.parametrize("settings", [{}, {"joint_pass": True}, {"target_model": "ema"}, {"accumulation": 2}])
def test_every_parameter_of_the_trained_model_gets_a_gradient(make_learner, make_batch, settings):
    learner = make_learner(debiaspl, **settings)
    backward(learner(make_batch(), 0.0))
    found = gradients(learner)
    assert len(found) == len([*learner.raw.parameters()])
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found)


@pytest.mark.parametrize(("accumulation", "joint_pass"), [(2, False), (4, False), (3, True)])
def test_parts_give_the_losses_gradients_and_marginal_of_the_whole(make_learner, make_batch, accumulation, joint_pass):
    whole, parts = (
        make_learner(debiaspl, norm="group", accumulation=number, joint_pass=joint_pass) for number in (1, accumulation)
    )
    for seed in range(2):
        batch = make_batch(seed=seed, num_weak=1)
        expected, step = whole(batch, 0.0), parts(batch, 0.0)
        torch.testing.assert_close(step.losses, expected.losses)
        assert step.pseudo.target.equal(expected.pseudo.target)
        assert step.pseudo.weight.equal(expected.pseudo.weight)
        backward(expected)
        backward(step)
    torch.testing.assert_close(gradients(parts), gradients(whole), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.raw.method.marginal.value, whole.raw.method.marginal.value)
    torch.testing.assert_close(parts.marginal.value, whole.marginal.value)


def test_each_part_moves_running_averages_once(make_learner, make_batch):
    learner, same, batch = make_learner(debiaspl, accumulation=2), make_learner(debiaspl), make_batch()
    backward(learner(batch, 0.0))
    joined = torch.cat([batch.labeled, *batch.strong])
    for part in (joined[0::2], joined[1::2]):
        same.raw.model(part)
    for ours, expected in zip(running(learner), running(same), strict=True):
        assert ours.equal(expected)
    assert {norm.num_batches_tracked.item() for norm in batch_norms(learner.raw.model)} == {2}


def test_bf16_computes_the_network_and_nothing_else_in_half_precision(make_learner, make_batch):
    results = {}
    for precision in ("fp32", "bf16"):
        learner, recorder, batch = make_learner(debiaspl), make_learner(Recorder), make_batch()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            results[precision] = (learner(batch, 0.0).losses, recorded(recorder, batch), learner)
    (expected, views32, _), (losses, views16, learner) = results["fp32"], results["bf16"]
    assert (views16.weak.logits - views32.weak.logits).abs().max() > 1e-4  # it was in bf16
    torch.testing.assert_close(losses, expected, rtol=0.05, atol=0.02)
    fp32 = [*losses.values(), learner.marginal.value, learner.raw.method.marginal.value]
    fp32 += [value for view in (views16.weak, views16.labeled, views16.strong) for value in vars(view).values()]
    assert {value.dtype for value in fp32} == {torch.float32}


def test_the_method_computes_in_fp32_under_autocast(make_learner, make_batch):
    class Product(Recorder):
        def forward(self, views: Views) -> Step:
            self.product = views.strong.features @ views.strong.features.T
            return super().forward(views)

    learner = make_learner(Product)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learner(make_batch(), 0.0)
    assert learner.raw.method.product.dtype == torch.float32


def test_dropout_is_reproduced_by_the_seed(make_batch):
    torch.manual_seed(0)
    model = build("test_resnet", 4, norm="group", drop_rate=0.5)
    problem = Problem(num_classes=4, num_features=model.num_features, labeled_counts=(1,) * 4, num_unlabeled=8)
    learner, batch = Learner(model, Supervised(problem)).train(), make_batch(num_strong=0, channels=3)

    def loss(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return learner(batch, 0.0).losses["labeled"]

    assert loss(1).equal(loss(1))
    assert not loss(1).equal(loss(2))


# -- compiled


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
