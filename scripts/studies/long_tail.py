"""Effects of long-tailed labels on a classifier, and corrections: weight norms, order flips, losses (arXiv 2007.07314).

Trains `Supervised` with every loss of labeled images, by SGD with momentum and by AdamW. It also corrects the models of
cross-entropy after training. The questions: Do the norms of the class weights follow the frequency of the classes, as
division by them assumes? For how many test images is the order of scores reversed if negative scores are divided by the
prior? Which loss or correction has the smallest balanced error, and which classes have this error?

    python scripts/studies/long_tail.py --config configs/digits.yaml --data.labels_per_class 100 \\
        --data.labeled_imbalance 50 --unlabeled_ratio 1 --seeds 0,1,2 --out runs/long_tail

Any data of the trainer will do; --optim.lr is SGD's. In --out, a folder for each loss and optimizer has its runs,
long_tail.txt the tables and long_tail.html the figures.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from debias_ssl import __version__
from debias_ssl.distributed.entry_point import entry_point
from debias_ssl.formulas.logits import confusion_matrix, debias, divide_scores
from debias_ssl.formulas.metrics import group_recalls, mean_recall
from debias_ssl.reporting import figures
from debias_ssl.reporting.figures import Series
from debias_ssl.reporting.page import Figure, Page, Section, Table, render
from debias_ssl.runs.comparison import PlannedRun, train_in_processes, train_in_this_process
from debias_ssl.runs.folder import RunFolder
from debias_ssl.runs.results import spread
from debias_ssl.runs.trained import load_trained
from debias_ssl.runs.variants import seeds_of
from debias_ssl.system.errors import InputError, StoppedError
from debias_ssl.system.files import write_aside
from debias_ssl.training.choices import LABELED_LOSSES
from debias_ssl.training.config import Config
from debias_ssl.training.parser import make_parser, resolve

PLAIN = "CrossEntropy"
OPTIMIZERS = ("sgd", "adamw")
CORRECTIONS = ("logit adjustment", "division by weight norms", "division by the prior")
STRENGTHS = [k / 4 for k in range(13)]
GROUPS = ("balanced", "head", "medium", "tail")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The predictions of a run's averaged model for the test images, and its classifier."""

    logits: Float[Tensor, "N C"]
    labels: Int[Tensor, " N"]
    norms: Float[Tensor, " C"]
    """Of the class weights."""
    counts: Int[Tensor, " C"]
    """Labeled images of each class."""

    @property
    def prior(self) -> Float[Tensor, " C"]:
        return self.counts / self.counts.sum()


# Runs of each seed, by loss and optimizer.
Runs = Mapping[tuple[str, str], Sequence[Trained]]


def read_trained(folder: Path) -> Trained:
    run = load_trained(RunFolder(folder), torch.device("cpu"))
    logits, labels = (np.load(folder / "predictions" / f"test_{name}.npy") for name in ("ema", "labels"))
    net: Any = run.predictor.model.net
    weight: Tensor = net.get_classifier().weight.detach()
    return Trained(
        logits=torch.from_numpy(logits),
        labels=torch.from_numpy(labels),
        norms=weight.flatten(1).norm(dim=1),
        counts=torch.tensor(run.labeled_counts),
    )


def rank_correlation(norms: Float[Tensor, " C"], counts: Int[Tensor, " C"]) -> float:
    """Spearman's, 1 where norms grow with the number of labeled images, -1 where they fall."""
    found: Any = spearmanr(norms.numpy(), counts.numpy())
    return float(found.statistic)


def head_to_tail(norms: Float[Tensor, " C"], counts: Int[Tensor, " C"]) -> float:
    """Mean norm of the most frequent third of the classes over that of the rarest."""
    ordered, third = norms[counts.argsort(descending=True, stable=True)], max(1, round(len(norms) / 3))
    return (ordered[:third].mean() / ordered[-third:].mean()).item()


def wrong_flips(scores: Float[Tensor, "N C"], prior: Float[Tensor, " C"], strength: float) -> Int[Tensor, " N"]:
    """Pairs of classes of each image in which the rarer one is ahead, and falls behind when divided by prior^tau.

    Only two negative scores can do so: what is to favor rare classes puts them down.
    """
    divided = divide_scores(scores, prior, strength)
    num = torch.zeros(len(scores), dtype=torch.int64)
    for k in range(scores.shape[1]):
        falls = (scores[:, k, None] > scores) & (divided[:, k, None] < divided) & (prior[k] < prior)
        num += falls.sum(1)
    return num


def to_more_frequent(scores: Float[Tensor, "N C"], prior: Float[Tensor, " C"], strength: float) -> float:
    """Share of the images whose predicted class is a more frequent one after division by prior^tau."""
    before, after = scores.argmax(-1), divide_scores(scores, prior, strength).argmax(-1)
    return (prior[after] > prior[before]).double().mean().item()


def errors(logits: Float[Tensor, "N C"], run: Trained) -> dict[str, float]:
    """The balanced error, and that of the head, medium and tail thirds of the classes."""
    confusion = confusion_matrix(run.labels, logits.argmax(-1), logits.shape[1])
    groups = group_recalls(confusion, run.counts)
    shown = {name: 1 - groups[f"{name}_recall"] for name in GROUPS[1:] if f"{name}_recall" in groups}
    return {"balanced": 1 - mean_recall(confusion).item()} | shown


def corrected(run: Trained, correction: str, strength: float) -> Float[Tensor, "N C"]:
    """Scores corrected after training; division is of whole scores, with what biases add to them."""
    if correction == "logit adjustment":
        return debias(run.logits, run.prior, strength)
    return divide_scores(run.logits, run.norms if correction == "division by weight norms" else run.prior, strength)


def percent(values: Sequence[float | None]) -> str:
    """Mean and deviation over seeds, in percent."""
    of = spread(values)
    mean, std = of["mean"], of["std"]
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" + ("" if std is None else f" ± {100 * std:.1f}")


def number(values: Sequence[float]) -> str:
    of = spread(values)
    return f"{of['mean']:.2f}" + ("" if of["std"] is None else f" ± {of['std']:.2f}")


def loss_table(runs: Runs) -> Table:
    rows = []
    for (loss, optimizer), seeds in runs.items():
        each = [errors(run.logits, run) for run in seeds]
        cells = [percent([one.get(name) for one in each]) for name in GROUPS]
        norms = [
            number([rank_correlation(run.norms, run.counts) for run in seeds]),
            number([head_to_tail(run.norms, run.counts) for run in seeds]),
        ]
        rows.append([loss, optimizer, *cells, *norms])
    head = [
        "loss",
        "optimizer",
        "balanced error, %",
        *GROUPS[1:],
        "norm and count, rank correlation",
        "head / tail norm",
    ]
    return Table(title="Losses", head=head, rows=rows, caption="Mean and deviation over seeds, nothing corrected.")


def correction_table(runs: Runs) -> Table:
    rows = []
    for optimizer in OPTIMIZERS:
        seeds = runs[PLAIN, optimizer]
        for correction in CORRECTIONS:
            means = [
                np.mean([errors(corrected(run, correction, tau), run)["balanced"] for run in seeds])
                for tau in STRENGTHS
            ]
            best = STRENGTHS[int(np.argmin(means))]
            fixed = [errors(corrected(run, correction, 1.0), run) for run in seeds]
            at_best = [errors(corrected(run, correction, best), run)["balanced"] for run in seeds]
            cells = [percent([one.get(name) for one in fixed]) for name in GROUPS]
            rows.append([correction, optimizer, *cells, f"{percent(at_best)} (tau {best:g})"])
    head = ["correction, tau 1", "optimizer", "balanced error, %", *GROUPS[1:], "best tau"]
    caption = "Of cross-entropy, after training. The best tau is chosen on the test images, so it is too optimistic."
    return Table(title="Corrections", head=head, rows=rows, caption=caption)


def flip_table(runs: Runs) -> Table:
    rows = []
    for optimizer in OPTIMIZERS:
        seeds = runs[PLAIN, optimizer]
        for title, log_probs in (("logits", False), ("log-probabilities", True)):
            scores = [run.logits.log_softmax(-1) if log_probs else run.logits for run in seeds]
            pairs = list(zip(scores, seeds, strict=True))
            cells = [
                percent([(s < 0).double().mean().item() for s in scores]),
                percent([(s.amax(-1) < 0).double().mean().item() for s in scores]),
                percent([(wrong_flips(s, run.prior, 1.0) > 0).double().mean().item() for s, run in pairs]),
                percent([to_more_frequent(s, run.prior, 1.0) for s, run in pairs]),
                percent([errors(s, run)["balanced"] for s, run in pairs]),
                percent([errors(divide_scores(s, run.prior, 1.0), run)["balanced"] for s, run in pairs]),
            ]
            rows.append([title, optimizer, *cells])
    head = ["scores", "optimizer", "negative scores, %", "images with these alone", "images with a pair turned around"]
    head += ["predictions moved to a more frequent class", "balanced error before", "after"]
    caption = (
        "Of cross-entropy; division by the prior, tau 1. Logits and log-probabilities of an image differ by a "
        "constant, and are the same classifier until they are divided."
    )
    return Table(title="Scores divided by the prior", head=head, rows=rows, caption=caption)


def page(tables: Sequence[Table], runs: Runs, out: Path) -> Page:
    losses = list(dict.fromkeys(loss for loss, _ in runs))
    counts = runs[PLAIN, OPTIMIZERS[0]][0].counts.numpy()
    norms = np.stack([np.mean([(r.norms / r.norms.max()).numpy() for r in runs[PLAIN, o]], 0) for o in OPTIMIZERS])
    marks = [(f"mark-{i}", optimizer) for i, optimizer in enumerate(OPTIMIZERS)]
    scatter = Figure(
        title="Norms of class weights, relative to the largest",
        svg=figures.class_scatter(
            counts, norms, "Norms of class weights over labeled images of the class", x_label="labeled images"
        ),
        legend=marks,
        caption="Cross-entropy, mean over seeds.",
    )
    curves = []
    for optimizer in OPTIMIZERS:
        series = []
        for i, correction in enumerate(CORRECTIONS):
            of_seeds = np.array(
                [
                    [errors(corrected(run, correction, tau), run)["balanced"] for tau in STRENGTHS]
                    for run in runs[PLAIN, optimizer]
                ]
            )
            deviation = of_seeds.std(0, ddof=1) if len(of_seeds) > 1 else None
            series.append(Series(x=np.array(STRENGTHS), y=of_seeds.mean(0), spread=deviation, color=i))
        curves.append(
            Figure(
                title=f"Balanced error over tau, {optimizer}",
                svg=figures.lines(series, f"Balanced error of corrections over tau, {optimizer}", x_label="tau"),
                legend=[(f"line-{i}", correction) for i, correction in enumerate(CORRECTIONS)],
                caption="Cross-entropy, corrected after training; bands are a deviation over seeds.",
            )
        )
    balanced = np.array(
        [[np.mean([errors(r.logits, r)["balanced"] for r in runs[loss, o]]) for loss in losses] for o in OPTIMIZERS]
    )
    by_loss = Figure(
        title="Balanced error by loss",
        svg=figures.class_dots(balanced, losses, "Balanced error of each loss under each optimizer"),
        legend=marks,
    )
    plain = runs[PLAIN, OPTIMIZERS[0]]
    return Page(
        title="A long tail of labels",
        facts=[
            str(out),
            f"{len(counts)} classes of {counts.min()} to {counts.max()} labeled images, {len(plain[0].labels):,} test "
            f"images, {len(plain)} seeds",
        ],
        sections=[
            Section(title="Losses", tables=[tables[0]], figures=[by_loss, scatter]),
            Section(title="Corrections", tables=[tables[1]], figures=curves),
            Section(title="Order flips", tables=[tables[2]]),
        ],
    )


def text_of(table: Table) -> str:
    rows = [table.head, ["---"] * len(table.head), *table.rows]
    return f"{table.title}. {table.caption}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def jobs_of(settings: list[str], seeds: Sequence[int], adamw_lr: float, out: Path) -> list[PlannedRun]:
    """A run for each seed, loss and optimizer."""
    resolved = {}
    for loss in LABELED_LOSSES:
        for optimizer in OPTIMIZERS:
            flags = ["--method=Supervised", f"--labeled_loss={loss}", f"--optim.name={optimizer}"]
            flags += [f"--optim.lr={adamw_lr}"] if optimizer == "adamw" else []
            parser = make_parser("long_tail", Config)
            resolved[loss, optimizer] = resolve(parser, parser.read_arguments([*settings, *flags]))[1]
    return [
        PlannedRun(
            title=f"{loss}, {optimizer}, seed {seed}",
            variant=f"{loss}-{optimizer}",
            seed=seed,
            resolved={**each, "seed": seed},
            path=out / f"{loss}-{optimizer}" / f"seed-{seed}",
        )
        for seed in seeds
        for (loss, optimizer), each in resolved.items()
    ]


def train_all(jobs: Sequence[PlannedRun], at_once: int, *, resume: bool, overwrite: bool) -> None:
    """Runs what is not finished.

    Raises:
        InputError: a run of other settings is there, or one that may not be gone on with.
        StoppedError: a run failed.
    """
    held = [job for job in jobs if RunFolder(job.path).holds_run()]
    if held and not (resume or overwrite):
        raise InputError(f"{str(held[0].path)!r} holds a run: pass --resume to go on, --overwrite to replace it")
    if overwrite:
        for job in held:
            RunFolder(job.path).clear()
    waiting = [job for job in jobs if not job.is_finished()]
    with closing(train_in_this_process(waiting) if at_once == 1 else train_in_processes(waiting, at_once)) as ended:
        for job, error in ended:
            if error is not None:
                raise StoppedError(f"{job.title}: {error}")


@entry_point
def main(arguments: list[str]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("long_tail.py starts its own processes: run it without accelerate launch, with --jobs")
    own = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own.allow_abbrev = False
    own.epilog = "All other flags are those of debias-ssl train."
    own.add_argument("--out", type=Path, required=True, help="folder for runs, tables and figures")
    own.add_argument("--seeds", default="0,1,2", help="seeds of splits and runs, with commas between")
    own.add_argument("--adamw_lr", type=float, default=0.002, help="learning rate under AdamW")
    own.add_argument("--jobs", type=int, default=1, help="runs at a time")
    own.add_argument("--resume", action="store_true", help="go on with what is in --out")
    own.add_argument("--overwrite", action="store_true", help="replace the runs in --out")
    parsed, settings = own.parse_known_args(arguments)
    if parsed.jobs < 1:
        raise InputError(f"--jobs is {parsed.jobs}, must be at least 1")
    jobs = jobs_of(settings, seeds_of(parsed.seeds), parsed.adamw_lr, parsed.out)
    if jobs[0].resolved["data"]["labeled_imbalance"] == 1 and jobs[0].resolved["data"]["train_imbalance"] == 1:
        raise InputError("the labels have no long tail: pass --data.labeled_imbalance or --data.train_imbalance")
    train_all(jobs, parsed.jobs, resume=parsed.resume, overwrite=parsed.overwrite)
    runs: dict[tuple[str, str], list[Trained]] = {}
    for job in jobs:
        loss, _, optimizer = job.variant.partition("-")
        runs.setdefault((loss, optimizer), []).append(read_trained(job.path))
    tables = [loss_table(runs), correction_table(runs), flip_table(runs)]
    text = "\n".join(map(text_of, tables))
    write_aside(parsed.out / "long_tail.txt", text)
    write_aside(parsed.out / "long_tail.html", render(page(tables, runs, parsed.out), __version__))
    print(text, end="")


if __name__ == "__main__":
    main()
