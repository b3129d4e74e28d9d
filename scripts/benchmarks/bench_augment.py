"""Speed of weak and strong views, in images a second: whole batches as in the trainer, and one image at a time.

    python scripts/benchmarks/bench_augment.py

- batched: `data/augment/` on a batch of uint8 images, random numbers included, to the network's input.
- v2: torchvision's transforms.v2 on uint8 tensors; pil: torchvision's transforms of PIL images. Both one image at a
  time, with RandAugment of the same number of operations, and then Cutout.
- kornia: its augmentations of a batch of floats, where it is installed.

One thread each, in turns. The last line is `bench_augment: strong/v2=... strong/pil=...`, how many times as fast.
"""

import argparse
import importlib
import importlib.util
from collections.abc import Callable

import torch
from bench_step import MEAN, STD, make_pixels
from benchmark import Taken, in_turns, ratio, table, taken
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import v2

from debias_ssl.data.augment import views
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.sampling.keyed import Purpose, uniform
from debias_ssl.distributed.device import keep_freed_memory


def batched(images: Tensor) -> dict[str, Callable[[], None]]:
    config, normalization = AugmentConfig(flip=True), views.Normalization.of(MEAN, STD, images.device)
    positions = torch.arange(len(images))

    def weak() -> None:
        numbers = uniform(0, Purpose.WEAK_VIEW, 0, positions, views.WEAK_NUMBERS)
        views.weak_input(images, numbers, config, normalization)

    def strong() -> None:
        numbers = uniform(0, Purpose.STRONG_VIEW, 0, positions, views.num_numbers(config))
        views.strong_input(images, numbers, config, normalization)

    return {"weak": weak, "strong": strong}


def tensors_one_by_one(images: Tensor) -> dict[str, Callable[[], None]]:
    each = [*images.permute(0, 3, 1, 2).contiguous()]
    side = images.shape[1]
    weak = [v2.RandomHorizontalFlip(), v2.RandomCrop(side, padding=side // 8, padding_mode="reflect")]
    floats = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    return on_each(each, weak, [v2.RandAugment(2, 10)], floats, v2.Compose)


def pil_one_by_one(images: Tensor) -> dict[str, Callable[[], None]]:
    each = [Image.fromarray(image) for image in images.numpy()]
    side = images.shape[1]
    weak = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(side, padding=side // 8, padding_mode="reflect")]
    floats = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    return on_each(each, weak, [transforms.RandAugment(2, 10)], floats, transforms.Compose)


def on_each(each: list, weak: list, strong: list, floats: list, compose: Callable) -> dict[str, Callable[[], None]]:
    cutout = transforms.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1))
    pipelines = {"weak": compose([*weak, *floats]), "strong": compose([*weak, *strong, *floats, cutout])}

    def views(pipeline: Callable) -> Callable[[], None]:
        def views_of_all() -> None:
            torch.stack([pipeline(image) for image in each])

        return views_of_all

    return {kind: views(pipeline) for kind, pipeline in pipelines.items()}


def by_kornia(images: Tensor) -> dict[str, Callable[[], None]]:
    kornia = importlib.import_module("kornia.augmentation")
    side = images.shape[1]
    floats = images.permute(0, 3, 1, 2).float().div(255)
    weak = [kornia.RandomHorizontalFlip(), kornia.RandomCrop((side, side), padding=side // 8, padding_mode="reflect")]
    auto = importlib.import_module("kornia.augmentation.auto")
    last = [kornia.RandomErasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0)), kornia.Normalize(MEAN, STD)]
    pipelines = {
        "weak": torch.nn.Sequential(*weak, last[-1]),
        "strong": torch.nn.Sequential(*weak, auto.RandAugment(n=2, m=10), *last),
    }

    def views(pipeline: Callable) -> Callable[[], None]:
        def views_of_all() -> None:
            pipeline(floats)

        return views_of_all

    return {kind: views(pipeline) for kind, pipeline in pipelines.items()}


WAYS = {"batched": batched, "v2": tensors_one_by_one, "pil": pil_one_by_one}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=448)
    parser.add_argument("--image_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    keep_freed_memory()
    images = make_pixels(parsed.images, parsed.image_size)
    ways = WAYS | ({"kornia": by_kornia} if importlib.util.find_spec("kornia") else {})
    programs: dict[str, Callable[[], Taken]] = {}
    for name, way in ways.items():
        for kind, program in way(images).items():
            programs[f"{kind}, {name}"] = lambda program=program: taken(program)
    found = in_turns(programs, parsed.rounds, warmup=2)
    print(f"{parsed.images} images of {parsed.image_size} pixels, {parsed.threads} threads, {parsed.rounds} rounds")
    print(table(found, parsed.images))
    others = [name for name in ways if name != "batched"]
    print(
        "bench_augment:",
        *(
            f"{kind}/{n}={ratio(found[f'{kind}, {n}'], found[f'{kind}, batched']):.1f}"
            for kind in ("strong", "weak")
            for n in others
        ),
    )


if __name__ == "__main__":
    main()
