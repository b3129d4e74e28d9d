"""Time of CLIP's features of images, as `debias-ssl label` makes them, beside the bare network.

    python scripts/bench_label.py                                                 # ViT-B-32 with random weights
    python scripts/bench_label.py --model local-dir:../shared/models/tiny-clip --images 2048
    python scripts/bench_label.py --device cuda --precision bf16 --images 20000 --batch_size 256 --workers 16

- embed: files of images decoded by workers, prepared, encoded, normalized and written in shards.
- loader: the same workers and the network, and nothing else.
- encode: `encode_image` of tensors that are there: what no way of reading images can beat.

In turns in one process, after warm-up. The last line is `bench_label: encode/embed=... loader/embed=...`, the speed of
the first beside the others': 1 is the speed of the bare network.
"""

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import open_clip
import torch
from bench_step import make_pixels
from benchmark import in_turns, ratio, table, taken
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from debias_ssl.contract import Place
from debias_ssl.distributed.device import keep_freed_memory
from debias_ssl.features.embedding import embed
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
        clip = load_clip(parsed.model or save_random("ViT-B-32", folder), None, device)
        files = [folder / f"{i:06}.jpg" for i in range(parsed.images)]
        for file, pixels in zip(files, make_pixels(parsed.images, parsed.image_size).numpy(), strict=True):
            Image.fromarray(pixels).save(file, quality=95)
        programs = make_programs(clip, folder, files, parsed.batch_size, parsed.workers, autocast)
        turns = {key: lambda program=program: taken(program, parsed.device) for key, program in programs.items()}
        found = in_turns(turns, parsed.rounds)
    print(f"{parsed.images} images, {parsed.device}, {parsed.precision}, {parsed.workers} workers")
    print(table(found, parsed.images))
    figures = [f"{name}/embed={ratio(found[name], found['embed']):.2f}" for name in ("encode", "loader")]
    print("bench_label:", *figures)


def make_programs(
    clip: Clip,
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
                clip.network.encode_image(clip.normalized(images.to(clip.device, non_blocking=True)).contiguous())

    def loader() -> None:
        pinned = clip.device.type == "cuda"
        encode(DataLoader(prepared, batch_size=None, num_workers=workers, pin_memory=pinned))

    return {"embed": features, "loader": loader, "encode": lambda: encode(tensors)}


if __name__ == "__main__":
    main()
