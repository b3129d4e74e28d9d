"""The teacher of a run: another run's model, which predicts class probabilities for the views of a step."""

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import file_digest
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from debias_ssl.contract import Batch, Needs
from debias_ssl.data.streams import TrainingStream
from debias_ssl.data.task import Task
from debias_ssl.methods.base import Method
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.trained import load_trained
from debias_ssl.system.errors import InputError
from debias_ssl.training.learner import Predictor


@dataclass(frozen=True, kw_only=True)
class TaughtStream:
    """The batches of a stream, with a trained model's predictions for their views.

    The model receives exactly the pixels of the training, so that step k remains a function of (seed, k).
    """

    stream: TrainingStream
    predictor: Predictor
    needs: Needs
    """The images for which the method needs probabilities."""
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    """Makes the context of the run's precision."""

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of steps start..stop-1."""
        for batch in self.stream.batches(start, stop):
            yield replace(
                batch,
                teacher_probs=self._probs(batch.weak[0]) if self.needs.teacher_probs else None,
                labeled_teacher_probs=self._probs(batch.labeled) if self.needs.labeled_teacher_probs else None,
            )

    @torch.no_grad()
    def _probs(self, images: Float[Tensor, "N K H W"]) -> Float[Tensor, "N C"]:
        with self.autocast():
            logits = self.predictor(images)
        return logits.softmax(-1)


def teacher_hash(run: Path) -> dict[str, str]:
    """The hash of a finished run's network, by the setting that names the run; empty if it has no network."""
    network = run / "model.safetensors"
    if not network.is_file():
        return {}
    with network.open("rb") as file:
        return {"teacher": file_digest(file, "sha256").hexdigest()[:32]}


def taught(
    stream: TrainingStream,
    run: Path,
    task: Task,
    method: Method,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    *,
    compiled: bool = False,
) -> TaughtStream:
    """The stream of a task with class probabilities of a finished run.

    Args:
        stream: the batches.
        run: the folder of the finished run.
        task: the images of the stream.
        method: the method that needs the probabilities.
        autocast: makes the context of the precision that the teacher computes in.
        compiled: whether its network is compiled.

    Raises:
        InputError: the folder holds no finished run, or one of other classes or images.
    """
    teacher = load_trained(RunFolder(run), task.place.device)
    size, _, channels = task.readers["train"].shape
    differing = [
        f"{name} {theirs}, not {ours}"
        for name, theirs, ours in (
            ("classes", teacher.classes, task.data.classes),
            ("image size", teacher.size, size),
            ("channels", len(teacher.mean), channels),
            ("mean", teacher.mean, task.data.mean),
            ("std", teacher.std, task.data.std),
        )
        if theirs != ours
    ]
    if differing:
        raise InputError(f"teacher: {str(run)!r} was trained on other images: it has {differing[0]}")
    predictor = teacher.predictor.requires_grad_(False)
    if compiled:
        predictor.compile_network()
    return TaughtStream(stream=stream, predictor=predictor, needs=method.needs, autocast=autocast)
