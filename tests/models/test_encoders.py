"""Encoders: features of a network of timm are its own, whichever way its weights are given, and no code runs."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from harmful import Harmful
from PIL import Image
from safetensors.torch import save_file
from small_clip import save_clip
from timm.data.transforms_factory import create_transform

from debias_ssl.models.classifier import build
from debias_ssl.models.clip import Clip
from debias_ssl.models.encoders import TimmEncoder, load_encoder
from debias_ssl.system.errors import InputError

CPU = torch.device("cpu")
NAME = "test_efficientnet"


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=7).eval()


@pytest.fixture(scope="module")
def weights(network: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of weights whose classifier has seven classes."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(network.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Smooth ones of three sizes, two of each."""
    noise = [np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8) for i in range(6)]
    sizes = [(64, 64), (64, 64), (90, 40), (90, 40), (40, 200), (40, 200)]
    return [Image.fromarray(each).resize(size) for each, size in zip(noise, sizes, strict=True)]


def test_features_are_those_of_timms_own_preprocessing_and_network(network: Any, weights: str, images):
    encoder = load_encoder(f"timm:{NAME}", CPU, weights=weights, image_size=48)
    assert isinstance(encoder, TimmEncoder)
    config = timm.data.resolve_model_data_config(network) | {"input_size": (3, 48, 48)}  # pyright: ignore
    own: Any = create_transform(**config, is_training=False)
    expected = torch.stack([own(image) for image in images])
    taken = torch.stack([encoder.preprocess(image) for image in images])
    # Of 255 levels, Pillow and torch differ by two at most.
    assert (encoder.normalized(taken) - expected).abs().max() < 2.5 / 255 / min(config["std"])
    with torch.no_grad():
        features = network.forward_head(network.forward_features(expected), pre_logits=True)
    torch.testing.assert_close(encoder.encode(taken), features, atol=0.05 * features.std().item(), rtol=0)
    assert encoder.embed_dim == features.shape[1]
    assert not encoder.encode(taken).norm(dim=1).allclose(torch.ones(len(images)))


def test_the_trainer_sees_the_same_features(weights: str, images):
    encoder = load_encoder(f"timm:{NAME}", CPU, weights=weights, image_size=48)
    assert isinstance(encoder, TimmEncoder)
    taken = torch.stack([encoder.preprocess(image) for image in images])
    trained = build(NAME, 3, weights=weights, drop_rate=0.5).eval()
    torch.testing.assert_close(encoder.encode(taken), trained(encoder.normalized(taken))[1], atol=1e-5, rtol=1e-4)


def test_images_of_one_size_together_are_those_one_by_one_and_workers_take_it_along(weights: str, images):
    preprocess = pickle.loads(pickle.dumps(load_encoder(f"timm:{NAME}", CPU, weights=weights).preprocess))
    for first in range(0, 6, 2):
        together = preprocess.alike([np.asarray(image) for image in images[first : first + 2]])
        assert together.equal(torch.stack([preprocess(image) for image in images[first : first + 2]]))


def test_with_flips_features_are_means_over_both_images(weights: str, images):
    plain, flipping = (load_encoder(f"timm:{NAME}", CPU, weights=weights, flip=flip) for flip in (False, True))
    taken = torch.stack([plain.preprocess(image) for image in images])
    expected = (plain.encode(taken) + plain.encode(taken.flip(2))) / 2
    torch.testing.assert_close(flipping.encode(taken), expected, atol=1e-5, rtol=1e-4)
    assert flipping.description == plain.description | {"flip": True}


def test_a_folder_says_by_its_config_whose_network_it_has(network: Any, weights: str, tmp_path: Path):
    folder = tmp_path / "timm"
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    told = {"architecture": NAME, "num_classes": 7, "pretrained_cfg": network.pretrained_cfg}
    (folder / "config.json").write_text(json.dumps(told))
    by_name = load_encoder(f"timm:{NAME}", CPU, weights=weights)
    assert load_encoder(f"local-dir:{folder}", CPU).description == by_name.description
    assert isinstance(load_encoder(save_clip(tmp_path / "clip"), CPU), Clip)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"neither open_clip's open_clip_config.json nor timm's config.json"):
        load_encoder(f"local-dir:{tmp_path / 'none'}", CPU)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights: put the network's model\.safetensors there"):
        load_encoder(f"local-dir:{folder}", CPU)


def test_a_transformer_takes_another_size_than_its_own(tmp_path: Path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    own, small = (
        load_encoder("timm:test_vit", CPU, weights=str(tmp_path / "vit.safetensors"), image_size=size)
        for size in (None, 64)
    )
    assert own.preprocess(Image.new("RGB", (9, 9))).shape == (160, 160, 3)
    assert small.encode(small.preprocess(Image.new("RGB", (9, 9)))[None]).shape == (1, own.embed_dim)
    assert own.description["weights"] == small.description["weights"]
    with pytest.raises(InputError, match=r"timm:test_vit does not take images of 65 x 65 pixels .*--image_size"):
        load_encoder("timm:test_vit", CPU, weights=str(tmp_path / "vit.safetensors"), image_size=65)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("timm:test_efficientne", {}, r"--model: timm has no model 'test_efficientne'.*test_efficientnet"),
        (f"timm:{NAME}", {"pretrained": "openai"}, r"--pretrained is for open_clip's models.*--weights takes a file"),
        (f"timm:{NAME}", {"weights": "none.bin"}, r"--weights: there is no file 'none\.bin'"),
        ("open_clip:ViT-B-32", {"weights": "x"}, r"--weights is for networks of timm.*--pretrained takes a file"),
        ("open_clip:ViT-B-32", {"image_size": 9}, r"--image_size is for networks of timm"),
        ("resnet18", {}, r"pass --model timm:resnet18"),
    ],
)
def test_what_does_not_fit_is_told(model: str, settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        load_encoder(model, CPU, **settings)


def test_code_in_a_file_of_weights_does_not_run(tmp_path: Path):
    torch.save({"weights": Harmful(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"--weights: .* holds no weights"):
        load_encoder(f"timm:{NAME}", CPU, weights=str(tmp_path / "weights.pth"))
    assert not (tmp_path / "ran").exists()
