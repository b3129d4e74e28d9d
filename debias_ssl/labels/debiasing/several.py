"""Multi-label output: several labels of a row, from a model with sigmoids that decides about each class alone."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64

from debias_ssl.formulas.priors import Chunks


@dataclass(frozen=True, kw_only=True)
class SeveralLabels:
    """The classes of each row whose sigmoid score is high enough, in one array."""

    threshold: float
    starts: Int64[np.ndarray, " N1"]
    """Where in `classes` those of each row begin, and after the last row their number."""
    classes: Int32[np.ndarray, " M"]
    """Class numbers row by row, of each row in falling order of their scores."""

    def of_row(self, row: int) -> Int32[np.ndarray, " m"]:
        """The class numbers of a row."""
        return self.classes[self.starts[row] : self.starts[row + 1]]

    def summary(self, names: tuple[str, ...], reported: Bool[np.ndarray, " N"]) -> dict[str, Any]:
        """Figures of the reported rows."""
        sizes = np.diff(self.starts)
        counts = np.bincount(self.classes[np.repeat(reported, sizes)], minlength=len(names))
        return {
            "threshold": self.threshold,
            "counts": dict(zip(names, counts.tolist(), strict=True)),
            "mean": float(sizes[reported].mean()) if reported.any() else 0.0,
            "num_none": int((sizes[reported] == 0).sum()),
        }


def several_labels(logits: Chunks, logit_bias: float | None, threshold: float | None) -> SeveralLabels | None:
    """The classes of each row with sigmoid(logit + bias) of at least a threshold (SigLIP 2303.15343).

    The logits are the model's own: a prior that is removed from a softmax is one of classes that exclude each other,
    and says nothing of a class by itself.

    Args:
        logits: of all rows, without the bias.
        logit_bias: the model's.
        threshold: None asks for no such labels.
    """
    if threshold is None or logit_bias is None:
        return None
    least = math.log(threshold / (1 - threshold)) - logit_bias
    sizes, found = [np.zeros(1, dtype=np.int64)], [np.zeros(0, dtype=np.int32)]
    for chunk in logits:
        values, classes = chunk.sort(dim=-1, descending=True, stable=True)
        fits = values >= least
        sizes.append(fits.sum(-1).numpy())
        found.append(classes[fits].numpy().astype(np.int32))
    return SeveralLabels(threshold=threshold, starts=np.concatenate(sizes).cumsum(), classes=np.concatenate(found))
