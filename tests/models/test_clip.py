"""CLIP from open_clip: what is loaded is what was trained, or an error says what to pass instead."""

import json
import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from harmful import Harmful
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import save_file
from small_clip import MODEL, PREPROCESSING, save_clip
from torch import nn
from torchvision.transforms import v2

from debias_ssl.models.clip import Clip, blank_features, load_clip, zero_shot_weights
from debias_ssl.models.pixels import hash_of, middle
from debias_ssl.system.errors import InputError

CPU = torch.device("cpu")
# What the network sees of one level of a pixel, and a little.
LEVEL = 1.01 / 255 / 0.2
TINY = Path(__file__).parents[2] / ".." / "shared" / "models" / "tiny-clip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(save_clip(folder), None, CPU)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch):
    """Lets open_clip know a small model by the name `Small`, with published tags of given training."""

    def publish(*tags: dict[str, Any], name: str = "Small", **config: Any) -> None:
        from open_clip import factory, pretrained

        monkeypatch.setitem(factory._MODEL_CONFIGS, name, MODEL | config)
        monkeypatch.setitem(pretrained._PRETRAINED, name, {f"tag{i}": tag for i, tag in enumerate(tags)})

    return publish


def test_the_models_own_scale_and_preprocessing_are_taken(clip: Clip):
    assert clip.logit_scale == pytest.approx(10)
    assert clip.embed_dim == 8
    assert clip.description["preprocessing"] | PREPROCESSING == clip.description["preprocessing"]
    gray = seen(clip, Image.new("RGB", (40, 20), (102, 128, 153)))
    assert gray.shape == (3, 16, 16)
    # (value - mean) / std of each channel
    assert gray[:, 0, 0].tolist() == pytest.approx([0, (128 / 255 - 0.5) / 0.2, 0], abs=1e-5)


def seen(clip: Clip, image: Image.Image) -> torch.Tensor:
    """What the network takes of an image."""
    return clip.normalized(clip.preprocess(image)[None])[0]


def usual(**settings: Any) -> Any:
    """open_clip's own preprocessing for the small model."""
    config: dict[str, Any] = {**PREPROCESSING, "size": 16, **settings}
    return image_transform_v2(PreprocessCfg(**config), is_train=False)


def strip(width: int, height: int) -> Image.Image:
    """A picture in which colors change smoothly, along its long side too."""
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(columns / (3 * height) + k) * np.cos(rows / height) for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(2000, 1), (1, 2001), (900, 4), (4, 901), (800, 16)])
def test_of_a_strip_nothing_is_resized_that_is_cropped_away(clip: Clip, size: tuple[int, int], monkeypatch):
    image = strip(*size)
    expected, resize, sizes = usual()(image), v2.Resize.transform, []

    def watched(self: Any, inpt: Any, params: Any) -> Any:
        resized = resize(self, inpt, params)
        sizes.append(resized.shape[-2:])
        return resized

    monkeypatch.setattr(v2.Resize, "transform", watched)
    assert (seen(clip, image) - expected).abs().max() < LEVEL, "its own preprocessing gives the same"
    assert len(sizes) == 1 and all(np.prod(each) <= 17 * 16 * 16 for each in sizes)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [(60, 45), (45, 61), (12, 7), (300, 40)])
def test_torch_resizes_as_pillow_does_but_for_a_level_of_few_pixels(mode: str, size: tuple[int, int], tmp_path: Path):
    clip = load_clip(save_clip(tmp_path, preprocess_cfg=PREPROCESSING | {"resize_mode": mode}), None, CPU)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    differing = (seen(clip, image) - usual(resize_mode=mode)(image)).abs()
    assert differing.max() < LEVEL and (differing > 1e-6).float().mean() < 0.02
    assert clip.preprocess.takes_tensors == (mode != "longest")
    together = clip.preprocess.alike([noise, noise[::-1]])
    assert together.equal(torch.stack([clip.preprocess(image), clip.preprocess(noise[::-1])]))


@pytest.mark.parametrize("size", [(1000, 3), (7, 555), (3000, 37), (613, 24)])
def test_of_a_strip_of_any_sides_the_same_is_seen_within_a_pixel(clip: Clip, size: tuple[int, int]):
    # One of the 16 columns is a 48th of a wave: 13 of 255, in units of the deviation.
    assert (seen(clip, strip(*size)) - usual()(strip(*size))).abs().max() < 13 / 255 / 0.2


def test_what_is_no_strip_goes_as_it_is(clip: Clip):
    for size in ((16, 1), (20, 15), (33, 33), (5, 80)):
        assert middle(np.asarray(strip(*size))).shape == (*size[::-1], 3)
    assert middle(np.asarray(strip(17, 1))).shape == (1, 17, 3)
    assert middle(np.asarray(strip(18, 1))).tolist() == np.asarray(strip(18, 1))[:, 1:-1].tolist()


def test_where_the_whole_picture_is_seen_none_of_it_is_cut_off(tmp_path: Path):
    squashing = load_clip(save_clip(tmp_path, preprocess_cfg=PREPROCESSING | {"resize_mode": "squash"}), None, CPU)
    assert (seen(squashing, strip(900, 2)) - usual(resize_mode="squash")(strip(900, 2))).abs().max() < LEVEL


def test_the_network_does_not_train_and_workers_can_take_its_preprocessing(clip: Clip):
    assert not any(module.training for module in clip.network.modules())
    assert not any(parameter.requires_grad for parameter in clip.network.parameters())
    assert pickle.loads(pickle.dumps(clip.preprocess))(Image.new("RGB", (4, 4))).shape == (16, 16, 3)


def test_batch_norms_are_folded_and_features_are_those_of_open_clip(tmp_path: Path):
    torch.manual_seed(0)
    config: dict[str, Any] = MODEL | {
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}
    }
    network: Any = open_clip.CLIP(**config)
    for name, values in network.visual.named_buffers():
        if name.endswith("running_var"):
            values.uniform_(0.5, 2)
    save_file(network.state_dict(), tmp_path / "open_clip_model.safetensors")
    told = {"model_cfg": config, "preprocess_cfg": PREPROCESSING}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    clip = load_clip(f"local-dir:{tmp_path}", None, CPU)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in clip.network.visual.modules())
    images = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.eval().encode_image(clip.normalized(images).contiguous(), normalize=True)
    torch.testing.assert_close(clip.encode(images), expected, atol=1e-5, rtol=1e-4)
    assert clip.description["weights"] == hash_of(network.visual.state_dict()), "those of the file"


def test_features_have_length_one_in_fp32_under_mixed_precision(clip: Clip):
    images = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = clip.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = clip.encode(images)
    assert mixed.dtype == torch.float32
    for features in (plain, mixed):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(5))
    expected = clip.network.encode_image(clip.normalized(images))
    torch.testing.assert_close(plain, torch.nn.functional.normalize(expected, dim=-1))
    assert not plain.equal(mixed)


def test_with_flips_features_are_means_over_an_image_and_its_mirror_image(folder: Path, clip: Clip):
    flipping = load_clip(f"local-dir:{folder}", None, CPU, flip=True)
    images = [strip(32, 16), strip(16, 16)]
    mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
    plain, mirror = (clip.encode(torch.stack([clip.preprocess(each) for each in some])) for some in (images, mirrored))
    found = flipping.encode(torch.stack([flipping.preprocess(each) for each in images]))
    torch.testing.assert_close(found, torch.nn.functional.normalize((plain + mirror) / 2, dim=-1), atol=1e-5, rtol=0)
    assert (found - plain).abs().max() > 0.01
    assert flipping.description == clip.description | {"flip": True}


def test_the_blank_image_is_white(clip: Clip):
    white = clip.preprocess(Image.new("RGB", (16, 16), (255, 255, 255)))
    assert blank_features(clip).equal(clip.encode(white[None]))


def test_weights_are_means_of_normalized_prompts(clip: Clip):
    weights = zero_shot_weights(clip, ["cat", "big {dog}"], ["a {}.", "the {}"])
    texts = open_clip.get_tokenizer("ViT-B-32", context_length=16)(["a big {dog}.", "the big {dog}"])
    vectors = torch.nn.functional.normalize(clip.network.encode_text(texts), dim=-1)
    assert weights.shape == (8, 2)
    torch.testing.assert_close(weights[:, 1], torch.nn.functional.normalize(vectors.mean(0), dim=-1))
    assert zero_shot_weights(clip, ["cat"], open_clip.SIMPLE_IMAGENET_TEMPLATES).shape == (8, 1)


def test_the_description_tells_models_apart_by_what_images_features_depend_on(tmp_path: Path, clip: Clip):
    def description(**settings: Any) -> dict[str, Any]:
        return load_clip(save_clip(tmp_path, **settings), None, CPU).description

    assert description() == clip.description == json.loads(json.dumps(clip.description))
    # Features of images are before the scale.
    assert description(scale=3.0) == clip.description
    others = {
        "weights": description(seed=1),
        "preprocessing": description(preprocess_cfg=PREPROCESSING | {"interpolation": "bilinear"}),
        "vision": description(model_cfg=MODEL | {"quick_gelu": True}),
    }
    for key, other in others.items():
        assert {name for name in other if other[name] != clip.description[name]} == {key}


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B32", "openai", r"no model 'ViT-B32'; near it: ViT-B-32"),
        ("vit-b-32", "openai", r"no model 'vit-b-32'; near it: ViT-B-32"),
        ("ViT-B-32", None, r"--pretrained is missing: .* one of openai, laion400m_e31"),
        ("ViT-B/32", "opanai", r"--pretrained is 'opanai', which is neither a tag of ViT-B-32 nor a file: .* openai"),
        ("local-dir:x", "openai", r"brings its own weights: leave out --pretrained"),
        ("hf-hub:a/b", "openai", r"brings its own weights: leave out --pretrained"),
        ("local-dir:/nowhere", None, r"cannot read '/nowhere/open_clip_config.json': No such file"),
        ("ViT-B-32", "openai", r"QuickGELU mismatch: .* pass --model ViT-B-32-quickgelu$"),
        ("ViT-H-14", "dfn5b", r"QuickGELU mismatch: .* pass --model ViT-H-14-quickgelu$"),
        ("roberta-ViT-B-32", "laion2b_s12b_b32k", r"QuickGELU mismatch: .* pass --model hf-hub:laion/CLIP.* alone$"),
    ],
)
def test_names_that_do_not_fit_are_refused_before_anything_is_downloaded(monkeypatch, model, pretrained, message):
    monkeypatch.setattr(open_clip, "create_model", None)
    with pytest.raises(InputError, match=message):
        load_clip(model, pretrained, CPU)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preprocess_cfg": None}, r"does not define the preprocessing of images: add a preprocess_cfg"),
        ({"preprocess_cfg": {"mean": [0, 0, 0]}}, r"does not define the preprocessing of images"),
        ({"model_cfg": None}, r"open_clip_config.json' is not a model's config"),
        ({"model_cfg": MODEL | {"embed_dim": 9}}, r"cannot be loaded: .*size mismatch.*weights those of this model\?"),
    ],
)
def test_a_folder_must_hold_a_whole_model(tmp_path: Path, config, message):
    model = save_clip(tmp_path, **config)
    with pytest.raises(InputError, match=message):
        load_clip(model, None, CPU)


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    model = save_clip(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no weights: put the model's open_clip_model\.safetensors there"):
        load_clip(model, None, CPU)
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(InputError, match="is not a model's config"):
        load_clip(model, None, CPU)


def test_nothing_in_a_file_is_executed(tmp_path: Path, published):
    harmful = Harmful(tmp_path / "harmed")
    published()
    torch.save({"state_dict": harmful}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"--model Small --pretrained .*weights\.pt cannot be loaded"):
        load_clip("Small", str(tmp_path / "weights.pt"), CPU)
    assert not harmful.trace.exists()


def test_weights_may_be_a_pytorch_file(tmp_path: Path, clip: Clip, published):
    published()
    torch.save(clip.network.state_dict(), tmp_path / "weights.pt")
    loaded = load_clip("Small", str(tmp_path / "weights.pt"), CPU)
    assert loaded.description["weights"] == clip.description["weights"]


def test_a_file_beside_a_config_that_says_otherwise_is_refused(folder: Path, clip: Clip, published):
    published()
    file = str(folder / "open_clip_model.safetensors")
    fix = rf"pass --model local-dir:{folder} without --pretrained$"
    with pytest.raises(InputError, match=rf"preprocessing mismatch: .* mean \[0.4, 0.5, 0.6\], Small .*{fix}"):
        load_clip("Small", file, CPU)


@pytest.mark.parametrize("trained_with", [True, False])
def test_a_file_beside_a_config_of_the_other_activation_is_refused(tmp_path: Path, published, trained_with):
    published(quick_gelu=not trained_with)
    config = {"preprocess_cfg": {}, "model_cfg": MODEL | {"quick_gelu": trained_with}}
    file = save_clip(tmp_path, **config).removeprefix("local-dir:") + "/open_clip_model.safetensors"
    with pytest.raises(InputError, match=f"QuickGELU mismatch: .* quick_gelu {trained_with}, .* --model local-dir:"):
        load_clip("Small", file, CPU)
    published(quick_gelu=trained_with)
    assert load_clip("Small", file, CPU).description["vision"]["quick_gelu"] is trained_with


def test_a_file_alone_is_compared_with_what_all_published_weights_agree_on(tmp_path: Path, clip: Clip, published):
    own = open_clip.get_pretrained_cfg("ViT-B-32", "laion2b_e16")
    file = str(tmp_path / "weights.pt")
    torch.save(clip.network.state_dict(), file)
    published(own | {"interpolation": "bilinear"}, own | {"interpolation": "bilinear"})
    with pytest.raises(InputError, match=r"preprocessing mismatch: .* interpolation bilinear.* local-dir:FOLDER$"):
        load_clip("Small", file, CPU)
    published(own | {"quick_gelu": True}, own | {"quick_gelu": True})
    with pytest.raises(InputError, match=r"QuickGELU mismatch: .* local-dir:FOLDER$"):
        load_clip("Small", file, CPU)
    published(quick_gelu=True, name="Small-quickgelu")
    with pytest.raises(InputError, match=r"QuickGELU mismatch: .* --model Small-quickgelu$"):
        load_clip("Small", file, CPU)
    published(own | {"interpolation": "bilinear"}, own | {"quick_gelu": True})
    assert load_clip("Small", file, CPU).embed_dim == 8


def test_open_clips_messages_stay_away_and_others_stay(folder: Path, clip: Clip, caplog, capfd):
    caplog.set_level(logging.INFO)
    load_clip(f"local-dir:{folder}", None, CPU)
    logging.info("mine")
    assert caplog.messages == ["mine"]
    assert capfd.readouterr().err == ""
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


@pytest.mark.skipif(not TINY.exists(), reason="needs the trained model that lies beside the repository")
def test_a_trained_model_is_loaded():
    clip = load_clip(f"local-dir:{TINY}", None, CPU)
    assert clip.logit_scale == pytest.approx(12.74, abs=0.01)
    assert clip.description["vision"]["timm_model_name"] == "resnet10t"
