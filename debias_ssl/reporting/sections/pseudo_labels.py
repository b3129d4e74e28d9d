"""Pseudo-labels of a run: class shares during training, and the confusion matrix of the exported model."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from debias_ssl.reporting.reading.inspection import Inspection
from debias_ssl.reporting.reading.run import FinishedRun
from debias_ssl.reporting.sections.against_truth import Confusion, confusion_counts

# When pseudo-labels are counted, as parts of the run.
MOMENTS = (0.25, 0.5, 0.75, 1.0)


def moments_of(run: FinishedRun) -> list[dict[str, Any]]:
    """The lines of the log nearest to four moments of training; fewer in a short log."""
    steps = np.array([log["step"] for log in run.logs])
    nearest = [int(np.abs(steps - share * steps[-1]).argmin()) for share in MOMENTS]
    return [run.logs[i] for i in dict.fromkeys(nearest)]


def pseudo_label_shares(log: dict[str, Any]) -> tuple[Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
    """Shares of the classes among the pseudo-labels that count, and among all; zeros where no label counts."""
    every = np.array(log["pseudo_counts"], dtype=float)
    counted = every * np.array(log["pseudo_weights"], dtype=float)
    return counted / max(counted.sum(), 1e-12), every / max(every.sum(), 1e-12)


def strength_text(inspection: Inspection) -> str:
    source = "the method's own" if inspection.is_own_strength else "the method has none of its own"
    return f"strength {inspection.strength:g} ({source}) and the last logged marginal"


def pseudo_confusion(inspection: Inspection, labels: Int[np.ndarray, " U"], num_classes: int) -> Confusion:
    return confusion_counts(inspection.truth, labels, num_classes)
