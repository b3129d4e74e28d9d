"""Similarity of the classes' mean features: one matrix for a run, lists of the nearest classes for labels."""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.labels.debiasing.rows import Labeling
from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import truncated
from debias_ssl.reporting.page import Figure, Section, Table
from debias_ssl.reporting.reading.inspection import Inspection

# Classes in a half of the matrix or in a list, and neighbors of each in a list.
BLOCK, NEIGHBORS = 10, 9


def mean_feature_cosines(
    features: Tensor, classes: Int[np.ndarray, " U"], shown: Sequence[int]
) -> Float[np.ndarray, "S S"]:
    """Cosine similarities between the mean features of the classes in `shown`."""
    means = torch.stack([features[torch.from_numpy(classes == k)].double().mean(0) for k in shown])
    means = torch.nn.functional.normalize(means, dim=1)
    return (means @ means.T).numpy()


def correlation_figure(inspection: Inspection, names: Sequence[str]) -> Figure | None:
    known = (inspection.truth >= 0).all()
    classes = inspection.truth if known else inspection.plain
    predicted = np.bincount(inspection.plain, minlength=len(names))
    order = [int(k) for k in np.argsort(-predicted, kind="stable") if (classes == k).any()]
    half = min(BLOCK, len(order) // 2)
    if half < 2:
        return None
    shown = order[:half] + order[-half:]
    cosine = mean_feature_cosines(inspection.features, classes, shown)
    apart = ~np.eye(half, dtype=bool)
    blocks = [cosine[:half, :half][apart].mean(), cosine[half:, half:][apart].mean(), cosine[:half, half:].mean()]
    low = float(cosine.min())
    words = "{:.3f} among the {n} most predicted classes, {:.3f} among the {n} least, {:.3f} between".format(
        *blocks, n=half
    )
    return Figure(
        title="Class correlation",
        svg=figures.heat_map(
            (cosine - low) / max(1 - low, 1e-9),
            [names[k] for k in shown],
            f"Cosine similarity of class mean features, from {low:.3f} (clear) to 1 (full color): mean {words}.",
            labels=("most predicted | least predicted", ""),
            texts=[[f"{value:.2f}".lstrip("0") for value in row] for row in cosine],
            border=half,
        ),
        caption=f"Cosine similarity of the classes' mean features ({'true' if known else 'pseudo-labeled'} classes). "
        f"Mean: {words}. Classes with similar features are often confused in pseudo-labels.",
    )


def class_means(
    features: Iterable[Float[Tensor, "_ D"]], classes: Int[np.ndarray, " N"], num_classes: int
) -> Float[np.ndarray, "C D"]:
    """Mean features of classes, in one pass; rows with a negative class are left out, classes without rows are nan."""
    sums, first = 0.0, 0
    for chunk in features:
        own = classes[first : first + len(chunk)]
        rows = np.flatnonzero(own >= 0)
        # A product with a sparse matrix of memberships takes a tenth of the time of index_add_.
        member = scipy.sparse.csr_matrix((np.ones(len(rows)), (own[rows], rows)), shape=(num_classes, len(chunk)))
        sums = sums + member @ chunk.double().numpy()
        first += len(chunk)
    number = np.bincount(classes[classes >= 0], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return sums / number[:, None]


def nearest_classes(
    means: Float[np.ndarray, "C D"], shown: Sequence[int], among: Int[np.ndarray, " A"], num: int
) -> tuple[Int[np.ndarray, "S K"], Float[np.ndarray, "S K"]]:
    """For some classes, the nearest other classes by the cosine of mean features, nearest first, and these cosines.

    Args:
        means: of all classes.
        shown: the classes whose neighbors are wanted, all of them in `among`.
        among: the classes that may be neighbors.
        num: number of neighbors; fewer where there are not as many other classes.
    """
    unit = means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    cosine = unit[np.array(shown)] @ unit[among].T
    cosine[np.array(shown)[:, None] == among] = -np.inf
    order = np.argsort(-cosine, axis=1, kind="stable")[:, : min(num, len(among) - 1)]
    return among[order], np.take_along_axis(cosine, order, axis=1)


def nearest_classes_section(
    labeling: Labeling, kept: Int[np.ndarray, " R"], num_rows: int, features: Iterable[Float[Tensor, "_ D"]]
) -> Section:
    """The classes nearest to the most and the least predicted ones; empty for fewer than four classes with rows.

    Args:
        labeling: the rows that are shown.
        kept: positions of these rows among all rows.
        num_rows: number of all rows.
        features: features of all rows, in chunks.
    """
    names, known = labeling.classes, (labeling.truth >= 0).all()
    own = np.full(num_rows, -1)
    own[kept] = labeling.truth if known else labeling.plain
    present = np.flatnonzero(np.bincount(own[kept], minlength=len(names)))
    half = min(BLOCK, len(present) // 2)
    if half < 2:
        return Section(title="Class correlation")
    by_count = present[np.argsort(-labeling.counts("plain")[present], kind="stable")]
    shown = [*by_count[:half].tolist(), *by_count[len(by_count) - half :].tolist()]
    near, cosine = nearest_classes(class_means(features, own, len(names)), shown, present, NEIGHBORS)
    most, least = cosine[:half].mean(), cosine[half:].mean()
    low, high = cosine.min(), cosine.max()
    drawn = []
    for kind, block, mean in (("most", slice(half), most), ("least", slice(half, None), least)):
        words = f"mean {mean:.3f}, mean to the nearest class {cosine[block, 0].mean():.3f}"
        drawn.append(
            Figure(
                title=f"The {half} {kind} predicted classes",
                svg=figures.neighbors(
                    (cosine[block] - low) / max(high - low, 1e-9),
                    [names[k] for k in shown[block]],
                    [names[k] for k in near[block, 0]],
                    [[f"{value:.2f}".replace("0.", ".", 1) for value in row] for row in cosine[block]],
                    f"Cosine similarity of the {half} {kind} predicted classes to their {near.shape[1]} nearest, from "
                    f"{low:.3f} (clear) to {high:.3f} (full color): {words}.",
                ),
                caption=f"Cosine similarity to the {near.shape[1]} nearest classes: {words}.",
            )
        )
    outcome = "these labels agree" if least > most else "these labels do not"
    text = (
        f"Cosine similarity of the classes' mean features ({'true classes' if known else 'classes by plain label'}). "
        "arXiv 2201.01490 finds that the least predicted classes are more similar to others: "
        f"{outcome} (mean {least:.3f} for the least predicted classes, {most:.3f} for the most predicted)."
    )
    head = ["class", *(str(rank) for rank in range(1, near.shape[1] + 1))]
    rows = [
        [names[k], *(f"{truncated(names[j], 24)} {value:.3f}" for j, value in zip(*pair, strict=True))]
        for k, *pair in zip(shown, near, cosine, strict=True)
    ]
    table = Table(title="Nearest classes by name", head=head, rows=rows, is_closed=True)
    return Section(title="Class correlation", text=text, tables=[table], figures=drawn)
