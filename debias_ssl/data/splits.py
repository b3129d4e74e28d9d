"""The split of the training images into labeled, unlabeled and validation images: drawn with a seed, saved as JSON."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int64

from debias_ssl.data.sampling.keyed import Purpose, permutation
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import write_aside
from debias_ssl.system.ranges import AtLeastOne, Natural, Ratio, Share, check_ranges

UnlabeledOrder = Literal["same", "uniform", "reversed", "middle", "head_tail"]
PARTS = ("labeled", "unlabeled", "validation")
# Lists of any length; several in one signature may differ in length.
Indices = Int64[np.ndarray, "_"]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How the training images are split.

    Args:
        labels_per_class: N1, labeled images of the first class; null labels all images that are not held out.
        labeled_fraction: share of labeled images in each class, rounded up, instead of a number.
        labeled_imbalance: n_max / n_min of the labeled images; class k gets int(N1 * imbalance^(-k / (C - 1))).
        unlabeled_per_class: M1, unlabeled images of the most frequent class; null takes all that are left.
        unlabeled_imbalance: n_max / n_min of the unlabeled images.
        unlabeled_order: the classes that are frequent among the unlabeled images: the frequent classes of the labeled
            images (same), no class (uniform), their rare classes (reversed), classes in the middle (middle), or at both
            ends (head_tail).
        unlabeled_includes_labeled: whether labeled images are also unlabeled images, as in FixMatch.
        train_imbalance: makes the training set itself long-tailed, before `labeled_fraction` of it is labeled.
        validation_per_class: images of each class held out from training for validation, never from the test set.
        split_seed: seed of the draw; null takes the run's seed.
        split: a split.json to use instead of a drawn split; `labels` in it are the classes of the labeled images.
    """

    labels_per_class: AtLeastOne | None = None
    labeled_fraction: Share | None = None
    labeled_imbalance: Ratio = 1.0
    unlabeled_per_class: AtLeastOne | None = None
    unlabeled_imbalance: Ratio = 1.0
    unlabeled_order: UnlabeledOrder = "same"
    unlabeled_includes_labeled: bool = True
    train_imbalance: Ratio = 1.0
    validation_per_class: Natural = 0
    split_seed: Natural | None = None
    split: str | None = None

    def __post_init__(self):
        check_ranges(self, "data.", SplitConfig)
        if self.labeled_fraction is not None and self.labels_per_class is not None:
            raise InputError("data.labeled_fraction and data.labels_per_class exclude each other: set one to null")
        if self.labels_per_class is None and self.labeled_imbalance != 1:
            raise InputError("data.labeled_imbalance needs data.labels_per_class, the size of the largest class")
        if self.unlabeled_per_class is None and (self.unlabeled_imbalance != 1 or self.unlabeled_order != "same"):
            raise InputError(
                "data.unlabeled_imbalance and data.unlabeled_order need data.unlabeled_per_class, "
                "the size of the largest class"
            )


@dataclass(frozen=True, kw_only=True)
class Split:
    """The labeled, unlabeled and held-out training images, as ascending positions in the list of training images."""

    labeled: Indices
    unlabeled: Indices
    validation: Indices
    labels: Indices | None = None
    """Classes of the labeled images if they differ from the labels of the data, such as pseudo-labels; else None."""


def long_tailed_counts(largest: int, imbalance: float, num_classes: int) -> list[int]:
    """int(n_1 imbalance^(-k / (C - 1))) images for class k = 0..C-1, at least 1; int(n_1 / imbalance) for the last."""
    if largest == 0 or num_classes == 1:
        return [largest] * num_classes
    # The same expression as in the literature, so that rounding errors do not change the truncation.
    decay = (1 / imbalance) ** (1 / (num_classes - 1))
    counts = [int(largest * decay**k) for k in range(num_classes - 1)] + [int(largest / imbalance)]
    return [max(1, count) for count in counts]


def unlabeled_counts(largest: int, imbalance: float, order: UnlabeledOrder, num_classes: int) -> list[int]:
    """Unlabeled images of each class; `middle` and `head_tail` are SimPro's permutations (arXiv 2402.13505)."""
    counts = long_tailed_counts(largest, 1.0 if order == "uniform" else imbalance, num_classes)
    falling, rising = range(num_classes)[::2][::-1], range(num_classes)[1::2]
    ranks = {
        "same": range(num_classes),
        "uniform": range(num_classes),
        "reversed": range(num_classes)[::-1],
        "middle": [*falling, *rising],
        "head_tail": [*rising, *falling],
    }
    return [counts[rank] for rank in ranks[order]]


def draw_split(
    labels: Indices,
    classes: tuple[str, ...],
    config: SplitConfig,
    *,
    seed: int,
    num_separate: int = 0,
    num_shared: int = 0,
) -> Split:
    """Draws a split.

    Args:
        labels: class of each training image, negative if unknown.
        classes: names of the classes.
        config: the settings of the split.
        seed: the seed, if the config has no `split_seed`.
        num_separate: number of images at the end that are a separate unlabeled set. If there are any, their labels are
            not used, and unlabeled images come only from them and from shared images.
        num_shared: number of images before these that are in both sets; they are unlabeled too, unless held out.

    Raises:
        InputError: a class has fewer images than requested.
    """
    seed = seed if config.split_seed is None else config.split_seed
    first_separate = len(labels) - num_separate

    def members(first: int, stop: int, draw: int) -> list[Indices]:
        """The images first..stop-1 of each class, in random order."""
        of_class = [first + np.flatnonzero(labels[first:stop] == k) for k in range(len(classes))]
        number = draw * len(classes)
        return [
            images[permutation(seed, Purpose.SPLIT, number + k, len(images)).numpy()]
            for k, images in enumerate(of_class)
        ]

    pools = members(0, first_separate, draw=0)
    validation, pools = _take(pools, [config.validation_per_class] * len(classes), classes, "validation_per_class")
    if config.train_imbalance != 1:
        counts = long_tailed_counts(min(map(len, pools)), config.train_imbalance, len(classes))
        pools, _ = _take(pools, counts, classes, "train_imbalance")
    labeled, rest = _take(pools, _labeled_counts(pools, config), classes, "labels_per_class")

    first_unlabeled, has_own_set = first_separate - num_shared, bool(num_separate or num_shared)
    everything = labels[:0]
    if has_own_set:
        used = np.concatenate([*labeled, *validation]) if num_shared else labels[:0]
        rest = [pool[~np.isin(pool, used)] for pool in members(first_unlabeled, len(labels), draw=1)]
        everything = np.setdiff1d(np.arange(first_unlabeled, len(labels)), used)
    if config.unlabeled_per_class is not None:
        largest, imbalance, order = config.unlabeled_per_class, config.unlabeled_imbalance, config.unlabeled_order
        counts = unlabeled_counts(largest, imbalance, order, len(classes))
        unlabeled, _ = _take(rest, counts, classes, "unlabeled_per_class")
    else:
        unlabeled = [everything] if has_own_set else rest
    if config.unlabeled_includes_labeled:
        unlabeled = [*unlabeled, *labeled]
    return Split(labeled=_sorted(labeled), unlabeled=_sorted(unlabeled), validation=_sorted(validation))


def _labeled_counts(pools: list[Indices], config: SplitConfig) -> list[int]:
    if config.labeled_fraction is not None:
        # Rounded, because 0.1 * 70 is 7.000000000000001.
        return [math.ceil(round(config.labeled_fraction * len(pool), 6)) for pool in pools]
    if config.labels_per_class is not None:
        return long_tailed_counts(config.labels_per_class, config.labeled_imbalance, len(pools))
    return [len(pool) for pool in pools]


def _take(
    pools: list[Indices], counts: list[int], classes: tuple[str, ...], setting: str
) -> tuple[list[Indices], list[Indices]]:
    """The first `counts` images of each pool, and the others."""
    for name, pool, count in zip(classes, pools, counts, strict=True):
        if count > len(pool):
            raise InputError(
                f"class {name!r} has {len(pool)} images left, but {count} are requested: lower data.{setting}"
            )
    pairs = list(zip(pools, counts, strict=True))
    return [pool[:count] for pool, count in pairs], [pool[count:] for pool, count in pairs]


def _sorted(pools: list[Indices]) -> Indices:
    return np.sort(np.concatenate(pools)).astype(np.int64)


def class_counts(labels: Indices, num_classes: int) -> tuple[int, ...]:
    """Images of each class; images of unknown class are not counted."""
    return tuple(np.bincount(labels[labels >= 0], minlength=num_classes).tolist())


def raised_classes(config: SplitConfig, num_classes: int) -> int:
    """The number of classes of a long tail that get one label although their share is less than one."""
    if config.labels_per_class is None or config.labeled_fraction is not None:
        return 0
    shares = [
        config.labels_per_class * config.labeled_imbalance ** (-k / max(1, num_classes - 1)) for k in range(num_classes)
    ]
    return sum(share < 1 - 1e-9 for share in shares)


def save_split(
    path: Path, split: Split, classes: tuple[str, ...], fingerprint: str, inputs: Mapping[str, str] | None = None
) -> None:
    """Writes `split.json`: class names, the fingerprint of the data, the indices of each part, and given labels.

    For a run, it also has the hashes of all other inputs, by the settings that name them.
    """
    parts = {name: getattr(split, name).tolist() for name in PARTS}
    if split.labels is not None:
        parts["labels"] = split.labels.tolist()
    further = {} if inputs is None else {"inputs": dict(inputs)}
    text = json.dumps({"classes": classes, "fingerprint": fingerprint, **further, **parts})
    write_aside(path, text + "\n")


def hash_of_split(split: Split) -> str:
    """Hash of the indices of each part, and of given labels."""
    arrays = [getattr(split, name) for name in (*PARTS, "labels")]
    return hashlib.sha256(b"".join(b"-" if each is None else each.tobytes() + b"|" for each in arrays)).hexdigest()[:32]


def saved_inputs(path: Path) -> dict[str, str] | None:
    """The hashes of other inputs in a run's `split.json`; None if an earlier version wrote it."""
    try:
        inputs = json.loads(path.read_text()).get("inputs")
    except (OSError, ValueError, AttributeError):
        return None  # the code that needs the file reports its errors
    return inputs if isinstance(inputs, dict) else None


def check_inputs(path: Path, inputs: Mapping[str, str]) -> None:
    """Raises InputError if an input of a run, which a setting names, has changed since the run started."""
    saved = saved_inputs(path) or {}
    differing = [name for name in sorted(saved) if saved[name] != inputs.get(name)]
    if differing:
        raise InputError(
            f"{differing[0]} has changed since the run started, by {path}: set it to the original, or to a copy of it"
        )


def load_split(
    path: Path,
    classes: tuple[str, ...],
    fingerprint: str,
    num_images: int,
    earlier: Callable[[], str] | None = None,
) -> Split:
    """Reads `split.json` for the same data; `earlier` returns the fingerprint in the form of earlier versions.

    Raises:
        InputError: the file is not a split, or is one of other data.
    """
    try:
        saved = json.loads(path.read_text())
        names = [*PARTS, "labels"] if "labels" in saved else PARTS
        split = Split(**{name: np.array(saved[name], dtype=np.int64) for name in names})
        same_data = {"classes": (tuple(saved["classes"]), classes), "fingerprint": (saved["fingerprint"], fingerprint)}
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{path} is not a split.json: {error}") from error
    for key, (there, here) in same_data.items():
        if there != here and not (key == "fingerprint" and earlier is not None and there == earlier()):
            raise InputError(f"{path} is of other data: its {key} differs")
    for name in PARTS:
        part = getattr(split, name)
        if part.ndim != 1 or (len(part) and not (part.min() >= 0 and part.max() < num_images)):
            raise InputError(f"{path}: {name!r} has positions outside the {num_images} training images")
        if len(np.unique(part)) < len(part):
            raise InputError(f"{path}: {name!r} has an image twice")
    trained = np.union1d(split.labeled, split.unlabeled)
    if np.isin(split.validation, trained).any():
        raise InputError(f"{path}: 'validation' has images that are trained on too")
    if split.labels is not None and (
        split.labels.shape != split.labeled.shape or not np.isin(split.labels, range(len(classes))).all()
    ):
        raise InputError(f"{path}: 'labels' must have a class from 0 to {len(classes) - 1} for each labeled image")
    return split
