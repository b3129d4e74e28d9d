"""Sends a run's settings, metrics and pictures to the trackers of the setting `log_with`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.contract import Batch, PseudoLabels
from debias_ssl.data.task import Part
from debias_ssl.system.errors import only_warned
from debias_ssl.training.journal import read_records
from debias_ssl.training.pictures import confusion_picture, examples_picture, marginal_picture, shown

if TYPE_CHECKING:
    import accelerate

# Number of unlabeled images of a step that are shown with their pseudo-labels.
EXAMPLES = 16
# Largest number of points of the marginal's lines. If there are more, every second point is left out.
MOST_POINTS = 400


class Tracking:
    """The trackers of a run. It does nothing without trackers, and in all processes except the first.

    Args:
        accelerator: the Accelerator with the trackers.
        classes: names of the classes.
        mean: mean of each channel of the images.
        std: standard deviation of each channel of the images.
        metrics: the file of the journal; a resumed run reads the earlier marginals from it.
    """

    def __init__(
        self,
        accelerator: "accelerate.Accelerator",
        *,
        classes: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        metrics: Path,
    ):
        self.accelerator = accelerator
        self.classes = classes
        self.mean = mean
        self.std = std
        self.metrics = metrics
        self._marginals: dict[int, Float[np.ndarray, " C"]] | None = None
        self._examples: tuple[Tensor, PseudoLabels, Tensor] | None = None

    @property
    def is_active(self) -> bool:
        return bool(self.accelerator.trackers) and self.accelerator.is_main_process

    def begin(self, project: str, resolved: dict[str, Any], *, run: str, start: int) -> None:
        """Starts the trackers, and sends them the settings.

        Args:
            project: the name of all runs in the trackers.
            resolved: the settings as plain values.
            run: the name of this run in the trackers.
            start: the first step; values of later steps that a tracker already has are replaced.
        """
        of_tensorboard = {"purge_step": start + 1} if start else {}
        self.accelerator.init_trackers(
            project, init_kwargs={"tensorboard": of_tensorboard, "wandb": {"name": run, "config": resolved}}
        )
        for tracker in self.accelerator.trackers if self.is_active else ():
            if tracker.name == "tensorboard":
                # In Markdown, four leading spaces make a line code.
                text = yaml.safe_dump(resolved, sort_keys=False)
                tracker.tracker.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), start)

    def figures(self, values: Mapping[str, float | None], step: int) -> None:
        """Logs numbers; unknown ones (None) are left out."""
        if self.is_active:
            self.accelerator.log({name: value for name, value in values.items() if value is not None}, step)

    def evaluation(self, figures: Mapping[Part, Mapping[str, Mapping[str, Any]]], step: int) -> None:
        """Logs the metrics of each model on each part of the images, and the pictures of the run."""
        if not self.is_active:
            return
        for part, models in figures.items():
            prefix = "" if part == "test" else f"{part}_"
            for model, found in models.items():
                numbers = {name: value for name, value in found.items() if isinstance(value, float)}
                self.figures({f"{prefix}{model}_{name}": value for name, value in numbers.items()}, step)
        with only_warned("no pictures for trackers"):
            confusion = np.array(figures["test"]["ema"]["confusion"])
            pictures = {"confusion": confusion_picture(confusion, self.classes)}
            if self._known_marginals():
                steps = np.array([*self._known_marginals()])
                marginals = np.stack([*self._known_marginals().values()])
                pictures["marginal"] = marginal_picture(steps, marginals, self.classes)
            if self._examples is not None:
                pictures["pseudo_labels"] = self._picture_of_examples(*self._examples)
            for tracker in self.accelerator.trackers:
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({name: each[None] for name, each in pictures.items()}, step=step, **layout)

    def marginal(self, value: Sequence[float], step: int) -> None:
        """Keeps the marginal of a step for the next picture."""
        if self.is_active:
            self._add([(step, value)])

    def examples(self, batch: Batch, pseudo: PseudoLabels) -> None:
        """Keeps unlabeled images of a step, as the network received them, with their pseudo-labels."""
        if not self.is_active or not batch.weak:
            return
        images = batch.weak[0][:EXAMPLES].detach().float().cpu()
        # Features are read as images of one pixel, which are not shown.
        if len(images) and images.shape[1] in (1, 3) and images.shape[2] > 1:
            kept = PseudoLabels(target=pseudo.target[:EXAMPLES].detach(), weight=pseudo.weight[:EXAMPLES].detach())
            self._examples = images, kept, batch.truth[:EXAMPLES]

    def _known_marginals(self) -> dict[int, Float[np.ndarray, " C"]]:
        if self._marginals is None:
            self._add(())
        assert self._marginals is not None
        return self._marginals

    def _add(self, values: Iterable[tuple[int, Sequence[float]]]) -> None:
        if self._marginals is None:
            # For a resumed run: reads the journal once, line by line, when a tracker first needs it.
            self._marginals = {}
            self._add((each["step"], each["marginal"]) for each in read_records(self.metrics) if "marginal" in each)
        for step, value in values:
            self._marginals[step] = np.array(value, dtype=np.float32)
            if len(self._marginals) > MOST_POINTS:
                self._marginals = dict([*self._marginals.items()][::2])

    def _picture_of_examples(
        self, images: Float[Tensor, "N K H W"], pseudo: PseudoLabels, truth: Int[Tensor, " N"]
    ) -> Any:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        pixels = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        targets: list[int] = (pseudo.target if pseudo.target.ndim == 1 else pseudo.target.argmax(-1)).tolist()
        known: list[int] = truth.tolist()
        titles = [
            f"{shown(self.classes[k])}, weight {weight:.2f}" + (f"\ntruth: {shown(self.classes[n])}" if n >= 0 else "")
            for k, n, weight in zip(targets, known, pseudo.weight.tolist(), strict=True)
        ]
        return examples_picture(pixels, titles)
