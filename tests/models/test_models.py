import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from harmful import Harmful
from safetensors.torch import save_file
from torch import nn

from debias_ssl.models import Classifier, ModelConfig, batch_norms, build, check_images, load_weights
from debias_ssl.system.errors import InputError


def images(num: int = 4, channels: int = 3, side: int = 8) -> torch.Tensor:
    return torch.randn(num, channels, side, side, generator=torch.Generator().manual_seed(0))


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "expected"), [("wrn_28_2", 1_467_610), ("wrn_28_8", 23_354_842)])
def test_parameters_are_those_of_fixmatch(name, expected):
    assert num_parameters(build(name, 10)) == expected


@pytest.mark.parametrize(
    ("name", "side"), [("wrn_10_1", 8), ("resnet18", 32), ("test_vit", 160), ("test_convnext", 64)]
)
def test_logits_are_linear_in_the_features(name, side):
    model = build(name, 5).eval()
    logits, features = model(images(side=side))
    classifier = model.net.get_classifier()
    assert features.shape == (4, model.num_features)
    assert logits.shape == (4, 5)
    torch.testing.assert_close(logits, features @ classifier.weight.T + classifier.bias)


@pytest.mark.parametrize(("name", "side"), [("wrn_10_1", 8), ("resnet18", 32), ("test_vit", 160)])
def test_logits_are_those_of_the_network_itself(name, side):
    model = build(name, 5).eval()
    torch.testing.assert_close(model(images(side=side))[0], model.net(images(side=side)))


@pytest.mark.parametrize("name", ["wrn_10_1", "resnet18"])
def test_gray_images(name):
    assert build(name, 5, in_chans=1)(images(channels=1))[0].shape == (4, 5)


# -- normalization


@pytest.mark.parametrize("name", ["wrn_10_1", "resnet18", "test_efficientnet"])
def test_group_norm_mixes_no_images(name):
    model = build(name, 5, norm="group").train()
    assert not batch_norms(model)
    several = images(side=32)
    torch.testing.assert_close(model(several)[0][:1], model(several[:1])[0])


def test_batch_norm_mixes_images():
    model = build("wrn_10_1", 5).train()
    assert (model(images())[0][:2] - model(images()[:2])[0]).abs().max() > 1e-3


def test_group_norm_keeps_the_activation_of_a_layer_that_has_one():
    # EfficientNet's norm layers contain their activation.
    model = build("test_efficientnet", 5, norm="group")
    fused = [module for module in model.modules() if isinstance(module, nn.Sequential) and len(module) == 2]
    assert any(isinstance(norm, nn.GroupNorm) and isinstance(act, nn.SiLU) for norm, act in fused)


def test_sync_norm_keeps_the_weights():
    torch.manual_seed(0)
    batch = build("wrn_10_1", 5)
    torch.manual_seed(0)
    sync = build("wrn_10_1", 5, norm="sync")
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in batch_norms(sync))
    assert batch.state_dict().keys() == sync.state_dict().keys()


def test_batch_norm_momentum_is_set_or_kept():
    for name, own in (("wrn_10_1", 0.001), ("resnet18", 0.1)):
        assert {norm.momentum for norm in batch_norms(build(name, 5))} == {own}
        assert {norm.momentum for norm in batch_norms(build(name, 5, batch_norm_momentum=0.03))} == {0.03}


# -- names


def test_an_unknown_model_is_told_with_names_near_it():
    with pytest.raises(InputError, match=r"no model 'wrn_28_3'; near it: .*wrn_28_2"):
        build("wrn_28_3", 5)


def test_a_rate_that_a_model_does_not_take_is_told():
    with pytest.raises(InputError, match="'wrn_10_1' does not take drop_rate"):
        build("wrn_10_1", 5, drop_rate=0.5)


def test_dropout_reaches_the_network():
    model = build("test_resnet", 5, drop_rate=0.5).train()
    same = images(1, side=32).expand(2, -1, -1, -1)
    torch.manual_seed(0)
    _, features = model(same)
    assert not features[0].equal(features[1])


@pytest.mark.parametrize(("name", "shape"), [("vit_tiny_patch16_224", (96, 96, 3)), ("wrn_10_1", (8, 8, 1))])
def test_images_that_a_model_does_not_take_are_told(name, shape):
    model = build(name, 5)
    with pytest.raises(InputError, match=rf"{name} does not take images of {shape[0]} x {shape[1]} .*data\.image_size"):
        check_images(name, model, shape)
    assert model.training


def test_images_that_a_model_takes_leave_it_as_it_was():
    model = build("wrn_10_1", 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_images("wrn_10_1", model, (8, 8, 3))
    assert model.training and all(module.training for module in model.modules())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_weights_that_cannot_be_had_are_told():
    with pytest.raises(InputError, match=r"model\.pretrained: cannot get weights of 'wrn_10_1'.*model\.weights takes"):
        build("wrn_10_1", 5, pretrained=True)


# -- a frozen backbone


@pytest.mark.parametrize(("name", "side"), [("test_resnet", 32), ("test_vit", 160), ("wrn_10_1", 8), ("mlp_512", 1)])
def test_only_the_classifier_of_a_frozen_network_is_trained(name, side):
    model = build(name, 5, freeze="backbone", in_chans=3).train()
    classifier = model.net.get_classifier()
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert trained == {id(classifier.weight), id(classifier.bias)}
    in_training = [module for module in model.net.modules() if module.training]
    assert in_training == [classifier] and not any(module.training for module in model.eval().modules())
    logits, features = model.train()(images(side=side))
    assert logits.requires_grad and not features.requires_grad
    torch.testing.assert_close(logits, model.eval()(images(side=side))[0])


def test_no_activation_of_a_frozen_backbone_is_kept():
    kept: dict[bool, list[torch.Size]] = {}
    for frozen in (True, False):
        model = build("test_resnet", 5, freeze="backbone" if frozen else None).train()
        sizes = kept.setdefault(frozen, [])
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.shape) or t, lambda t: t):
            model(images(side=32))
    # Of a linear layer, the features and the weight.
    assert {tuple(size) for size in kept[True]} <= {(4, 96), (5, 96), (96, 5)}
    assert any(len(size) == 4 for size in kept[False])


def test_a_frozen_network_is_the_one_of_the_file(tmp_path):
    trained = build("test_resnet", 7)
    path = weights_of(trained, tmp_path / "model.safetensors")
    frozen = build("test_resnet", 5, weights=str(path), freeze="backbone").train()
    pictures = images(side=32)
    torch.testing.assert_close(frozen(pictures)[1], trained.eval()(pictures)[1])


@pytest.mark.parametrize("name", ["drop_rate", "drop_path_rate"])
def test_rates_that_a_frozen_network_has_no_use_for_are_told(name):
    with pytest.raises(InputError, match=rf"model\.{name} is 0\.1, but model\.freeze"):
        replace(ModelConfig(freeze="backbone"), **{name: 0.1})


# -- weights


def weights_of(model: Classifier, path: Path) -> Path:
    state = model.net.state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("file", ["model.safetensors", "model.pth"])
def test_weights_are_read_as_they_were_written(tmp_path, file):
    trained = build("wrn_10_1", 5)
    trained(images())  # moves the running statistics
    loaded = build("wrn_10_1", 5, weights=str(weights_of(trained, tmp_path / file)))
    for (name, ours), theirs in zip(loaded.state_dict().items(), trained.state_dict().values(), strict=True):
        assert ours.equal(theirs), name


def test_a_file_of_weights_takes_the_place_of_a_download(tmp_path):
    trained = build("wrn_10_1", 5)
    path = weights_of(trained, tmp_path / "model.safetensors")
    # There is nothing to download for this network.
    loaded = build("wrn_10_1", 5, pretrained=True, weights=str(path))
    assert loaded.net.stem.weight.equal(trained.net.stem.weight)


def test_weights_inside_a_training_checkpoint_are_found(tmp_path):
    trained = build("wrn_10_1", 5)
    torch.save({"epoch": 3, "state_dict": trained.net.state_dict()}, tmp_path / "a.pth")
    loaded = build("wrn_10_1", 5, weights=str(tmp_path / "a.pth"))
    assert loaded.net.stem.weight.equal(trained.net.stem.weight)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_weights_of_either_norm_reach_a_network_of_group_norms(tmp_path, norm):
    source = build("wrn_10_1", 5, norm=norm)
    nn.init.uniform_(source.net.norm.weight)
    save_file(source.net.state_dict(), tmp_path / "weights.safetensors")
    target = build("wrn_10_1", 5, norm="group", weights=str(tmp_path / "weights.safetensors"))
    loaded = dict(source.named_parameters())
    assert all(torch.equal(value, loaded[name]) for name, value in target.named_parameters())


def test_a_classifier_of_another_shape_is_left_out(tmp_path):
    trained = build("wrn_10_1", 7)
    path = weights_of(trained, tmp_path / "model.safetensors")
    torch.manual_seed(0)
    fresh = build("wrn_10_1", 5)
    torch.manual_seed(0)
    loaded = build("wrn_10_1", 5, weights=str(path))
    assert loaded.net.stem.weight.equal(trained.net.stem.weight)
    assert loaded.net.fc.weight.equal(fresh.net.fc.weight)


def test_weights_of_another_network_are_refused_and_load_nothing(tmp_path):
    path = weights_of(build("wrn_16_2", 5), tmp_path / "model.safetensors")
    model = build("wrn_10_1", 5)
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    with pytest.raises(InputError, match=r"lacks 'blocks\.0\..*names of the model's in all"):
        load_weights(model.net, path)
    assert all(value.equal(before[name]) for name, value in model.net.state_dict().items())


def test_code_in_a_file_of_weights_is_not_executed(tmp_path):
    trace, path = tmp_path / "was_here", tmp_path / "model.pth"
    torch.save({"state_dict": Harmful(trace)}, path)
    with pytest.raises(InputError, match=r"model\.weights: '.*model\.pth' holds no weights"):
        build("wrn_10_1", 5, weights=str(path))
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # the file is harmful indeed


@pytest.mark.parametrize("file", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("content", [b"", b"nothing like weights", pickle.dumps([1, 2, 3])])
def test_files_that_hold_no_weights_are_told(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError, match="holds no weights"):
        build("wrn_10_1", 5, weights=str(tmp_path / file))


def test_a_missing_file_of_weights_is_told(tmp_path):
    with pytest.raises(InputError, match=r"there is no file '.*none\.pth'"):
        build("wrn_10_1", 5, weights=str(tmp_path / "none.pth"))


# -- classifiers that are not one linear layer


@pytest.mark.parametrize("freeze", [None, "backbone"])
@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s", "resnetv2_50"])
def test_two_classifiers_or_a_convolution_give_the_networks_own_logits(name, freeze):
    torch.manual_seed(0)
    model = build(name, 5, freeze=freeze).eval()
    images = torch.randn(2, 3, 224, 224)
    logits, features = model(images)
    torch.testing.assert_close(logits, model.net(images))
    assert features.shape == (2, model.num_features)
    if freeze:
        trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
        assert trained == {parameter for layer in model.classifiers() for parameter in layer.parameters()}
        assert len(model.classifiers()) == (1 if name == "resnetv2_50" else 2)


def test_weights_of_another_number_of_classes_are_loaded_into_all_but_the_classifiers(tmp_path):
    source, target = build("deit_tiny_distilled_patch16_224", 3), build("deit_tiny_distilled_patch16_224", 5)
    save_file(source.net.state_dict(), tmp_path / "weights.safetensors")
    load_weights(target.net, tmp_path / "weights.safetensors")
    assert target.net.head.weight.shape == (5, 192)
    assert torch.equal(target.net.cls_token, source.net.cls_token)


def test_logits_that_are_not_the_classifiers_are_refused():
    with pytest.raises(InputError, match="volo_d1_224 are not its classifier applied to its 384 features"):
        check_images("volo_d1_224", build("volo_d1_224", 5), (224, 224, 3))


# -- networks of one's own

OWN = """
from torch import nn


class Small(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.num_features = 8
        self.conv, self.fc = nn.Conv2d(in_chans, 8, 3, padding=1), nn.Linear(8, num_classes)

    def forward_features(self, images):
        return self.conv(images).relu()

    def forward_head(self, maps, pre_logits=False):
        features = maps.mean((2, 3))
        return features if pre_logits else self.fc(features)

    def get_classifier(self):
        return self.fc


class Bare(nn.Linear):
    def __init__(self, num_classes, in_chans):
        super().__init__(in_chans, num_classes)
"""


@pytest.fixture
def own(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_network_of_ones_own_is_built(own):
    model = build("my_networks.Small", 3, in_chans=1)
    check_images("my_networks.Small", model, (8, 8, 1))
    logits, features = model(torch.randn(2, 1, 8, 8))
    assert logits.shape == (2, 3) and features.shape == (2, 8)
    assert logits.equal(model.net.fc(features))


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("my_networks.Smal", {}, "near it: Small"),
        ("my_networks.Bare", {}, "has no forward_features"),
        ("my_networks.Small", {"pretrained": True}, "model.pretrained is for timm's models"),
        ("nowhere.Small", {}, "cannot be imported"),
        ("restnet18", {}, "timm has no model 'restnet18'; near it: .*resnet18"),
    ],
)
def test_what_is_no_network_is_told(own, name, settings, words):
    with pytest.raises(InputError, match=words):
        build(name, 3, **settings)
