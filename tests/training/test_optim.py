import pytest
import timm
import timm.optim.lamb
import timm.optim.lion
import torch

from debias_ssl.methods import FixMatch
from debias_ssl.models import build
from debias_ssl.system.errors import InputError
from debias_ssl.training.optim import OptimConfig, find_optimizer, make_optimizer, set_learning_rate, without_compiler


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


@pytest.mark.parametrize(
    "name", ["sgd", "adam", "adamw", "nadam", "radam", "rmsprop", "rprop", "adagrad", "asgd", "adamax"]
)
def test_optimizers_of_torch_have_its_bits_and_their_own_state(name):
    kind = find_optimizer(name)
    ours, own = ([torch.nn.Parameter(torch.linspace(-1, 1, 6))] for _ in range(2))
    optimizers = without_compiler(kind)(ours, lr=0.1), kind(own, lr=0.1)
    for step in range(5):
        for parameters, optimizer in zip((ours, own), optimizers, strict=True):
            parameters[0].grad = torch.arange(6.0) - step
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.zero_grad()
            assert parameters[0].grad is None
        assert ours[0].equal(own[0]) and not ours[0].equal(torch.linspace(-1, 1, 6))
    assert repr(optimizers[0]) == repr(optimizers[1])
    # torch's own class is as it was.
    assert kind.step is not type(optimizers[0]).step and kind.zero_grad is torch.optim.Optimizer.zero_grad


def test_every_trained_parameter_is_optimized_and_no_averaged_one(make_learner):
    learner = make_learner(FixMatch)
    groups = make_optimizer(learner, OptimConfig()).param_groups
    optimized = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in learner.raw.parameters()}
    assert len(optimized) == len([*learner.raw.parameters()])


def test_settings_reach_the_optimizer():
    sgd = make_optimizer(net(), OptimConfig(lr=0.7, args={"momentum": 0.8, "nesterov": False}))
    assert isinstance(sgd, torch.optim.SGD)
    assert [sgd.param_groups[0][key] for key in ("lr", "momentum", "nesterov")] == [0.7, 0.8, False]
    assert make_optimizer(net(), OptimConfig()).param_groups[1]["nesterov"] is True
    adamw = make_optimizer(net(), OptimConfig(name="adamw", lr=0.01))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[1]["lr"] == 0.01


def test_without_momentum_nesterov_is_off():
    assert make_optimizer(net(), OptimConfig(args={"momentum": 0.0})).param_groups[0]["nesterov"] is False


def test_frozen_parameters_are_left_out():
    module = build("wrn_10_1", 2)
    module.net.fc.requires_grad_(False)
    groups = make_optimizer(module, OptimConfig()).param_groups
    assert not {id(p) for p in module.net.fc.parameters()} & {id(p) for group in groups for p in group["params"]}


# -- layers


def small_vit() -> torch.nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_classes=5)


def by_name(module: torch.nn.Module, optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    """A setting of each parameter's group."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_each_layer_has_its_learning_rate(name):
    net = small_vit()
    module = torch.nn.ModuleDict({"net": net, "head": torch.nn.Linear(12, 5)})
    optimizer = make_optimizer(module, OptimConfig(name=name, layer_decay=0.5), net)
    set_learning_rate(optimizer, 0.8)
    expected = {
        "net.cls_token": 0.1,
        "net.pos_embed": 0.1,
        "net.patch_embed.": 0.1,
        "net.blocks.0.": 0.2,
        "net.blocks.1.": 0.4,
        "net.norm.": 0.4,  # timm counts it to the last block
        "net.head.": 0.8,
        "head.": 0.8,  # a method's own
    }
    rates = by_name(module, optimizer, "lr")
    assert rates.keys() == dict(module.named_parameters()).keys()
    for parameter, rate in rates.items():
        (found,) = [value for start, value in expected.items() if parameter.startswith(start)]
        assert rate == pytest.approx(found), parameter


def test_layers_of_a_resnet():
    net = timm.create_model("test_resnet", num_classes=5)
    optimizer = make_optimizer(net, OptimConfig(layer_decay=0.5), net)
    set_learning_rate(optimizer, 1.0)
    rates = by_name(net, optimizer, "lr")
    for parameter, rate in rates.items():
        start = parameter.split(".")[0]
        layer = 5 if start == "fc" else int(start.removeprefix("layer")) if start.startswith("layer") else 0
        assert rate == 0.5 ** (5 - layer), parameter


def test_with_layers_the_same_kernels_decay_but_for_what_the_network_exempts():
    net = small_vit()
    decays = by_name(net, make_optimizer(net, OptimConfig(layer_decay=0.5, weight_decay=0.1), net), "weight_decay")
    for name, parameter in net.named_parameters():
        decayed = parameter.ndim >= 2 and name not in ("pos_embed", "cls_token")
        assert decays[name] == (0.1 if decayed else 0), name


def test_without_layer_decay_groups_are_what_they_were():
    net = small_vit()
    with_net, without = make_optimizer(net, OptimConfig(), net), make_optimizer(net, OptimConfig())
    assert with_net.state_dict() == without.state_dict()
    assert len(with_net.param_groups) == 2 and "lr_scale" not in with_net.param_groups[0]
    for ours, theirs in zip(with_net.param_groups, without.param_groups, strict=True):
        assert all(a is b for a, b in zip(ours["params"], theirs["params"], strict=True))
    set_learning_rate(with_net, 0.3)
    assert {group["lr"] for group in with_net.param_groups} == {0.3}


def test_of_a_frozen_network_the_classifier_has_the_full_rate():
    module = build("test_resnet", 5, freeze="backbone")
    optimizer = make_optimizer(module, OptimConfig(layer_decay=0.5), module.net)
    set_learning_rate(optimizer, 0.3)
    assert by_name(module, optimizer, "lr") == {"net.fc.weight": 0.3, "net.fc.bias": 0.3}


def test_a_network_without_layers_is_told():
    module = build("wrn_10_1", 2)
    with pytest.raises(InputError, match=r"optim\.layer_decay: the network does not list"):
        make_optimizer(module, OptimConfig(layer_decay=0.5), module.net)


@pytest.mark.parametrize(
    "setting",
    [
        {"lr": 0.0},
        {"weight_decay": -1e-4},
        {"warmup": 1.0},
        {"clip": 0.0},
        {"layer_decay": 0.0},
        {"layer_decay": 1.1},
    ],
)
def test_a_setting_out_of_range_is_named(setting):
    with pytest.raises(InputError, match=rf"optim\.{next(iter(setting))} "):
        OptimConfig(**setting)


def test_the_momentum_is_in_its_range():
    with pytest.raises(InputError, match=r"optim\.args\.momentum is 1\.0, must be in \[0, 1\)"):
        OptimConfig(args={"momentum": 1.0})


@pytest.mark.parametrize(
    ("name", "args", "kind"),
    [
        ("AdamW", {"betas": [0.8, 0.9]}, torch.optim.AdamW),
        ("RMSprop", {"alpha": 0.5}, torch.optim.RMSprop),
        ("lion", {"betas": [0.8, 0.9]}, timm.optim.lion.Lion),
        ("lamb", {}, timm.optim.lamb.Lamb),
        ("torch.optim.NAdam", {}, torch.optim.NAdam),
    ],
)
def test_an_optimizer_of_torch_or_timm_gets_its_own_arguments(name, args, kind):
    optimizer = make_optimizer(net(), OptimConfig(name=name, lr=0.01, weight_decay=0.1, args=args))
    assert isinstance(optimizer, kind)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    for key, value in args.items():
        assert repr(optimizer.param_groups[0][key]).strip("()[]") == repr(value).strip("()[]")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "adamv"}, "no optimizer 'adamv' in torch.optim or timm.optim; torch's are .*adamw"),
        ({"name": "adamw", "args": {"momentum": 0.9}}, "AdamW does not take 'momentum'; it takes betas, eps"),
        ({"args": {"lr": 0.9}}, "SGD does not take 'lr'"),
        ({"args": {"momentum": 0.0, "nesterov": True}}, "SGD does not take .*Nesterov momentum requires"),
        ({"name": "LBFGS", "weight_decay": 0.0}, "LBFGS needs the loss several times in a step"),
        ({"name": "Rprop"}, "Rprop has no weight decay: set optim.weight_decay to 0"),
        ({"name": "torch.nn.Linear"}, "'torch.nn.Linear' is not a torch.optim.Optimizer"),
        ({"name": "nowhere.Mine"}, "optim.name 'nowhere.Mine' cannot be imported"),
    ],
)
def test_what_an_optimizer_does_not_take_is_told(settings, words):
    with pytest.raises(InputError, match=words):
        make_optimizer(net(), OptimConfig(**settings))
