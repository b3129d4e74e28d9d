"""The journal of a run: statistics of steps, the progress bar, the lines of metrics.jsonl, and warnings."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from debias_ssl.contract import Step
from debias_ssl.distributed.collectives import all_sum_, num_processes
from debias_ssl.methods import Method
from debias_ssl.system.files import replacing, writes

# Digits of the numbers of single classes. They are only plotted; with all digits, a line for 1,000 classes has 60 kB.
DIGITS = 5
# The confusion matrices of the last evaluation, not in metrics.jsonl: for 1,000 classes each has a million numbers.
CONFUSION_FILE = "confusion.npz"
READ_BYTES = 2**16


class StepStatistics:
    """Sums over the steps since the last line of the log. They stay on the device until they are collected."""

    def __init__(self, num_classes: int, device: torch.device):
        self.num_classes = num_classes
        self.device = device
        self._reset()

    def _reset(self) -> None:
        self.steps = 0
        self._strong_shares = 0.0
        self._losses: dict[str, Tensor] = {}
        self._sums = torch.zeros(2 * self.num_classes + 3, device=self.device)

    @torch.no_grad()
    def add(self, step: Step, truth: Int[Tensor, " U"]) -> None:
        self.steps += 1
        self._strong_shares += step.strong_share
        for name, loss in step.losses.items():
            self._losses[name] = self._losses.get(name, torch.zeros_like(loss)) + loss.detach()
        target = step.pseudo.target if step.pseudo.target.ndim == 1 else step.pseudo.target.argmax(-1)
        weight = step.pseudo.weight.float()
        counts = torch.zeros(2, self.num_classes, device=self.device)
        counts[0].index_add_(0, target, torch.ones_like(weight))
        counts[1].index_add_(0, target, weight)
        known = (truth >= 0).float() * weight
        bad = ~torch.stack([loss.isfinite() for loss in step.losses.values()]).all()
        rest = torch.stack([(known * (target == truth)).sum(), known.sum(), bad.float()])
        self._sums += torch.cat([counts.flatten(), rest])

    def collect(self) -> dict[str, Any]:
        """The means since the last call, over all processes, as plain numbers."""
        sums = all_sum_(torch.cat([self._sums, self._sums.new_tensor([self._strong_shares])])).cpu().double()
        losses = all_sum_(torch.stack([*self._losses.values()])).cpu().double() / (self.steps * num_processes())
        (counts, weights), (correct, known, bad, shares) = sums[:-4].view(2, -1), sums[-4:].tolist()
        record = {
            "loss": dict(zip(self._losses, losses.tolist(), strict=True)),
            "strong_share": shares / (self.steps * num_processes()),
            "mask_rate": (weights.sum() / counts.sum()).item(),
            "pseudo_counts": counts.long().tolist(),
            "pseudo_weights": (weights / counts.clamp(min=1)).tolist(),
            "pseudo_accuracy": correct / known if known else None,
            # A step counts if the loss of any process is not finite.
            "nonfinite_steps": math.ceil(bad / num_processes()),
        }
        self._reset()
        return record


def threshold_flag(method: Method) -> str | None:
    """The flag of the threshold for pseudo-labels, which may belong to a base method; None without a threshold."""
    base = getattr(method, "base", None)
    if not hasattr(method if base is None else base, "threshold"):
        return None
    return "--method.threshold" if base is None else "--method.base.init_args.threshold"


def warnings_for(
    record: dict[str, Any], class_names: tuple[str, ...], threshold: str | None = "--method.threshold"
) -> dict[str, str]:
    """Warnings about the pseudo-labels in a line of the log, by kind.

    Without a threshold there is no warning that every pseudo-label counts, because that is normal.
    """
    found = {}
    if record["mask_rate"] == 0:
        fix = f"lower {threshold}, or train longer" if threshold else "train longer"
        found["none"] = f"no pseudo-label counts: {fix}"
    elif record["mask_rate"] > 0.9999 and threshold:
        found["all"] = f"every pseudo-label passes the threshold, right or wrong; raise {threshold}"
    passed = [count * weight for count, weight in zip(record["pseudo_counts"], record["pseudo_weights"], strict=True)]
    # If few pseudo-labels count, most of them can have one class by chance.
    if sum(passed) >= 10 * len(class_names):
        share, most = max(zip((n / sum(passed) for n in passed), class_names, strict=True))
        # With two classes, one has a large share more often than with ten.
        if share > max(0.5, 1.8 / len(class_names)):
            found["one"] = (
                f"class {most!r} has {share:.0%} of the pseudo-labels: unless it has that share of the images, "
                "the model is collapsing; try a larger --method.strength (DebiasPL), more labels or a smaller "
                "learning rate"
            )
    return found


def data_warning(waited: float, workers: int) -> dict[str, str]:
    """A warning if a run waits for the workers that decode images; `waited` is the share of the time."""
    if waited <= 0.1:
        return {}
    more = "raise --data.workers up to the number of cores, or " if workers < (os.cpu_count() or 1) else ""
    fix = f"{more}set --data.input resident"
    return {"data": f"{waited:.0%} of the time is spent waiting for images from {workers} workers: {fix}"}


class Journal:
    """The progress bar and `metrics.jsonl` of a run. Only the first process writes and prints."""

    def __init__(self, path: Path, *, start: int, steps: int, is_main: bool):
        self.path = path
        spent = (record["seconds"] for record in last_records(path) if "seconds" in record) if is_main else iter(())
        self._started = time.perf_counter() - next(spent, 0.0)
        self.is_main = is_main
        is_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=steps,
            initial=start,
            unit="step",
            disable=not is_main,
            dynamic_ncols=is_terminal,
            mininterval=0.1 if is_terminal else 10,
        )
        self.images = 0
        self.waited = 0.0
        self._since = time.perf_counter()
        self._warned: set[str] = set()

    def step(self, images: int, waited: float) -> None:
        """Counts a finished step, its images and the seconds of waiting for them."""
        self.images += images
        self.waited += waited
        self.bar.update()

    def rates(self) -> dict[str, float]:
        """Seconds since the start; and since the last call, images per second and the share of time spent waiting."""
        now = time.perf_counter()
        seconds, images, waited = now - self._since, self.images, self.waited
        self.restart_clock()
        return {
            "seconds": now - self._started,
            "images_per_second": images / seconds,
            "data_wait": waited / seconds,
        }

    def restart_clock(self) -> None:
        """Leaves the time since the last step out of the rates, for example that of an evaluation."""
        self.images, self.waited, self._since = 0, 0.0, time.perf_counter()

    def write(self, record: dict[str, Any]) -> None:
        if self.is_main:
            with writes(self.path), self.path.open("a") as file:
                file.write(line_of(record))

    def write_evaluation(self, step: int, figures: dict[Any, dict[str, dict[str, Any]]]) -> None:
        """Writes the metrics of each model on each part of the images, and the confusion matrices to their own file."""
        if self.is_main:
            write_confusions(self.path.with_name(CONFUSION_FILE), figures)
        self.write(evaluation_record(step, figures))

    def show(self, **values: str) -> None:
        self.bar.set_postfix(values, refresh=False)

    def say(self, text: str) -> None:
        if self.is_main:
            self.bar.write(text, file=sys.stderr)

    def warn(self, warnings: dict[str, str]) -> None:
        """Prints each kind of warning once."""
        for kind, text in warnings.items():
            if kind not in self._warned:
                self._warned.add(kind)
                self.say(f"warning: {text}")

    def close(self) -> None:
        self.bar.close()


def finite(value: Any) -> Any:
    """The value, with None (null in JSON) for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def line_of(record: dict[str, Any]) -> str:
    """A record as a line of `metrics.jsonl`; the numbers of single classes are rounded."""
    return json.dumps(finite(_rounded(record))) + "\n"


def _rounded(value: Any, is_of_class: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item, True) for item in value]
    return float(f"{value:.{DIGITS}g}") if is_of_class and isinstance(value, float) else value


def evaluation_record(step: int, figures: dict[Any, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """The line of an evaluation: metrics of test images by model, and those of other parts under the part's name."""
    parts = {
        part: {name: {k: v for k, v in each.items() if k != "confusion"} for name, each in found.items()}
        for part, found in figures.items()
    }
    return {"step": step, **parts.pop("test"), **parts}


def write_confusions(path: Path, figures: dict[Any, dict[str, dict[str, Any]]]) -> None:
    """Writes the confusion matrices of an evaluation, named PART_MODEL like the predictions."""
    matrices = {
        f"{part}_{name}": np.array(each["confusion"], dtype=np.int32)
        for part, found in figures.items()
        for name, each in found.items()
    }
    with replacing(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, **matrices)  # pyright: ignore[reportArgumentType]


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of `metrics.jsonl` one by one, without damaged lines such as an unfinished last line."""
    if path.exists():
        with path.open("rb") as file:
            yield from (record for line in file if (record := _record(line)) is not None)


def read_journal(path: Path, up_to: float = math.inf) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` up to a step."""
    return [record for record in read_records(path) if record.get("step", math.inf) <= up_to]


def last_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of `metrics.jsonl`, the last one first. The file is read only as far as records are used."""
    return (record for _, record in _lines_from_the_end(path) if record is not None)


def cut_journal(path: Path, step: int, *, with_evaluation: bool) -> None:
    """Removes the records after a step, and the evaluation of the step itself unless `with_evaluation`."""
    size = path.stat().st_size if path.exists() else 0
    for start, record in _lines_from_the_end(path):
        at = record.get("step", math.inf) if record is not None else math.inf
        if record is not None and (at < step or (at == step and ("loss" in record or with_evaluation))):
            break
        size = start
    with writes(path), path.open("ab") as file:
        file.truncate(size)


def _lines_from_the_end(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Where each line begins, and its record; None for a damaged line."""
    if not path.exists():
        return
    with path.open("rb") as file:
        start, rest = file.seek(0, os.SEEK_END), b""
        while start > 0 or rest:
            # A line starts after the previous line break, which may be in a part that was not read yet.
            at = rest.rfind(b"\n", 0, -1) + 1
            if at == 0 and start > 0:
                size = min(READ_BYTES, start)
                start -= size
                file.seek(start)
                rest = file.read(size) + rest
                continue
            yield start + at, _record(rest[at:])
            rest = rest[:at]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
