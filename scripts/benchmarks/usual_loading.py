"""The usual way to load images: one by one as PIL images, with torchvision's transforms, in DataLoader workers."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms


class PerImage(Dataset):
    """One image at a time, as a labeled or an unlabeled one."""

    def __init__(self, pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]):
        self.pixels = pixels.numpy()
        side = pixels.shape[1]
        weak = [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(side, padding=side // 8, padding_mode="reflect"),
        ]
        tensor = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        cutout = transforms.RandomErasing(p=1, scale=(0.25, 0.25), ratio=(1, 1))
        self.weak = transforms.Compose([*weak, *tensor])
        self.strong = transforms.Compose([*weak, transforms.RandAugment(2, 10), *tensor, cutout])

    def __getitem__(self, item: tuple[int, bool]) -> tuple[int, tuple[Any, ...]]:
        index, is_labeled = item
        image = Image.fromarray(self.pixels[index])
        return index, (self.weak(image),) if is_labeled else (self.weak(image), self.strong(image))


def collated(items: list[tuple[int, tuple[Tensor, ...]]]) -> tuple[Tensor, Tensor]:
    """Labeled, weak and strong views in one tensor, and the images' numbers."""
    views = [views for _, views in items]
    labeled = [view[0] for view in views if len(view) == 1]
    unlabeled = [view for view in views if len(view) == 2]
    images = torch.stack([*labeled, *(view[0] for view in unlabeled), *(view[1] for view in unlabeled)])
    return images, torch.tensor([index for index, _ in items])


class PassOrder:
    """Endless batches of image numbers; the first `num_labeled` numbers are labeled images."""

    def __init__(self, num_labeled: int, num: int, batch_size: int, unlabeled_batch_size: int):
        self.num_labeled, self.num = num_labeled, num
        self.sizes = batch_size, unlabeled_batch_size

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            labeled = torch.randint(self.num_labeled, self.sizes[:1], generator=generator).tolist()
            unlabeled = torch.randint(self.num, self.sizes[1:], generator=generator).tolist()
            yield [(index, True) for index in labeled] + [(index, False) for index in unlabeled]
