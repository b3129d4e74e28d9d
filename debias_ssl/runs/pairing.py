"""Pairs the variants of a comparison: each with the baseline on the labels alone, and with each other."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.splits import SplitConfig
from debias_ssl.runs.folder import RESUMABLE
from debias_ssl.system.errors import InputError
from debias_ssl.training.renamed import flat
from debias_ssl.training.saved import completed

Settings = dict[str, Any]

LABELS_ONLY = "LabelsOnly"
LABELS_ONLY_METHOD = "Supervised"
# Settings that do not change a run on the labels alone.
OF_UNLABELED = {"teacher", "target_model", "unlabeled_ratio", "data.probs", "data.lanes"}
# Settings that select the images and the labels: variants that differ in these cannot be paired by seed.
IMAGES = {f"data.{field.name}" for stage in (SourceConfig, SplitConfig) for field in fields(stage)}
IMAGES -= RESUMABLE | OF_UNLABELED


@dataclass(frozen=True, kw_only=True)
class Block:
    """Variants on the same images and labels, whose runs of a seed are paired."""

    setting: str
    """The name of the setting; empty if there is only one."""
    variants: tuple[str, ...]
    """Variants in the order of the table: added labels-only runs come first."""
    floors: Mapping[str, str]
    """The labels-only variant for each variant that uses unlabeled images."""

    @property
    def asked(self) -> tuple[str, ...]:
        """The variants without added labels-only runs."""
        return tuple(name for name in self.variants if not _is_added(name)) or self.variants

    @property
    def first(self) -> str:
        """The first requested variant; the others are also compared with it."""
        return self.asked[0]


def setting_of(variant: str) -> str:
    """The setting in the name of a variant; empty if it has none."""
    return variant.rpartition("/")[0]


def own_name(variant: str) -> str:
    """The name without its setting."""
    return variant.rpartition("/")[2]


def inside(setting: str, name: str) -> str:
    """The complete name of a variant in a setting."""
    return f"{setting}/{name}" if setting else name


def _is_added(variant: str) -> bool:
    return own_name(variant).startswith(LABELS_ONLY)


def uses_unlabeled(resolved: Settings) -> bool:
    """Whether a variant trains on unlabeled images."""
    return resolved["method"]["class_path"] != LABELS_ONLY_METHOD


def labels_only(resolved: Settings, labeled_loss: Settings) -> Settings:
    """The settings of a run on the labels alone: the same images, labels, network, optimizer and steps.

    Args:
        resolved: settings of a variant, without a seed.
        labeled_loss: the loss of the comparison's base. If it is plain cross-entropy, and classes may have different
            numbers of labels, logits are adjusted; if the numbers are equal, this equals cross-entropy.
    """
    data = resolved["data"]
    are_equal = data["labels_per_class"] is not None and data["labeled_imbalance"] == 1 and data["split"] is None
    if labeled_loss["class_path"] == "CrossEntropy" and not are_equal:
        labeled_loss = {"class_path": "LogitAdjusted"}
    found = completed(
        {
            **resolved,
            "method": {"class_path": LABELS_ONLY_METHOD},
            "labeled_loss": labeled_loss,
            "teacher": None,
            "target_model": "raw",
            "data": {**data, "probs": None},
            "seed": 0,
        }
    )
    del found["seed"]
    return found


def _key(resolved: Settings) -> str:
    """All that a run on the labels alone depends on, except for its method and loss."""
    own = {
        name: value
        for name, value in flat(resolved).items()
        if name not in RESUMABLE | OF_UNLABELED and not name.startswith(("method.", "labeled_loss."))
    }
    return json.dumps(own, sort_keys=True)


def find_floors(
    variants: Mapping[str, Settings], losses: Mapping[str, Settings], *, add: bool
) -> tuple[dict[str, Settings], dict[str, str]]:
    """The labels-only variant of each variant that trains on unlabeled images.

    Args:
        variants: settings without a seed, by name.
        losses: the labeled loss of each setting's base, by name of the setting; "" is for all others.
        add: whether to add missing labels-only variants; else only existing ones are found.

    Returns:
        All variants, with added ones before the others of their setting; and the floor of each variant.

    Raises:
        InputError: another variant has the name of a labels-only variant to add.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for name, resolved in variants.items():
        groups.setdefault((setting_of(name), _key(resolved)), []).append(name)
    added: dict[str, Settings] = {}
    floors: dict[str, str] = {}
    for (setting, _), names in groups.items():
        judged = [name for name in names if uses_unlabeled(variants[name])]
        if not judged:
            continue
        wanted = labels_only(variants[judged[0]], losses.get(setting, losses[""]))
        floor = next((name for name in names if _is_same(variants[name], wanted)), None)
        if floor is None and add:
            several = sum(setting == other for other, _ in groups) > 1
            floor = inside(setting, f"{LABELS_ONLY}-{own_name(judged[0])}" if several else LABELS_ONLY)
            if floor in variants:
                raise InputError(
                    f"variant {floor!r} has the name of the labels-only run but other settings: rename it, or "
                    "pass --floor false"
                )
            added[floor] = wanted
        if floor is not None:
            floors |= dict.fromkeys(judged, floor)
    order = dict.fromkeys(setting_of(name) for name in variants)
    everything = {**added, **variants}
    found = {name: each for setting in order for name, each in everything.items() if setting_of(name) == setting}
    return found, floors


def _is_same(resolved: Settings, wanted: Settings) -> bool:
    return all(flat(resolved[part]) == flat(wanted[part]) for part in ("method", "labeled_loss"))


def floors_among(variants: Mapping[str, Settings]) -> dict[str, str]:
    """The floors of runs without a plan: the first run without unlabeled images in the same setting."""
    found = {}
    for name, resolved in variants.items():
        same = [other for other in variants if _key(variants[other]) == _key(resolved)]
        floor = next((other for other in same if not uses_unlabeled(variants[other])), None)
        if floor is not None and uses_unlabeled(resolved):
            found[name] = floor
    return found


def blocks_of(variants: Mapping[str, Settings], floors: Mapping[str, str]) -> list[Block]:
    """The variants in blocks: by named settings, or else by equal images and labels."""
    groups: dict[str, list[str]] = {}
    for name, resolved in variants.items():
        images = {key: value for key, value in flat(resolved).items() if key in IMAGES}
        groups.setdefault(setting_of(name) or json.dumps(images, sort_keys=True), []).append(name)
    return [
        Block(
            setting=setting_of(names[0]) or _told_apart(variants, [each[0] for each in groups.values()], names[0]),
            variants=tuple(sorted(names, key=lambda name: not _is_added(name))),
            floors={name: floors[name] for name in names if name in floors},
        )
        for names in groups.values()
    ]


def _told_apart(variants: Mapping[str, Settings], firsts: list[str], own: str) -> str:
    """The name of a block: the settings of images and labels in which it differs from others."""
    images = {name: flat(variants[name]) for name in firsts}
    differing = [key for key in images[own] if key in IMAGES and len({str(each[key]) for each in images.values()}) > 1]
    return ", ".join(f"{key.removeprefix('data.')}={images[own][key]}" for key in differing)
