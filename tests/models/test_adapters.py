"""Adapters of networks: formulas, which layers have one, what is trained, and the network that a file gets."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_vit import small_vit
from torch import Tensor, nn

from debias_ssl.models import Classifier, ModelConfig, build, check_images, merged
from debias_ssl.models.adapters import Adapter, add_adapters
from debias_ssl.system.errors import InputError

VIT = "small_vit.small_vit"
PATHS = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
# A network, its adapter, and the side of its images; the last convolutions pad as TensorFlow does.
KINDS = [
    (VIT, "lora", 8),
    (VIT, "adaptformer", 8),
    ("wrn_10_1", "lora", 8),
    ("test_resnet", "lora", 32),
    ("tf_efficientnet_lite0", "lora", 32),
]
each_kind = pytest.mark.parametrize(("name", "kind", "side"), KINDS)


def images(side: int, num: int = 3) -> Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(0))


def adapters(model: nn.Module) -> dict[str, Any]:
    return {name.removesuffix(".adapter"): each for name, each in model.named_modules() if isinstance(each, Adapter)}


def trained(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def moved(model: Classifier) -> Classifier:
    """The model after its adapters have learned something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for adapter in adapters(model).values():
            for weight in adapter.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


# -- formulas


@each_kind
def test_a_new_adapter_changes_no_bit(name: str, kind: Any, side: int):
    torch.manual_seed(0)
    plain = build(name, 5, freeze="backbone")
    torch.manual_seed(0)
    model = build(name, 5, adapter=kind)
    model.net.load_state_dict(plain.net.state_dict(), strict=False)
    for ours, expected in zip(model(images(side)), plain(images(side)), strict=True):
        assert ours.equal(expected)
    assert not moved(model)(images(side))[0].equal(plain(images(side))[0])


def test_lora_of_a_linear_layer_is_a_change_of_its_weight_by_alpha_over_r():
    """The formula of arXiv 2106.09685, with the weights written out."""
    layer = nn.Linear(6, 5)
    net = nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(5, 3))
    add_adapters(net, "lora", [net[2]], rank=2, scale=16 / 2)
    (adapter,) = adapters(net).values()
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(7, 6)
    weight = layer.weight + 16 / 2 * adapter.up.weight @ adapter.down.weight
    torch.testing.assert_close(layer(x), x @ weight.T + layer.bias)


@pytest.mark.parametrize(
    "shape", [{"stride": 2, "padding": 1}, {"dilation": 2}, {"kernel_size": 1}, {"padding": (2, 0)}]
)
def test_lora_of_a_convolution_is_a_change_of_its_weight(shape: dict[str, Any]):
    layer = nn.Conv2d(4, 6, **{"kernel_size": 3, **shape})
    net = nn.Sequential(nn.Conv2d(3, 4, 1), layer)
    add_adapters(net, "lora", [], rank=2, scale=0.5)
    adapter = adapters(net)["1"]
    nn.init.normal_(adapter.up.weight)
    x = torch.randn(2, 4, 9, 9)
    change = torch.zeros_like(layer.weight)
    for r in range(2):  # one filter after the other
        for out in range(6):
            change[out] += 0.5 * adapter.up.weight[out, r, 0, 0] * adapter.down.weight[r]
    conv = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight + change, layer.bias, **conv))


@pytest.mark.slow  # importing peft takes longer than all other tests here
def test_lora_is_pefts():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=3, lora_alpha=12)
    for ours, kind in ((nn.Linear(6, 5), "Linear"), (nn.Conv2d(6, 5, 3, stride=2, padding=1), "Conv2d")):
        net = nn.Sequential(nn.Linear(6, 6), nn.Identity(), copy.deepcopy(ours))
        add_adapters(net, "lora", [], rank=3, scale=12 / 3)
        theirs = getattr(peft.tuners.lora.layer, kind)(ours, "default", config, r=3, lora_alpha=12)
        adapter = adapters(net)["2"]
        nn.init.normal_(adapter.up.weight)
        theirs.lora_A["default"].weight.data.copy_(adapter.down.weight)
        theirs.lora_B["default"].weight.data.copy_(adapter.up.weight)
        x = torch.randn(2, 6) if kind == "Linear" else torch.randn(2, 6, 8, 8)
        torch.testing.assert_close(net[2](x), theirs(x))
        theirs.merge()
        torch.testing.assert_close(merged(net)["2.weight"], theirs.get_base_layer().weight.detach())


def test_adaptformer_is_beside_the_mlp_of_a_block():
    """Equation 4 and 5 of arXiv 2205.13535: x' + MLP(LN(x')) + s ReLU(LN(x') W_down) W_up."""
    net: Any = small_vit(3, 1)
    block = net.blocks[0]
    plain = copy.deepcopy(block)
    add_adapters(nn.ModuleList([block]), "adaptformer", [], rank=4, scale=None)
    (side,) = adapters(block).values()
    for weight in side.parameters():
        nn.init.normal_(weight)
    x = torch.randn(2, 5, 32)
    after_attention = x + plain.attn(plain.norm1(x))
    normed = plain.norm2(after_attention)
    few = F.relu(normed @ side.down.weight.T + side.down.bias)
    expected = after_attention + plain.mlp(normed) + 0.1 * (few @ side.up.weight.T + side.up.bias)
    torch.testing.assert_close(block(x), expected)


# -- which layers


def test_lora_is_beside_attention_and_mlps_of_a_vit():
    names = {f"net.blocks.{i}.{layer}" for i in range(2) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert adapters(build(VIT, 5, adapter="lora")).keys() == names


def test_lora_is_beside_convolutions_but_the_first_and_those_of_single_channels():
    model = build("tf_efficientnet_lite0", 5, adapter="lora")
    wide = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1 and "adapter" not in n}
    assert adapters(model).keys() == wide - {"net.conv_stem"}
    assert "net.blocks.1.0.conv_dw" in dict(model.named_modules()) and "net.conv_head" in adapters(model)


def test_no_classifier_has_an_adapter():
    model = build("deit_tiny_distilled_patch16_224", 5, adapter="lora")
    assert len(adapters(model)) == 4 * 12 and not any("head" in name for name in adapters(model))


def test_adaptformer_goes_into_swin_transformers_too():
    model = build("swin_tiny_patch4_window7_224", 5, adapter="adaptformer", adapter_rank=2)
    found = adapters(model)
    assert len(found) == 12 and all(name.endswith(".mlp") for name in found)
    check_images("swin_tiny_patch4_window7_224", model, (224, 224, 3))


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("test_resnet", "adaptformer", "no block with an attention 'attn' and an MLP 'mlp'.*: try lora"),
        ("linear", "lora", "no linear layer or convolution of all channels besides its first and its classifier"),
        ("test_nfnet", "lora", "convolutions of class ScaledStdConv2d"),
    ],
)
def test_networks_without_such_layers_are_told(name: str, kind: Any, words: str):
    with pytest.raises(InputError, match=rf"model\.adapter {kind}: the network has .*{words}"):
        build(name, 5, adapter=kind)


def test_a_network_that_takes_weights_without_calling_the_layer_is_told():
    """BEiT multiplies with the weight of qkv itself, so that a side path would never be trained."""
    name = "beit_base_patch16_224"
    sizes: dict[str, Any] = {"img_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    net: Any = timm.create_model(name, num_classes=5, **sizes)
    add_adapters(net, "lora", [net.get_classifier()], rank=2, scale=None)
    with pytest.raises(InputError, match=r"the weight of blocks\.0\.attn\.qkv without calling the layer.*adaptformer"):
        check_images(name, Classifier(net, frozen=True), (16, 16, 3))
    net = timm.create_model(name, num_classes=5, **sizes)
    add_adapters(net, "adaptformer", [], rank=2, scale=None)
    check_images(name, Classifier(net, frozen=True), (16, 16, 3))


# -- what is trained


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        # Two blocks of 32 features: qkv 32 -> 96, proj 32 -> 32, fc1 32 -> 128, fc2 128 -> 32; r (in + out) each.
        (VIT, {"adapter": "lora", "adapter_rank": 4}, 2 * 4 * (128 + 64 + 160 + 160)),
        (VIT, {"adapter": "lora"}, 2 * 8 * (128 + 64 + 160 + 160)),
        # Two MLPs, with biases of down and up.
        (VIT, {"adapter": "adaptformer", "adapter_rank": 8}, 2 * (32 * 8 + 8 + 8 * 32 + 32)),
        (VIT, {"adapter": "adaptformer"}, 2 * (32 * 64 + 64 + 64 * 32 + 32)),
        # Two norms a block and one at the end.
        (VIT, {"adapter": "adaptformer", "adapter_rank": 8, "adapter_norms": True}, 2 * 552 + 5 * 64),
        # Of 16, 32, 64 channels: 3 x 3 filters r (9 in + out), 1 x 1 shortcuts r (in + out).
        (
            "wrn_10_1",
            {"adapter": "lora", "adapter_rank": 2},
            2 * (160 + 160 + (144 + 32) + (288 + 32) + 48 + (288 + 64) + (576 + 64) + 96),
        ),
    ],
)
def test_trained_parameters_are_those_counted_by_hand(name: str, settings: dict[str, Any], expected: int):
    model = build(name, 5, **settings)
    head = 5 * model.num_features + 5
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == expected + head


@each_kind
def test_only_adapters_and_the_classifier_are_trained_and_in_training(name: str, kind: Any, side: int):
    model = build(name, 5, adapter=kind, adapter_rank=2).train()
    classifier = {f"net.{n}" for n, m in model.net.named_modules() if m is model.net.get_classifier()}
    starts = (*(f"{name}.adapter." for name in adapters(model)), *(f"{name}." for name in classifier))
    assert trained(model) == {name for name, _ in model.named_parameters() if name.startswith(starts)}
    inside = {id(each) for layer in model.trained_layers() for each in layer.modules()}
    assert {id(each) for each in model.net.modules() if each.training} == inside
    model(images(side))[0].square().sum().backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is not None} == trained(model)


def test_norms_are_trained_with_their_statistics_where_asked():
    still, model = (build("test_resnet", 5, adapter="lora", adapter_norms=norms).train() for norms in (False, True))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    norms = {name for name, each in model.named_modules() if isinstance(each, nn.BatchNorm2d)}
    assert trained(model) - trained(still) == {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    for each in (still, model):
        each(images(32))
    assert all(not model.state_dict()[f"{name}.running_mean"].equal(before[f"{name}.running_mean"]) for name in norms)
    assert not any(value.any() for name, value in still.state_dict().items() if name.endswith("running_mean"))


def test_group_norms_take_adapters():
    model = build("wrn_10_1", 5, norm="group", adapter="lora", adapter_norms=True)
    assert any(name.endswith("norm1.weight") for name in trained(model))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"adapter_rank": 4}, r"model\.adapter_rank is 4, but there is no adapter: set model\.adapter to lora or"),
        ({"adapter_scale": 0.5}, r"model\.adapter_scale is 0\.5, but there is no adapter"),
        ({"adapter_norms": True, "freeze": "backbone"}, r"model\.adapter_norms is True, but there is no adapter"),
        ({"adapter": "lora", "freeze": "backbone"}, r"model\.freeze backbone would not train an adapter"),
        ({"adapter": "lora", "drop_path_rate": 0.1}, r"model\.drop_path_rate is 0\.1, but model\.adapter leaves"),
        ({"adapter": "lora", "adapter_rank": 0}, r"model\.adapter_rank is 0, must be at least 1"),
    ],
)
def test_settings_that_do_not_go_together_are_told(settings: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        ModelConfig(**settings)


# -- files


@each_kind
def test_a_merged_network_is_the_one_with_lora(name: str, kind: Any, side: int, tmp_path: Path):
    model = moved(build(name, 5, adapter=kind, adapter_rank=2, adapter_scale=0.5)).eval()
    state = merged(model.net)
    plain = build(name, 5, **({"adapter": kind, "adapter_rank": 2, "adapter_scale": 0.5} if kind != "lora" else {}))
    plain.eval().net.load_state_dict(state)
    torch.testing.assert_close(plain(images(side)), model(images(side)), rtol=1e-5, atol=1e-5)
    if kind == "lora" and name != VIT:
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
        if name == "wrn_10_1":
            net: Any = build(name, 5, weights=str(tmp_path / "model.safetensors")).net
        else:
            net = timm.create_model(name, num_classes=5, checkpoint_path=str(tmp_path / "model.safetensors"))
        torch.testing.assert_close(net.eval()(images(side)), model(images(side))[0], rtol=1e-5, atol=1e-5)


def test_merging_leaves_the_network_as_it_is():
    model = moved(build(VIT, 5, adapter="lora"))
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    merged(model.net)
    assert all(value.equal(before[name]) for name, value in model.net.state_dict().items())


def test_weights_of_a_plain_network_go_beside_new_adapters(tmp_path: Path):
    plain = build("test_resnet", 7)
    save_file(plain.net.state_dict(), tmp_path / "model.safetensors")
    model = build("test_resnet", 5, weights=str(tmp_path / "model.safetensors"), adapter="lora")
    torch.testing.assert_close(model(images(32))[1], plain.eval()(images(32))[1])


def test_weights_with_adaptformer_are_loaded_whole_or_refused(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    source = moved(build(VIT, 5, adapter="adaptformer", adapter_rank=6)).eval()
    save_file(merged(source.net), path)
    assert any(".adapter." in name for name in load_file(path))
    model = build(VIT, 5, weights=str(path), adapter="adaptformer", adapter_rank=6).eval()
    assert model(images(8))[0].equal(source(images(8))[0])
    others: list[dict[str, Any]] = [{}, {"adapter": "lora"}, {"adapter": "adaptformer", "adapter_rank": 5}]
    for other in others:
        with pytest.raises(InputError, match=r"to adaptformer and model\.adapter_rank to 6"):
            build(VIT, 5, weights=str(path), **other)


def test_the_settings_of_a_finished_run_build_the_network_of_its_file():
    lora = ModelConfig(name="resnet18", weights="a", norm="group", adapter="lora", adapter_rank=2, adapter_norms=True)
    assert lora.exported() == ModelConfig(name="resnet18", norm="group")
    kept = ModelConfig(pretrained=True, adapter="adaptformer", adapter_rank=2)
    assert kept.exported() == ModelConfig(adapter="adaptformer", adapter_rank=2)


# In a process of its own, because torch cannot trace the shape checks of the test run.
COMPILED = """
import torch
from debias_ssl.models import build

for kind in ("lora", "adaptformer"):
    torch.manual_seed(0)
    model = build("small_vit.small_vit", 5, adapter=kind)
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    compiled, images = torch.compile(model, backend="aot_eager", fullgraph=True), torch.randn(3, 3, 8, 8)
    gradients = []
    for network in (model, compiled):
        network(images)[0].square().sum().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
        model.zero_grad()
    assert any("adapter" in name for name in gradients[0])
    torch.testing.assert_close(*gradients)
print("the same")
"""


@pytest.mark.slow
def test_compiled_adapters_compute_the_same():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=PATHS)
    assert done.stdout == "the same\n", done.stderr
