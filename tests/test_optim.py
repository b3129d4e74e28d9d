import pytest
import torch

from debias_ssl.errors import InputError
from debias_ssl.methods import FixMatch
from debias_ssl.models import build
from debias_ssl.optim import OptimConfig, make_optimizer


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(2, 2))


def test_only_kernels_decay():
    decayed, others = make_optimizer(net(), OptimConfig(weight_decay=0.1)).param_groups
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert [p.ndim for p in others["params"]] == [1, 1, 1, 1]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_step_without_gradient_shrinks_kernels_and_nothing_else(name):
    module = net()
    before = {key: value.clone() for key, value in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(module, OptimConfig(name=name, lr=0.5, weight_decay=0.1)).step()
    for key, value in module.named_parameters():
        # Nesterov's first step is 1 + momentum times as long.
        factor = 1.0 if value.ndim < 2 else 0.95 if name == "adamw" else 1 - 0.05 * 1.9
        torch.testing.assert_close(value, factor * before[key])


def test_every_trained_parameter_is_optimized_and_no_averaged_one(make_learner):
    learner = make_learner(FixMatch)
    groups = make_optimizer(learner, OptimConfig()).param_groups
    optimized = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in learner.raw.parameters()}
    assert len(optimized) == len([*learner.raw.parameters()])


def test_settings_reach_the_optimizer():
    sgd = make_optimizer(net(), OptimConfig(lr=0.7, momentum=0.8, nesterov=False))
    assert isinstance(sgd, torch.optim.SGD)
    assert [sgd.param_groups[0][key] for key in ("lr", "momentum", "nesterov")] == [0.7, 0.8, False]
    assert make_optimizer(net(), OptimConfig()).param_groups[1]["nesterov"] is True
    adamw = make_optimizer(net(), OptimConfig(name="adamw", lr=0.01))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[1]["lr"] == 0.01


def test_without_momentum_nesterov_is_off():
    assert make_optimizer(net(), OptimConfig(momentum=0.0)).param_groups[0]["nesterov"] is False


def test_frozen_parameters_are_left_out():
    module = build("wrn_10_1", 2)
    module.net.fc.requires_grad_(False)
    groups = make_optimizer(module, OptimConfig()).param_groups
    assert not {id(p) for p in module.net.fc.parameters()} & {id(p) for group in groups for p in group["params"]}


@pytest.mark.parametrize(
    "setting", [{"lr": 0.0}, {"momentum": 1.0}, {"weight_decay": -1e-4}, {"warmup": 1.0}, {"clip": 0.0}]
)
def test_a_setting_out_of_range_is_named(setting):
    with pytest.raises(InputError, match=rf"optim\.{next(iter(setting))} "):
        OptimConfig(**setting)
