"""`debias-ssl label`: CLIP's labels of images, without its preference for classes."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import open_clip
from jaxtyping import Float, Int64, UInt8
from jsonargparse import Namespace
from torch import Tensor

from debias_ssl import __version__
from debias_ssl.config import Parser
from debias_ssl.data.datasets import UNKNOWN, Images, find_files, folder_of, images_in_shards
from debias_ssl.data.label_files import read_label_file, read_text
from debias_ssl.data.reading import center_crop, decode
from debias_ssl.data.shard_index import Member
from debias_ssl.data.shards import is_shards, member_named
from debias_ssl.data.workers import dead_workers_told
from debias_ssl.errors import InputError
from debias_ssl.features import FeatureCache, embed
from debias_ssl.files import write_aside, writing
from debias_ssl.label_folder import check_folder, finish
from debias_ssl.labeling import DebiasConfig, Labeling, debias_rows
from debias_ssl.locking import locked
from debias_ssl.models.clip import blank_features, load_clip, zero_shot_weights
from debias_ssl.predictions import read_class_names
from debias_ssl.processes import is_first
from debias_ssl.row_labels import read_labels, read_target
from debias_ssl.runtime import Precision, entry_point, make_accelerator, place_of

Templates = Sequence[str] | Sequence[Callable[[str], str]]
OPEN_CLIP_TEMPLATES: dict[str, Templates] = {
    "simple": open_clip.SIMPLE_IMAGENET_TEMPLATES,
    "openai": open_clip.OPENAI_IMAGENET_TEMPLATES,
}
# Side in pixels of the pictures on the report's page.
PICTURE = 96


@entry_point
def main(arguments: list[str]) -> None:
    parser = Parser(prog="debias-ssl label", description="Labels images with CLIP, and debiases the labels.")
    parser.add_argument(
        "--images", type=str, required=True, help="folder of any depth, list, CSV of path, or tar files"
    )
    parser.add_argument("--classes", type=str, required=True, help="NAME or NAME<tab>PROMPT NAME a line; or imagenet")
    parser.add_argument("--model", type=str, required=True, help="name of open_clip's, local-dir:FOLDER or hf-hub:NAME")
    parser.add_argument("--pretrained", type=str, default=None, help="tag of open_clip's, or file of weights")
    parser.add_argument("--templates", type=str, default="simple", help="simple, openai, or a file of lines with {}")
    parser.add_argument(
        "--features", type=str, default=None, help="folder that keeps image features; else OUT/features"
    )
    parser.add_class_arguments(DebiasConfig, as_group=False)
    parser.add_argument("--on_error", choices=["stop", "skip"], default="stop", help="at an image that cannot be read")
    parser.add_argument("--batch_size", type=int, default=256, help="images of a batch in each process")
    parser.add_argument("--workers", type=int, default=4, help="processes that decode, for each process")
    parser.add_argument(
        "--precision", type=Precision, default="auto", help="auto is bf16 where the device multiplies in it"
    )
    parser.add_argument("--out", type=str, required=True, help="folder of labels.csv, probs.npy, report.html and more")
    parser.add_argument("--overwrite", action="store_true", help="replace the labels in --out")
    parsed = parser.parse_args(arguments)
    config = DebiasConfig(**{setting.name: parsed[setting.name] for setting in fields(DebiasConfig)})
    for name, least in (("batch_size", 1), ("workers", 0)):
        if parsed[name] < least:
            raise InputError(f"{name} is {parsed[name]}, must be at least {least}")
    out = Path(parsed.out)
    check_folder(out, parsed.overwrite)
    # One process writes most of it; the others end when it may not.
    with (
        locked(out) if is_first() else nullcontext(),
        writing(out, "run the same command again to continue"),
        dead_workers_told(),
    ):
        _label(parsed, config, out)


def _label(parsed: Namespace, config: DebiasConfig, out: Path) -> None:
    classes, prompt_names = class_names(parsed.classes)
    templates = read_templates(parsed.templates)
    read_target(config.target_prior, classes)
    images, root = images_to_label(parsed.images, classes)
    names = [os.path.relpath(file, root) for file in images.names]
    truth = read_labels(Path(config.truth), names, classes) if config.truth else images.labels
    tuning = read_labels(Path(config.tune_on), names, classes) if config.tune_on else None
    accelerator = make_accelerator(parsed.precision)
    clip = load_clip(parsed.model, parsed.pretrained, accelerator.device)
    cache = embed(
        clip,
        images.names,
        root,
        Path(parsed.features) if parsed.features else out / "features",
        place_of(accelerator),
        batch_size=parsed.batch_size,
        workers=parsed.workers,
        on_error=parsed.on_error,
        autocast=lambda: accelerator.autocast(),
        progress=accelerator.is_main_process,
    )
    if not accelerator.is_main_process:
        return
    _tell_unreadable(cache.unreadable, out)
    weights = clip.logit_scale * zero_shot_weights(clip, prompt_names, templates)
    labeling = debias_rows(
        Logits(cache=cache, weights=weights),
        cache.names,
        classes,
        config,
        out=out,
        truth=truth[cache.places],
        tuning=None if tuning is None else tuning[cache.places],
        blank=(blank_features(clip) @ weights).cpu(),
    )
    made_with = {"model": parsed.model, "pretrained": parsed.pretrained, "templates": parsed.templates}
    facts = [
        f"{len(cache.names):,} images of {parsed.images}",
        " ".join(filter(None, [parsed.model, parsed.pretrained])),
        f"templates {parsed.templates}",
    ]
    page = _page(labeling, cache, facts)
    finish(labeling, out, page, made_with | {"num_unreadable": len(cache.unreadable)})


@dataclass(frozen=True, kw_only=True)
class Logits:
    """Logits of images, computed from their features each time they are gone through."""

    cache: FeatureCache
    weights: Float[Tensor, "D C"]
    """Of the classes, times the model's logit scale."""

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        for features in self.cache.chunks():
            yield (features.to(self.weights.device) @ self.weights).cpu()


def images_to_label(where: str, classes: tuple[str, ...]) -> tuple[Images, Path]:
    """The images to label, with their true classes where these are known, and the folder that they lie below.

    True classes, which are for figures only, are the labels of a CSV file or the .cls members of tar files, else the
    first folders of the paths.

    Raises:
        InputError: there are no images, or a CSV file or a .cls member has a label that is not a class.
    """
    path = Path(where)
    number = {name: k for k, name in enumerate(classes)}
    if is_shards(where):
        images = images_in_shards(where, classes, "--images")
        root = folder_of(where, images)
        if (images.labels == UNKNOWN).all():
            inner = [member.inner for member in images.names if isinstance(member, Member)]
            images = replace(images, labels=_first_folders(inner, number))
        return images, root
    if path.suffix.lower() == ".csv" and path.is_file():
        paths, labels = read_label_file(path, None)
        files = [member_named(str(file)) or str(file) for file in paths]
        wrong = next((i for i, label in enumerate(labels) if label and label not in number), None)
        if wrong is not None:
            raise InputError(
                f"{where}: {files[wrong]!r} has the label {labels[wrong]!r}, which is not a class of --classes; "
                "leave it empty if it is unknown"
            )
    else:
        files, labels = find_files(where, "--images").names, []
    images = Images(pixels=None, labels=np.full(len(files), UNKNOWN), names=files)
    root = folder_of(where, images)
    if any(labels):
        truth = np.array([number.get(label, UNKNOWN) for label in labels], dtype=np.int64)
    else:
        truth = _first_folders([os.path.relpath(file, root) for file in files], number)
    return replace(images, labels=truth), root


def _first_folders(paths: Sequence[str], number: dict[str, int]) -> Int64[np.ndarray, " N"]:
    """Numbers of the classes that paths begin with, if they do."""
    folders = [path.rpartition("/")[0].partition("/")[0] for path in paths]
    return np.array([number.get(folder, UNKNOWN) for folder in folders], dtype=np.int64)


def class_names(where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes, and what prompts call them, from a file or, for `imagenet`, open_clip's list."""
    if where == "imagenet":
        prompts = tuple(open_clip.IMAGENET_CLASSNAMES)
        num = Counter(prompts)
        # Two names stand for two classes each.
        return tuple(name if num[name] == 1 else f"{name} ({k})" for k, name in enumerate(prompts)), prompts
    if not Path(where).is_file():
        raise InputError(f"--classes is {where!r}: there is no such file; a file of names, or imagenet, is expected")
    classes, prompts = read_class_names(Path(where))
    if len(classes) < 2:
        raise InputError(f"{where} names one class, {''.join(classes)!r}; at least two are needed to tell apart")
    return classes, prompts


def read_templates(where: str) -> Templates:
    """Sentences with {} for the name of a class: open_clip's, or the lines of a file."""
    if where in OPEN_CLIP_TEMPLATES:
        return OPEN_CLIP_TEMPLATES[where]
    path = Path(where)
    if not path.is_file():
        names = ", ".join(OPEN_CLIP_TEMPLATES)
        raise InputError(
            f"--templates is {where!r}: neither {names}, nor a file with a sentence like 'a photo of a {{}}.' a line"
        )
    lines = read_text(path).rstrip().splitlines()
    for number, line in enumerate(lines, start=1):
        if line.count("{}") != 1 or set("{}") & set(line.replace("{}", "")):
            raise InputError(f"{path}, line {number}: {line!r} must have {{}} once, where the name of a class goes")
    if not lines:
        raise InputError(f"{path} has no templates")
    return lines


def _tell_unreadable(unreadable: dict[str, str], out: Path) -> None:
    listed = out / "unreadable.json"
    listed.unlink(missing_ok=True)
    if unreadable:
        write_aside(listed, json.dumps(unreadable, indent=1))
        print(f"note: left out {len(unreadable)} files that cannot be read: {listed}", file=sys.stderr)


def _page(labeling: Labeling, cache: FeatureCache, facts: Sequence[str]) -> str:
    # What draws is slow to import, and not needed to find what is wrong with the input.
    from debias_ssl.reporting.labels_page import labels_page
    from debias_ssl.reporting.page import render

    def pictures(rows: Sequence[int]) -> list[UInt8[np.ndarray, "H W K"] | None]:
        return [_picture(cache.files[int(cache.places[row])]) for row in rows]

    return render(labels_page(labeling, facts=facts, features=cache.chunks, pictures=pictures), __version__)


def _picture(path: str) -> UInt8[np.ndarray, "H W K"] | None:
    try:
        image = decode(path)
    except InputError:
        return None
    return center_crop(image, min(PICTURE, *image.size))


if __name__ == "__main__":
    main()
