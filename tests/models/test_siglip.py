"""SigLIP and other models of open_clip with sigmoids, or with tokenizers and text towers of Hugging Face."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file, save_file
from small_clip import MODEL, PREPROCESSING, SIGLIP_PREPROCESSING, save_clip, save_siglip

from debias_ssl.models.clip import class_vectors, load_clip
from debias_ssl.system.errors import InputError

CPU = torch.device("cpu")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_scores_are_those_of_open_clips_own_logits(tmp_path: Path):
    clip = load_clip(save_siglip(tmp_path, scale=20, bias=-3), None, CPU)
    assert (clip.logit_scale, clip.logit_bias) == (pytest.approx(20), -3)
    images = torch.stack([clip.preprocess(noise(width, 30)) for width in (30, 20, 90)])
    logits = clip.logit_scale * clip.encode(images) @ class_vectors(clip, ["ant", "bee"], ["a {}"]).weights
    own, _ = clip.network.get_logits(clip.normalized(images), clip.tokenizer(["a ant", "a bee"]))
    assert clip.logit_bias is not None
    torch.testing.assert_close((logits + clip.logit_bias).sigmoid(), own.sigmoid())
    # Of one label the bias says nothing.
    torch.testing.assert_close(logits.softmax(-1), own.softmax(-1))
    assert own.std() > 0.1


def test_images_are_squashed_and_centered_as_in_its_training(tmp_path: Path):
    clip = load_clip(save_siglip(tmp_path), None, CPU)
    settings: dict[str, Any] = {**SIGLIP_PREPROCESSING, "size": 160}
    own: Any = image_transform_v2(PreprocessCfg(**settings), is_train=False)
    for image in (noise(200, 120), noise(900, 4)):
        # Torch and Pillow differ by a level, in a strip of noise by two.
        assert (clip.normalized(clip.preprocess(image)[None])[0] - own(image)).abs().max() < 2.01 / 255 / 0.5
    white = clip.normalized(clip.preprocess(Image.new("RGB", (50, 30), "white"))[None])[0]
    assert white.shape == (3, 160, 160) and white.unique().tolist() == [1.0]


def test_a_model_whose_weights_have_no_bias_has_none(tmp_path: Path):
    """open_clip fills in 0 there, with which all sigmoids were wrong in silence."""
    model = save_siglip(tmp_path / "sig")
    weights = load_file(tmp_path / "sig" / "open_clip_model.safetensors")
    del weights["logit_bias"]
    save_file(weights, tmp_path / "sig" / "open_clip_model.safetensors")
    assert load_clip(model, None, CPU).logit_bias is None
    assert load_clip(save_clip(tmp_path / "clip"), None, CPU).logit_bias is None


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_prompts_that_are_cut_are_found_to_the_token(save, tmp_path: Path):
    clip = load_clip(save(tmp_path), None, CPU)
    # Of 16 tokens the first and the last are marks.
    names = [" ".join(["ant"] * number) for number in (13, 14, 15, 16, 90)]
    assert class_vectors(clip, [*names, "a! b? c! d! e!!!"], ["{}"]).cut == names[2:]


def save_tokenizer(folder: Path, *, pad: str = "<pad>", side: str = "right") -> None:
    """A tokenizer of words, as the package `transformers` saves and loads it."""
    tokenizers, transformers = (pytest.importorskip(name) for name in ("tokenizers", "transformers"))
    words = ["<pad>", "</s>", "<unk>", "<s>", "a", "photo", "of", "ant", "bee", "big"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", words.index("</s>"))]
    )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, padding_side=side, **special
    ).save_pretrained(folder)


@pytest.mark.parametrize("pads", [{}, {"pad": "</s>"}, {"side": "left"}])
@pytest.mark.parametrize(
    ("text", "most"),
    [({}, 15), ({"tokenizer_mode": "clips"}, 13), ({"tokenizer_kwargs": {"strip_sep_token": True}}, 15)],
)
def test_prompts_that_are_cut_are_found_to_the_token_with_every_tokenizer(pads, text, most, tmp_path: Path):
    """SigLIP pads with the mark of the end, Gemma's tokenizer on the left, and others close each row with a mark."""
    model = save_siglip(tmp_path, hf_tokenizer_name="timm/ViT-B-16-SigLIP", **text)
    save_tokenizer(tmp_path, **pads)
    clip = load_clip(model, None, CPU)
    names = [" ".join(["big"] * number) for number in (most - 1, most, most + 1, most + 2, 90)]
    found = class_vectors(clip, [*names, "ant"], ["{}"])
    assert found.cut == names[2:] and found.weights.isfinite().all()
    # Up to the cut they are the longest one that is not cut.
    assert [*found.same] == [(1, 2), (1, 3), (1, 4)]


def test_a_folder_without_its_tokenizer_is_told_what_lacks(tmp_path: Path):
    pytest.importorskip("transformers")
    model = save_siglip(tmp_path, hf_tokenizer_name="timm/ViT-B-16-SigLIP")
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not looked at")
    with pytest.raises(
        InputError, match=r"has a tokenizer that cannot be loaded: .*; put its files \(tokenizer\.json, "
    ):
        load_clip(model, None, CPU)


@pytest.mark.parametrize("settings", [{}, {"tokenizer_kwargs": {"trust_remote_code": True}}])
def test_code_beside_a_tokenizer_is_not_executed(settings, tmp_path: Path, monkeypatch):
    """A config of strangers may even ask for it."""
    save_tokenizer(tmp_path)
    monkeypatch.setattr("builtins.input", None)
    model = save_siglip(tmp_path, hf_tokenizer_name="a/b", **settings)
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast\n"
    (tmp_path / "own.py").write_text(code + "class Own(PreTrainedTokenizerFast): pass\nclass OwnConfig: pass\n")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has a tokenizer that cannot be loaded"):
        load_clip(model, None, CPU)
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}')
    written = json.loads((tmp_path / "open_clip_config.json").read_text())
    written["model_cfg"]["text_cfg"]["hf_model_name"] = str(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match="has a tokenizer that cannot be loaded"):
        load_clip(model, None, CPU)
    assert not trace.exists()


SIZES = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "max_position_embeddings": 40, "pad_token_id": 0}
OF_T5 = {"vocab_size": 100, "d_model": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2, "d_ff": 16, "pad_token_id": 0}
OF_NLLB = {"vocab_size": 100, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
OF_NLLB |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("kind", "sizes", "pooler"),
    [
        ("RobertaConfig", SIZES, "mean_pooler"),
        ("XLMRobertaConfig", SIZES, "mean_pooler"),
        ("MT5Config", OF_T5, "mean_pooler"),
        ("M2M100Config", OF_NLLB, "cls_pooler"),
    ],
)
def test_text_towers_of_hugging_face_are_loaded(kind: str, sizes: dict[str, int], pooler: str, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    getattr(transformers, kind)(**sizes).save_pretrained(tmp_path / "tower")
    text: dict[str, Any] = {"hf_model_name": str(tmp_path / "tower"), "hf_tokenizer_name": "a/b", "hf_proj_type": "mlp"}
    text |= {"hf_pooler_type": pooler, "context_length": 16}
    config: dict[str, Any] = {"embed_dim": 8, "vision_cfg": MODEL["vision_cfg"]}
    tower: Any = text | {"hf_model_pretrained": False}
    network = open_clip.CustomTextCLIP(**config, text_cfg=tower)
    weights = {name: each.clone() for name, each in network.state_dict().items()}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    written = {"model_cfg": config | {"text_cfg": text}, "preprocess_cfg": PREPROCESSING}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    save_tokenizer(tmp_path)
    clip = load_clip(f"local-dir:{tmp_path}", None, CPU)
    expected = open_clip.build_zero_shot_classifier(clip.network, clip.tokenizer, ["ant", "bee"], ["a photo of a {}"])
    assert class_vectors(clip, ["ant", "bee"], ["a photo of a {}"]).weights.equal(expected)
