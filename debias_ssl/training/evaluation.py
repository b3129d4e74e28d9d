"""Predictions on a list of images, and the figures of them."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl.data.streams import EvaluationStream
from debias_ssl.distributed.collectives import all_sum_
from debias_ssl.formulas import metrics
from debias_ssl.formulas.calibration import expected_calibration_error, negative_log_likelihood
from debias_ssl.formulas.logits import confusion_matrix


@torch.inference_mode()
def predict_logits(predictor: nn.Module, stream: EvaluationStream, num_classes: int) -> Float[Tensor, "N C"]:
    """Logits of all images of a stream, in its order, on every process."""
    was_training = predictor.training
    predictor.eval()
    logits = torch.zeros(len(stream.index), num_classes, device=stream.place.device)
    for place, images in stream:
        logits[place.to(stream.place.device)] = predictor(images).float()
    predictor.train(was_training)
    # An image is in the part of one process only and zero elsewhere, so that the sum gathers without duplicates.
    return all_sum_(logits).cpu()


def evaluate_logits(
    logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"], labeled_counts: Int[Tensor, " C"]
) -> dict[str, Any]:
    """The figures of predictions: fractions in [0, 1], nats (nll), class recalls, confusion matrix (rows: truth)."""
    logits, labels = logits[labels >= 0], labels[labels >= 0]
    confidence, predicted = logits.double().softmax(-1).max(-1)
    confusion = confusion_matrix(labels, predicted, logits.shape[1])
    hits, images = confusion.diagonal(), confusion.sum(1)
    return {
        **metrics.summarize(confusion),
        **metrics.group_recalls(confusion, labeled_counts),
        "ece": expected_calibration_error(confidence, predicted == labels).item(),
        "nll": negative_log_likelihood(logits, labels).item(),
        "recalls": [hit / total if total else None for hit, total in zip(hits.tolist(), images.tolist(), strict=True)],
        "confusion": confusion.tolist(),
    }
