"""A step of the learner: gradients, parts, precision and dropout."""

import pytest
import torch
from recorded_views import Recorder, backward, debiaspl, gradients, recorded, running
from torch import Tensor

from debias_ssl.methods import Problem, Step, Supervised, Views
from debias_ssl.models import batch_norms, build
from debias_ssl.training.learner import Learner


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
