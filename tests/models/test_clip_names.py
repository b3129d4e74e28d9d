"""Names of open_clip's models: what each of them needs, told before weights are downloaded."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from small_clip import SIGLIP, SIGLIP_PREPROCESSING, save_clip, save_siglip

from debias_ssl.models import clip_names
from debias_ssl.models.clip import load_clip
from debias_ssl.models.clip_names import checked_config, needs_transformers
from debias_ssl.system.errors import InputError

# Families whose tokenizers are those of Hugging Face: SigLIP, CLIPA, MetaCLIP 2, and those with towers of languages.
OF_TRANSFORMERS = re.compile("SigLIP|CLIPA|worldwide|roberta|mt5|nllb")
MODELS = open_clip.list_models()
# One of each kind of tower.
KINDS = ["RN50", "ViT-B-32", "ViT-B-16-SigLIP2", "coca_ViT-B-32", "EVA02-B-16", "MobileCLIP-S1", "PE-Core-T-16-384"]
KINDS += ["ViTamin-S", "convnext_base_w", "ViT-L-14-CLIPA", "ViT-L-14-worldwide", "swin_base_patch4_window7_224"]


def test_the_models_whose_tokenizers_need_transformers_are_these_families():
    need = {name for name in MODELS if needs_transformers(config_of(name))}
    assert need == {name for name in MODELS if OF_TRANSFORMERS.search(name)} and 40 < len(need) < len(MODELS) / 2


def config_of(name: str) -> dict[str, Any]:
    config = open_clip.get_model_config(name)
    assert config is not None
    return config


@pytest.mark.parametrize(
    ("model", "pretrained"),
    [
        ("ViT-B-16-SigLIP", "webli"),
        ("ViT-B-16-SigLIP2", "webli"),
        ("ViT-L-14-CLIPA", "datacomp1b"),
        ("ViT-H-14-worldwide-quickgelu", "metaclip2_worldwide"),
        ("nllb-clip-base", "v1"),
        ("xlm-roberta-base-ViT-B-32", "laion5b_s13b_b90k"),
        ("local-dir:FOLDER", None),
        ("hf-hub:somebody/siglip", None),
    ],
)
def test_a_missing_package_is_told_before_weights_are_downloaded(model, pretrained, tmp_path: Path, monkeypatch):
    folder = save_siglip(tmp_path, hf_tokenizer_name="timm/ViT-B-16-SigLIP").removeprefix("local-dir:")
    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_hf", lambda *_, filename: f"{folder}/{filename}")
    monkeypatch.setattr(open_clip, "create_model", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = model.replace("FOLDER", folder)
    message = rf"^--model {model} needs the package transformers for its tokenizer: pip install 'debias-ssl\[trans"
    with pytest.raises(InputError, match=message):
        load_clip(model, pretrained, torch.device("cpu"))


def test_others_need_no_package(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert load_clip(save_siglip(tmp_path), None, torch.device("cpu")).logit_bias == -1
    assert checked_config("ViT-B/32", "laion2b_e16")[0] == "ViT-B-32"


def test_a_model_of_the_hub_is_held_to_its_config_before_its_weights_are_downloaded(tmp_path: Path, monkeypatch):
    save_clip(tmp_path, preprocess_cfg=None)
    monkeypatch.setattr(open_clip, "create_model", None)
    download = "open_clip.pretrained.download_pretrained_from_hf"
    monkeypatch.setattr(download, lambda *_, filename: str(tmp_path / filename))
    with pytest.raises(InputError, match="does not define the preprocessing of images"):
        checked_config("hf-hub:somebody/clip", None)

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained_from_hf", offline)
    with pytest.raises(InputError, match=r"^--model hf-hub:a/b cannot be loaded: no route to host; without"):
        checked_config("hf-hub:a/b", None)


@pytest.mark.parametrize("tower", ["vision_cfg", "text_cfg"])
def test_a_config_without_a_tower_is_refused(tower: str, tmp_path: Path):
    config = {name: value for name, value in SIGLIP.items() if name != tower}
    save_clip(tmp_path, model_cfg=config, preprocess_cfg=SIGLIP_PREPROCESSING)
    with pytest.raises(InputError, match=f"is not a model's config: its model_cfg has no {tower}"):
        load_clip(f"local-dir:{tmp_path}", None, torch.device("cpu"))


def test_every_tag_of_open_clips_passes_or_names_a_model_that_does():
    for model, tag in open_clip.list_pretrained():
        try:
            clip_names._check_name(model, tag)
        except InputError as error:
            assert "QuickGELU mismatch" in str(error)
            other = re.search(r"pass --model (\S+?)(?: alone)?$", str(error))
            assert other, error
            if not other[1].startswith("hf-hub:"):
                clip_names._check_name(other[1], tag)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in KINDS else pytest.mark.slow) for name in MODELS]
)
def test_models_give_vectors_of_their_size(name: str):
    """On no device: neither is a weight made nor is anything multiplied."""
    config = config_of(name)
    if config["text_cfg"].get("hf_model_name"):
        pytest.skip("its text tower is made from a config of the hub")
    with torch.device("meta"), torch.no_grad():
        network: Any = open_clip.create_model(name, device="meta", pretrained_text=False).eval()
        size = PreprocessCfg(**network.visual.preprocess_cfg).size
        height, width = (size, size) if isinstance(size, int) else size
        images = network.encode_image(torch.empty(2, 3, height, width))
        length = config["text_cfg"].get("context_length", 77)
        texts = network.encode_text(torch.zeros(3, length, dtype=torch.long), normalize=True)
    assert images.shape == (2, config["embed_dim"]) and texts.shape == (3, config["embed_dim"])
    assert network.logit_scale.numel() == 1
    # Models of sigmoids are those whose name says so, and these alone have a bias.
    assert (network.logit_bias is not None) == ("siglip" in name.lower())
    assert json.loads(json.dumps(config)) == config
