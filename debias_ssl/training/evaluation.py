"""Evaluation: predictions on a list of images, and their metrics."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl.data.evaluation_stream import EvaluationStream
from debias_ssl.distributed.collectives import all_sum_, gathered, num_processes
from debias_ssl.formulas import metrics
from debias_ssl.formulas.calibration import NUM_BINS, error_of_bins, negative_log_likelihood, sums_of_bins
from debias_ssl.formulas.logits import confusion_matrix

# Largest message between processes, in numbers.
MOST_SENT = 2**24


@torch.inference_mode()
def predict_all(
    predictors: Mapping[str, nn.Module], stream: EvaluationStream, num_classes: int
) -> dict[str, Float[Tensor, "N C"]]:
    """Logits of each predictor for all images of a stream, in its order, on the CPU of every process.

    Each image is decoded once for all predictors. The caller sets the precision by autocast.
    """
    logits = {name: torch.zeros(len(stream.index), num_classes) for name in predictors}
    with evaluated(*predictors.values()):
        for place, images in stream:
            for name, predictor in predictors.items():
                logits[name][place] = predictor(images).float().cpu()
    if num_processes() > 1:
        # One process has the logits of an image, all others have zeros: the sum gathers them.
        for part in (part for each in logits.values() for part in each.split(max(1, MOST_SENT // num_classes))):
            part.copy_(all_sum_(part.to(stream.place.device)))
    return logits


def predict_batches(
    predictor: nn.Module, stream: EvaluationStream
) -> Iterator[tuple[Int[Tensor, " n"], Float[Tensor, "n C"]]]:
    """Positions and logits of this process's images, on the CPU, one batch of the stream at a time.

    No batch is kept, so the memory does not depend on the number of images.
    """
    with evaluated(predictor):
        for place, images in stream:
            yield place, _passed(predictor, images)


@torch.inference_mode()
def _passed(predictor: nn.Module, images: Float[Tensor, "n K H W"]) -> Float[Tensor, "n C"]:
    """Logits on the CPU. A separate function, so that inference mode does not reach the caller of the generator."""
    return predictor(images).float().cpu()


def gathered_batches(
    predictor: nn.Module, stream: EvaluationStream, num_classes: int
) -> Iterator[tuple[int, Float[Tensor, "n C"]]]:
    """The batches of all processes, on each process: the position of the first row, and logits on the CPU.

    No batch is kept. A stream gives a process one contiguous part of its list, in order.
    """
    device, size = stream.place.device, stream.batch_size
    batches = predict_batches(predictor, stream)
    # Each process sends the position of the first row of its batch, the number of rows, and the rows.
    for _ in range(-(-len(stream.index) // (size * num_processes()))):
        place, logits = next(batches, (torch.zeros(0, dtype=torch.int64), torch.zeros(0, num_classes)))
        about = torch.tensor([[int(place[0]) if len(place) else 0, len(place)]], device=device)
        rows = logits.new_zeros(size, num_classes, device=device)
        rows[: len(logits)] = logits.to(device)
        for (first, number), part in zip(gathered(about).tolist(), gathered(rows).cpu().split(size), strict=True):
            if number:
                yield first, part[:number]


def predict_logits(predictor: nn.Module, stream: EvaluationStream, num_classes: int) -> Float[Tensor, "N C"]:
    """Logits of one predictor for all images of a stream, in its order, on every process."""
    return predict_all({"": predictor}, stream, num_classes)[""]


@torch.inference_mode()
def try_batch(predictors: Mapping[str, nn.Module], stream: EvaluationStream) -> None:
    """Passes a full batch of zeros through each predictor, without reading an image."""
    height, width, channels = stream.reader.shape
    images = torch.zeros(stream.most_images, channels, height, width, device=stream.place.device)
    with evaluated(*predictors.values()):
        for predictor in predictors.values():
            predictor(images)


@contextmanager
def evaluated(*modules: nn.Module) -> Iterator[None]:
    """Modules are in evaluation mode inside the block."""
    were_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, was_training in zip(modules, were_training, strict=True):
            module.train(was_training)


def evaluate_logits(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], labeled_counts: Int[Tensor, " C"]
) -> dict[str, Any]:
    """Metrics of predictions: fractions in [0, 1], nll in nats, class recalls, confusion matrix (rows: truth)."""
    return evaluate_rows([(logits[labels >= 0], labels[labels >= 0])], labeled_counts)


def evaluate_rows(
    chunks: Iterable[tuple[Float[Tensor, "_ C"], Int[Tensor, " _"]]], labeled_counts: Int[Tensor, " C"]
) -> dict[str, Any]:
    """`evaluate_logits` for logits and known labels in chunks; no row is kept."""
    confusion = torch.zeros(len(labeled_counts), len(labeled_counts), dtype=torch.int64)
    bins, nlls, numbers = torch.zeros(3, NUM_BINS, dtype=torch.float64), [], []
    for logits, labels in chunks:
        confidence, predicted = logits.double().softmax(-1).max(-1)
        confusion += confusion_matrix(labels, predicted, logits.shape[1])
        bins += sums_of_bins(confidence, predicted == labels)
        nlls.append(negative_log_likelihood(logits, labels).item())
        numbers.append(len(labels))
    num = max(1, sum(numbers))
    hits, images = confusion.diagonal(), confusion.sum(1)
    return {
        **metrics.summarize(confusion),
        **metrics.group_recalls(confusion, labeled_counts),
        "ece": error_of_bins(bins).item(),
        "nll": sum(nll * (number / num) for nll, number in zip(nlls, numbers, strict=True)),
        "recalls": [hit / total if total else None for hit, total in zip(hits.tolist(), images.tolist(), strict=True)],
        "confusion": confusion.tolist(),
    }
