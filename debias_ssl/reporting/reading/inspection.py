"""Computes the pseudo-labels of a run's exported model for its unlabeled images."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.data.reading.decode import center_crop, decode
from debias_ssl.data.task import Task, make_task
from debias_ssl.formulas.logits import debias
from debias_ssl.reporting.reading.run import FinishedRun
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import TrainedRun, load_trained
from debias_ssl.system.errors import InputError, reason

# The largest number of unlabeled images to label; they are spread evenly over all unlabeled images.
MOST_IMAGES = 5000


class ImagesGoneError(InputError):
    """The images of a run were removed or replaced."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A run's pseudo-labels of its unlabeled images, or of an even part of them."""

    task: Task
    index: Int[np.ndarray, " U"]
    """Positions among the training images."""
    truth: Int[np.ndarray, " U"]
    """True classes; negative if unknown."""
    features: Float[Tensor, "U D"]
    confidence: Float[np.ndarray, " U"]
    """Probability of the plain pseudo-label."""
    plain: Int[np.ndarray, " U"]
    debiased: Int[np.ndarray, " U"]
    strength: float
    is_own_strength: bool
    """Whether the strength is the method's; it is 1 for a method that has none."""

    @property
    def changed(self) -> Bool[np.ndarray, " U"]:
        return self.plain != self.debiased


def inspect(run: FinishedRun) -> Inspection:
    """Labels the unlabeled images with the run's model, plain and debiased by the last marginal.

    Raises:
        ImagesGoneError: the images were removed or replaced.
        InputError: the model cannot be loaded.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trained = load_trained(RunFolder(run.path), device)
    # Each image is read once at most: a download or a cache of decoded images would cost more than it saves.
    config = replace(run.config.data, download=False)
    if config.name == "folder":
        config = replace(config, input="streaming", workers=0 if len(run.labels) < MOST_IMAGES else config.workers)
    place = Place(device=device)
    try:
        split_file = run.path / "split.json"
        task = make_task(config, seed=run.config.seed, place=place, split_file=split_file, progress=False)
        chosen, logits, features = _outputs(trained, task)
    except (OSError, InputError) as error:
        raise ImagesGoneError(reason(error)) from error
    own = getattr(trained.predictor.method, "strength", None)
    strength = float(own) if isinstance(own, int | float) else 1.0
    marginal = torch.tensor(run.logs[-1]["marginal"], dtype=torch.float32)
    confidence, plain = logits.softmax(-1).max(-1)
    return Inspection(
        task=task,
        index=task.split.unlabeled[chosen],
        truth=task.unlabeled_truth[chosen],
        features=features,
        confidence=confidence.numpy(),
        plain=plain.numpy(),
        debiased=debias(logits, marginal, strength).argmax(-1).numpy(),
        strength=strength,
        is_own_strength=isinstance(own, int | float),
    )


@torch.inference_mode()
def _outputs(
    trained: TrainedRun, task: Task
) -> tuple[Int[np.ndarray, " U"], Float[Tensor, "U C"], Float[Tensor, "U D"]]:
    """Positions of an even part of the unlabeled images, their logits as at test time, and their features."""
    unlabeled = task.split.unlabeled
    chosen = np.unique(np.linspace(0, len(unlabeled) - 1, MOST_IMAGES).round().astype(int))
    stream = trained.stream(task.readers["train"], unlabeled[chosen], task.place)
    logits, features = [], []
    for _, images in stream:
        predicted, view = trained.predictor.predict(images)
        logits.append(predicted.cpu())
        features.append(view.features.cpu())
    return chosen, torch.cat(logits), torch.cat(features)


def true_counts(run: FinishedRun, inspection: Inspection | None) -> tuple[int, ...] | None:
    """Unlabeled images of each true class, from the folder or from the data; None if neither has them."""
    if run.unlabeled_counts is not None or inspection is None:
        return run.unlabeled_counts
    counts = inspection.task.unlabeled_counts
    return counts if sum(counts) else None


def pixels(task: Task, part: str, index: Int[np.ndarray, " N"]) -> UInt8[np.ndarray, "N H W K"]:
    """Images of a part of the data; for a run on stored features, the image files of the features."""
    reader = task.readers[part]
    if reader.config.features:
        images = [decode(reader.files[int(i)], decoding=reader.config.decoding) for i in index]
        side = min(min(image.size) for image in images)
        return np.stack([center_crop(image, side) for image in images])
    return reader.center(torch.from_numpy(index)).cpu().numpy()
