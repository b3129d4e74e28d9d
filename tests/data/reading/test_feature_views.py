"""Views of images that are kept as features: which a step takes, and what is refused."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_folders import write_features

from debias_ssl.contract import Batch, Needs, Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.feature_views import find_views
from debias_ssl.data.task import Task, make_task
from debias_ssl.methods import FixMatch
from debias_ssl.system.errors import InputError

PARTS = ("labeled", "unlabeled", "test")
# What the features of view number v of a kind begin with; an image's own number is in its second feature.
FIRST = {"plain": 0, "weak": 100, "strong": 200}
PLAIN = {"feature_noise": 0.0, "feature_dropout": 0.0}


def write(tree: Path, part: str, folder: Path, **numbers: int) -> str:
    """Features of the images of a part and of so many views of theirs."""
    names = sorted(str(path.relative_to(tree / part)) for path in (tree / part).rglob("*.png"))
    own = np.arange(len(names)) + 10 * PARTS.index(part)

    def features(first: int) -> np.ndarray:
        return np.stack([np.full(len(names), first), own, np.ones(len(names))], 1).astype(np.float64)

    write_features(folder, tree / part, names, features(FIRST["plain"]))
    for kind, number in numbers.items():
        for view in range(number):
            write_features(folder / f"{kind}_{view}", tree / part, names, features(FIRST[kind] + view))
    return str(folder)


@pytest.fixture
def config(tree: Path, tmp_path: Path) -> DataConfig:
    """Of images of which 2 weak and 3 strong views are kept, but not of those to test on."""
    folders = [write(tree, part, tmp_path / f"of_{part}", weak=2, strong=3) for part in PARTS[:2]]
    folders.append(write(tree, "test", tmp_path / "of_test"))
    parts: dict[str, Any] = {part: str(tree / part) for part in PARTS}
    config = DataConfig(name="folder", features=tuple(folders), **parts)
    # Of features, mean 0 and deviation 1 leave them as they are.
    return replace(config, mean=(0.0,) * 3, std=(1.0,) * 3, augment=replace(config.augment, **PLAIN))


def task_of(config: DataConfig, **place: Any) -> Task:
    return make_task(config, seed=0, place=Place(**place), progress=False)


def batches(task: Task, start: int, stop: int, needs: Needs | None = None, seed: int = 0) -> list[Batch]:
    stream = task.training_stream(FixMatch(task.problem(3)), seed=seed, batch_size=4, unlabeled_ratio=2, balanced=False)
    return [*replace(stream, needs=needs or stream.needs).batches(start, stop)]


def views(several: list[torch.Tensor]) -> Counter[int]:
    """How often each view was taken."""
    return Counter(torch.cat(several)[:, 0].flatten().int().tolist())


def test_a_step_takes_one_of_the_views_of_each_image(config: DataConfig):
    task = task_of(config)
    steps = batches(task, 0, 100, Needs(strong_labeled=True, num_strong=2))
    taken = {
        "labeled": views([batch.labeled for batch in steps]),
        "weak": views([batch.weak[0] for batch in steps]),
        "strong": views([batch.strong[0] for batch in steps]),
        "further": views([batch.strong[1] for batch in steps]),
        "strong_labeled": views([batch.strong_labeled for batch in steps if batch.strong_labeled is not None]),
    }
    for name, counts in taken.items():
        number, first = (2, FIRST["weak"]) if name in ("labeled", "weak") else (3, FIRST["strong"])
        assert sorted(counts) == [*range(first, first + number)], name
        total = counts.total()
        # Each as often as the others, within four deviations.
        spread = 4 * (total * (1 / number) * (1 - 1 / number)) ** 0.5
        assert all(abs(count - total / number) < spread for count in counts.values()), name
    for batch in steps[:3]:
        own = task.readers["train"].center(torch.from_numpy(task.split.unlabeled)[batch.index])[..., 1].flatten()
        for view in (*batch.weak, *batch.strong):
            assert view[:, 1].flatten().int().equal(own.int()), "views are of the images"
        weak, strong, other = (view[:, 0].flatten() for view in (batch.weak[0], *batch.strong))
        assert not (strong == other).all() and not (weak - 100 == strong - 200).all()


def test_evaluations_and_statistics_are_of_the_plain_features(config: DataConfig):
    task = task_of(replace(config, mean=None, std=None))
    assert task.data.mean[0] == 0 and task.data.std[0] == 1
    task = task_of(config)
    tested = torch.cat([images for _, images in task.evaluation_stream("test", 4)])
    assert (tested[:, 0] == 0).all() and "views" not in vars(task.readers["test"]), "views of them are not even read"


def test_noise_and_dropout_come_in_addition(config: DataConfig):
    task = task_of(replace(config, augment=replace(config.augment, feature_noise=0.5)))
    (batch,) = batches(task, 0, 1)
    assert ((batch.strong[0][:, 0] - 201).abs() < 5).all() and (batch.strong[0][:, 0] % 1 != 0).any()
    assert (batch.weak[0][:, 0] % 1 == 0).all()


def test_any_number_of_processes_and_any_resume_take_the_same_views(config: DataConfig):
    whole = [batch.strong[0] for batch in batches(task_of(config), 0, 4)]
    parts = [[batch.strong[0] for batch in batches(task_of(config, rank=k, num_processes=2), 2, 4)] for k in (0, 1)]
    assert all(torch.cat([one, two]).equal(all_) for one, two, all_ in zip(*parts, whole[2:], strict=True))
    assert not batches(task_of(config), 0, 1, seed=1)[0].strong[0].equal(whole[0])


def test_without_views_of_a_kind_the_plain_features_are_taken(config: DataConfig):
    (batch,) = batches(task_of(replace(config, feature_views="none")), 0, 1)
    assert views([batch.labeled, *batch.weak, *batch.strong]).keys() == {0}
    for folder in config.features[:2]:
        for view in range(2):
            shutil.rmtree(Path(folder) / f"weak_{view}")
    (batch,) = batches(task_of(config), 0, 1)
    assert views([batch.labeled, *batch.weak]).keys() == {0} and views([*batch.strong]).keys() <= {200, 201, 202}


def test_what_does_not_fit_is_refused(config: DataConfig, tree: Path):
    first, second, third = (Path(folder) for folder in config.features)
    paths = sorted(str(path) for part in PARTS[:2] for path in (tree / part).rglob("*.png"))
    assert {kind: each.shape for kind, each in find_views(config.features, paths).items()} == {
        "weak": (2, len(paths), 3),
        "strong": (3, len(paths), 3),
    }
    (second / "strong_2" / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"of_labeled' holds 3 strong views .*of_unlabeled' another number: make as"):
        find_views(config.features, paths)
    shutil.rmtree(first / "strong_2")
    assert find_views(config.features, paths)["strong"].shape[0] == 2
    np.save(second / "strong_1" / "shard_00000.npy", np.full((2, 3), np.nan, np.float16))
    with pytest.raises(InputError, match="could not be read when its features were made"):
        find_views(config.features, paths)
    (second / "strong_1" / "shard_00000.npy").unlink()
    with pytest.raises(InputError, match=r"strong_1/shard_00000\.npy' is missing or damaged"):
        find_views(config.features, paths)
    shutil.rmtree(second / "strong_1")
    shutil.copytree(third, second / "strong_1")
    with pytest.raises(InputError, match=r"strong_1' holds views of other images than '.*of_unlabeled'.*feature_views"):
        find_views(config.features, paths)
    assert find_views(config.features, sorted(str(path) for path in (tree / "test").rglob("*.png"))) == {}


def test_a_run_knows_the_views_that_it_was_begun_with_again(config: DataConfig):
    whole = task_of(config).inputs
    assert whole == task_of(config).inputs
    none = task_of(replace(config, feature_views="none")).inputs
    shutil.rmtree(Path(config.features[0]) / "weak_1")
    fewer = task_of(config).inputs
    hashes: list[Any] = [inputs["data.feature_views"] for inputs in (whole, none, fewer)]
    assert len(set(hashes)) == 3 and whole["data.features"] == none["data.features"] == fewer["data.features"]
