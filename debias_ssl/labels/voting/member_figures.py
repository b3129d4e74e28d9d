"""Figures of each classifier that votes: without labels, and against the truth where it is known."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.formulas import metrics
from debias_ssl.formulas.criteria import mean_ranks, nuclear_norm, rank_me
from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.labels.voting.votes import Ballot

# Starts of k-means; the best one is used.
STARTS = 3
# The figures without labels, in the order of V-PET, with their titles.
CRITERIA = {"ami": "AMI", "ari": "ARI", "v_measure": "V", "fmi": "FMI"}
CRITERIA |= {"bnm": "BNM", "rank_me": "RankMe", "chi": "CHI"}


def criteria_of(logits: Float[Tensor, "S C"], vectors: Float[Tensor, "S D"] | None) -> dict[str, float | None]:
    """The label-free figures of V-PET (arXiv 2503.09707) of one classifier; higher is better in all of them.

    AMI, ARI, V-measure and FMI compare its predictions, the classes of the largest logits, with clusters of what it
    sees: k-means of the features of its network, with as many clusters as there are classes. CHI is the
    Calinski-Harabasz index of the features grouped by its predictions, 0 where these are of one class. RankMe is of the
    features, BNM of its probabilities.

    Args:
        logits: of some rows.
        vectors: the features of these rows; None where they are not known, which leaves BNM alone.
    """
    found: dict[str, float | None] = dict.fromkeys(CRITERIA)
    found["bnm"] = nuclear_norm(logits.softmax(-1))
    if vectors is None:
        return found
    # They take long to import, and are not needed to find errors in the input.
    from sklearn import metrics as clusterings
    from sklearn.cluster import KMeans

    predicted, values = logits.argmax(-1).numpy(), vectors.float().numpy()
    with warnings.catch_warnings():
        # With few different rows there are fewer clusters.
        warnings.simplefilter("ignore")
        starts: Any = STARTS
        kmeans = KMeans(min(logits.shape[1], len(values)), n_init=starts, random_state=0)
        clusters = kmeans.fit_predict(values)
    found["ami"] = float(clusterings.adjusted_mutual_info_score(clusters, predicted))
    found["ari"] = float(clusterings.adjusted_rand_score(clusters, predicted))
    found["v_measure"] = float(clusterings.v_measure_score(clusters, predicted))
    found["fmi"] = float(clusterings.fowlkes_mallows_score(clusters, predicted))
    found["rank_me"] = rank_me(vectors)
    is_grouped = 2 <= len(np.unique(predicted)) < len(values)
    found["chi"] = float(clusterings.calinski_harabasz_score(values, predicted)) if is_grouped else 0.0
    return found


def members_summary(
    names: Sequence[str],
    ballots: Sequence[Ballot],
    criteria: Sequence[Mapping[str, float | None]],
    winners: Int64[np.ndarray, " N"],
    truth: Int64[np.ndarray, " N"],
    num_classes: int,
) -> list[dict[str, Any]]:
    """The entries of summary.json on the classifiers that vote.

    Args:
        names: of the classifiers.
        ballots: what they vote.
        criteria: the label-free figures of each.
        winners: classes that most of them vote for, before their preferences are removed.
        truth: class numbers, negative where unknown or not to be counted.
        num_classes: C.
    """
    known = truth >= 0
    entries = []
    for name, ballot, own in zip(names, ballots, criteria, strict=True):
        entry: dict[str, Any] = {"name": name, "agreement": float((ballot.plain.label == winners).mean())}
        if known.any():
            for key, votes in (("plain", ballot.plain), ("debiased", ballot.debiased)):
                pair = torch.from_numpy(truth[known]), torch.from_numpy(votes.label[known])
                entry[key] = metrics.summarize(confusion_matrix(*pair, num_classes))
        removal = ballot.removal
        entry |= {"strength": removal.strength, "temperature": removal.temperature, "criteria": dict(own)}
        entries.append(entry)
    # A criterion that some members lack gives no ranks.
    complete = [name for name in CRITERIA if all(own[name] is not None for own in criteria)]
    ranks = mean_ranks([np.array([own[name] for own in criteria], dtype=np.float64) for name in complete])
    for entry, rank in zip(entries, ranks.tolist(), strict=True):
        entry["mean_rank"] = rank
    return entries


def members_table(entries: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The same as rows of text, under a row of titles; the best mean rank has a star."""
    is_known = "plain" in entries[0]
    accuracies = ["accuracy", "min recall"] if is_known else []
    table = [["", *accuracies, "agreement", *CRITERIA.values(), "mean rank"]]
    best = min(entry["mean_rank"] for entry in entries)
    for entry in entries:
        cells = [entry["plain"]["accuracy"], entry["plain"]["min_recall"]] if is_known else []
        star = "*" if entry["mean_rank"] == best else ""
        table.append(
            [
                entry["name"],
                *(f"{100 * value:.2f} %" for value in (*cells, entry["agreement"])),
                *(_digits(entry["criteria"][name]) for name in CRITERIA),
                f"{entry['mean_rank']:.2f}{star}",
            ]
        )
    return table


def _digits(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(abs(value), 0.1))))}f}"


def lines_of(table: Sequence[Sequence[str]]) -> str:
    """A table for a terminal: names to the left, numbers to the right."""
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return "\n".join(
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in table
    )
