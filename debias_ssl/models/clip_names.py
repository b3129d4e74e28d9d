"""Names of open_clip's models: checks weights, preprocessing and packages before any weights are loaded."""

import json
import logging
import os
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.hub import hub_or_cache
from debias_ssl.system.imports import near

LOCAL, HUB = "local-dir:", "hf-hub:"
CONFIG = "open_clip_config.json"
WEIGHTS = (".safetensors", ".bin", ".pth")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
# The package's extra that brings what some tokenizers need.
EXTRA = "pip install 'debias-ssl[transformers]'"
OFFLINE = f"without a network, pass --model {LOCAL}FOLDER, a folder with the config and the weights of a model"


def checked_config(model: str, pretrained: str | None) -> tuple[str, dict[str, Any]]:
    """A model's name as open_clip takes it, and its config; no weights are downloaded or read.

    Args:
        model: a name of open_clip's; or `local-dir:FOLDER` or `hf-hub:OWNER/NAME`, which bring their own weights.
        pretrained: for a name, a tag of open_clip's or a file of weights.

    Raises:
        InputError: there is no such model, its weights are missing, it was trained with another activation or with
            images prepared otherwise than it would be used with here, or its tokenizer needs a package that is missing.
    """
    if not model.startswith((LOCAL, HUB)):
        import open_clip

        if os.path.isdir(model):
            raise InputError(f"--model {model} is a folder: pass --model {LOCAL}{model}")
        model = model.replace("/", "-")
        _check_name(model, pretrained)
        config = open_clip.get_model_config(model)
        assert config is not None
    elif pretrained is not None:
        raise InputError(f"--model {model} brings its own weights: leave out --pretrained")
    elif model.startswith(LOCAL):
        config = _check_folder(Path(model.removeprefix(LOCAL)))
    else:
        config = _trained_config(from_hub(model))
    if needs_transformers(config) and find_spec("transformers") is None:
        raise InputError(f"--model {model} needs the package transformers for its tokenizer: {EXTRA}")
    return model, config


def needs_transformers(config: dict[str, Any]) -> bool:
    """Whether a model's tokenizer, and with some its text tower, is one of the package transformers."""
    return any(config["text_cfg"].get(key) for key in ("hf_tokenizer_name", "hf_model_name"))


def why(error: Exception) -> str:
    """What another library's error says, in one line."""
    return textwrap.shorten(str(error) or type(error).__name__, 240, placeholder=" ...")


@contextmanager
def silent() -> Iterator[None]:
    """Keeps open_clip's messages from the user: what matters in them is checked before and after."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def from_hub(model: str, name: str = CONFIG) -> Path:
    """A file of a model of the hub, such as its config, downloaded if it is not in the cache."""
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        with silent(), hub_or_cache():
            return Path(download_pretrained_from_hf(model.removeprefix(HUB), filename=name))
    except Exception as error:  # downloading raises nearly anything
        raise InputError(f"--model {model} cannot be loaded: {why(error)}; {OFFLINE}") from error


def _check_folder(folder: Path) -> dict[str, Any]:
    config = _trained_config(folder / CONFIG)
    if not any(file.suffix in WEIGHTS for file in folder.iterdir()):
        raise InputError(f"{str(folder)!r} has no weights: put the model's open_clip_model.safetensors there")
    return config


def _trained_config(path: Path) -> dict[str, Any]:
    """The model_cfg of an open_clip_config.json, which must say how images were prepared in training."""
    config = _read_config(path)
    if not {"mean", "std"} <= set(config["preprocess_cfg"]):
        raise InputError(
            f"{str(path)!r} does not define the preprocessing of images: add a preprocess_cfg with "
            f"{', '.join(PREPROCESSING)}, as the model was trained"
        )
    for tower in ("vision_cfg", "text_cfg"):
        if not isinstance(config["model_cfg"].get(tower), dict):
            raise InputError(f"{str(path)!r} is not a model's config: its model_cfg has no {tower}")
    return config["model_cfg"]


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    """The model_cfg and preprocess_cfg of an open_clip_config.json; the latter is empty if it is missing."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {"model_cfg": dict(config["model_cfg"]), "preprocess_cfg": dict(config.get("preprocess_cfg") or {})}
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}; open_clip's models have one") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{str(path)!r} is not a model's config: {reason(error)}") from error


def _check_name(model: str, pretrained: str | None) -> None:
    """Whether a name and a tag or file fit together, as far as can be told before anything is loaded."""
    import open_clip
    from open_clip.transform import PreprocessCfg

    known = open_clip.list_models()
    if model not in known:
        raise InputError(f"--model: open_clip has no model {model!r}{near(model, known)}")
    tags = open_clip.list_pretrained_tags_by_model(model)
    beside = Path(pretrained or "").parent / CONFIG
    if pretrained and (published := open_clip.get_pretrained_cfg(model, pretrained)):
        told = {"quick_gelu": published.get("quick_gelu", False)}
        fix = f"pass --model {HUB}{published.get('hf_hub', '').rpartition('/')[0]} alone"
    elif not pretrained or not Path(pretrained).is_file():
        wrong = f"is {pretrained!r}, which is neither a tag of {model} nor a file" if pretrained else "is missing"
        raise InputError(f"--pretrained {wrong}: pass a file of weights, or one of {', '.join(tags) or 'no tags'}")
    elif beside.is_file():
        told, fix = _told_beside(beside), f"pass --model {LOCAL}{beside.parent} without --pretrained"
    else:
        told = _told_by_tags(model, tags)
        fix = f"put the file and its {CONFIG} into a folder, and pass that as {LOCAL}FOLDER"
    config = open_clip.get_model_config(model)
    assert config is not None
    size = config["vision_cfg"].get("image_size")
    built = plain(asdict(PreprocessCfg())) | {"quick_gelu": config.get("quick_gelu", False), "image_size": size}
    differing = [key for key, value in told.items() if value != built[key]]
    if differing == ["quick_gelu"]:
        other = f"{model}-quickgelu" if told["quick_gelu"] else model.removesuffix("-quickgelu")
        if other != model and other in known and not beside.is_file():
            fix = f"pass --model {other}"
        raise InputError(
            f"QuickGELU mismatch: {pretrained!r} was trained with quick_gelu {told['quick_gelu']}, {model} has "
            f"{built['quick_gelu']}: {fix}"
        )
    if differing:
        key = differing[0]
        raise InputError(
            f"preprocessing mismatch: {pretrained!r} was trained with {key} {told[key]}, "
            f"{model} from a file gets {built[key]}: {fix}"
        )


def _told_beside(config: Path) -> dict[str, Any]:
    """The facts about training in the config beside a file of weights."""
    read = _read_config(config)
    told = {key: value for key, value in read["preprocess_cfg"].items() if key in PREPROCESSING and value is not None}
    size = (read["model_cfg"].get("vision_cfg") or {}).get("image_size")
    return told | {"quick_gelu": read["model_cfg"].get("quick_gelu", False)} | ({"image_size": size} if size else {})


def _told_by_tags(model: str, tags: Sequence[str]) -> dict[str, Any]:
    """What all published weights of a model have in common."""
    import open_clip

    published = [plain({"quick_gelu": False} | open_clip.get_pretrained_cfg(model, tag)) for tag in tags]
    keys = (*PREPROCESSING, "quick_gelu") if published else ()
    return {key: published[0][key] for key in keys if all(each[key] == published[0][key] for each in published)}


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as JSON has them: lists instead of tuples."""
    return json.loads(json.dumps(settings))
