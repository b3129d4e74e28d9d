"""Time of a network's features of small JPEG files, as `debias-ssl features` makes them, beside the bare network.

    python scripts/benchmarks/bench_features.py                 # EfficientNet-Lite0 at 128 pixels, random weights
    python scripts/benchmarks/bench_features.py --views 1       # with a weak and a strong view of each image
    python scripts/benchmarks/bench_features.py --model vit_small_patch16_224 --image_size 224 \\
        --device cuda --precision bf16

- features: files of images decoded by workers, resized, encoded, and written in shards, with the views.
- again: the same when all of it is there.
- forward: the network on as many tensors that are there, in the same batches: what no way of reading images can beat.

In turns in one process, after warm-up. The last line is `bench_features: forward/features=... again/features=...`, the
time of each beside that of the first: 1 is the speed of the bare network.
"""

import argparse
import ctypes
import itertools
import platform
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import timm
import torch
from bench_step import make_pixels
from benchmark import in_turns, ratio, table, taken
from PIL import Image
from safetensors.torch import save_file

from debias_ssl.contract import Place
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.reading.features import view_folder
from debias_ssl.distributed.device import keep_freed_memory
from debias_ssl.features.embedding import SHARD_SIZE, embed
from debias_ssl.features.store import FolderStore
from debias_ssl.features.views import kept_views
from debias_ssl.models.encoders import TimmEncoder, load_encoder, pooled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tf_efficientnet_lite0", help="of timm")
    parser.add_argument("--image_size", type=int, default=128, help="side of what the network takes")
    parser.add_argument("--side", type=int, default=32, help="side of the files' pixels")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--views", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    keep_freed_memory()
    device = torch.device(parsed.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        save_file(timm.create_model(parsed.model).state_dict(), folder / "model.safetensors")
        encoder = load_encoder(
            f"timm:{parsed.model}",
            device,
            weights=str(folder / "model.safetensors"),
            image_size=parsed.image_size,
        )
        assert isinstance(encoder, TimmEncoder)
        files = [folder / f"{i:06}.jpg" for i in range(parsed.images)]
        for file, pixels in zip(files, make_pixels(parsed.images, parsed.side).numpy(), strict=True):
            Image.fromarray(pixels).save(file, quality=95)
        programs = make_programs(encoder, folder, files, parsed)
        turns = {key: lambda program=program: taken(program, parsed.device) for key, program in programs.items()}
        found = in_turns(turns, parsed.rounds)
    print(f"{parsed.images} images of {parsed.side} pixels, {parsed.views} weak and {parsed.views} strong views")
    print(
        f"{parsed.model} at {parsed.image_size} pixels, {parsed.device}, {parsed.precision}, {parsed.workers} workers"
    )
    print(table(found, parsed.images))
    figures = [f"{name}/features={ratio(found[name], found['features']):.3f}" for name in ("forward", "again")]
    print("bench_features:", *figures)


def give_memory_back() -> None:
    """Has glibc give the system what is free."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def make_programs(
    encoder: TimmEncoder, folder: Path, files: list[Path], parsed: argparse.Namespace
) -> dict[str, Callable[[], None]]:
    """What is timed, by its name."""
    turns, views = itertools.count(), kept_views(parsed.views, 0, AugmentConfig(flip=True))
    shape = (3, parsed.image_size, parsed.image_size)
    images = torch.randn(min(parsed.batch_size, SHARD_SIZE), *shape, device=encoder.device)
    images = images.contiguous(memory_format=torch.channels_last)
    # As timm makes it; the encoder folds batch norms into convolutions.
    bare: Any = timm.create_model(parsed.model, num_classes=0).eval()
    bare = bare.to(encoder.device, memory_format=torch.channels_last)

    def autocast() -> AbstractContextManager:
        return torch.autocast(parsed.device, dtype=torch.bfloat16, enabled=parsed.precision == "bf16")

    def features(number: int) -> None:
        out = folder / f"features_{number}"
        # Workers share what memory this process keeps, and a page is copied when it is written to: a job has little.
        give_memory_back()
        embed(
            encoder,
            list(map(str, files)),
            root=folder,
            store=FolderStore(folder=out),
            place=Place(device=encoder.device),
            views=[(view, FolderStore(folder=view_folder(out, view.kind, view.number))) for view in views],
            batch_size=parsed.batch_size,
            workers=parsed.workers,
            autocast=autocast,
        )

    def forward() -> None:
        with torch.no_grad(), autocast():
            for first in range(0, len(files), SHARD_SIZE):
                left = min(SHARD_SIZE, len(files) - first)
                for start in range(0, left, len(images)):
                    for _ in range(1 + 2 * len(views)):
                        pooled(bare, images[: left - start])

    return {"features": lambda: features(next(turns)), "again": lambda: features(0), "forward": forward}


if __name__ == "__main__":
    main()
