"""`config.json` has the fields that timm writes, so that timm creates the network."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from small_vit import small_vit
from timm.models._hub import save_config_for_hf

import debias_ssl.models.timm_models  # noqa: F401
from debias_ssl.models import ModelConfig, build
from debias_ssl.models.classifier import OWN
from debias_ssl.models.timm_folder import ImageFormat, timm_config

CLASSES = ("ant", "bee", "cat")


def of_images(size: int, channels: int = 3) -> ImageFormat:
    return ImageFormat(size=size, mean=(0.5,) * channels, std=(0.25,) * channels, crop=0.875)


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_resnet", 32), ("test_vit", 96), ("test_efficientnet", 64), ("test_convnext", 64)],
)
def test_fields_are_those_that_timm_writes(name: str, size: int, tmp_path: Path):
    net: Any = build(name, len(CLASSES)).net.eval()
    ours = timm_config(net, ModelConfig(name=name), CLASSES, of_images(size))
    assert ours is not None
    preprocessing = {"input_size": (3, size, size), "mean": (0.5,) * 3, "std": (0.25,) * 3, "crop_pct": 0.875}
    save_config_for_hf(
        net,
        str(tmp_path / "config.json"),
        model_config={"label_names": [*CLASSES]},
        data_config={**preprocessing, "interpolation": "bilinear", "crop_mode": "center"},
    )
    theirs = json.loads((tmp_path / "config.json").read_text())
    for inner in ("model_args", "pretrained_cfg"):
        assert ours[inner] == {key: theirs[inner].get(key) for key in ours[inner]}, inner
    whole = {key for key in ours if key not in ("model_args", "pretrained_cfg", "debias_ssl")}
    assert {key: ours[key] for key in whole} == {key: theirs.get(key, ours[key]) for key in whole}
    assert whole >= {"architecture", "num_classes", "num_features", "label_names"}
    (tmp_path / "config.json").write_text(json.dumps(ours))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(2, 3, size, size)
    torch.testing.assert_close(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(images), net(images))


@pytest.mark.parametrize(("name", "channels", "size"), [("wrn_10_1", 1, 8), ("linear", 20, 1), ("mlp_512", 20, 1)])
def test_timm_creates_networks_of_the_package(name: str, channels: int, size: int, tmp_path: Path):
    net: Any = build(name, len(CLASSES), in_chans=channels).net.eval()
    described = timm_config(net, ModelConfig(name=name), CLASSES, of_images(size, channels))
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    created: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, channels, size, size)
    assert created(images).equal(net(images))
    assert tuple(created.pretrained_cfg["label_names"]) == CLASSES
    # The first layer and the classifier have the names by which timm changes channels and classes.
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5).eval()
    assert other(images).shape == (2, 5)
    if size > 1:
        wider = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=3).eval()
        # timm spreads one channel over three, whose sum is the same.
        torch.testing.assert_close(wider(images.repeat(1, 3, 1, 1)), net(images))


def test_every_network_of_the_package_is_known_to_timm():
    assert all(timm.is_model(name) for name in OWN)


def test_classes_whose_number_timm_is_not_told_are_those_that_are_asked_for():
    assert timm.create_model("wrn_10_1", num_classes=7, in_chans=1)(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(name="test_resnet", norm="group"),
        ModelConfig(name="test_vit", adapter="adaptformer"),
        ModelConfig(name="small_vit.small_vit"),
    ],
    ids=["group norm", "adaptformer", "own"],
)
def test_a_network_that_timm_cannot_create_has_no_config(model: ModelConfig):
    net = small_vit(3) if "." in model.name else build(num_classes=3, **vars(model)).net
    assert timm_config(net, model, CLASSES, of_images(32)) is None
    known = ModelConfig(name=model.name.partition(".")[0])
    if "." not in model.name:
        assert timm_config(net, known, CLASSES, of_images(32)) is not None
