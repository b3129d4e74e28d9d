"""The synthetic check of logit adjustment (arXiv 2007.07314): which linear scorers reach the balanced-error oracle.

The data are two Gaussians with means +(1, 1) and -(1, 1) and identity covariance; 5 % of the training points are
positive. The best balanced error is Phi(-sqrt 2) = 0.0786.

By Theorem 1 of the paper, a loss with alpha_y = delta_y / pi_y and Delta_yy' = log(delta_y' / delta_y) reaches it. The
balanced and the logit-adjusted loss have this form. The plain loss also reaches it, if its logits are adjusted by
tau = 1 after training. Adaptive margins do not reach it. Division by norms or priors cannot: the two scores are each
other's negatives. With two classes, the equalized loss gives the frequent class the weight 1 - gamma. As gamma = 0.95
happens to be its share here, the equalized loss is about balanced.

    python scripts/studies/logit_adjustment.py --out runs/logit_adjustment
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor, nn

from debias_ssl.contract import Problem
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.formulas.logits import debias, divide_scores
from debias_ssl.methods.labeled_loss import (
    AdaptiveMargin,
    Balanced,
    CrossEntropy,
    Equalized,
    LabeledLoss,
    LogitAdjusted,
)
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import replacing, write_aside

MEAN = torch.tensor([1.0, 1.0])
PRIOR = torch.tensor([0.95, 0.05])
ORACLE = torch.special.ndtr(-MEAN.norm()).item()
STRENGTHS = [k / 10 for k in range(31)]
LOSSES: dict[str, Callable[[Problem], LabeledLoss]] = {
    "plain": CrossEntropy,
    "balanced": Balanced,
    "logit-adjusted": LogitAdjusted,
    "adaptive margin": partial(AdaptiveMargin, reweight_from=1.0),
    "equalized": Equalized,
}


def draw(num: int, seed: int) -> tuple[Float[Tensor, "N 2"], Int[Tensor, " N"], tuple[int, int]]:
    """Training points, their classes, and how many there are of each."""
    positive = max(1, round(PRIOR[1].item() * num))
    labels = (torch.arange(num) < positive).long()
    noise = torch.randn(num, 2, generator=torch.Generator().manual_seed(seed))
    return noise + (2 * labels - 1).unsqueeze(1) * MEAN, labels, (num - positive, positive)


def fitted(loss: LabeledLoss, points: Float[Tensor, "N 2"], labels: Int[Tensor, " N"], steps: int) -> nn.Linear:
    """A score w x + b for each class, trained from zero on all points at once."""
    scorer = nn.Linear(2, 2)
    nn.init.zeros_(scorer.weight)
    nn.init.zeros_(scorer.bias)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.05)
    for step in range(steps):
        optimizer.zero_grad()
        loss(scorer(points), labels, step / steps).backward()
        optimizer.step()
    return scorer.requires_grad_(False)


def balanced_error(weight: Float[Tensor, "2 2"], bias: Float[Tensor, " 2"]) -> float:
    """The exact error of the larger of two linear scores, each class counting one half."""
    direction, offset = weight[1] - weight[0], bias[1] - bias[0]
    distances = torch.stack([direction @ MEAN + offset, direction @ MEAN - offset]) / direction.norm()
    return torch.special.ndtr(-distances).mean().item()


def errors_after_training(scorer: nn.Linear) -> dict[str, list[float]]:
    """Balanced errors of adjusted scores, for each of STRENGTHS."""
    weight, bias = scorer.weight, scorer.bias

    def divided(scale: Tensor, tau: float) -> float:
        return balanced_error(divide_scores(weight.T, scale, tau).T, divide_scores(bias, scale, tau))

    return {
        "logit adjustment": [balanced_error(weight, debias(bias, PRIOR, tau)) for tau in STRENGTHS],
        "weight normalization": [divided(weight.norm(dim=1), tau) for tau in STRENGTHS],
        "division by the prior": [divided(PRIOR, tau) for tau in STRENGTHS],
    }


def measure(seeds: int, num: int, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Balanced errors of each loss (a row a seed), and of the plain one adjusted (a column for each of STRENGTHS)."""
    by_loss: list[dict[str, float]] = []
    adjusted: list[dict[str, list[float]]] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        points, labels, counts = draw(num, seed)
        problem = Problem(num_classes=2, num_features=2, labeled_counts=counts, num_unlabeled=0)
        scorers = {name: fitted(loss(problem), points, labels, steps) for name, loss in LOSSES.items()}
        by_loss.append({name: balanced_error(scorer.weight, scorer.bias) for name, scorer in scorers.items()})
        adjusted.append(errors_after_training(scorers["plain"]))
    return (
        {name: torch.tensor([each[name] for each in by_loss]) for name in LOSSES},
        {name: torch.tensor([each[name] for each in adjusted]) for name in adjusted[0]},
    )


def table(by_loss: dict[str, Tensor], adjusted: dict[str, Tensor]) -> str:
    """Means over the seeds and their standard errors, in percent, below the oracle's."""
    rows = {f"{name} loss": errors for name, errors in by_loss.items()}
    for name, errors in adjusted.items():
        best = int(errors.mean(0).argmin())
        rows[f"plain, {name}, tau 1"] = errors[:, STRENGTHS.index(1.0)]
        rows[f"plain, {name}, best tau {STRENGTHS[best]}"] = errors[:, best]
    lines = [f"{'balanced error':<48}", f"{'oracle':<48}{ORACLE:>8.2%}"]
    for name, errors in rows.items():
        spread = errors.std() / len(errors) ** 0.5
        lines.append(f"{name:<48}{errors.mean():>8.2%} +- {spread:.2%}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def drawn(by_loss: dict[str, Tensor], adjusted: dict[str, Tensor]) -> Figure:
    """Error against tau after training, and by loss, each beside the oracle's line."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, errors), style in zip(adjusted.items(), ("-", "-", ":"), strict=True):
        left.plot(STRENGTHS, 100 * errors.mean(0).numpy(), style, label=name)
    left.set(xlabel="tau", ylabel="balanced error, %", title="plain loss, adjusted after training")
    right.bar([*by_loss], [100 * errors.mean().item() for errors in by_loss.values()], color="tab:gray")
    right.set(title="by loss")
    right.tick_params(axis="x", rotation=20)
    for axes in (left, right):
        axes.axhline(100 * ORACLE, color="black", linestyle="--", label="oracle")
    left.legend()
    return figure


@entry_point
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Balanced error of losses and adjustments on two Gaussians.")
    parser.add_argument("--out", required=True, help="folder for errors.txt and errors.svg")
    parser.add_argument("--seeds", type=int, default=10, help="draws of the training points")
    parser.add_argument("--points", type=int, default=4000, help="training points of a draw")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps")
    parsed = parser.parse_args(arguments)
    for name in ("seeds", "points", "steps"):
        if getattr(parsed, name) < 2:
            raise InputError(f"--{name} is {getattr(parsed, name)}, must be at least 2")
    torch.set_num_threads(1)  # the tensors are small: threads would wait for each other
    by_loss, adjusted = measure(parsed.seeds, parsed.points, parsed.steps)
    text, out = table(by_loss, adjusted), Path(parsed.out)
    write_aside(out / "errors.txt", text)
    with replacing(out / "errors.svg") as aside:
        drawn(by_loss, adjusted).savefig(aside, format="svg")
    print(text, end="")


if __name__ == "__main__":
    main()
