"""The journal of a run: statistics of its steps, the progress bar, lines in metrics.jsonl, and warnings."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from debias_ssl.contract import Step
from debias_ssl.distributed.collectives import all_sum_, num_processes
from debias_ssl.methods import Method
from debias_ssl.system.files import writes


class StepStatistics:
    """Sums over the steps since the last line of the log; they stay on the device until they are collected."""

    def __init__(self, num_classes: int, device: torch.device):
        self.num_classes = num_classes
        self.device = device
        self._reset()

    def _reset(self) -> None:
        self.steps = 0
        self._losses: dict[str, Tensor] = {}
        self._sums = torch.zeros(2 * self.num_classes + 3, device=self.device)

    @torch.no_grad()
    def add(self, step: Step, truth: Int[Tensor, " U"]) -> None:
        self.steps += 1
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
        sums = all_sum_(self._sums).cpu().double()
        losses = all_sum_(torch.stack([*self._losses.values()])).cpu().double() / (self.steps * num_processes())
        (counts, weights), (correct, known, bad) = sums[:-3].view(2, -1), sums[-3:].tolist()
        record = {
            "loss": dict(zip(self._losses, losses.tolist(), strict=True)),
            "mask_rate": (weights.sum() / counts.sum()).item(),
            "pseudo_counts": counts.long().tolist(),
            "pseudo_weights": (weights / counts.clamp(min=1)).tolist(),
            "pseudo_accuracy": correct / known if known else None,
            # One process is enough to spoil a step.
            "nonfinite_steps": math.ceil(bad / num_processes()),
        }
        self._reset()
        return record


def threshold_flag(method: Method) -> str | None:
    """The flag of the threshold that pseudo-labels pass, which over a base is the base's; None where there is none."""
    base = getattr(method, "base", None)
    if not hasattr(method if base is None else base, "threshold"):
        return None
    return "--method.threshold" if base is None else "--method.base.init_args.threshold"


def warnings_for(
    record: dict[str, Any], class_names: tuple[str, ...], threshold: str | None = "--method.threshold"
) -> dict[str, str]:
    """What is wrong with the pseudo-labels of a line of the log, by kind; without a threshold all may count."""
    found = {}
    if record["mask_rate"] == 0:
        fix = f"lower {threshold}, or train longer" if threshold else "train longer"
        found["none"] = f"no pseudo-label counts: {fix}"
    elif record["mask_rate"] > 0.9999 and threshold:
        found["all"] = f"every pseudo-label passes the threshold, right or wrong; raise {threshold}"
    passed = [count * weight for count, weight in zip(record["pseudo_counts"], record["pseudo_weights"], strict=True)]
    # Of a few labels, most are easily of one class.
    if sum(passed) >= 10 * len(class_names):
        share, most = max(zip((n / sum(passed) for n in passed), class_names, strict=True))
        # Two classes are unequal more easily than ten.
        if share > max(0.5, 1.8 / len(class_names)):
            found["one"] = (
                f"class {most!r} takes {share:.0%} of the pseudo-labels: unless it has that share of the images, the "
                "model is collapsing; try a larger --method.strength (DebiasPL), more labels or a smaller learning rate"
            )
    return found


def data_warning(waited: float, workers: int) -> dict[str, str]:
    """Whether the workers that decode are what a run waits for, as a warning; `waited` is the share of time."""
    if waited <= 0.1:
        return {}
    more = "raise --data.workers up to the number of cores, or " if workers < (os.cpu_count() or 1) else ""
    fix = f"{more}set --data.input resident"
    return {"data": f"{waited:.0%} of the time is spent waiting for images from {workers} workers: {fix}"}


class Journal:
    """The progress bar and `metrics.jsonl` of a run; silent on all processes but the first."""

    def __init__(self, path: Path, *, start: int, steps: int, is_main: bool):
        self.path = path
        spent = [record["seconds"] for record in read_journal(path) if "seconds" in record]
        self._started = time.perf_counter() - (spent[-1] if spent else 0)
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
        """Counts a finished step, its images and the seconds that it waited for them."""
        self.images += images
        self.waited += waited
        self.bar.update()

    def rates(self) -> dict[str, float]:
        """Seconds since the start, and since the last call images per second and the share of time spent waiting."""
        now = time.perf_counter()
        seconds, images, waited = now - self._since, self.images, self.waited
        self.restart_clock()
        return {
            "seconds": now - self._started,
            "images_per_second": images / seconds,
            "data_wait": waited / seconds,
        }

    def restart_clock(self) -> None:
        """Leaves out what was done since the last step, such as an evaluation."""
        self.images, self.waited, self._since = 0, 0.0, time.perf_counter()

    def write(self, record: dict[str, Any]) -> None:
        if self.is_main:
            line = json.dumps(finite(record)) + "\n"
            with writes(self.path), self.path.open("a") as file:
                file.write(line)

    def show(self, **values: str) -> None:
        self.bar.set_postfix(values, refresh=False)

    def say(self, text: str) -> None:
        if self.is_main:
            self.bar.write(text, file=sys.stderr)

    def warn(self, warnings: dict[str, str]) -> None:
        """Says each kind of warning once."""
        for kind, text in warnings.items():
            if kind not in self._warned:
                self._warned.add(kind)
                self.say(f"warning: {text}")

    def close(self) -> None:
        self.bar.close()


def finite(value: Any) -> Any:
    """The same with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_journal(path: Path, up_to: float = math.inf) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` up to a step; a last line that was not finished is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return [record for record in records if isinstance(record, dict) and record.get("step", math.inf) <= up_to]
