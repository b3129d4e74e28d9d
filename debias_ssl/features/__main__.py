"""`debias-ssl features`: computes features of images with a pretrained network once, and stores them for training."""

import json
import os
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import get_args

from jsonargparse import Namespace

from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.reading.features import MANIFEST, ViewKind, view_folder
from debias_ssl.data.reading.workers import dead_workers_told
from debias_ssl.data.sources.folder import find_files, folder_of
from debias_ssl.data.sources.images import Images, fingerprint, left_out_notes
from debias_ssl.distributed.accelerator import make_accelerator
from debias_ssl.distributed.agreement import check_agreement
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.distributed.processes import is_first
from debias_ssl.distributed.start_up import first_of_each_host_first
from debias_ssl.features.embedding import FeatureCache, embed
from debias_ssl.features.flags import add_flags, agreed_flags, check_flags, embed_settings
from debias_ssl.features.store import FolderStore, shared
from debias_ssl.features.views import KeptView, kept_views
from debias_ssl.labels.tables.truth import say
from debias_ssl.models.encoders import Encoder, load_encoder
from debias_ssl.system.errors import InputError, shortened
from debias_ssl.system.files import ends_told
from debias_ssl.system.outputs import check_apart
from debias_ssl.training.job_help import JobHelp
from debias_ssl.training.parser import Parser, job_parser

AGAIN = "the same command goes on"
KINDS: tuple[ViewKind, ...] = get_args(ViewKind)
# What is in a folder of features.
OWN = re.compile(r"\..*|(manifest|files|shard_|content_).*\.(json|parquet|npy)|(weak|strong)_\d+")

HELP = JobHelp(
    arguments="--images IMAGES --model NAME --out FOLDER [--SETTING VALUE]...",
    does=(
        "Computes the features of images by a pretrained network once, and keeps them.\n"
        "A run on them takes seconds on a CPU: train --data.features '[FOLDER]' --model.name linear."
    ),
    example="debias-ssl features --images photos --model timm:vit_small_patch14_dinov2.lvd142m --out features",
    guide="features.md",
)


def _parser() -> Parser:
    parser = job_parser("features", HELP, allow_abbrev=False)
    parser.add_argument(
        "--images", type=str, required=True, help="folder of any depth, list, CSV of path, tar files, or hf:PATH"
    )
    parser.add_argument("--root", type=str, default=None, help="what paths of a list are relative to; else its folder")
    parser.add_argument(
        "--model", type=str, required=True, help="timm:NAME, open_clip:NAME, local-dir:FOLDER or hf-hub:OWNER/NAME"
    )
    parser.add_argument("--pretrained", type=str, default=None, help="of open_clip: one of its tags, or a file")
    parser.add_argument("--weights", type=str, default=None, help="of timm: a file; else timm's own are downloaded")
    parser.add_argument("--image_size", type=int, default=None, help="of timm: side in pixels; else the network's own")
    parser.add_argument("--flip", type=bool, default=False, help="mean features of each image and its mirror image")
    parser.add_argument("--views", type=int, default=0, help="weak views of each image, and strong ones, kept beside")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers of views")
    parser.add_class_arguments(AugmentConfig, "data.augment", skip={"feature_noise", "feature_dropout"})
    add_flags(parser)
    parser.add_argument("--out", type=str, required=True, help="folder of features, which later calls bring up to date")
    return parser


@entry_point
def main(arguments: list[str]) -> None:
    parser = _parser()
    parsed = parser.parse_args(arguments)
    views = _views(parsed, parser)
    check_flags(parsed)
    if parsed.image_size is not None and parsed.image_size < 1:
        raise InputError(f"image_size is {parsed.image_size}, must be at least 1")
    out = Path(parsed.out)
    inputs = {f"--{name}": parsed[name] for name in ("images", "pretrained", "weights")}
    check_apart(out, "--out", inputs | {"--model": parsed.model.removeprefix("local-dir:")})
    store = FolderStore(folder=out, flag="--out")
    # One process checks the folder; the others end if the check fails. They may come before the folder exists.
    with shared(store) if is_first() else nullcontext(store) as store, dead_workers_told("--workers", AGAIN):
        if is_first():
            _check_folder(out)
        with ends_told(AGAIN):
            _make(parsed, views, store)


def _views(parsed: Namespace, parser: Parser) -> list[KeptView]:
    if not 0 <= parsed.views < 1000:
        raise InputError(f"views is {parsed.views}, must be in 0..999")
    config = parser.instantiate(parsed).data.augment
    # Only a data set could forbid that its images are mirrored.
    config = replace(config, flip=config.flip is None or config.flip)
    return kept_views(parsed.views, parsed.seed, config)


def _check_folder(out: Path) -> None:
    """Raises InputError where a folder has other files and no features."""
    others = sorted(name for name in os.listdir(out) if not OWN.fullmatch(name))
    if others and not (out / MANIFEST).exists():
        raise InputError(f"--out {str(out)!r} holds {shortened(others)} but no features: choose another folder")


def _make(parsed: Namespace, views: list[KeptView], store: FolderStore) -> None:
    out = store.folder
    accelerator = make_accelerator(parsed.precision)
    with first_of_each_host_first(accelerator):
        images = find_files(parsed.images, "--images", parsed.root)
        root = folder_of(parsed.images, images, parsed.root)
        encoder = load_encoder(
            parsed.model,
            accelerator.device,
            pretrained=parsed.pretrained,
            weights=parsed.weights,
            image_size=parsed.image_size,
            flip=parsed.flip,
        )
    if accelerator.is_main_process:
        say([f"note: {note}" for note in (*left_out_notes(images), *images.notes)])
    check_agreement(lambda: _agreed(parsed, images, encoder, views, out))
    cache = embed(
        encoder,
        images.names,
        root,
        store,
        views=[(view, FolderStore(folder=view_folder(out, view.kind, view.number), flag="--out")) for view in views],
        **embed_settings(parsed, accelerator),
    )
    if accelerator.is_main_process:
        print(_summary(parsed, encoder, cache, out))


def _agreed(parsed: Namespace, images: Images, encoder: Encoder, views: list[KeptView], out: Path) -> dict[str, str]:
    """The facts that must be equal in all processes, each of which computes features of some images."""
    return {
        "the hash of --images": fingerprint(images),
        "the model": json.dumps(encoder.description),
        "the views": json.dumps([view.description for view in views]),
        **agreed_flags(parsed),
        "the folder of features": os.path.abspath(out),
    }


def _summary(parsed: Namespace, encoder: Encoder, cache: FeatureCache, out: Path) -> str:
    """The message at the end: the features, their folder, and how to use them."""
    number, lacking = len(cache.files), len(cache.unreadable)
    lines = [
        f"features of {number - lacking:,} images in {out}: {encoder.embed_dim:,} numbers each, shards: "
        f"{cache.num_shards:,}; {cache.num_before:,} images had theirs before",
    ]
    if parsed.views:
        kinds = " and ".join(f"{kind}_0" + f" to {kind}_{parsed.views - 1}" * (parsed.views > 1) for kind in KINDS)
        lines.append(f"of {parsed.views} weak and {parsed.views} strong views of each image: in {kinds} there")
    if lacking:
        lines.append(f"left out {lacking:,} files that cannot be read, such as {next(iter(cache.named_unreadable))!r}")
    lines.append(f"train on them: debias-ssl train --config FILE --data.features '[{out}]' --model.name linear ...")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
