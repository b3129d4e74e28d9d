"""`debias-ssl label`: labels images with CLIP, and removes CLIP's class bias."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jsonargparse import Namespace

from debias_ssl import __version__
from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.decode import center_crop, decode
from debias_ssl.data.reading.workers import dead_workers_told
from debias_ssl.data.sources.images import Images, fingerprint
from debias_ssl.distributed.accelerator import make_accelerator
from debias_ssl.distributed.agreement import check_agreement
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import is_first
from debias_ssl.distributed.start_up import first_of_each_host_first
from debias_ssl.features.embedding import FeatureCache, embed
from debias_ssl.features.flags import add_flags, agreed_flags, check_flags, decoding_of, embed_settings
from debias_ssl.features.store import FolderStore, shared
from debias_ssl.labels.debiasing.config import LABEL_FILES, DebiasConfig
from debias_ssl.labels.debiasing.rows import Labeling, Rows
from debias_ssl.labels.output.folder import OutputConfig, check_folder, outputs_in, whereabouts, write_folder
from debias_ssl.labels.output.summary import summary_table
from debias_ssl.labels.tables.truth import say
from debias_ssl.labels.zero_shot.images import likely_folder
from debias_ssl.labels.zero_shot.reference import Given, ReferenceImages, features_of, image_reference, measured
from debias_ssl.labels.zero_shot.rows import Request, check_several, read_request, vectors_of_classes, zero_shot_rows
from debias_ssl.models.clip import Clip, load_clip
from debias_ssl.system.errors import InputError, LeftToOthers
from debias_ssl.system.files import ends_told
from debias_ssl.system.locking import Member, joined
from debias_ssl.system.outputs import SUMMARY, check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import job_parser

# Side in pixels of the pictures on the report's page.
PICTURE = 96
AGAIN = "the same command goes on"

HELP = JobHelp(
    arguments="--images IMAGES --classes FILE --model NAME --out FOLDER [--SETTING VALUE]...",
    does=(
        "Labels images by CLIP or SigLIP and the names of the classes. No image needs a label.\n"
        "The model's preference for some classes is removed.\n"
        "Writes labels.csv, probabilities, features, and report.html, which shows what changed."
    ),
    example=(
        "debias-ssl label --images photos --classes classes.txt --model ViT-B-32-quickgelu \\\n"
        "      --pretrained openai --out labels"
    ),
    guide="label-images.md",
)


@entry_point
def main(arguments: list[str]) -> None:
    parser = job_parser("label", HELP)
    parser.add_argument(
        "--images", type=str, required=True, help="folder of any depth, list, CSV of path, tar files, or hf:PATH"
    )
    parser.add_argument("--root", type=str, default=None, help="what paths of a list are relative to; else its folder")
    parser.add_argument("--classes", type=str, required=True, help="NAME or NAME<tab>PROMPT... a line, or imagenet")
    parser.add_argument("--model", type=str, required=True, help="name of open_clip's, local-dir:FOLDER or hf-hub:NAME")
    parser.add_argument("--pretrained", type=str, default=None, help="tag of open_clip's, or file of weights")
    parser.add_argument("--templates", type=str, default="simple", help="simple, openai, or a file of lines with {}")
    parser.add_argument(
        "--class_vectors", type=str, default=None, help=".npy of a vector for each class, in place of prompts"
    )
    parser.add_argument(
        "--features", type=str, default=None, help="folder that keeps image features; else OUT/features"
    )
    parser.add_argument("--flip", type=bool, default=False, help="mean features of each image and its mirror image")
    parser.add_argument(
        "--negatives", type=str, default=None, help="file of names that are not classes; a score falls if one fits"
    )
    parser.add_class_arguments(DebiasConfig, as_group=False)
    parser.add_argument(
        "--multi_label", type=float, default=None, help="sigmoid from which a class is one of several labels (SigLIP)"
    )
    add_flags(parser)
    parser.add_class_arguments(OutputConfig, as_group=False)
    parser.add_argument("--out", type=str, required=True, help="folder of labels, report.html and more")
    parser.add_argument("--overwrite", action="store_true", help="replace the labels in --out")
    parsed = parser.parse_args(arguments)
    config = DebiasConfig(**{setting.name: parsed[setting.name] for setting in fields(DebiasConfig)})
    check_flags(parsed)
    out = Path(parsed.out)
    check_apart(out, "--out", _inputs(parsed))
    # One process writes most files; the others end if it is not allowed to.
    with (
        joined(out, work=_work(parsed)) if is_first() else nullcontext() as member,
        dead_workers_told("--workers", AGAIN),
    ):
        check_folder(out, parsed.overwrite)
        before = _state(out)
        if member is not None:
            member.end_first_turn()
        with ends_told(AGAIN):
            _label(parsed, config, out, member, before)


def _work(parsed: Namespace) -> str:
    """The common work of processes that label the same images in one folder, as a text."""
    of_a_machine = ("out", "overwrite", "wait", "workers", "batch_size")
    settings = {name: str(value) for name, value in vars(parsed).items() if name not in of_a_machine}
    return "labels " + json.dumps(settings, sort_keys=True)


def _inputs(parsed: Namespace) -> dict[str, str | None]:
    files = ("images", "classes", "templates", "class_vectors", "pretrained", "negatives", *LABEL_FILES)
    inputs = {f"--{name}": parsed[name] for name in files}
    return inputs | {"--model": parsed.model.removeprefix("local-dir:")}


def _label(
    parsed: Namespace, config: DebiasConfig, out: Path, member: Member | None, before: tuple[int, int] | None
) -> None:
    accelerator = make_accelerator(parsed.precision)
    with first_of_each_host_first(accelerator):
        request, given = _requested(parsed, config, out)
    others = given if isinstance(given, ReferenceImages) else None
    if accelerator.is_main_process:
        say((*request.said, *(others.request.said if others else ())))
        if config.truth is None and (request.truth < 0).all():
            _say_likely_folder(parsed.images, request)
    clip = load_clip(parsed.model, parsed.pretrained, accelerator.device, flip=parsed.flip)
    check_several(clip, parsed.multi_label)
    store = FolderStore(folder=Path(parsed.features) if parsed.features else out / "features")
    check_agreement(lambda: _agreed(parsed, clip, request, store, others))
    vectors = vectors_of_classes(clip, request, progress=accelerator.is_main_process)
    embedded = partial(
        embed,
        clip,
        **embed_settings(parsed, accelerator),
    )
    is_shared = member is not None and store.folder.resolve() != out.resolve()
    with shared(store) if is_shared else nullcontext(replace(store, member=member)) as store:
        cache_of_reference = features_of(given, clip, request, embedded)
        cache = embedded(files=request.files, root=request.root, store=store)
        if member is None:
            return
        with member.turn():
            if _state(out) != before:
                # Written by another process in an earlier turn.
                print(f"{summary_table(json.loads((out / SUMMARY).read_text()))}\n{whereabouts(out)}")
                return
            if not parsed.wait and (at_work := member.others()):
                member.leave()
                raise LeftToOthers(
                    f"all features are made; still at work: {', '.join(at_work)}; the last one writes labels"
                )
            reference = measured(given, cache_of_reference, clip, request, vectors, is_quiet=False)
            rows = zero_shot_rows(clip, cache, request, vectors, reference, parsed.multi_label)
            _write(parsed, config, rows, cache, request, store, out)


def _state(out: Path) -> tuple[int, int] | None:
    """A value that changes when labels are written."""
    if not (out / SUMMARY).exists() or outputs_in(out).is_incomplete():
        return None
    stat = (out / SUMMARY).stat()
    return stat.st_ino, stat.st_mtime_ns


def _write(
    parsed: Namespace,
    config: DebiasConfig,
    rows: Rows,
    cache: FeatureCache,
    request: Request,
    store: FolderStore,
    out: Path,
) -> None:
    """Writes the labels, and prints what was done."""
    unreadable = cache.named_unreadable

    def page(labeling: Labeling) -> str:
        return _page(labeling, cache, _facts(parsed, request, cache), decoding_of(parsed))

    files = OutputConfig(probs=parsed.probs, table=parsed.table)
    said = write_folder(rows, config, out, page, _made_with(parsed, store, cache), unreadable, files)
    if unreadable:
        listed = out / "unreadable.json"
        print(f"note: left out {len(unreadable)} files that cannot be read: {listed}", file=sys.stderr)
    print(said)


def _requested(parsed: Namespace, config: DebiasConfig, out: Path) -> tuple[Request, Given | None]:
    """The images, the classes and the reference; no image is read."""
    request = read_request(
        parsed.images,
        parsed.classes,
        parsed.templates,
        config,
        parsed.root,
        parsed.class_vectors,
        parsed.negatives,
    )
    if not config.reference:
        return request, None
    return request, image_reference(config.reference, request, FolderStore(folder=out / "reference_features"))


def _say_likely_folder(where: str, request: Request) -> None:
    meant = likely_folder(where, request.files, request.classes)
    if meant is not None:
        print(
            f"note: no image's first folder below --images {where!r} is a class, but folders of {str(meant)!r} are: "
            "name that one to have figures of true classes",
            file=sys.stderr,
        )


def _made_with(parsed: Namespace, store: FolderStore, cache: FeatureCache) -> dict[str, Any]:
    """Entries of summary.json other than figures. A later job reads some of them if the folder is its reference."""
    names = ("model", "pretrained", "templates", "class_vectors", "root", "flip", "negatives")
    where = os.path.abspath(parsed.images) if os.path.exists(parsed.images) else parsed.images
    return {
        **{name: parsed[name] for name in names},
        "images": where,
        "features": os.path.abspath(store.folder),
        "num_unreadable": len(cache.unreadable),
    }


def _facts(parsed: Namespace, request: Request, cache: FeatureCache) -> list[str]:
    """Lines below the title of the page."""
    return [
        f"{len(cache.names):,} images of {parsed.images}",
        " ".join(filter(None, [parsed.model, parsed.pretrained])),
        f"class vectors {parsed.class_vectors}" if parsed.class_vectors else f"templates {parsed.templates}",
        *(["with mirror images"] if parsed.flip else []),
        *([f"{len(request.negatives):,} names of {parsed.negatives}, not classes"] if parsed.negatives else []),
        *([f"reference {parsed.reference}"] if parsed.reference else []),
    ]


def _agreed(
    parsed: Namespace, clip: Clip, request: Request, store: FolderStore, others: ReferenceImages | None
) -> dict[str, str]:
    """The values that must be equal in all processes, because each makes features of some of the images."""
    images = {"images": request, "reference": others and others.request}
    return {
        **{f"the hash of --{name}": _hash(each) for name, each in images.items() if each},
        "the list of classes": ", ".join(request.classes),
        "the model": json.dumps(clip.description),
        **agreed_flags(parsed),
        "the folder of features": os.path.abspath(store.folder),
    }


def _hash(request: Request) -> str:
    return fingerprint(Images(pixels=None, labels=request.truth, names=request.files))


def _page(labeling: Labeling, cache: FeatureCache, facts: Sequence[str], decoding: Decoding) -> str:
    # The drawing code is slow to import, and not needed to find errors in the input.
    from debias_ssl.reporting.labels_page import labels_page
    from debias_ssl.reporting.page import render

    def pictures(rows: Sequence[int]) -> list[UInt8[np.ndarray, "H W K"] | None]:
        return [_picture(cache.files[int(cache.places[row])], decoding) for row in rows]

    return render(labels_page(labeling, facts=facts, features=cache.chunks, pictures=pictures), __version__)


def _picture(path: str, decoding: Decoding) -> UInt8[np.ndarray, "H W K"] | None:
    try:
        image = decode(path, decoding=decoding)
    except InputError:
        return None
    return center_crop(image, min(PICTURE, *image.size))


if __name__ == "__main__":
    main()
