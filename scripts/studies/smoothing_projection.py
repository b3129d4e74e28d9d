"""The effect of label smoothing on the penultimate layer (arXiv 1906.02629, figure 1).

Images of three classes, in the plane through the classes' templates, which are the rows of the last layer's matrix.
With smoothing each class is to be a tight cluster, as far from one of the other classes as from the other.

    python scripts/studies/smoothing_projection.py --out runs/smoothing
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from smoothing_runs import (
    Opened,
    checked,
    make_script_parser,
    need_validation,
    opened,
    publish,
    smoothed,
    spread,
    trained,
)
from torch import Tensor

from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.models import Classifier
from debias_ssl.reporting.figures import clusters
from debias_ssl.reporting.page import Figure, Section, Table
from debias_ssl.system.errors import InputError

PARTS = ("training", "validation")


def plane(templates: Float[Tensor, "3 D"]) -> Float[Tensor, "2 D"]:
    """An orthonormal basis of the plane through three points."""
    return torch.linalg.qr((templates[1:] - templates[0]).T).Q.T


def projected(points: Float[Tensor, "N D"], templates: Float[Tensor, "3 D"]) -> Float[Tensor, "N 2"]:
    """Points in the plane through three templates, seen from the middle of these."""
    return (points - templates.mean(0)) @ plane(templates).T


def looseness(points: Float[Tensor, "N K"], groups: Int[Tensor, " N"]) -> tuple[float, float]:
    """How loose groups are, and how unequally far from each other.

    The root of the mean squared distance of points from their group's center, over the mean distance of centers; and
    the largest distance of centers over the smallest.
    """
    centers = torch.stack([points[groups == k].mean(0) for k in groups.unique()])
    place = torch.searchsorted(groups.unique(), groups)
    distances = torch.pdist(centers)
    deviation = (points - centers[place]).square().sum(1).mean().sqrt()
    return (deviation / distances.mean()).item(), (distances.max() / distances.min()).item()


def chosen(run: Opened, names: str) -> list[int]:
    classes, asked = run.run.classes, names.split(",")
    if len(set(asked)) != 3 or not set(asked) <= set(classes):
        raise InputError(f"{names!r} are not three of the classes {', '.join(classes)}")
    return [classes.index(name) for name in asked]


def in_plane(run: Opened, part: str, classes: list[int]) -> tuple[Float[Tensor, "N 2"], Int[Tensor, " N"]]:
    """Images of three classes in the plane through their templates, and which of the three each is."""
    _, features, labels = run.says(part)
    model = run.run.predictor.model
    assert isinstance(model, Classifier)
    templates = model.net.get_classifier().weight.detach()[classes]
    of_three = torch.isin(labels, torch.tensor(classes))
    place = torch.tensor([classes.index(k) for k in labels[of_three].tolist()])
    return projected(features[of_three], templates), place


@entry_point
def main(arguments: list[str]) -> None:
    parser = make_script_parser("Projections of the penultimate layer with and without label smoothing.")
    parser.add_argument("--smoothing", type=float, default=0.1, help="strength of label smoothing")
    parser.add_argument("--unlike", default="0,4,7", help="three classes that look unlike each other")
    parser.add_argument("--alike", default="3,9,6", help="two classes that look alike, and one apart")
    parsed = checked(parser.parse_args(arguments))
    names = {"without smoothing": 0.0, f"smoothing {parsed.smoothing:g}": parsed.smoothing}
    runs = {
        name: [opened(trained(parsed, f"smoothing_{eps:g}", seed, *smoothed(eps))) for seed in range(parsed.seeds)]
        for name, eps in names.items()
    }
    first = next(iter(runs.values()))[0]
    need_validation(first)
    triples = {"unlike": chosen(first, parsed.unlike), "two alike": chosen(first, parsed.alike)}
    rows, sections = [], []
    for kind, classes in triples.items():
        figures = []
        for part in PARTS:
            cells: list[str] = []
            for name, several in runs.items():
                seen = [in_plane(run, part, classes) for run in several]
                found = [looseness(*each) for each in seen]
                cells += [spread([each[0] for each in found], 3), spread([each[1] for each in found])]
                points, groups = seen[0]
                alt = f"Classes {', '.join(first.run.classes[k] for k in classes)} in their plane, {part}, {name}."
                figures.append(
                    Figure(
                        title=f"{part}, {name}",
                        svg=clusters(points.numpy(), groups.numpy(), alt),
                        legend=[(f"mark-{i}", first.run.classes[k]) for i, k in enumerate(classes)],
                        is_small=True,
                    )
                )
            rows.append([f"{kind}, {part}", *cells])
        # A section each: its small figures share one legend.
        sections.append(Section(title=f"In the plane of three templates: {kind}", figures=figures))
    head = ["classes, images", *(f"{figure}, {name}" for name in names for figure in ("spread", "inequality"))]
    caption = (
        "Spread: deviation of images from the center of their class over the mean distance of the three centers, in "
        "the plane. Inequality: the largest distance of centers over the smallest. "
        f"Mean ± deviation, {parsed.seeds} seeds."
    )
    table = Table(title="Clusters", head=head, rows=rows, caption=caption)
    sections.append(Section(title="Spread and inequality", tables=[table]))
    facts = [f"{Path(parsed.config).name}; figures of seed 0, each at its own scale"]
    publish(Path(parsed.out), "projection", "Label smoothing: the penultimate layer", facts, sections)


if __name__ == "__main__":
    main()
