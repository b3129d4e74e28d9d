"""The learner's two models: who makes the pseudo-labels, what is shared, and how weights are averaged."""

import pytest
import torch
from recorded_views import Recorder, backward, debiaspl, gradients, recorded
from torch import nn

from debias_ssl.methods import ABC, DebiasPL, FixMatch, Problem
from debias_ssl.models import batch_norms, build
from debias_ssl.training.learner import Learner
from debias_ssl.training.optim import OptimConfig, make_optimizer


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
