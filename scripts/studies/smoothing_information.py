"""Measures during training how much information the logits have about the single image (arXiv 1906.02629, figure 6).

The mutual information of an image x, one of N of two classes, and f, the difference of the two classes' logits at a
random weak view of x. With smoothing it is to fall to log 2, the class alone, while without it more of x is kept.

    python scripts/studies/smoothing_information.py --out runs/smoothing
"""

import math
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from smoothing_runs import Opened, checked, make_script_parser, opened, publish, smoothed, spread, trained
from torch import Tensor

from debias_ssl.data.augment.views import WEAK_NUMBERS, Normalization, normalize, weak
from debias_ssl.data.sampling.keyed import Purpose, uniform
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.reporting.figures import Series, lines
from debias_ssl.reporting.page import Figure, Section, Table
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import read_yaml
from debias_ssl.training.checkpoint import checkpoints

CHECKPOINTS = 20


def information(samples: Float[Tensor, "N L"]) -> float:
    """I(x; f) in nats from L samples f of each of N equally likely x, each Gaussian with one shared variance.

    I = mean over x and samples of log N(f; mu_x, s^2) - log 1/N sum_y N(f; mu_y, s^2), which is at most log N.
    """
    samples = samples.double()
    means = samples.mean(1)
    variance = (samples - means[:, None]).square().mean().clamp(min=torch.finfo(torch.float64).tiny)
    # N L N: the log density of each sample under each x, without what all have in common.
    density = -(samples[:, :, None] - means).square() / (2 * variance)
    own = density.diagonal(dim1=0, dim2=2).T
    return (own - density.logsumexp(2) + math.log(len(samples))).mean().item()


@torch.no_grad()
def differences(run: Opened, classes: list[int], num_views: int) -> Float[Tensor, "N L"]:
    """The difference of two classes' logits at random weak views of their labeled training images."""
    task = run.task
    index = torch.from_numpy(task.split.labeled)
    index = index[torch.isin(torch.from_numpy(task.data.train.labels)[index], torch.tensor(classes))]
    images = task.readers["train"].center(index)
    normalization = Normalization.of(run.run.mean, run.run.std, images.device)
    found = []
    for view in range(num_views):
        # Views that were not trained on: no step has such a number.
        numbers = uniform(
            run.run.config.seed, Purpose.LABELED_VIEW, 2**31 + view, torch.arange(len(index)), WEAK_NUMBERS
        )
        views = images if images.is_floating_point() else weak(images, numbers, run.run.data.augment)
        logits = run.run.predictor(normalize(views, normalization))
        found.append(logits[:, classes[0]] - logits[:, classes[1]])
    return torch.stack(found, 1)


def over_training(path: Path, names: str, num_views: int) -> tuple[list[int], list[float], int]:
    """Steps, the information at each, and the number of images."""
    run = opened(path)
    asked = names.split(",")
    if len(set(asked)) != 2 or not set(asked) <= set(run.run.classes):
        raise InputError(f"--classes {names!r} are not two of the classes {', '.join(run.run.classes)}")
    classes = [run.run.classes.index(name) for name in asked]
    steps, found, num = [], [], 0
    for checkpoint in checkpoints(path / "checkpoints"):
        # The trained weights: their average would lag behind.
        state = load_file(checkpoint / "learner.safetensors")
        own = {name.removeprefix("raw."): value for name, value in state.items() if name.startswith("raw.")}
        run.run.predictor.load_state_dict(own)
        samples = differences(run, classes, num_views)
        steps.append(int(checkpoint.name.removeprefix("step_")))
        found.append(information(samples))
        num = len(samples)
    return steps, found, num


@entry_point
def main(arguments: list[str]) -> None:
    parser = make_script_parser("Mutual information of training images and logits, with and without label smoothing.")
    parser.add_argument("--smoothing", type=float, default=0.1, help="strength of label smoothing")
    parser.add_argument("--classes", default="3,8", help="the two classes")
    parser.add_argument("--labels_per_class", type=int, default=80, help="training images of each class")
    parser.add_argument("--views", type=int, default=10, help="random views of each image")
    parsed = checked(parser.parse_args(arguments))
    steps = parsed.steps or read_yaml(Path(parsed.config)).get("steps", 2**20)
    kept = ["--checkpoint_every", str(max(1, steps // CHECKPOINTS)), "--keep_checkpoints", str(2 * CHECKPOINTS)]
    kept += ["--data.labels_per_class", str(parsed.labels_per_class)]
    names = {"without smoothing": 0.0, f"smoothing {parsed.smoothing:g}": parsed.smoothing}
    rows, curves, num, steps_there, shown = [], [], 0, [], []
    for color, (name, eps) in enumerate(names.items()):
        several = []
        for seed in range(parsed.seeds):
            path = trained(parsed, f"information_{eps:g}", seed, *smoothed(eps), *kept)
            steps_there, found, num = over_training(path, parsed.classes, parsed.views)
            several.append(found)
        values = np.array(several)
        deviation = values.std(0, ddof=1) if len(values) > 1 else None
        curves.append(Series(x=np.array(steps_there), y=values.mean(0), spread=deviation, color=color))
        shown = sorted({0, len(steps_there) // 2, len(steps_there) - 1})
        rows.append([name, *(spread(values[:, k].tolist()) for k in shown), spread(values.max(1).tolist())])
    limits = (math.log(2), math.log(num))
    figure = Figure(
        title=f"Information about which of {num} images is seen, in nats",
        svg=lines(
            curves, f"Mutual information over steps, with lines at log 2 and log {num}.", percent=False, level=limits
        ),
        legend=[*((f"line-{color}", name) for color, name in enumerate(names)), ("level", f"log 2 and log {num}")],
        caption="Bands are the deviation over seeds.",
    )
    head = ["nats", *(f"step {steps_there[k]}" for k in shown), "largest"]
    caption = f"log 2 = {limits[0]:.2f}, log {num} = {limits[1]:.2f}; mean ± deviation over {parsed.seeds} seeds."
    section = Section(
        title=f"Classes {parsed.classes}",
        figures=[figure],
        tables=[Table(title="Information", head=head, rows=rows, caption=caption)],
    )
    facts = [
        f"{Path(parsed.config).name}; {parsed.labels_per_class} training images a class, {parsed.views} views of each"
    ]
    publish(Path(parsed.out), "information", "Label smoothing: information", facts, [section])


if __name__ == "__main__":
    main()
