"""The CSV file of labels that a trained run gives to images."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from debias_ssl.system.files import replacing


def write_label_table(
    out: Path, names: Sequence[str], root: Path, classes: Sequence[str], probs: Float[Tensor, "N C"]
) -> None:
    """Writes path, label, confidence and p_CLASS of each image.

    Args:
        out: the file.
        names: paths of the images.
        root: what they are written relative to.
        classes: names of the columns of `probs`.
        probs: class probabilities.
    """
    confidence, label = probs.max(-1)
    # Names of files need not be text.
    with replacing(out) as aside, aside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "confidence", *(f"p_{name}" for name in classes)])
        for path, k, top, row in zip(names, label.tolist(), confidence.tolist(), probs.tolist(), strict=True):
            rows.writerow([os.path.relpath(path, root), classes[k], f"{top:.6f}", *(f"{p:.6g}" for p in row)])
