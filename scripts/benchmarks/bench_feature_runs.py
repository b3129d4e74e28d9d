"""Time of a run on features: its random numbers, its step beside a bare one, and all of it with its start.

    python scripts/benchmarks/bench_feature_runs.py    # 50,000 + 10,000 images of 1,280 features, 64 + 448 a step
    python scripts/benchmarks/bench_feature_runs.py --features 512 --model mlp_512 --threads 1

- step: what `debias-ssl train` does: orders, views, method, optimizer, averages, statistics for the log. The column
  `data` is the share of its time in which random numbers are taken from the pool, and noise and dropout are applied.
- quiet: the same without noise and dropout. Weak and strong views are then one tensor, which saves memory traffic too.
- bare: the views are there: weak ones forward without gradient, the others forward and backward, the optimizer.
- run: `debias-ssl train` from its start to its folder, in a process of its own, with FixMatch, files of two bytes as
  images, and features from a folder as `label` keeps them.

The first three take turns, for 16 steps each. The last line is
`bench_feature_runs: random=SHARE without=SHARE over_bare_ms=... run_s=...`: the shares of a step that random numbers
take, and that is saved without them.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from benchmark import Taken, in_turns, repeated, seconds, table, taken
from torch import Tensor

from debias_ssl.data.augment import augmenter
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.feature_noise import FeatureNoise
from debias_ssl.data.augment.views import Normalization
from debias_ssl.data.reading.config import DECODER, ReadingConfig
from debias_ssl.data.reading.contents import content_of
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.sources.listing import find_images
from debias_ssl.data.streams import Sampling, StreamConfig, TrainingImages, TrainingStream
from debias_ssl.distributed.accelerator import make_accelerator, place_of
from debias_ssl.features.store import FolderStore, ShardRows
from debias_ssl.methods import FixMatch, Problem
from debias_ssl.models import build
from debias_ssl.training.config import Config
from debias_ssl.training.journal import StepStatistics
from debias_ssl.training.learner import Learner
from debias_ssl.training.loop import take_step
from debias_ssl.training.optim import OptimConfig, make_optimizer

CLASSES, LABELED, BATCH, RATIO = 10, 40, 64, 7
SHARD = 4096
STEPS, WARMUP = 16, 2


class TimedNoise(FeatureNoise):
    """Adds up the seconds of noise and dropout."""

    seconds = 0.0

    def __call__(self, features: Tensor, numbers: Tensor) -> Tensor:
        started = time.perf_counter()
        views = super().__call__(features, numbers)
        TimedNoise.seconds += time.perf_counter() - started
        return views


def make_step(model_name: str, features: Tensor, augment: AugmentConfig, steps: int) -> Callable[[], Taken]:
    accelerator = make_accelerator("fp32")
    num, num_features = features.shape
    labels, places = torch.arange(num) % CLASSES, torch.arange(num)
    model = build(model_name, CLASSES, in_chans=num_features)
    problem = Problem(
        num_classes=CLASSES,
        num_features=model.num_features,
        labeled_counts=(LABELED // CLASSES,) * CLASSES,
        num_unlabeled=num,
    )
    stream = TrainingStream(
        reader=Reader(
            pixels=features[:, None, None], files=(), config=ReadingConfig(features=("",), feature_views="none")
        ),
        images=TrainingImages(labels=labels, labeled=places[:LABELED], unlabeled=places, truth=labels),
        sampling=Sampling(seed=0, batch_size=BATCH, unlabeled_batch_size=RATIO * BATCH),
        config=StreamConfig(augment=augment),
        normalization=Normalization.of((0.0,) * num_features, (1.0,) * num_features, accelerator.device),
        needs=FixMatch.needs,
        place=place_of(accelerator),
    )
    config = Config(steps=steps)
    learner = Learner(model, FixMatch(problem)).to(accelerator.device)
    trained, optimizer = accelerator.prepare(learner, make_optimizer(learner, OptimConfig()))
    trained.train()
    sums, batches = StepStatistics(CLASSES, accelerator.device), enumerate(stream.batches(0, steps))

    def step() -> float:
        before = TimedNoise.seconds
        number, batch = next(batches)
        result, _ = take_step(number, batch, config, accelerator, trained, optimizer)
        learner.after_step(number)
        sums.add(result, batch.truth)
        return TimedNoise.seconds - before

    return lambda: taken(repeated(step, STEPS))


def make_bare(model_name: str, features: Tensor) -> Callable[[], Taken]:
    model = build(model_name, CLASSES, in_chans=features.shape[1])
    optimizer = make_optimizer(model, OptimConfig())
    views = features[: BATCH * (1 + 2 * RATIO)].float()[..., None, None]
    weak, others = views[: BATCH * RATIO], views[BATCH * RATIO :]
    labels = torch.arange(len(others)) % CLASSES

    def step() -> None:
        with torch.no_grad():
            model(weak)
        F.cross_entropy(model(others)[0], labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: taken(repeated(step, STEPS))


def make_images(folder: Path, num: int, num_features: int) -> Path:
    """A class tree of files that stand for images, and a folder of features beside it."""
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
    for i in range(num):
        (folder / str(i % CLASSES) / f"{i:06d}.jpg").write_bytes(b"??")
    names = find_images(folder)
    labels = np.array([int(Path(name).parent.name) for name in names])
    generator = np.random.default_rng(num)
    centers = np.random.default_rng(0).normal(0, 0.3, (CLASSES, num_features))
    out = folder.with_name(f"{folder.name}_features")
    out.mkdir()
    made = {"version": 3, "model": {"model": "none", "decoder": DECODER}, "shard_size": SHARD, "dim": num_features}
    store = FolderStore(folder=out).claim(made | {"root": str(folder)}, names, True)
    contents = np.tile(content_of(names[0]), (SHARD, 1))
    for number, start in enumerate(range(0, num, SHARD)):
        own = labels[start : start + SHARD]
        values = centers[own] + generator.standard_normal((len(own), num_features), dtype=np.float32)
        store.write(number, ShardRows(features=values.astype(np.float16), contents=contents[: len(own)]))
    store.finish()
    return out


def run_seconds(model: str, num: int, num_tests: int, num_features: int, steps: int, runs: int) -> list[float]:
    """Seconds of whole runs."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        parts = {"labeled": (Path(folder) / "train", num), "test": (Path(folder) / "test", num_tests)}
        made = [str(make_images(place, size, num_features)) for place, size in parts.values()]
        flags = ["--method", "FixMatch", "--data.name", "folder", "--data.features", str(made).replace("'", '"')]
        flags += [part for name, (place, _) in parts.items() for part in (f"--data.{name}", str(place))]
        flags += ["--data.labels_per_class", str(LABELED // CLASSES), "--model.name", model, "--precision", "fp32"]
        flags += ["--steps", str(steps), "--eval_every", str(steps), "--checkpoint_every", str(steps)]
        for _ in range(runs):
            started = time.perf_counter()
            command = [sys.executable, "-m", "debias_ssl.train", *flags, "--out", f"{folder}/run", "--overwrite"]
            subprocess.run(command, check=True, capture_output=True)
            found.append(time.perf_counter() - started)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--model", default="linear", choices=["linear", "mlp_512"])
    parser.add_argument("--steps", type=int, default=600, help="of a whole run")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of 16 steps that are timed, of each program")
    parser.add_argument(
        "--runs", type=int, default=3, help="number of whole runs; the fastest counts, and 0 leaves them out"
    )
    parser.add_argument("--threads", type=int, default=None)
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    features = torch.randn(asked.images, asked.features).half()
    augmenter.FeatureNoise = TimedNoise  # pyright: ignore[reportPrivateImportUsage]
    noisy, steps = AugmentConfig(), STEPS * (asked.rounds + WARMUP)
    quiet = replace(noisy, feature_noise=0.0, feature_dropout=0.0)
    programs = {
        "step": make_step(asked.model, features, noisy, steps),
        "quiet": make_step(asked.model, features, quiet, steps),
        "bare": make_bare(asked.model, features),
    }
    found = in_turns(programs, asked.rounds, warmup=WARMUP)
    print(table(found, STEPS * BATCH * (1 + 2 * RATIO)))
    step, without, bare = (seconds(found[name]) / STEPS for name in programs)
    random = statistics.median(each.waited / each.seconds for each in found["step"])
    line = f"bench_feature_runs: random={random:.3f} without={1 - without / step:.3f}"
    line += f" over_bare_ms={1000 * (step - bare):.2f}"
    if asked.runs:
        runs = run_seconds(asked.model, asked.images, asked.tests, asked.features, asked.steps, asked.runs)
        print(f"runs of {asked.steps} steps: {', '.join(f'{each:.1f}' for each in runs)} s")
        line += f" run_s={min(runs):.1f}"
    print(line)


if __name__ == "__main__":
    main()
