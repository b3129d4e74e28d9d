"""Writes the model card of a run (README.md): what the network is, how to use it, and its limits."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Int64

from debias_ssl.formulas import metrics
from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.models.timm_folder import FILE as TIMM_CONFIG
from debias_ssl.system.files import read_array, read_yaml
from debias_ssl.training.saved import completed

# Up to this number, all classes are listed; of more, those with the lowest recall.
MOST_CLASSES = 20
FIGURES = {
    "accuracy": "accuracy",
    "mean_recall": "mean recall of the classes",
    "min_recall": "lowest recall of a class",
    "ece": "expected calibration error",
}
# Largest length of the text of a setting, such as a list of names.
MOST_LETTERS = 100
# Fewer test images leave the accuracy uncertain by several percent.
FEW = 1000
# Comes before the tags, for people who publish the folder.
LICENSE = "# license: choose one that your data and the initial weights allow\n"


def model_card(folder: Path, summary: Mapping[str, Any], *, is_plain: bool) -> str:
    """The text of README.md.

    It names no file of the data, so that it can be published, and no time, so that the same run has the same card.

    Args:
        folder: with all other files of a run but the summary.
        summary: the content of `summary.json`.
        is_plain: whether the method's predictions are the network's own.
    """
    settings = completed(read_yaml(folder / "config.yaml"))
    model, split = (json.loads((folder / name).read_text()) for name in ("model.json", "split.json"))
    truth, logits = (read_array(folder / "predictions" / f"test_{name}.npy") for name in ("labels", "ema"))
    config = folder / TIMM_CONFIG
    of_timm = json.loads(config.read_text()) if config.exists() else None
    method = settings["method"]["class_path"]
    known = truth >= 0
    confusion = confusion_matrix(
        torch.from_numpy(truth[known]), torch.from_numpy(logits[known].argmax(1)), len(model["classes"])
    )
    sections = [
        _front(settings, method, is_timm=of_timm is not None),
        f"# {_text(model['name'])}, trained by {_text(method)}\n\n{_about(settings, method, model, split)}",
        f"## How to use it\n\n{_use(model, of_timm)}",
        f"## Figures\n\n{_figures(summary, confusion, model)}",
        f"## Data\n\n{_data(settings, model, split, int(known.sum()))}",
        f"## How it was made\n\n{_made(settings, method, summary)}",
        f"## Limits\n\n{_limits(model, confusion, method, settings, is_plain=is_plain)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front(settings: Mapping[str, Any], method: str, *, is_timm: bool) -> str:
    """The YAML header of the card, for model hubs."""
    is_pixels = not settings["data"].get("features")
    kind = "image-classification" if is_pixels else "feature-classification"
    named = [*(["timm"] if is_timm else []), "debias_ssl", "semi-supervised-learning", method.rpartition(".")[2]]
    entries = {
        "library_name": "timm" if is_timm else "debias_ssl",
        **({"pipeline_tag": kind} if is_pixels else {}),
        "tags": [kind, *named],
        "metrics": ["accuracy"],
    }
    return f"---\n{LICENSE}{yaml.safe_dump(entries, sort_keys=False)}---"


def _about(settings: Mapping[str, Any], method: str, model: Mapping[str, Any], split: Mapping[str, Any]) -> str:
    of = "images" if not settings["data"].get("features") else "features of images"
    return (
        f"A classifier of {of} into {len(model['classes'])} classes: `{model['name']}`, trained by "
        f"`{method}` on {len(split['labeled']):,} labeled and {len(split['unlabeled']):,} unlabeled images. "
        "The weights are the running average of those of the training."
    )


def _use(model: Mapping[str, Any], of_timm: Mapping[str, Any] | None) -> str:
    transform = model["transform"]
    parts = []
    if of_timm is not None:
        registering = of_timm["debias_ssl"].get("import")
        told = f"import {registering}  # has timm know {model['name']}\n" if registering else ""
        parts.append(
            f"```python\nimport timm\n{told}\n"
            'network = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
            'classes = network.pretrained_cfg["label_names"]\n```\n\n'
            "FOLDER is this folder; `hf-hub:OWNER/NAME` loads it from the hub. `timm.data.create_transform(**"
            "timm.data.resolve_model_data_config(network))` is its preprocessing."
        )
    else:
        parts.append("timm does not know the layers or the name of this network: `debias_ssl` loads it.")
    parts.append(
        "```python\nfrom debias_ssl import load_run\n\n"
        'probabilities = load_run("FOLDER").predict("images")  # N x C, of the files below a folder\n```'
    )
    size, channels = transform["size"], transform["channels"]
    if size == 1 and channels > 3:
        parts.append(f"It takes {channels} features of an image, standardized by the mean and std in `model.json`.")
    else:
        mean, std = (", ".join(f"{value:.4g}" for value in transform[name]) for name in ("mean", "std"))
        parts.append(
            f"It takes {'RGB' if channels == 3 else 'gray'} images of {size} x {size} pixels: the center square, "
            f"resized by bilinear interpolation, divided by 255, minus the mean ({mean}), divided by the std ({std})."
        )
    return "\n\n".join(parts)


def _figures(summary: Mapping[str, Any], confusion: torch.Tensor, model: Mapping[str, Any]) -> str:
    number, last = int(confusion.sum()), summary["ema"]["last"]
    if not number:
        return "No test image has a known label, so the accuracy is unknown."
    low, high = metrics.accuracy_interval(confusion)
    rows = [f"| {title} | {_percent(last[name])} |" for name, title in FIGURES.items()]
    table = "\n".join([f"| figure | on {number:,} test images |", "|---|---|", *rows])
    interval = f"The accuracy is {_percent(low)} to {_percent(high)} (95 % interval for sampling error)."
    return f"{table}\n\n{interval}\n\n{_classes(confusion.numpy(), model)}"


def _classes(confusion: Int64[np.ndarray, "C C"], model: Mapping[str, Any]) -> str:
    """A table of labels and recalls of the classes; of many classes, those with the lowest recall."""
    images = confusion.sum(1)
    recall = np.divide(confusion.diagonal(), images, out=np.full(len(images), np.inf), where=images > 0)
    shown: Sequence[int] = range(len(images))
    title = "class"
    if len(images) > MOST_CLASSES:
        shown = np.argsort(recall, kind="stable")[: MOST_CLASSES // 2].tolist()
        title = "classes of the lowest recall"
    counts = model["labeled_counts"]
    rows = [
        f"| {_text(model['classes'][k])} | {counts[k]} | {_percent(recall[k]) if images[k] else 'no test image'} |"
        for k in shown
    ]
    return "\n".join([f"| {title} | labeled images | recall |", "|---|---|---|", *rows])


def _data(settings: Mapping[str, Any], model: Mapping[str, Any], split: Mapping[str, Any], num_test: int) -> str:
    data, counts = settings["data"], model["labeled_counts"]
    own = data["name"] == "folder"
    lines = [
        f"- data: {'image files of their own' if own else _text(data['name'])}",
        f"- labeled images: {len(split['labeled']):,}, {_range(counts)}"
        + (", with labels that were given to the run, and may be wrong" if "labels" in split else ""),
        f"- unlabeled images: {len(split['unlabeled']):,}",
        f"- validation images: {len(split['validation']):,}",
        f"- test images with known labels: {num_test:,}",
        f"- fingerprint of the training images: `{split['fingerprint']}`",
    ]
    if model["name"] in ("linear", "mlp_512") and data.get("features"):
        lines.append("- the network takes features of these images, which another network made")
    return "\n".join(lines)


def _made(settings: Mapping[str, Any], method: str, summary: Mapping[str, Any]) -> str:
    # Runs of older versions do not have this.
    made = {"versions": "unknown", "commit": "", "machine": "unknown"} | summary.get("made_by", {})
    options = settings["method"].get("init_args") or {}
    own = ", ".join(f"{name} {shorten(json.dumps(value), MOST_LETTERS)}" for name, value in options.items())
    lines = [
        "```\ndebias-ssl train --config config.yaml --out runs/again\n```\n",
        "`config.yaml` in this folder has all settings. The most important ones:\n",
        f"- method: `{method}`" + (f" ({_text(own)})" if own else ""),
        f"- loss of labeled images: `{settings['labeled_loss']['class_path']}`",
        f"- {summary['steps']:,} steps of {settings['batch_size']} labeled and "
        f"{settings['batch_size'] * settings['unlabeled_ratio']} unlabeled images, seed {settings['seed']}",
        f"- versions: {made['versions']}" + (f"; commit {made['commit']}" if made["commit"] else ""),
        f"- machine: {_text(made['machine'])}",
    ]
    model = settings["model"]
    if model.get("pretrained") or model.get("weights"):
        lines.append("- the training started from pretrained weights, whose license applies too")
    if settings.get("teacher"):
        lines.append("- a teacher, another trained run, labeled its images")
    if facts := summary.get("finetune"):
        lines.append(
            f"- then its classifier was fine-tuned by `{facts['method']['class_path']}` for {facts['objective']} "
            f"on {facts['num_held_out']:,} held-out images; finetune.yaml has the settings"
        )
    return "\n".join(lines)


def _limits(
    model: Mapping[str, Any], confusion: torch.Tensor, method: str, settings: Mapping[str, Any], *, is_plain: bool
) -> str:
    """The limits of the model, as far as they follow from settings and numbers of the run."""
    counts, number = model["labeled_counts"], int(confusion.sum())
    limits = []
    if not is_plain:
        limits.append(
            f"**The plain network differs from the figures above.** `{method}` changes the network's logits at test "
            "time; `debias_ssl.load_run`, `debias-ssl predict` and `debias-ssl export` do so too, timm does not."
        )
    if 0 < number < FEW:
        limits.append(f"The figures are of {number:,} test images alone: see the interval.")
    without = [name for name, count in zip(model["classes"], counts, strict=True) if not count]
    if without:
        limits.append(f"{len(without)} classes had no labeled image, and were not learned: {_some(without)}.")
    if max(counts) >= 2 * max(1, min(counts)):
        limits.append(
            "Some classes had many more labels than others, so predictions may favor them: see their recalls."
        )
    limits += [
        "Every image gets one of these classes, even an image of something else.",
        "The figures hold for images like the test images. Other cameras, places or image qualities can lower them.",
        "Confidences are not calibrated; `debias-ssl evaluate --run FOLDER --calibrate` fits a temperature.",
    ]
    if method != "Supervised":
        limits.append("The training used pseudo-labels of unlabeled images, which may be systematically wrong.")
    transform = model["transform"]
    if settings["data"].get("crop") == "resized":
        limits.append("timm's preprocessing resizes before it crops, this package crops first: pixels differ slightly.")
    if transform["channels"] == 1:
        limits.append("It takes gray images: convert others first (`image.convert('L')`).")
    return "\n".join(f"- {limit}" for limit in limits)


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,} of each class" if low == high else f"{low:,} to {high:,} of a class"


def _some(names: Sequence[str]) -> str:
    return _text(", ".join(names[:10]) + (", ..." if len(names) > 10 else ""))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _text(words: str) -> str:
    """Text from users, escaped for Markdown: one line, without tags and ends of cells."""
    return html.escape(" ".join(str(words).split()), quote=False).replace("|", "\\|").replace("`", "\\`")
