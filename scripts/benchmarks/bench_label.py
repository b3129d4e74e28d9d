"""Time of CLIP's features of images, as `debias-ssl label` makes them, beside the bare network.

    python scripts/benchmarks/bench_label.py                                 # ViT-B-32 with random weights
    python scripts/benchmarks/bench_label.py --model local-dir:../shared/models/tiny-clip --images 2048
    python scripts/benchmarks/bench_label.py --model local-dir:../shared/models/tiny-clip --images 512 --photos
    python scripts/benchmarks/bench_label.py --device cuda --precision bf16 --images 20000 --batch_size 256 --workers 16

- embed: files of images decoded by workers, prepared, encoded, normalized and written in shards.
- loader: the same workers and the network, and nothing else.
- encode: `encode_image` of tensors that are there: what no way of reading images can beat.
- decode: the files decoded and prepared by the workers as for `embed`, and not encoded: what no network can beat.
- plain: as encode, but by open_clip's network as it is loaded, without its convolutions folded and channels-last.

Files are noise of `--image_size` pixels, which is the hardest to decode, or with `--photos` parts of 500 x 375 pixels
of scikit-learn's two photographs. In turns in one process, after warm-up. The last line is
`bench_label: encode/embed=... loader/embed=... decode/embed=... plain/embed=...`, the times of these beside that of
the first: of encode, 1 is the speed of the bare network.
"""

import argparse
import itertools
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from bench_step import make_pixels
from benchmark import in_turns, ratio, table, taken
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, Dataset

from debias_ssl.contract import Place
from debias_ssl.data.reading.config import STANDARD
from debias_ssl.distributed.device import keep_freed_memory
from debias_ssl.features.embedding import embed
from debias_ssl.features.preparing import Preparing
from debias_ssl.features.store import FolderStore
from debias_ssl.models.clip import Clip, load_clip

PREPARED = {
    "mean": [0.48, 0.46, 0.41],
    "std": [0.27, 0.26, 0.28],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def save_random(name: str, folder: Path) -> str:
    """Saves one of open_clip's models with random weights; gives its `--model`."""
    config = open_clip.get_model_config(name)
    assert config is not None
    torch.manual_seed(0)
    network = open_clip.create_model(name, load_weights=False)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    told = {"model_cfg": config, "preprocess_cfg": PREPARED}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    return f"local-dir:{folder}"


def make_photos(number: int) -> Iterator[Image.Image]:
    """Random parts of two photographs, 500 x 375 pixels; some are mirrored."""
    photos, random = load_sample_images().images, np.random.default_rng(0)
    for i in range(number):
        photo = photos[i % 2]
        top, left = (int(random.integers(side - size + 1)) for side, size in zip(photo.shape, (375, 500), strict=False))
        part = photo[top : top + 375, left : left + 500]
        yield Image.fromarray(part[:, :: random.choice([-1, 1])])


class AsEmbedded(Dataset):
    """Batches of images that are decoded and prepared as for features."""

    def __init__(self, clip: Clip, files: list[Path], batch_size: int):
        self.preparing = Preparing(files=[*map(str, files)], preprocess=clip.preprocess, decoding=STANDARD)
        self.batches = [range(i, min(i + batch_size, len(files))) for i in range(0, len(files), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> torch.Tensor:
        rows = self.batches[number]
        return torch.stack([*self.preparing.several(dict(zip(rows, rows, strict=True))).values()])


class Prepared(Dataset):
    """Batches of images that are decoded and prepared one by one."""

    def __init__(self, clip: Clip, files: list[Path], batch_size: int):
        self.preprocess = clip.preprocess
        self.batches = [files[i : i + batch_size] for i in range(0, len(files), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> torch.Tensor:
        return torch.stack([self.preprocess(Image.open(file).convert("RGB")) for file in self.batches[number]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="local-dir:FOLDER; as a default ViT-B-32 with random weights")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--image_size", type=int, default=64, help="side of the files' pixels")
    parser.add_argument(
        "--photos", action="store_true", help="parts of photographs, 500 x 375 pixels, instead of noise"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    keep_freed_memory()
    device = torch.device(parsed.device)

    def autocast() -> AbstractContextManager:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=parsed.precision == "bf16")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = parsed.model or save_random("ViT-B-32", folder)
        clip = load_clip(model, None, device)
        plain = open_clip.create_model(model, device=device).eval().requires_grad_(False)
        files = [folder / f"{i:06}.jpg" for i in range(parsed.images)]
        noise = map(Image.fromarray, make_pixels(0 if parsed.photos else parsed.images, parsed.image_size).numpy())
        for file, image in zip(files, make_photos(parsed.images) if parsed.photos else noise, strict=True):
            image.save(file, quality=95)
        programs = make_programs(clip, plain, folder, files, parsed.batch_size, parsed.workers, autocast)
        turns = {key: lambda program=program: taken(program, parsed.device) for key, program in programs.items()}
        found = in_turns(turns, parsed.rounds)
    print(f"{parsed.images} images, {parsed.device}, {parsed.precision}, {parsed.workers} workers")
    print(table(found, parsed.images))
    figures = [f"{name}/embed={ratio(found[name], found['embed']):.2f}" for name in programs if name != "embed"]
    print("bench_label:", *figures)


def make_programs(
    clip: Clip,
    plain: Any,
    folder: Path,
    files: list[Path],
    batch_size: int,
    workers: int,
    autocast: Callable[[], AbstractContextManager],
) -> dict[str, Callable[[], None]]:
    place, turns = Place(device=clip.device), itertools.count()
    prepared = Prepared(clip, files, batch_size)
    tensors = [prepared[0].to(clip.device)] * len(prepared)

    def features() -> None:
        embed(
            clip,
            list(map(str, files)),
            root=folder,
            store=FolderStore(folder=folder / f"features_{next(turns)}"),
            place=place,
            batch_size=batch_size,
            workers=workers,
            autocast=autocast,
        )

    def encode(batches: list[torch.Tensor] | DataLoader) -> None:
        with torch.no_grad(), autocast():
            for images in batches:
                clip.network.encode_image(clip.normalized(images.to(clip.device, non_blocking=True)))

    def plainly() -> None:
        with torch.no_grad(), autocast():
            for images in tensors:
                plain.encode_image(clip.normalized(images).contiguous())

    def loaded(dataset: Dataset) -> DataLoader:
        pinned = clip.device.type == "cuda"
        return DataLoader(dataset, batch_size=None, num_workers=workers, pin_memory=pinned)

    def decode() -> None:
        deque(loaded(AsEmbedded(clip, files, batch_size)), maxlen=0)

    return {
        "embed": features,
        "loader": lambda: encode(loaded(prepared)),
        "encode": lambda: encode(tensors),
        "decode": decode,
        "plain": plainly,
    }


if __name__ == "__main__":
    main()
